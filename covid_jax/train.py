"""Trains one run: one strategy on one fold, from the config file and its overrides.

    python -m covid_jax.train --config=configs/paper.py:body-msd --workdir=runs/body-msd
        --config.data.prepared_dir=prepared --config.pretrained=runs/pretraining-msd

The work directory gets config.json, checkpoints/, log.jsonl, progress.png, TensorBoard events and,
at the end, predictions/ and metrics.json of the fold's test cases, and model/ to share. Starting
the same command again goes on where the last checkpoint stands; another config for the same
directory is refused.

A run is a strategy and the source of its pre-training (scratch, continual-SOURCE, body-SOURCE,
frozen_encoder-SOURCE, multi_encoder-SOURCE), or pretraining-SOURCE; sources are msd, structseg,
nsclc and multi_lesion.
"""

import functools
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from tqdm import tqdm

from covid_jax.config import (
    Config,
    check_config_arguments,
    config_from_flag,
    define_config_flag,
)
from covid_jax.data.augment import augment
from covid_jax.data.plan import Plan
from covid_jax.data.preprocess import Geometry, PreparedCase, as_volume
from covid_jax.data.store import StoredDataset, load_case
from covid_jax.data.volume import read_volume, write_volume
from covid_jax.errors import UserError, run_command
from covid_jax.evaluation.folders import evaluate_folders, save_metrics
from covid_jax.inference.postprocess import (
    choose,
    load_postprocessing,
    save_postprocessing,
    to_mask,
)
from covid_jax.inference.scan import make_predictor
from covid_jax.lock import only_here
from covid_jax.model.conv import Form, fast_form
from covid_jax.reporting.card import export_model
from covid_jax.training.checkpoint import Checkpoints, load_pretrained
from covid_jax.training.explain import explain
from covid_jax.training.parallel import (
    cut_depth,
    keep_compiled_programs,
    local_samples,
    make_mesh,
    put_batch,
    replicate,
    where_it_lies,
)
from covid_jax.training.progress import Progress
from covid_jax.training.run import (
    claim_workdir,
    open_data,
    samplers,
    title,
    with_num_classes,
)
from covid_jax.training.state import (
    initial_state,
    learning_rate,
    new_params,
    optimizer,
    refreeze,
    schedule,
)
from covid_jax.training.step import make_eval_step, make_train_step, pseudo_dice
from covid_jax.transfer import freezing
from covid_jax.transfer.strategies import (
    STRATEGIES,
    frozen_masks,
    initial_params,
    network_of,
)

_CONFIG = define_config_flag()
flags.declare_key_flag("config")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_EXPLAIN = flags.DEFINE_bool("explain", False, "Print what the run would do, and train nothing.")
_ACCEPT_CHANGES = flags.DEFINE_bool(
    "accept_changes", False, "Go on with a run whose data or program version have changed."
)


