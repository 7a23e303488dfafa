"""Checks all that a run needs without training: data, mesh, memory, disk."""

import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from covid_jax.data.sampling import Batch
from covid_jax.errors import UserError
from covid_jax.training.cost import planned_bytes
from covid_jax.training.parallel import fitting_meshes
from covid_jax.training.run import Run, announcement
from covid_jax.training.workdir import check_settings


def dry_run(run: Run, workdir: Path) -> str:
    """What the run found and will take, a line for each.

    Raises:
      UserError: `workdir` holds another run, or memory or disk do not suffice.
    """
    check_settings(workdir, run.config, run.plan)
    began = time.perf_counter()
    batch = run.training.batch(0, run.samples)
    seconds = time.perf_counter() - began
    lines = [
        announcement(run, 0),
        *_data(run),
        f"a batch: {run.batch_names(0)}, in {1e3 * seconds:.0f} ms",
        _mesh(run),
        _memory(run, batch),
        _disk(run, workdir),
    ]
    return "\n".join([*lines, "dry run: nothing was trained"])


def _data(run: Run) -> list[str]:
    lines = []
    for dataset in run.datasets:
        split = dataset.split(run.config.fold)
        lines.append(
            f"data: {dataset.name}, {len(split.train)} cases to train on and {len(split.test)} to "
            "test on, all as they were prepared"
        )
    return lines


def _mesh(run: Run) -> str:
    here = run.config.mesh
    meshes = fitting_meshes(run.config.data.batch_size, run.config.data.patch_size[0])
    others = [f"{mesh.data} x {mesh.space}" for mesh in meshes if mesh != here]
    also = f"; others that fit: {', '.join(others)}" if others else ""
    return f"mesh: {here.data} x {here.space} of {jax.device_count()} devices{also}"


def _memory(run: Run, batch: Batch) -> str:
    """By XLA's plan of the compiled step."""
    state, frozen = run.begin(None)
    arguments = state, frozen, run.put(batch), jnp.float32(0), jax.random.key(0)
    compiled = run.program.train_step.lower(*arguments).compile()  # type: ignore[attr-defined]
    needed = planned_bytes(compiled)
    statistics = jax.local_devices()[0].memory_stats()
    if not statistics:
        return f"memory: {needed / 1e6:.0f} MB a device for the step, by XLA's plan"
    there = statistics["bytes_limit"]
    if needed > there:
        raise UserError(
            f"the step needs {needed / 1e9:.1f} GB a device and there are {there / 1e9:.1f}: "
            "use a smaller config.data.patch_size, a larger config.mesh.space, or config.remat"
        )
    return f"memory: {needed / 1e6:.0f} MB of {there / 1e6:.0f} a device, by XLA's plan"


def _disk(run: Run, workdir: Path) -> str:
    """Two checkpoints are kept while a third is written, of parameters and momentum.

    And the parameters of the best epoch while another is.
    """
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(run.params))
    needed = 3 * 2 * size + (2 * size if run.config.validation_steps else 0)
    folder = workdir.absolute()
    free = shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.is_dir())).free
    if needed > free:
        raise UserError(
            f"{workdir}: checkpoints need {needed / 1e6:.0f} MB and {free / 1e6:.0f} are free"
        )
    return f"disk: up to {needed / 1e6:.0f} MB of checkpoints; {free / 1e9:.1f} GB are free"
