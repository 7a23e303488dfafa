r"""Seconds a training step, a validation step and an epoch of each strategy.

    python -m benchmarks.epoch_time --strategies=all --config=configs/paper.py --output=DIR \
        [--peer=torch] [--config.data.patch_size=16,64,96] [--config.dtype=bfloat16] [--full]

All that is timed takes turns in one process, A-B-B-A: every strategy, and with --peer=torch
PyTorch's nnU-Net (network, loss, optimiser, the same freezing), contiguous and channels-last, with
--compile also through torch.compile. Batches are dummy data on the device: this is the step alone.
With --real each strategy runs on new batches from the run's own input pipeline, augmented, as well,
beside the same program on dummy data. An epoch is config.steps_per_epoch training steps and
config.validation_steps validation steps, from the medians, or with --full measured whole. Writes
epoch_time.json after every round and prints the table at the end.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from benchmarks import environment
from benchmarks.arithmetic import counted_flops
from benchmarks.roofline import bandwidth, matrix_rate
from benchmarks.steps import Steps, ours, patterns_of, real_batches, theirs
from benchmarks.timing import Timing, in_turns
from covid_jax.config import (
    STRATEGY_NAMES,
    Config,
    check_config_arguments,
    config_from_flag,
    define_config_flag,
)
from covid_jax.data.augment import augment
from covid_jax.errors import UserError, run_command
from covid_jax.reporting.paper import paper_table
from covid_jax.training.explain import step_flops

_CONFIG = define_config_flag()
flags.declare_key_flag("config")
_STRATEGIES = flags.DEFINE_string("strategies", "all", "all, or some by commas.")
_PEER = flags.DEFINE_enum("peer", None, ["torch"], "What to time beside ours.")
_COMPILE = flags.DEFINE_bool("compile", False, "Time the peer through torch.compile as well.")
_REAL = flags.DEFINE_bool("real", False, "Time ours with its own input pipeline as well.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder of epoch_time.json.")
_ROUNDS = flags.DEFINE_integer("rounds", 6, "Turns that each has.")
_SECONDS = flags.DEFINE_float("seconds", 2.0, "Length of a turn, of one step at least.")
_FULL = flags.DEFINE_bool("full", False, "Measure a whole epoch of each as well.")


def paper_seconds() -> dict[str, float]:
    """The paper's seconds an epoch of each strategy, on one V100 (Table III)."""
    return {row.strategy: statistics.mean(row.epoch_seconds) for row in paper_table(3)}


@dataclasses.dataclass(frozen=True)
class Candidate:
    """What is timed, for which run, and the operations of its training step."""

    config: Config
    steps: Steps
    flops: float  # XLA's count
    counted: float  # every tap of every convolution


def candidates_of(
    config: Config, *, peer: bool, compiled: bool, real: Path | None
) -> list[Candidate]:
    """Ours for one run, and what is timed beside it; `real` is a folder for the run's data."""
    steps = [ours(config)]
    if peer:
        steps += theirs(config, compiled=compiled)
    if real:
        batches = real_batches(config, real)
        steps.append(ours(config, variant="augmented", augment=augment))
        steps.append(ours(config, variant="augmented", augment=augment, batches=batches))
    patterns = patterns_of(config)
    work = step_flops(config, patterns), counted_flops(config, patterns)
    return [Candidate(config, one, *work) for one in steps]


def result(candidate: Candidate, train: Timing, validate: Timing | None = None) -> dict[str, Any]:
    """What epoch_time.json says of one candidate."""
    config, steps, flops = candidate.config, candidate.steps, candidate.flops
    rate = matrix_rate(config.dtype)
    line = {
        "framework": steps.framework,
        "strategy": steps.strategy,
        "patch_size": list(config.data.patch_size),
        "batch_size": config.data.batch_size,
        "dtype": config.dtype,
        "mesh": dataclasses.asdict(config.mesh),
        "variant": steps.variant,
        "data": steps.data,
        "seconds_per_step": train.median,
        **train.described(),
        "tflop_per_step": flops / 1e12,
        "tflop_per_step_counted": candidate.counted / 1e12,
        "tflop_per_second": flops / 1e12 / train.median,
        "matrix_tflop_per_second": rate / 1e12,
        "matrix_share": flops / train.median / rate,
        "bytes_per_step": steps.bytes_accessed,
        "bandwidth_share": steps.bytes_accessed / train.median / bandwidth()
        if steps.bytes_accessed
        else None,
        "peak_bytes": steps.peak_bytes,
        "compile_seconds": steps.compile_seconds,
    }
    if validate:
        line |= {
            "seconds_per_validation_step": validate.median,
            "validation_turns": list(validate.turns),
            "seconds_per_epoch": config.steps_per_epoch * train.median
            + config.validation_steps * validate.median,
            "epoch": "from the medians",
        }
    return line