def train(config: Config, workdir: Path, accept_changes: bool = False) -> None:
    """Trains the run that `config` describes in `workdir`, or what is left of it.

    With `accept_changes` even if its data or this program have changed since it began.
    """
    # The data: the plan that all runs share, and where the patches of this fold come from.
    plan, datasets = open_data(config, workdir)
    config = with_num_classes(config, datasets)
    training, validation = samplers(config, datasets)
    batch_size, workers = config.data.batch_size, config.data.workers
    mesh = make_mesh(config.mesh, batch_size, config.data.patch_size[0])
    samples = local_samples(mesh, batch_size)

    # The network: new parameters, some of them replaced by pre-trained ones, some of them frozen.
    form = fast_form(config.mesh.data, config.mesh.space)
    network = network_of(config, form)
    new = new_params(network, config.seed, (1, *config.data.patch_size, config.model.in_channels))
    params = initial_params(STRATEGIES[config.strategy], new, load_pretrained(config))
    masks = frozen_masks(config, params)

    # The step: one function for every strategy and any number of devices.
    transform = optimizer(config.optimizer)
    apply = lambda params, image: network.apply({"params": params}, cut_depth(image, mesh))  # noqa: E731
    marginal = config.loss.marginal and len(datasets) > 1
    loss = {"batch_dice": config.loss.batch_dice, "marginal": marginal}
    augmentation = functools.partial(augment, patch_size=config.data.patch_size)
    augmented = where_it_lies(augmentation, mesh) if config.data.augment else None
    train_step = make_train_step(apply, transform, augmented, **loss)
    eval_step = make_eval_step(apply, **loss)

    # The loop: go on from the latest checkpoint, epoch after epoch.
    claim_workdir(workdir, config, plan, datasets, accept_changes)
    first, epochs, _ = schedule(config)
    with Checkpoints(workdir) as checkpoints:
        start = checkpoints.latest_step()
        done = start // config.steps_per_epoch
        held = masks[max(epoch for epoch in masks if epoch <= max(done - 1, 0))]
        trainable, frozen = freezing.split(params, held)
        state = initial_state(trainable, transform)
        if start:
            state, frozen = checkpoints.restore(state, held)
        state, frozen = replicate((state, frozen), mesh)
        announce(config, datasets, params, held, start, form)
        progress = Progress(workdir, start, title(config, datasets))
        batches = training.batches(start, epochs * config.steps_per_epoch, samples, workers)
        key = jax.random.key(config.seed)
        for epoch in range(done, epochs):
            if epoch in masks:
                state, frozen = replicate(refreeze(state, frozen, masks[epoch], transform), mesh)
            rate = learning_rate(config, first + epoch)
            clock, losses, waiting = time.perf_counter(), [], 0.0
            with tqdm(total=config.steps_per_epoch, unit="step", mininterval=1) as bar:
                bar.set_description(f"epoch {epoch + 1}/{epochs}")
                for _ in range(config.steps_per_epoch):
                    asked = time.perf_counter()
                    patches = next(batches)
                    waiting += time.perf_counter() - asked
                    batch = put_batch(vars(patches), mesh, batch_size)
                    state, metrics = train_step(state, frozen, batch, jnp.float32(rate), key)
                    losses.append(metrics["loss"])
                    # Read a step late, so that the device never waits for the host.
                    shown = float(losses[-2]) if len(losses) > 1 else float("nan")
                    bar.set_postfix(loss=f"{shown:.3f}", refresh=False)
                    bar.update()
            line = {
                "step": (epoch + 1) * config.steps_per_epoch,
                "epoch": epoch,
                "loss": float(np.mean(jax.device_get(losses))),
                "learning_rate": rate,
                "seconds": time.perf_counter() - clock,
                "waiting_seconds": waiting,  # for data; of them the device may have worked
            }
            clock, found = time.perf_counter(), []
            window = epoch * config.validation_steps, (epoch + 1) * config.validation_steps
            for patches in validation.batches(*window, samples):
                batch = put_batch(vars(patches), mesh, batch_size)
                found.append(eval_step(state.trainable, frozen, batch))
            if found:
                line["validation_loss"] = float(np.mean(jax.device_get([m["loss"] for m in found])))
                line["validation_dice"] = pseudo_dice(jax.device_get(found))
                line["validation_seconds"] = time.perf_counter() - clock
            progress.epoch(line)
            if (epoch + 1) % config.checkpoint_every == 0 or epoch + 1 == epochs:
                checkpoints.save(state, frozen)
        progress.close()

    # The fold's test cases, as predict would predict them.
    if config.test and not (workdir / "metrics.json").is_file():
        test(config, plan, datasets[0], freezing.join(state.trainable, frozen), workdir)
    if not (workdir / "model").is_dir():
        export_model(workdir)
    print(f"done: {workdir}")


def test(config: Config, plan: Plan, dataset: StoredDataset, params: Any, workdir: Path) -> None:
    """Writes predictions/ and metrics.json of the fold's test cases."""
    predict = make_predictor(config, plan, params, config.inference.mirror)
    folder = workdir / "predictions"
    split = dataset.split(config.fold)

    def predicted(name: str) -> tuple[np.ndarray, Geometry]:
        case = load_case(dataset, name)
        return predict(PreparedCase(case.image, None, case.geometry)), case.geometry

    if config.inference.choose:
        references = (read_volume(dataset.reference(name)).voxels for name in split.train)
        scored = zip((predicted(name)[0] for name in split.train), references, strict=True)
        save_postprocessing(workdir, choose(scored))
    postprocessing = load_postprocessing(workdir, config.inference)
    for name in tqdm(split.test, "testing", unit="case", mininterval=1):
        probabilities, geometry = predicted(name)
        mask = to_mask(probabilities, postprocessing)
        write_volume(folder / f"{name}.nii.gz", as_volume(mask, geometry))
    metrics = evaluate_folders(folder, dataset.references)
    save_metrics(workdir / "metrics.json", metrics)
    means = ", ".join(f"{name} {value:.3f}" for name, value in metrics["mean"].items())
    print(f"{title(config, [dataset])}, {len(metrics['cases'])} test cases: {means}")


def announce(
    config: Config, datasets: list[StoredDataset], params: Any, held: Any, start: int, form: Form
) -> None:
    """Prints what is trained on what."""
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    frozen = sum(size for size, h in zip(sizes, jax.tree.leaves(held), strict=True) if h)
    _, epochs, _ = schedule(config)
    print(
        f"{title(config, datasets)}: {epochs} epochs of {config.steps_per_epoch} steps, "
        f"{sum(sizes):,} parameters, {frozen:,} of them frozen, "
        f"{jax.device_count()} x {jax.devices()[0].device_kind}, convolutions: {form}"
    )
    if start:
        print(f"going on from the checkpoint of step {start}")


def main() -> None:
    """Trains what the flags say."""
    config = config_from_flag(_CONFIG)
    if _EXPLAIN.value:
        if config.data.prepared_dir:
            config = with_num_classes(config, open_data(config, Path())[1])
        print(explain(config))
        return
    if not _WORKDIR.value:
        raise UserError("--workdir is missing (see --help)")
    keep_compiled_programs()
    with only_here(Path(_WORKDIR.value), "another training"):
        train(config, Path(_WORKDIR.value), _ACCEPT_CHANGES.value)


if __name__ == "__main__":
    run_command(main, __doc__, check_config_arguments)
