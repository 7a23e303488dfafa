"""The steps that one H200 was measured to take, and the validation steps that follow from them."""

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.arithmetic import convolutions
from benchmarks.tables import Line
from covid_jax.config import Config

RESULTS = Path(__file__).resolve().parent / "results"


def measured(strategy: str, dtype: str = "bfloat16") -> Line:
    """Our line of epoch_time_gpu_<dtype>.json."""
    content = json.loads((RESULTS / f"epoch_time_gpu_{dtype}.json").read_text())
    (line,) = (
        line
        for line in content["results"]
        if (line["framework"], line["strategy"]) == ("jax", strategy)
    )
    return line


def validation_seconds(strategy: str) -> float:
    """Seconds of a validation step in bfloat16, which was not measured.

    That of scratch is taken to be the share of its training step that it has in float32, where both
    were measured; that of another strategy has as much more as its convolutions' forward pass has
    operations.
    """
    full = measured("scratch", "float32")
    share = full["seconds_per_validation_step"] / full["seconds_per_step"]
    work = _forward_operations(strategy) / _forward_operations("scratch")
    return measured("scratch")["seconds_per_step"] * share * work


def with_epochs(lines: Sequence[Line]) -> list[Line]:
    """Lines of epoch_time_gpu, ours with the seconds of an epoch where they had none."""
    config = Config()
    found = []
    for line in lines:
        if line["framework"] == "jax" and "seconds_per_epoch" not in line:
            epoch = config.steps_per_epoch * line["seconds_per_step"]
            epoch += config.validation_steps * validation_seconds(line["strategy"])
            line = {**line, "seconds_per_epoch": epoch}
        found.append(line)
    return found


def _forward_operations(strategy: str) -> float:
    return sum(conv.operations(conv.channels) for conv in convolutions(Config(strategy=strategy)))
