r"""Trains one run: one strategy on one fold, from the config file and its overrides.

    python -m covid_jax.train --config=configs/paper.py:body-msd --workdir=runs/body-msd \
        --config.data.prepared_dir=prepared --config.pretrained=runs/pretraining-msd

The work directory gets config.json, checkpoints/, best/ (the epoch with the best moving average of
the validation Dice, a run's folder too), log.jsonl, progress.png, TensorBoard events and, at the
end, predictions/ and metrics.json of the fold's test cases, and model/ to share. Starting
the same command again goes on where the last checkpoint stands; another config for the same
directory is refused, but for more epochs and settings that move no parameter. SIGTERM, SIGUSR1 and
Ctrl-C make it save and end with status 75: start it again.

Several processes train one run when each is started with --distributed, where JAX knows the
cluster (Slurm, a TPU slice), or else with --coordinator, --num_processes and --process_id; the
mesh (--config.mesh.data, --config.mesh.space) spans their devices. They share the work directory.

A run is a strategy and the source of its pre-training (scratch, continual-SOURCE, body-SOURCE,
frozen_encoder-SOURCE, multi_encoder-SOURCE), or pretraining-SOURCE; sources are msd, structseg,
nsclc and multi_lesion, or any name: of a prepared dataset, or of what --config.pretrained is.
"""

import contextlib
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from covid_jax.command import as_process, require, run_command
from covid_jax.config import (
    Config,
    check_config_arguments,
    config_from_flag,
    define_config_flag,
)
from covid_jax.config import validate as validate_config
from covid_jax.device import announce_device
from covid_jax.errors import UserError
from covid_jax.evaluation.scoring import score_run
from covid_jax.lock import only_here
from covid_jax.reporting.card import export_model, write_card_of_best
from covid_jax.stopping import StoppedError
from covid_jax.training.checkpoint import Checkpoints
from covid_jax.training.completion import fitted, network_notes, planned
from covid_jax.training.dry_run import dry_run
from covid_jax.training.explain import explain
from covid_jax.training.parallel import (
    compiling_anew,
    keep_compiled_programs,
    make_mesh,
)
from covid_jax.training.platform import (
    deterministic,
    keep_choices,
    platform_for,
    platform_of,
    with_dtype,
)
from covid_jax.training.pretrained import load_pretrained
from covid_jax.training.processes import (
    among_others,
    end_processes,
    first_before_others,
    is_first,
    start_processes,
    stop_signals,
    supervise,
)
from covid_jax.training.program import make_program
from covid_jax.training.progress import EpochLog, Progress, dice_by_name, moving_average, with_bar
from covid_jax.training.provenance import note_device, start_notes
from covid_jax.training.replay import replay
from covid_jax.training.run import (
    Run,
    announcement,
    make_phantom_data,
    open_data,
    samplers,
    title,
    unfreezing,
)
from covid_jax.training.state import TrainState, learning_rate, new_params, schedule
from covid_jax.training.step import mean_dice, pseudo_dice
from covid_jax.training.watchdog import Watchdog
from covid_jax.training.workdir import as_begun, check_place, claim_workdir
from covid_jax.transfer import freezing
from covid_jax.transfer.strategies import (
    STRATEGIES,
    frozen_masks,
    initial_params,
)

_FLAGS = flags.FlagValues()
define_config_flag(_FLAGS)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", _FLAGS)
_EXPLAIN = flags.DEFINE_bool(
    "explain", False, "Print what the run would do, and train nothing.", _FLAGS
)
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Check config, data, mesh, memory and disk, and train nothing.", _FLAGS
)
_REPLAY = flags.DEFINE_integer(
    "replay",
    None,
    "Go to this step from the checkpoint before it, look into it, and save nothing.",
    lower_bound=0,
    flag_values=_FLAGS,
)
_ACCEPT_CHANGES = flags.DEFINE_bool(
    "accept_changes",
    False,
    "Go on with a run whose prepared data (its own or its pre-training's) or program version have "
    "changed, or, where it is deterministic, the device.",
    _FLAGS,
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "This is one of several processes, in a cluster that JAX knows.", _FLAGS
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "This is one of several processes; HOST:PORT of the first one.", _FLAGS
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", 1, "With --coordinator: how many.", lower_bound=1, flag_values=_FLAGS
)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", 0, "With --coordinator: which of them, from 0.", lower_bound=0, flag_values=_FLAGS
)