def table(lines: Sequence[dict[str, Any]], paper: dict[str, float]) -> str:
    """One row a strategy: ours, the best of torch, and the paper's V100; then what is real."""

    def best(framework: str, strategy: str, field: str) -> float:
        found = [
            line[field]
            for line in lines
            if (line["framework"], line["strategy"]) == (framework, strategy)
            and not line["variant"].endswith("augmented")
        ]
        return min(found, default=float("nan"))

    strategies = list(dict.fromkeys(line["strategy"] for line in lines))
    head = f"{'strategy':<16}{'s/step':>9}{'torch':>9}{'ratio':>7}{'forward':>9}{'s/epoch':>10}"
    rows = [head + f"{'to scratch':>12}{'paper s/epoch':>15}{'to scratch':>12}"]
    for strategy in strategies:
        step, peer = (best(f, strategy, "seconds_per_step") for f in ("jax", "torch"))
        forward = [best(f, strategy, "seconds_per_validation_step") for f in ("jax", "torch")]
        epoch = best("jax", strategy, "seconds_per_epoch")
        noisy = any(line["noisy"] for line in lines if line["strategy"] == strategy)
        rows.append(
            f"{strategy:<16}{step:>9.3g}{peer:>9.3g}{step / peer:>7.2f}"
            f"{forward[0] / forward[1]:>9.2f}{epoch:>10.1f}"
            f"{step / best('jax', 'scratch', 'seconds_per_step'):>12.2f}"
            f"{paper[strategy]:>15.0f}{paper[strategy] / paper['scratch']:>12.2f}"
            + ("  noisy: turns spread over 10 %" if noisy else "")
        )
    rows.append("ratio, forward: our training and validation step over the best of torch")
    augmented = [line for line in lines if line["variant"].endswith("augmented")]
    for dummy, real in zip(augmented[::2], augmented[1::2], strict=True):
        share = real["seconds_per_step"] / dummy["seconds_per_step"]
        rows.append(f"{real['strategy']}: with the input pipeline {share:.3f} of dummy batches")
    return "\n".join(rows)


def main() -> None:
    """Measures what the flags say."""
    if not _OUTPUT.value:
        raise UserError("--output is missing (see --help)")
    config = config_from_flag(_CONFIG)
    wanted = STRATEGY_NAMES if _STRATEGIES.value == "all" else _STRATEGIES.value.split(",")
    if unknown := sorted(set(wanted) - set(STRATEGY_NAMES)):
        raise UserError(f"--strategies={_STRATEGIES.value}: no strategy {', '.join(unknown)}")
    path = Path(_OUTPUT.value) / "epoch_time.json"
    path.parent.mkdir(parents=True, exist_ok=True)

    candidates = [
        candidate
        for strategy in wanted
        for candidate in candidates_of(
            dataclasses.replace(config, strategy=strategy),
            peer=_PEER.value == "torch",
            compiled=_COMPILE.value,
            real=path.parent if _REAL.value else None,
        )
    ]
    lines: list[dict[str, Any]] = []

    def save() -> None:
        """Each figure is in the file as soon as it is there."""
        content = {**environment.describe(), "results": lines, "paper": paper_seconds()}
        path.write_text(json.dumps(content, indent=1) + "\n")

    rounds, seconds = _ROUNDS.value, _SECONDS.value
    train: list[Timing] = []
    for train in in_turns([one.steps.train for one in candidates], rounds, seconds):
        lines = [result(*timed) for timed in zip(candidates, train, strict=True)]
        save()
    for validate in in_turns([one.steps.validate for one in candidates], rounds, seconds):
        lines = [result(*timed) for timed in zip(candidates, train, validate, strict=True)]
        save()
    if _FULL.value:
        for line, one in zip(lines, candidates, strict=True):
            begin = time.perf_counter()
            for _ in range(config.steps_per_epoch):
                one.steps.train()
            for _ in range(config.validation_steps):
                one.steps.validate()
            line |= {"seconds_per_epoch": time.perf_counter() - begin, "epoch": "measured whole"}
            save()
    print(table(lines, paper_seconds()))
    print(f"{path}")


if __name__ == "__main__":
    run_command(main, __doc__, check_config_arguments)
