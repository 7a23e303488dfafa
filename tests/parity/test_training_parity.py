"""What nnUNetTrainer decides, beside what a run has: numbers, schedule, samples, best epoch."""

import inspect
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from covid_jax.config import Config
from covid_jax.data import augment as aug
from covid_jax.data.preprocess import Geometry
from covid_jax.data.sampling import Sampler, Source
from covid_jax.data.store import StoredCase
from covid_jax.training.progress import moving_average
from covid_jax.training.state import learning_rate
from tests.conftest import installed

torch = installed("torch", extra="peers")
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader  # noqa: E402
from nnunetv2.training.logging.nnunet_logger import MetaLogger  # noqa: E402
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler  # noqa: E402
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer  # noqa: E402


def test_the_numbers_of_a_run_are_the_trainers():
    source = inspect.getsource(nnUNetTrainer)
    told = dict(re.findall(r"self\.(\w+) = ([\d.e-]+)$", source, re.MULTILINE))
    ours = Config()
    for name, value in {
        "initial_lr": ours.optimizer.learning_rate,
        "weight_decay": ours.optimizer.weight_decay,
        "oversample_foreground_percent": ours.data.foreground_fraction,
        "num_iterations_per_epoch": ours.steps_per_epoch,
        "num_val_iterations_per_epoch": ours.validation_steps,
        "num_epochs": ours.epochs,
        "save_every": ours.checkpoint_every,
    }.items():
        assert float(told[name]) == value
    assert f"momentum={ours.optimizer.momentum}, nesterov=True" in source
    assert f"clip_grad_norm_(self.network.parameters(), {ours.optimizer.clip_norm:.0f})" in source
    assert "self.probabilistic_oversampling = False" in source


def test_the_learning_rate_of_every_epoch_is_poly_lr_schedulers():
    sgd = torch.optim.SGD([torch.zeros(1)], 0.01)
    scheduler = PolyLRScheduler(sgd, 0.01, 40)
    for epoch in range(40):
        scheduler.step(epoch)
        ours = learning_rate(Config(epochs=40), epoch)
        assert ours == pytest.approx(sgd.param_groups[0]["lr"], rel=1e-12)


@pytest.mark.parametrize("patch", [(56, 160, 192), (16, 48, 48), (16, 49, 48), (64, 64, 64)])
def test_what_turns_and_mirrors_depends_on_the_patch_as_in_the_trainer(patch):
    trainer = SimpleNamespace(
        configuration_manager=SimpleNamespace(patch_size=patch), print_to_log_file=lambda *_: None
    )
    configure = nnUNetTrainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size
    (lowest, highest), planar, cut, mirrored = configure(trainer)
    assert planar == aug.is_planar(patch)
    assert mirrored == (0, 1, 2) == Config().inference.mirror_axes
    assert -lowest == highest == pytest.approx(np.pi if planar else np.pi / 6)
    assert (np.array(aug.input_size(patch)) >= cut).all()


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 9])
def test_the_same_samples_of_a_batch_lie_around_a_lesion(batch_size):
    """The last ones, not by chance."""
    loader = nnUNetDataLoader.__new__(nnUNetDataLoader)
    loader.batch_size, loader.oversample_foreground_percent = batch_size, 0.33
    shape = (20, 30, 40)
    case = StoredCase(
        Path("case"),
        np.zeros((*shape, 1), np.float32),
        np.zeros(shape, np.uint8),
        (np.array([[10, 15, 20]]),),
        Geometry((1, 1, 1), (), (), (), ()),
    )
    patch = (8, 8, 8)
    source = (Source((case,), (1,)),)
    ours = Sampler(source, 2, patch, patch, batch_size, 0.33, 0, "training")
    for sample in range(batch_size):
        corners = {ours.draw(step, sample).corner for step in range(8)}
        assert (len(corners) == 1) == loader._oversample_last_XX_percent(sample)


def test_the_moving_average_of_the_dice_is_the_loggers(tmp_path):
    logger, epochs = MetaLogger(str(tmp_path), resume=False), []
    for epoch, dice in enumerate(np.random.default_rng(0).random(12).tolist()):
        logger.log("mean_fg_dice", dice, epoch)
        epochs.append({"dice_average": moving_average(epochs, dice)})
    averages = [line["dice_average"] for line in epochs]
    assert averages == logger.get_value("ema_fg_dice", step=None)
