"""Checkpoints of a run, by orbax: RUN/checkpoints/STEP with the whole tree and the optimiser.

And RUN/best, a run folder itself, with the parameters of the best epoch.

A checkpoint is whole or absent (orbax writes it beside its place and renames it), and holds
digests of its arrays: what was damaged later is found when it is read, and never taken for good.
What the machine could not read is not damaged: that is told, and the checkpoint stays where it is.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from covid_jax.errors import UserError, system_error, writing
from covid_jax.files import whole_file
from covid_jax.training.processes import is_first
from covid_jax.training.state import TrainState
from covid_jax.transfer.freezing import join, leaves_by_path, split

Tree = Any
_KEPT = 2  # the newest, and one to go back to where that is damaged
_BESIDE = ("plan.json", "dataset.json", "provenance.json", "config.json")
"""What makes a run folder of checkpoints/; the last, by which it counts as one, last."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint, on the host.

    Attributes:
      step: after which it was saved.
      params: the whole tree.
      momentum: the leaves of the optimiser's state.
      epoch: what the log knows of the epoch in which the run was stopped; {} between two epochs.
    """

    step: int
    params: Tree
    momentum: list[np.ndarray]
    epoch: dict[str, Any]

    def state(self, like: TrainState, frozen_mask: Tree) -> tuple[TrainState, Tree]:
        """(state, frozen) with what was saved, laid out as `like`.

        Raises:
          UserError: the checkpoint has other leaves or shapes.
        """
        trainable, frozen = split(self.params, frozen_mask)
        leaves, structure = jax.tree.flatten(like.opt_state)
        _check_shapes(like.trainable, trainable)
        _check_shapes(leaves, self.momentum)
        state = TrainState(
            jnp.asarray(self.step, jnp.int32),
            jax.tree.map(jnp.array, trainable),
            jax.tree.unflatten(structure, [jnp.array(leaf) for leaf in self.momentum]),
        )
        return state, frozen


@dataclass(frozen=True)
class Best:
    """The epoch of a run with the highest moving average of the validation Dice.

    Attributes:
      step: after it.
      average: of the Dice, from the epoch before and its own (progress.moving_average).
    """

    step: int
    average: float


class Checkpoints:
    """The checkpoints of the run in `workdir`; a context manager that waits for the last one.

    Of several processes the first one writes.
    """

    def __init__(self, workdir: Path) -> None:
        self._workdir = workdir
        self._folder = workdir / "checkpoints"
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        if is_first():
            for folder in (self._folder, workdir / "best" / "checkpoints"):
                for unfinished in folder.glob("*.orbax-checkpoint-tmp*"):
                    shutil.rmtree(unfinished, ignore_errors=True)
            self._best = best_of(workdir)
            if self._best:
                _make_run(workdir, workdir / "best")
        self._to_keep: Tree = None
        self._manager = _manager(self._folder, keep=_KEPT)
        self._writer = ThreadPoolExecutor(1)
        self._written: Future[None] | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.shutdown()
        self._manager.close()
        self._check_last()

    def save(self, state: TrainState, frozen: Tree, epoch: dict[str, Any] | None = None) -> None:
        """Saves the state in the background. Raises what became of the save before."""
        self._check_last()
        if is_first():
            params = _on_host(state, frozen)
            momentum = [np.array(leaf) for leaf in jax.tree.leaves(state.opt_state)]
            saved = Saved(int(state.step), params, momentum, epoch or {})
            best = None if self._to_keep is None else self._best
            self._written = self._writer.submit(self._write, saved, best, self._to_keep)
            self._to_keep = None

    def consider(self, state: TrainState, frozen: Tree, average: float) -> None:
        """Keeps the parameters in memory if this moving average of the Dice is the best so far.

        The next save writes them, to RUN/best, before its own. So a run that is killed finds the
        best epoch up to its checkpoint, or a later one that it comes to again. nnU-Net: _best_ema.
        """
        if is_first() and (self._best is None or average > self._best.average):
            self._best = Best(int(state.step), average)
            self._to_keep = _on_host(state, frozen)

    def wait(self) -> None:
        """Waits, of several processes all, until what was saved is whole. Raises as save."""
        self._check_last()
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("saved")

    def newest(self) -> Saved | None:
        """The newest checkpoint that is whole; None without one.

        One that is damaged is told, and set aside as damaged-STEP.

        Raises:
          UserError: there are checkpoints, and all of them are damaged; or one cannot be read.
        """
        return _newest(self._manager, self._folder, None, self._set_aside)

    def _set_aside(self, step: int) -> None:
        aside = self._folder / f"damaged-{step}"
        with writing(aside):
            shutil.rmtree(aside, ignore_errors=True)
            (self._folder / str(step)).rename(aside)
        self._manager.reload()

    def _write(self, saved: Saved, best: Best | None, params: Tree) -> None:
        if best:
            _write_best(self._workdir, best, params)
        with writing(self._folder):
            _save(
                self._manager,
                saved.step,
                {"epoch": saved.epoch},
                params=saved.params,
                optimizer=saved.momentum,
            )

    def _check_last(self) -> None:
        written, self._written = self._written, None
        if written:
            written.result()


def save_params(workdir: Path, params: Tree) -> None:
    """Makes a checkpoint at step 0 that holds parameters and no optimiser state."""
    folder = workdir / "checkpoints"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with _manager(folder) as manager:
            _save(manager, 0, {}, params=jax.tree.map(np.asarray, params))


def newest_step(workdir: Path) -> int:
    """The step of a run's newest checkpoint; 0 where it has none."""
    names = [path.name for path in (workdir / "checkpoints").glob("*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def copy_newest(workdir: Path, target: Path) -> None:
    """Copies the newest checkpoint of a run to another folder, without the optimiser's state.

    And without orbax' notes of where it was written.
    """
    newest = workdir / "checkpoints" / str(newest_step(workdir))
    copy = target / "checkpoints" / newest.name
    shutil.copytree(newest, copy, ignore=shutil.ignore_patterns("optimizer", "commit_success.txt"))


def best_of(workdir: Path) -> Best | None:
    """The best epoch of a run, whose parameters are in RUN/best; None where none was validated.

    Raises:
      UserError: it is damaged, or cannot be read.
    """
    folder = workdir / "best" / "checkpoints"
    if not (step := newest_step(workdir / "best")):
        return None
    with _manager(folder) as manager:
        try:
            facts = _restore(manager, folder, step)["facts"]
            return Best(step, facts["average"])
        except (_DamagedError, KeyError) as error:
            raise UserError(
                f"{folder / str(step)}: damaged checkpoint; delete {workdir / 'best'}, and the "
                "best of the epochs to come takes its place"
            ) from error


def _write_best(workdir: Path, best: Best, params: Tree) -> None:
    """Writes RUN/best: a run folder with the parameters alone. The one before goes when it is."""
    folder = workdir / "best" / "checkpoints"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with _manager(folder) as manager:
            if best.step in manager.all_steps():  # trained again, and better
                manager.delete(best.step)
            _save(manager, best.step, {"average": best.average}, force=True, params=params)
            for step in manager.all_steps():
                if step != best.step:
                    manager.delete(step)
    _make_run(workdir, workdir / "best")


def _make_run(workdir: Path, folder: Path) -> None:
    """Copies what a run's checkpoints belong to, as it is now; its card is made at the end."""
    (folder / "README.md").unlink(missing_ok=True)
    for name in _BESIDE:
        if (workdir / name).is_file():
            with whole_file(folder / name) as partial:
                shutil.copyfile(workdir / name, partial)


def newest_until(workdir: Path, step: int) -> Saved | None:
    """As Checkpoints.newest, of those at `step` or before it; changes nothing in the folder."""
    folder = workdir / "checkpoints"
    if not folder.is_dir():
        return None
    with _manager(folder) as manager:
        return _newest(manager, folder, step, lambda _: None)


def load_params(workdir: str | Path) -> Tree:
    """The parameter tree of a run's latest checkpoint.

    Raises:
      UserError: the folder is no run, has no checkpoint, or one that is damaged or cannot be read.
    """
    folder = Path(workdir) / "checkpoints"
    if not folder.is_dir():
        raise UserError(f"{workdir}: not the work directory of a run, it has no checkpoints/")
    with _manager(folder) as manager:
        with _reading(folder):
            steps = manager.all_steps()
        if not steps:
            raise UserError(f"{folder}: no checkpoint in it")
        return _restore(manager, folder, max(steps), "params")["params"]


def _on_host(state: TrainState, frozen: Tree) -> Tree:
    """The whole tree of parameters, copied: the step that follows reuses the state's buffers."""
    return jax.tree.map(np.array, join(state.trainable, frozen))


def _manager(folder: Path, keep: int | None = None) -> ocp.CheckpointManager:
    """Orbax' manager, for this process alone; it writes when it is told to."""
    here = jax.process_index()
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        create=False,
        enable_async_checkpointing=False,
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            primary_host=here,
            active_processes={here},
            barrier_sync_key_prefix=f"process{here}",
        ),
    )
    with _reading(folder):
        return ocp.CheckpointManager(folder.resolve(), options=options)


