"""SIMULATED: the paper's grid on several H200, from the steps that were measured on one.

On one device training steps take what they were measured to take, validation steps what
gpu_times.py says. On a mesh that is divided by the devices, and then come the halos and sums over
the links, hidden by nothing. The grid is 4 pre-trainings and 14 runs of each of 5 folds, 1000
epochs each, without the tests at their ends; a run waits for its pre-training, and takes the first
group of devices that is free. The V100's seconds an epoch are the paper's own.
"""

import heapq
from dataclasses import dataclass
from pathlib import Path

import jax

from benchmarks.harness.arithmetic import convolutions
from benchmarks.harness.gpu_times import measured, validation_seconds
from benchmarks.harness.tables import Line
from covid_jax.config import PAPER_RUNS, SOURCES, Config, MeshConfig, load_config_file
from covid_jax.reporting.paper import paper_table
from covid_jax.training.cost import abstract_params
from covid_jax.transfer.freezing import mask
from covid_jax.transfer.strategies import frozen_patterns

ROOT = Path(__file__).resolve().parents[2]
LINK = 450e9
"""Of an H200 to its neighbours by NVLink, bytes a second in one direction: its maker's figure."""
LATENCY = 15e-6
"""Of one collective, s. Assumed."""
MESHES = ((1, 1), (2, 1), (2, 2), (2, 4), (2, 8))
FOLDS = range(5)


@dataclass(frozen=True)
class Step:
    """What a training step takes on one device, and what a mesh adds to it.

    Attributes:
      seconds: of a training step.
      validation: of a validation step, as a share of that.
      halo: bytes that a device with neighbours in depth gets from them, of a batch of 2.
      halos: how many times it does.
      norms: how many sums over the devices norms take.
      gradient: bytes of the trained parameters.
    """

    seconds: float
    validation: float
    halo: float
    halos: int
    norms: int
    gradient: float


def step_of(strategy: str) -> Step:
    """The step of configs/paper.py in bfloat16."""
    step_seconds = measured(strategy)["seconds_per_step"]
    config = load_config_file(f"{ROOT}/configs/paper.py:{strategy}")
    every = convolutions(config)
    deep = [conv for conv in every if conv.kernel_size[0] > 1 and not conv.transposed]
    halo = sum(
        2 * (conv.kernel_size[0] - 1) * config.data.batch_size * height * width * channels
        for conv in deep
        for (_, height, width), channels in (
            (conv.input_size, conv.channels),
            (conv.output_size, conv.features),
        )
    )
    blocks = [conv for conv in every if conv.path.endswith("/conv")]
    return Step(
        seconds=step_seconds,
        validation=validation_seconds(strategy) / step_seconds,
        halo=halo,
        halos=4 * len(deep),  # both neighbours, on the way forward and back
        norms=2 * len(blocks),
        gradient=4 * _trained(config),
    )


def _trained(config: Config) -> int:
    params = abstract_params(config)
    held = mask(params, frozen_patterns(config)[0])
    leaves = zip(jax.tree.leaves(params), jax.tree.leaves(held), strict=True)
    return sum(leaf.size for leaf, frozen in leaves if not frozen)


def seconds(step: Step, mesh: MeshConfig) -> tuple[float, float]:
    """(of a training step on a mesh, of that for communication)."""
    count = mesh.data * mesh.space
    talk = 0.0
    if count > 1:
        talk += 2 * (count - 1) / count * step.gradient / LINK + LATENCY
    if mesh.space > 1:
        talk += step.halo / mesh.data / LINK + (step.halos + step.norms) * LATENCY
    return step.seconds / count + talk, talk


def epoch_seconds(config: Config, step_seconds: float, validation: float) -> float:
    """Training and validation; `validation` is a step's share of a training step, on any mesh."""
    return step_seconds * (config.steps_per_epoch + validation * config.validation_steps)


def grid_hours(epoch: dict[str, float], epochs: int, groups: int) -> float:
    """Hours until the last run is done, on so many groups of devices.

    `epoch` has the seconds of an epoch of each strategy.
    """
    ready: list[tuple[float, float]] = []  # (when it may begin, how long it takes)
    free = [0.0] * groups
    trained = {}
    for source in SOURCES:
        if source != "none":
            trained[source] = begin = heapq.heappop(free) + epochs * epoch["scratch"]
            heapq.heappush(free, begin)
    for run in PAPER_RUNS:
        strategy, _, source = run.partition("-")
        ready += [(trained.get(source, 0.0), epochs * epoch[strategy]) for _ in FOLDS]
    # What may begin first begins first; of those the longest.
    for may_begin, takes in sorted(ready, key=lambda run: (run[0], -run[1])):
        heapq.heappush(free, max(heapq.heappop(free), may_begin) + takes)
    return max(free) / 3600


def simulate() -> list[Line]:
    """Lines for each number of devices and mesh of a run; the paper's V100 first."""
    config = load_config_file(f"{ROOT}/configs/paper.py")
    rows = paper_table(3)
    paper = {
        row.strategy: sum(row.epoch_seconds) / len(row.epoch_seconds)
        for row in rows
        if row.epoch_seconds
    }
    lines: list[Line] = [
        {
            "device": "V100 (the paper's seconds)",
            "devices": count,
            "mesh": "1 x 1",
            "milliseconds": None,
            "communication": 0.0,
            "hours": grid_hours(paper, config.epochs, count),
        }
        for count in (1, 8, 64)
    ]
    steps = {strategy: step_of(strategy) for strategy in paper}
    for count in (1, 8, 64):
        for mesh in (MeshConfig(*sizes) for sizes in MESHES):
            size = mesh.data * mesh.space
            if size > count:
                continue
            found = {name: seconds(step, mesh) for name, step in steps.items()}
            epoch = {
                name: epoch_seconds(config, of[0], steps[name].validation)
                for name, of in found.items()
            }
            step_seconds, talk = found["scratch"]
            lines.append(
                {
                    "device": "H200",
                    "devices": count,
                    "mesh": f"{mesh.data} x {mesh.space}",
                    "milliseconds": 1e3 * step_seconds,
                    "communication": talk / step_seconds,
                    "hours": grid_hours(epoch, config.epochs, count // size),
                }
            )
    return lines
