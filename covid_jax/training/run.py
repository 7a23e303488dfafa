"""What a run stands on: its prepared data, its network, the devices that it trains on."""

import dataclasses
from collections.abc import Generator
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from covid_jax.config import Config
from covid_jax.data.augment import input_size
from covid_jax.data.plan import Plan, load_plan
from covid_jax.data.preparation import prepare_phantom
from covid_jax.data.sampling import Batch, Sampler, Source, Stream
from covid_jax.data.store import StoredDataset, load_case, load_dataset
from covid_jax.errors import UserError
from covid_jax.files import allow_open_files
from covid_jax.label_space import OUTSIDE
from covid_jax.model.conv import form_in
from covid_jax.training.checkpoint import Saved
from covid_jax.training.parallel import local_samples, put_batch, replicate
from covid_jax.training.platform import Platform
from covid_jax.training.program import Program
from covid_jax.training.provenance import start_notes
from covid_jax.training.state import TrainState, initial_state, refreeze, schedule
from covid_jax.transfer.freezing import split
from covid_jax.transfer.strategies import new_and_frozen

Tree = Any

_PHANTOM_CASES = 6


@dataclasses.dataclass(frozen=True)
class Run:
    """What training works with.

    Attributes:
      config: with the number of classes that the datasets have, and the platform's dtype.
      training, validation: where batches come from.
      mesh, platform: the devices, and what was chosen for them.
      params: before the first step.
      masks: of what is frozen, by the epoch from which each holds.
    """

    config: Config
    plan: Plan
    datasets: list[StoredDataset]
    training: Sampler
    validation: Sampler
    mesh: Mesh
    platform: Platform
    program: Program
    params: Tree
    masks: dict[int, Tree]

    def begin(self, saved: Saved | None) -> tuple[TrainState, Tree]:
        """(state, frozen) on the devices, as saved or before the first step.

        Raises:
          UserError: the checkpoint is of another network.
        """
        last = max(saved.step - 1, 0) // self.config.steps_per_epoch if saved else 0
        held = self.held_at(last)
        trainable, frozen = split(self.params, held)
        state = initial_state(trainable, self.program.transform)
        if saved:
            state, frozen = saved.state(state, held)
        return replicate((state, frozen), self.mesh)

    def held_at(self, epoch: int) -> Tree:
        """The mask of what is frozen in an epoch."""
        return self.masks[max(since for since in self.masks if since <= epoch)]

    def frozen_parameters(self, epoch: int) -> int:
        """How many parameters are frozen in an epoch."""
        _, frozen = split(self.params, self.held_at(epoch))
        return sum(leaf.size for leaf in jax.tree.leaves(frozen))

    def enter(self, epoch: int, state: TrainState, frozen: Tree) -> tuple[TrainState, Tree]:
        """(state, frozen) at the beginning of an epoch, from which on others may be frozen."""
        if epoch not in self.masks:
            return state, frozen
        refrozen = refreeze(state, frozen, self.masks[epoch], self.program.transform)
        return replicate(refrozen, self.mesh)

    def put(self, batch: Batch) -> dict[str, jax.Array]:
        """A batch of the host on the devices."""
        return put_batch(vars(batch), self.mesh, self.config.data.batch_size)

    def batches(self, start: int, stop: int) -> Generator[Batch]:
        """Of training steps start .. stop - 1, this process's samples."""
        return self.training.batches(start, stop, self.samples, self.config.data.workers)

    def batch_names(self, step: int) -> str:
        """The cases of the batch of a training step, and where they are cut."""
        samples = range(self.config.data.batch_size)
        return ", ".join(str(self.training.draw(step, sample)) for sample in samples)

    @property
    def samples(self) -> range:
        """Those of each batch that this process makes."""
        return local_samples(self.mesh, self.config.data.batch_size)


def make_phantom_data(config: Config, workdir: Path) -> None:
    """Makes and prepares the synthetic dataset `phantom`, where it is missing, for a run of it."""
    if config.data.datasets == ("phantom",):
        prepare_phantom(_prepared_dir(config, workdir), _PHANTOM_CASES, seed=0)


def _prepared_dir(config: Config, workdir: Path) -> Path:
    return Path(config.data.prepared_dir or workdir / "data")


