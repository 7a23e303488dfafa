"""Checkpoints of a run, by orbax: RUN/checkpoints/STEP with the whole tree and the optimiser.

A checkpoint is whole or absent (orbax writes it beside its place and renames it).
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from covid_jax.config import Config, from_dict
from covid_jax.data.plan import Plan, load_plan
from covid_jax.errors import UserError, full_disk_is_a_user_error
from covid_jax.training.state import TrainState
from covid_jax.transfer.freezing import join, leaves_by_path, split
from covid_jax.transfer.strategies import STRATEGIES

Tree = Any


class Checkpoints:
    """The checkpoints of the run in `workdir`; a context manager that waits for the last one."""

    def __init__(self, workdir: Path) -> None:
        self._folder = workdir / "checkpoints"
        self._manager = ocp.CheckpointManager(
            self._folder.resolve(), options=ocp.CheckpointManagerOptions(max_to_keep=1)
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        with full_disk_is_a_user_error(self._folder):
            self._manager.wait_until_finished()
        self._manager.close()

    def save(self, state: TrainState, frozen: Tree) -> None:
        """Saves the state in the background."""
        # Copies: the step that follows reuses the buffers of the state.
        params = jax.tree.map(np.array, join(state.trainable, frozen))
        momentum = [np.array(leaf) for leaf in jax.tree.leaves(state.opt_state)]
        with full_disk_is_a_user_error(self._folder):
            self._manager.save(
                int(state.step),
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(params),
                    optimizer=ocp.args.StandardSave(momentum),
                ),
            )

    def latest_step(self) -> int:
        """The step of the latest checkpoint; 0 where there is none."""
        return self._manager.latest_step() or 0

    def restore(self, state: TrainState, frozen_mask: Tree) -> tuple[TrainState, Tree]:
        """(state, frozen) of the latest checkpoint, laid out as `state`.

        Raises:
          UserError: the checkpoint has other leaves or shapes than `state`.
        """
        step = self._manager.latest_step()
        held = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(), optimizer=ocp.args.StandardRestore()
            ),
        )
        trainable, frozen = split(held.params, frozen_mask)
        leaves, structure = jax.tree.flatten(state.opt_state)
        _check_shapes(self._folder, state.trainable, trainable)
        _check_shapes(self._folder, leaves, held.optimizer)
        restored = TrainState(
            jnp.asarray(step, jnp.int32),
            jax.tree.map(jnp.array, trainable),
            jax.tree.unflatten(structure, [jnp.array(leaf) for leaf in held.optimizer]),
        )
        return restored, frozen


def save_params(workdir: Path, params: Tree) -> None:
    """Makes a checkpoint at step 0 that holds parameters and no optimiser state."""
    folder = workdir / "checkpoints"
    with full_disk_is_a_user_error(folder), ocp.CheckpointManager(folder.resolve()) as manager:
        manager.save(0, args=ocp.args.Composite(params=ocp.args.StandardSave(params)))


def load_params(workdir: str | Path, step: int | None = None) -> Tree:
    """The parameter tree of a run, of its latest checkpoint or of the one at `step`.

    Raises:
      UserError: the folder is no run, or has no such checkpoint.
    """
    folder = Path(workdir) / "checkpoints"
    if not folder.is_dir():
        raise UserError(f"{workdir}: not the work directory of a run, it has no checkpoints/")
    with ocp.CheckpointManager(folder.resolve()) as manager:
        step = manager.latest_step() if step is None else step
        if step not in manager.all_steps():
            raise UserError(f"{folder}: no checkpoint{'' if step is None else f' {step}'} in it")
        held = manager.restore(step, args=ocp.args.Composite(params=ocp.args.StandardRestore()))
    return held.params


def load_run(workdir: str | Path) -> tuple[Config, Plan, Tree]:
    """The config, the plan and the latest parameters of a run."""
    return load_config(workdir), load_plan(Path(workdir) / "plan.json"), load_params(workdir)


def load_config(workdir: str | Path) -> Config:
    """The config of a run. Raises a UserError where the folder is no run, or it is damaged."""
    path = Path(workdir) / "config.json"
    if not path.is_file():
        raise UserError(f"{workdir}: not the work directory of a run, it has no config.json")
    try:
        return from_dict(json.loads(path.read_text()))
    except ValueError as error:
        raise UserError(f"{path}: damaged; it is no JSON") from error


def load_pretrained(config: Config) -> Tree | None:
    """The parameters of the run that config.pretrained names; None where it names none.

    Raises:
      UserError: it is no run; or this run goes on with the joint schedule of a pre-training that
        was planned for other numbers.
    """
    if not config.pretrained:
        return None
    if STRATEGIES[config.strategy].schedule == "joint":
        theirs = load_config(config.pretrained)
        planned, here = (
            (c.pretraining_epochs, c.epochs, c.optimizer.learning_rate, c.optimizer.poly_power)
            for c in (theirs, config)
        )
        if theirs.pretraining and planned != here:
            raise UserError(
                f"{config.pretrained}: planned for another joint schedule; (pretraining_epochs, "
                f"epochs, learning_rate, poly_power) are {planned} there and {here} here"
            )
    return load_params(config.pretrained)


def _check_shapes(folder: Path, ours: Tree, theirs: Tree) -> None:
    here, there = leaves_by_path(ours), leaves_by_path(theirs)
    for path in sorted(here.keys() | there.keys()):
        ours_is, theirs_is = (str(t[path].shape) if path in t else "missing" for t in (here, there))
        if ours_is != theirs_is:
            raise UserError(
                f"{folder}: checkpoint of another network: {path} is {ours_is} here and "
                f"{theirs_is} there; use a new --workdir"
            )
