r"""How the cost of a training step grows: with the patch, the batch, the features, the devices.

    python -m benchmarks.scaling --config=configs/paper.py --config.data.patch_size=16,64,96 \
        --output=DIR
    XLA_FLAGS=--xla_force_host_platform_device_count=4 python -m benchmarks.scaling ...

Along each axis the config's own value is scaled and the rest stays; of several devices (virtual
ones, as in the second line, share the cores, so there only the overhead shows) every mesh that
divides batch and depth. And how the input pipeline's seconds a batch grow with the number of
prepared cases (synthetic ones). Fits the exponent p of seconds ~ value^p. Writes scaling.json.
"""

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

from benchmarks.harness import environment
from benchmarks.harness.steps import ours, real_batches
from benchmarks.harness.tables import MESH, Line, scaling_table
from benchmarks.harness.timing import in_turns
from covid_jax.command import as_process, require, run_command
from covid_jax.config import (
    Config,
    check_config_arguments,
    config_from_flag,
    define_config_flag,
)
from covid_jax.data.preparation import prepare_phantom
from covid_jax.device import announce_device
from covid_jax.training.parallel import fitting_meshes

_FLAGS = flags.FlagValues()
define_config_flag(_FLAGS)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of scaling.json.", _FLAGS)
_ROUNDS = flags.DEFINE_integer(
    "rounds", 4, "Turns that each has.", lower_bound=1, flag_values=_FLAGS
)
_SECONDS = flags.DEFINE_float(
    "seconds", 1.0, "Length of a turn, of one step at least.", lower_bound=0, flag_values=_FLAGS
)

CASES = (2, 4, 8, 16)


Points = list[tuple[float, Config]]
"""Where along an axis, and the config there."""


def patches(config: Config) -> Points:
    """Deeper patches, by their voxels."""
    depth, height, width = config.data.patch_size
    return [
        (
            float(depth * times * height * width),
            _with_data(config, patch_size=(depth * times, height, width)),
        )
        for times in (1, 2, 3, 4)
    ]


def batches(config: Config) -> Points:
    """Batches, by their samples."""
    return [(float(n), _with_data(config, batch_size=n)) for n in (1, 2, 4, 8)]


def features(config: Config) -> Points:
    """Narrower networks and the config's own, by the features of their first stage."""
    points = []
    for share in (0.25, 0.5, 1.0):
        width = tuple(max(1, round(count * share)) for count in config.model.features_per_stage)
        model = dataclasses.replace(config.model, features_per_stage=width)
        points.append((float(width[0]), dataclasses.replace(config, model=model)))
    return points


def meshes(config: Config) -> Points:
    """Every mesh of the devices that are here which batch and depth allow, by its devices."""
    fit = fitting_meshes(config.data.batch_size, config.data.patch_size[0])
    return [(float(mesh.data * mesh.space), dataclasses.replace(config, mesh=mesh)) for mesh in fit]


AXES: dict[str, Callable[[Config], Points]] = {
    "voxels of the patch": patches,
    "batch": batches,
    "features of the first stage": features,
}


def steps_along(axis: str, points: Points) -> list[Line]:
    """A line of scaling.json for the training step at each point."""
    steps = [ours(*environment.here(config)) for _, config in points]
    *_, timings = in_turns([one.train for one in steps], _ROUNDS.value, _SECONDS.value)
    return [
        {
            "axis": axis,
            "value": value,
            "patch_size": list(config.data.patch_size),
            "batch_size": config.data.batch_size,
            "features_per_stage": list(config.model.features_per_stage),
            "mesh": dataclasses.asdict(config.mesh),
            "variant": step.variant,
            "peak_bytes": step.peak_bytes,
            "seconds": timing.median,
            **timing.described(),
        }
        for (value, config), step, timing in zip(points, steps, timings, strict=True)
    ]


def pipeline_along(config: Config) -> list[Line]:
    """A line for the input pipeline's batches from each number of synthetic cases."""
    config = _with_data(config, datasets=("phantom",))
    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for count in CASES:
            prepared = Path(folder) / str(count)
            prepare_phantom(prepared, count, seed=0)
            one = _with_data(config, prepared_dir=str(prepared))
            runs.append(functools.partial(next, real_batches(one, prepared)))
        *_, timings = in_turns(runs, _ROUNDS.value, _SECONDS.value)
    return [
        {
            "axis": "prepared cases (SYNTHETIC), seconds a batch of the input pipeline",
            "value": float(count),
            "patch_size": list(config.data.patch_size),
            "batch_size": config.data.batch_size,
            "seconds": timing.median,
            **timing.described(),
        }
        for count, timing in zip(CASES, timings, strict=True)
    ]


def _with_data(config: Config, **changes: Any) -> Config:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))


def work() -> None:
    """Measures what the flags say."""
    require(_OUTPUT)
    announce_device()
    config = environment.of_plan(config_from_flag(_FLAGS))
    path = Path(_OUTPUT.value) / "scaling.json"
    axes = {MESH: meshes} if jax.device_count() > 1 else AXES
    lines: list[Line] = []
    for axis, scaled in axes.items():
        lines += steps_along(axis, scaled(config))
        environment.save(path, lines)
    if jax.device_count() == 1:
        lines += pipeline_along(config)
        environment.save(path, lines)
    print(scaling_table(lines))
    print(f"{path}")


def main(arguments: Sequence[str]) -> int:
    """This command; returns its exit status."""
    return run_command(work, _FLAGS, __doc__, arguments, check_config_arguments)


if __name__ == "__main__":
    as_process(main)