def set_up(config: Config, workdir: str | Path) -> Run:
    """The run that `config` describes, before its first step.

    Raises:
      UserError: its data is missing or damaged, or does not fit its network or the devices.
    """
    workdir = Path(workdir)
    validate_config(config)
    # The data: the plan that all runs share, and where the patches of this fold come from.
    with first_before_others():
        make_phantom_data(config, workdir)
        plan, datasets = open_data(config, workdir)
    config = fitted(config, plan, datasets)
    masked = plan.masked_channels
    training, validation = samplers(config, datasets, masked)

    # The devices, what is fast on them, and the step: one function for all strategies and devices.
    mesh = make_mesh(config.mesh, config.data.batch_size, config.data.patch_size[0])
    platform = platform_for(mesh.devices.flat[0], **vars(config.mesh))
    if config.deterministic:
        platform = deterministic(platform, workdir)
    config = with_dtype(config, platform)
    marginal = config.loss.marginal and len(datasets) > 1
    program = make_program(config, mesh, platform, marginal, masked)

    # The parameters: new, some of them replaced by pre-trained ones, some of them frozen.
    image_shape = (1, *config.data.patch_size, config.model.in_channels)
    new = new_params(program.network, config.seed, image_shape, config.fold)
    params = initial_params(
        STRATEGIES[config.strategy], new, load_pretrained(config), config.first_conv
    )
    masks = frozen_masks(config, params)
    return Run(
        config=config,
        plan=plan,
        datasets=datasets,
        training=training,
        validation=validation,
        mesh=mesh,
        platform=platform,
        program=program,
        params=params,
        masks=masks,
    )