def open_data(config: Config, workdir: Path) -> tuple[Plan, list[StoredDataset]]:
    """The plan and the datasets of a run, from config.data.prepared_dir.

    Of the synthetic dataset `phantom`, if that is empty, from `workdir`/data.
    """
    if not (config.data.prepared_dir or config.data.datasets == ("phantom",)):
        raise UserError("config.data.prepared_dir is empty: give the folder that prepare wrote")
    prepared_dir = _prepared_dir(config, workdir)
    plan = load_plan(prepared_dir / "plan.json")
    return plan, [load_dataset(prepared_dir, name, plan.hash) for name in config.data.datasets]


def title(config: Config, datasets: list[StoredDataset]) -> str:
    """What a run trains on what, with SYNTHETIC where the data is."""
    names = (f"{'SYNTHETIC ' if d.synthetic else ''}{d.name}" for d in datasets)
    what = "pre-training" if config.pretraining else config.strategy
    return f"{what} on {', '.join(names)}, fold {config.fold}"


def announcement(run: Run, start: int) -> str:
    """What is trained on what, from which step on."""
    size = sum(leaf.size for leaf in jax.tree.leaves(run.params))
    frozen = run.frozen_parameters(start // run.config.steps_per_epoch)
    _, epochs, _ = schedule(run.config)
    several = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    going_on = f"\ngoing on from the checkpoint of step {start}" if start else ""
    return (
        f"{title(run.config, run.datasets)}: {epochs} epochs of {run.config.steps_per_epoch} "
        f"steps, {size:,} parameters, {frozen:,} of them frozen, {jax.device_count()} x "
        f"{jax.devices()[0].device_kind}{several}, in {run.config.dtype}, convolutions: "
        f"{form_in(run.config.dtype, run.platform.form)}{going_on}"
        + "".join(f"\n{note}" for note in start_notes(run.config, run.plan, run.datasets))
        + "".join(f"\n{note}" for note in new_and_frozen(run.config, run.masks[0]))
    )


def unfreezing(run: Run, epoch: int) -> str:
    """What an epoch of config.frozen_schedule changes."""
    patterns = " ".join(pattern for since, pattern in run.config.frozen_schedule if since == epoch)
    return (
        f"from epoch {epoch}: {patterns}; {run.frozen_parameters(epoch):,} parameters are frozen, "
        f"{run.frozen_parameters(epoch - 1):,} before"
    )


def samplers(
    config: Config, datasets: list[StoredDataset], masked: tuple[int, ...] = ()
) -> tuple[Sampler, Sampler]:
    """The samplers of training and of validation: of the fold's training and of its test cases.

    Each dataset's labels become classes of their own: multi_lesion has one for each lesion. Those
    of which regions are made stay what they are.
    Training patches come with as much around them as augmentation needs, and where there are
    `masked` channels, with what is OUTSIDE.
    """
    patch_size = config.data.patch_size
    cut_size = {
        "training": input_size(patch_size) if config.data.augment else patch_size,
        "validation": patch_size,
    }

    folds = [dataset.split(config.fold) for dataset in datasets]
    # Image and label of each case are mapped for as long as the run lasts.
    allow_open_files(2 * sum(len(fold.train) + len(fold.test) for fold in folds))

    def sampler(stream: Stream) -> Sampler:
        sources, first = [], 1
        for dataset, fold in zip(datasets, folds, strict=True):
            # Validated by the test cases: by these patches best/ alone is selected, and what is
            # tested is the last epoch (nnU-Net: checkpoint_final).
            names = fold.train if stream == "training" else fold.test
            count = 0 if dataset.label_space.regions else len(dataset.labels)
            classes = tuple(range(first, first + count))
            sources.append(Source(tuple(load_case(dataset, name) for name in names), classes))
            first += count
        return Sampler(
            tuple(sources),
            config.model.num_classes,
            patch_size,
            cut_size[stream],
            config.data.batch_size,
            config.data.foreground_fraction,
            config.seed,
            stream,
            OUTSIDE if masked and config.data.augment and stream == "training" else 0,
        )

    return sampler("training"), sampler("validation")