def _save(
    manager: ocp.CheckpointManager,
    step: int,
    facts: dict[str, Any],
    force: bool = False,
    **trees: Tree,
) -> None:
    """Saves a checkpoint; with `force` also where there is one of a later step."""
    digests = {name: _digest(step, facts, tree) for name, tree in trees.items()}
    manager.save(
        step,
        args=ocp.args.Composite(
            facts=ocp.args.JsonSave({**facts, "sha256": digests}),
            **{name: ocp.args.StandardSave(tree) for name, tree in trees.items()},
        ),
        force=force,
    )


def _newest(
    manager: ocp.CheckpointManager,
    folder: Path,
    until: int | None,
    set_aside: Callable[[int], None],
) -> Saved | None:
    """As Checkpoints.newest, for all processes: the first one chooses."""
    saved = _newest_here(manager, folder, until, set_aside) if is_first() else None
    if jax.process_count() == 1:
        return saved
    step = int(multihost_utils.broadcast_one_to_all(np.int32(saved.step if saved else -1)))
    return None if step < 0 else saved or _read(manager, folder, step)


def _newest_here(
    manager: ocp.CheckpointManager,
    folder: Path,
    until: int | None,
    set_aside: Callable[[int], None],
) -> Saved | None:
    with _reading(folder):
        steps = [s for s in manager.all_steps() if until is None or s <= until]
    for step in sorted(steps, reverse=True):
        try:
            return _read(manager, folder, step)
        except _DamagedError as error:
            print(f"{error}; going back to an earlier one", flush=True)
            set_aside(step)
    if steps or (until is None and any(folder.glob("damaged-*"))):
        raise UserError(
            f"{folder}: every checkpoint is damaged; put a copy of one there, or delete "
            "the folder of the run to start over"
        )
    return None