def fit(run: Run, workdir: Path) -> Any:
    """Trains epoch after epoch, from the latest checkpoint on; returns the parameters.

    Raises:
      StoppedError: the run was asked to stop, and has saved.
    """
    config, batch_size, length = run.config, run.config.data.batch_size, run.config.steps_per_epoch
    first, epochs, _ = schedule(config)
    with contextlib.ExitStack() as opened:
        asked = opened.enter_context(stop_signals())
        if run.platform.compiles_anew:
            opened.enter_context(compiling_anew())
        checkpoints = opened.enter_context(Checkpoints(workdir))
        saved = checkpoints.newest()
        start, so_far = (saved.step, saved.epoch) if saved else (0, {})
        state, frozen = run.begin(saved)
        if is_first():
            if start < epochs * length:
                note_device(workdir)
            print(announcement(run, start))
        heading = title(config, run.datasets)
        progress = opened.enter_context(Progress(workdir, start, epochs, heading, is_first()))
        watchdog = opened.enter_context(Watchdog())
        batches = opened.enter_context(contextlib.closing(run.batches(start, epochs * length)))
        key = jax.random.key(config.seed)
        for epoch in range(start // length, epochs):
            state, frozen = run.enter(epoch, state, frozen)
            if is_first() and epoch in run.masks and epoch > 0:
                print(f"\n{unfreezing(run, epoch)}", flush=True)
            rate = learning_rate(config, first + epoch)
            log, so_far = EpochLog(so_far, run.batch_names), {}
            steps = range(max(start, epoch * length), (epoch + 1) * length)
            compiles = steps.start if epoch in run.masks else None
            for step in with_bar(steps, length, f"epoch {epoch + 1}/{epochs}", log):
                watchdog.begin(step if step != compiles else None)
                before = time.perf_counter()
                patches = next(batches)
                waited = time.perf_counter() - before
                batch = run.put(patches)
                state, metrics = run.program.train_step(
                    state, frozen, batch, jnp.float32(rate), key
                )
                log.add(step, metrics, waited)
                if stop := asked(step):
                    break
            watchdog.begin(None)
            if step + 1 < (epoch + 1) * length:
                checkpoints.save(state, frozen, log.unfinished())
            else:
                line = {
                    "step": step + 1,
                    "epoch": epoch,
                    "learning_rate": rate,
                    "frozen_parameters": run.frozen_parameters(epoch),
                    **log.line(batch_size),
                    **validate(run, state, frozen, epoch),
                }
                if "validation_dice" in line:
                    average = moving_average(progress.epochs, line["validation_dice"])
                    line["dice_average"] = average
                    checkpoints.consider(state, frozen, average)
                progress.epoch(line)
                if stop or (epoch + 1) % config.checkpoint_every == 0 or epoch + 1 == epochs:
                    checkpoints.save(state, frozen)
            keep_choices(workdir)
            if stop:
                checkpoints.wait()
                raise StoppedError(f"{workdir}: saved after step {step + 1}; start it again")
    return jax.device_get(freezing.join(state.trainable, frozen))


def validate(run: Run, state: TrainState, frozen: Any, epoch: int) -> dict[str, float]:
    """Loss, Dice and seconds of an epoch's validation batches; nothing where it has none."""
    began, steps = time.perf_counter(), run.config.validation_steps
    batches = run.validation.batches(epoch * steps, (epoch + 1) * steps, run.samples)
    found = [
        run.program.eval_step(state.trainable, frozen, run.put(patches)) for patches in batches
    ]
    if not found:
        return {}
    metrics = jax.device_get(found)
    dice = pseudo_dice(metrics)
    return {
        "validation_loss": float(np.mean([batch["loss"] for batch in metrics])),
        "validation_dice": mean_dice(dice),
        **dice_by_name(run.config, dice),
        "validation_seconds": time.perf_counter() - began,
    }


def finish(run: Run, params: Any, workdir: Path) -> None:
    """Scores the fold's test cases, and makes the folder to share."""
    if run.config.test and not (workdir / "metrics.json").is_file():
        metrics = score_run(
            run.config,
            run.plan,
            run.datasets[0],
            params,
            workdir,
            platform_of(run.platform.name),  # of one device: the others have parted
        )
        means = ", ".join(f"{name} {value:.3f}" for name, value in metrics["mean"].items())
        what = title(run.config, run.datasets[:1])
        print(f"{what}, {len(metrics['cases'])} test cases: {means}")
    if not (workdir / "model").is_dir():
        export_model(workdir)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    write_card_of_best(workdir, run.config, run.plan, size)
    print(f"done: {workdir}")


def train(config: Config, workdir: str | Path, accept_changes: bool = False) -> None:
    """Trains the run that `config` describes in `workdir`, or what is left of it.

    With `accept_changes` even if its data or this program have changed since it began.

    Raises:
      StoppedError: it was asked to stop; starting it again goes on.
    """
    workdir = Path(workdir)
    check_place(workdir, config)
    alone = only_here(workdir, "another training") if is_first() else contextlib.nullcontext()
    with alone:
        run = set_up(config, workdir)
        with first_before_others():
            claim_workdir(workdir, run.config, run.plan, run.datasets, accept_changes)
        params = fit(run, workdir)
        if end_processes():
            finish(run, params, workdir)


def work() -> None:
    """Trains what the flags say, or tells about it."""
    _check_flags()
    config = as_begun(config_from_flag(_FLAGS), Path(_WORKDIR.value or "."))
    if _EXPLAIN.value:
        announce_device()
        of_network, of_start = network_notes(config), []
        if config.data.prepared_dir:
            plan, datasets = open_data(config, Path())
            config = fitted(config, plan, datasets)
            of_start = start_notes(config, plan, datasets)
        else:
            config = planned(config, None)
        here = platform_for(jax.devices()[0], **vars(config.mesh))
        print(explain(with_dtype(config, here), of_network, of_start))
        return
    keep_compiled_programs()
    if _DRY_RUN.value:
        announce_device()
        with tempfile.TemporaryDirectory() as folder:
            print(dry_run(set_up(config, Path(folder)), Path(_WORKDIR.value or ".")))
        return
    require(_WORKDIR)
    workdir = Path(_WORKDIR.value)
    if _COORDINATOR.value or _DISTRIBUTED.value:
        supervise()
        start_processes(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    if is_first():
        announce_device()
    with among_others():
        if _REPLAY.value is None:
            train(config, workdir, _ACCEPT_CHANGES.value)
        else:
            with only_here(workdir, "another training"):
                print(replay(set_up(config, workdir), workdir, _REPLAY.value))


def _check_flags() -> None:
    """Raises a UserError for flags that would be passed over."""
    looks = {"--explain": _EXPLAIN.value, "--dry_run": _DRY_RUN.value}
    looks["--replay"] = _REPLAY.value is not None
    asked = [name for name, given in looks.items() if given]
    if len(asked) > 1:
        raise UserError(f"{' and '.join(asked)}: give one of them, each trains nothing")
    if asked and _ACCEPT_CHANGES.value:
        raise UserError(f"--accept_changes has no meaning with {asked[0]}, which trains nothing")
    if (_DRY_RUN.value or _EXPLAIN.value) and (_COORDINATOR.value or _DISTRIBUTED.value):
        raise UserError(
            f"{asked[0]} is of one process: leave out --coordinator and --distributed (on a CPU "
            "XLA_FLAGS=--xla_force_host_platform_device_count=N stands for N devices)"
        )
    if not _COORDINATOR.value and (_NUM_PROCESSES.value, _PROCESS_ID.value) != (1, 0):
        raise UserError("--num_processes and --process_id need --coordinator=HOST:PORT")
    if _COORDINATOR.value and _DISTRIBUTED.value:
        raise UserError("--distributed finds the coordinator itself: leave out one of both")


def main(arguments: Sequence[str]) -> int:
    """This command; returns its exit status."""
    return run_command(work, _FLAGS, __doc__, arguments, check_config_arguments)


if __name__ == "__main__":
    as_process(main)
