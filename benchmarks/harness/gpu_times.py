"""The steps that one H200 was measured to take, and what follows: validation steps, predictions."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness.arithmetic import convolutions
from benchmarks.harness.tables import Line
from covid_jax.config import Config
from covid_jax.model.conv import neighbours
from covid_jax.training.cost import abstract_params
from covid_jax.transfer.freezing import leaves_by_path, mask
from covid_jax.transfer.strategies import frozen_patterns

RESULTS = Path(__file__).resolve().parent.parent / "results"

STRATEGIES = ("scratch", "frozen_encoder", "multi_encoder")
PASSES = ("forward", "to kernel", "to input")

ALONE = {
    (32, 2): {"forward": (315, 276), "to kernel": (726, 283), "to input": (313, 269)},
    (1, 8): {"forward": (399, 219), "to kernel": (549, 249)},
}
"""us of a 1x3x3 convolution to 32 channels at full resolution, measured alone on one H200: of so
many channels and neighbours -> pass -> (as it is, packed)."""

COPY_RATE = 4.3e12
"""Bytes a second, read and written, of a large copy on the same H200."""

BYTES_THEN = {
    "scratch": 19_971_004_604,
    "frozen_encoder": 14_937_195_932,
    "multi_encoder": 23_222_736_764,
}
"""Outside of convolutions, of the steps that were measured, as benchmarks.gpu_program counts."""


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


def packed_passes(config: Config) -> Counter[tuple[int, int, str]]:
    """How often a step runs each pass: by channels of the input, neighbours, and pass.

    A kernel has a gradient where it is trained, an input where something below it is.
    """
    params = abstract_params(config)
    held = leaves_by_path(mask(params, frozen_patterns(config)[0]))
    trains: dict[str, bool] = {}
    found: Counter[tuple[int, int, str]] = Counter()
    for conv in convolutions(config):
        trained = not held[f"{conv.path}/kernel"]
        needed = [any(trains[path] for path in one.sources) for one in conv.inputs]
        trains[conv.path] = trained or any(needed)
        if conv.transposed:
            continue
        for one, is_needed in zip(conv.inputs, needed, strict=True):
            channels = one.channels
            shape = (*conv.kernel_size, channels, conv.features)
            strides = (conv.strides[0], conv.strides[1], conv.strides[2])
            count = neighbours(shape, strides, conv.input_size[2])
            if count > 1:
                runs = (True, trained, is_needed)
                found.update(
                    (channels, count, name) for name, it in zip(PASSES, runs, strict=True) if it
                )
    return found


def bytes_outside(strategy: str, variant: str = "packed") -> float:
    """Bytes that a program of gpu_program_h100.json moves outside of convolutions."""
    content = json.loads((RESULTS / "gpu_program_h100.json").read_text())
    (found,) = (
        line
        for line in content["results"]
        if (line["strategy"], line["dtype"], line["variant"]) == (strategy, "bfloat16", variant)
    )
    return sum(size for kind, size in found["bytes"].items() if kind != "convolutions")


def predict(strategy: str) -> Line:
    """The line of one strategy; everything in seconds or bytes."""
    before = measured(strategy)["seconds_per_step"]
    passes, gain = [], 0.0
    for (channels, count, name), times in packed_passes(Config(strategy=strategy)).items():
        as_it_is, packed = (1e-6 * value for value in ALONE[channels, count][name])
        gain += times * (as_it_is - packed)
        passes.append(
            {
                "channels": channels,
                "neighbours": count,
                "pass": name,
                "times": times,
                "seconds": as_it_is,
                "seconds_packed": packed,
            }
        )
    now = bytes_outside(strategy)
    moved = (now - BYTES_THEN[strategy]) / COPY_RATE
    more = bytes_outside("scratch", "packed, augmented") - bytes_outside("scratch")
    return {
        "strategy": strategy,
        "seconds_measured": before,
        "passes": passes,
        "bytes_then": BYTES_THEN[strategy],
        "bytes_now": now,
        "seconds_of_bytes": moved,
        "seconds_predicted": before - gain + moved,
        "augmentation_bytes": more,
        "augmentation_seconds": more / COPY_RATE,
    }
