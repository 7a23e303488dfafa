"""Looks into one step of a run: its batch, its loss, and where a value ceases to be finite."""

from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from covid_jax.errors import UserError
from covid_jax.training.checkpoint import newest_until
from covid_jax.training.run import Run
from covid_jax.training.state import TrainState, learning_rate, schedule
from covid_jax.transfer.freezing import join, leaves_by_path

Tree = Any


def replay(run: Run, workdir: Path, step: int) -> str:
    """What happened at `step`, which is a function of the checkpoint before it. Saves nothing.

    Raises:
      UserError: the run has no such step.
    """
    first, epochs, _ = schedule(run.config)
    length = run.config.steps_per_epoch
    if not 0 <= step < epochs * length:
        raise UserError(f"--replay={step}: the run has the steps 0 to {epochs * length - 1}")
    saved = newest_until(workdir, step)
    start = saved.step if saved else 0
    state, frozen = run.begin(saved)
    key = jax.random.key(run.config.seed)
    for number, patches in enumerate(run.training.batches(start, step + 1, run.samples), start):
        state, frozen = run.enter(number // length, state, frozen)
        rate = jnp.float32(learning_rate(run.config, first + number // length))
        batch = run.put(patches)
        before = jax.tree.map(jnp.copy, state) if number == step else state
        state, metrics = run.program.train_step(state, frozen, batch, rate, key)
    # After the step, so that its program is the first that is compiled, as in the run.
    seen = _inside(run, before, frozen, batch, key)
    loss, norm = float(metrics["loss"]), float(metrics["gradient_norm"])
    lines = [
        f"step {step}, from the checkpoint of step {start}",
        f"batch: {run.batch_names(step)}",
        f"image as cut: {_range(patches.image)}",
        *seen,
        f"loss {loss:.6g}, gradient norm {norm:.6g}, learning rate {float(rate):.4g}",
    ]
    return "\n".join(lines)


def _inside(
    run: Run, state: TrainState, frozen: Tree, batch: dict[str, jax.Array], key: jax.Array
) -> list[str]:
    """Lines on the parameters, the augmented image and every output of the network."""
    params, image = join(state.trainable, frozen), batch["image"]
    lines = []
    if run.program.augment is not None:
        keys = jax.random.split(jax.random.fold_in(key, state.step), image.shape[0])
        image, _ = run.program.augment(keys, image, batch["label"])
        lines.append(f"image as augmented: {_range(image)}")
    lines.append(_finite("parameters", leaves_by_path(params)))
    _, kept = run.program.network.apply(
        {"params": params}, image, capture_intermediates=True, mutable=["intermediates"]
    )
    outputs = flax.traverse_util.flatten_dict(kept["intermediates"], sep="/")
    return [*lines, _finite("outputs of the network", outputs)]


def _finite(what: str, trees: dict[str, Tree]) -> str:
    """Whether all are finite; else the first that is not, in the order in which they are made."""
    wrong = [
        name
        for name, tree in trees.items()
        if not all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(tree))
    ]
    if not wrong:
        return f"{what}: all finite"
    return f"{what}: {len(wrong)} of {len(trees)} are not finite, first {wrong[0]}"


def _range(array: Any) -> str:
    values = np.asarray(array)
    wrong = int((~np.isfinite(values)).sum())
    return f"{np.nanmin(values):.4g} to {np.nanmax(values):.4g}, {wrong} values not finite"