def _read(manager: ocp.CheckpointManager, folder: Path, step: int) -> Saved:
    held = _restore(manager, folder, step, "params", "optimizer")
    return Saved(step, held["params"], held["optimizer"], held["facts"]["epoch"])


class _DamagedError(UserError):
    """A checkpoint does not hold what was saved."""


def _restore(
    manager: ocp.CheckpointManager, folder: Path, step: int, *names: str
) -> dict[str, Any]:
    """The facts and the named trees of a checkpoint.

    Raises:
      _DamagedError: it is damaged.
      UserError: it cannot be read.
    """
    place = folder / str(step)
    damaged = f"{place}: damaged checkpoint"
    with _reading(place):
        try:
            held = manager.restore(
                step,
                args=ocp.args.Composite(
                    facts=ocp.args.JsonRestore(),
                    **{name: ocp.args.StandardRestore() for name in names},
                ),
            )
            facts = dict(held.facts)
            digests = facts.pop("sha256")
        except Exception as error:  # whatever a decoder says of bytes that it did not write
            if _hindrance(error):
                raise
            raise _DamagedError(f"{damaged} ({type(error).__name__})") from error
        for name in names:
            if digests.get(name) != _digest(step, facts, held[name]):
                raise _DamagedError(f"{damaged} (its {name} is not what was saved)")
    return {"facts": facts, **{name: held[name] for name in names}}


@contextlib.contextmanager
def _reading(place: Path) -> Iterator[None]:
    """Turns what keeps the machine from reading `place` into one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not (why := _hindrance(error)):
            raise
        raise UserError(
            f"{place}: cannot be read ({why}); it is left as it is, start the same command again "
            "when that is mended"
        ) from error


def _hindrance(error: Exception) -> str:
    """What kept the machine from reading, whatever is in the file; empty where it read it."""
    number = system_error(error)
    if number is not None:
        gone = number in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
        return "" if gone else os.strerror(number)
    out_of_memory = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
    return "out of memory" if out_of_memory else ""


def _digest(step: int, facts: dict[str, Any], tree: Tree) -> str:
    """Of the step and the facts, and of every leaf's path, dtype, shape and bytes."""
    digest = hashlib.sha256(json.dumps([step, facts], sort_keys=True).encode())
    for path, leaf in leaves_by_path(tree).items():
        digest.update(f"{path} {leaf.dtype} {leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()


def _check_shapes(ours: Tree, theirs: Tree) -> None:
    if other := other_shape(ours, theirs):
        raise UserError(f"checkpoint of another network: {other}; use a new --workdir")


def other_shape(ours: Tree, theirs: Tree) -> str:
    """The first leaf that is of another shape, or in one of them alone; empty: none is."""
    here, there = leaves_by_path(ours), leaves_by_path(theirs)
    for path in sorted(here.keys() | there.keys()):
        ours_is, theirs_is = (str(t[path].shape) if path in t else "missing" for t in (here, there))
        if ours_is != theirs_is:
            return f"{path} is {ours_is} here and {theirs_is} there"
    return ""
