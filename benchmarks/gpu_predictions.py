"""PREDICTED: the step on an H200 with what has been changed since it was measured there.

    python -m benchmarks.gpu_predictions --output=benchmarks/results

Nothing is timed. To the measured step are added, for each convolution that now takes neighbours
along W for channels, what its kernels gained where they were measured alone on the H200; and for
what XLA's program moves outside of convolutions, the difference in bytes over the rate of a copy.
Writes gpu_predictions.json.
"""

import json
from collections import Counter
from pathlib import Path

from absl import flags

from benchmarks import environment
from benchmarks.arithmetic import convolutions
from benchmarks.gpu_times import RESULTS, measured
from benchmarks.tables import Line, gpu_predictions_table
from covid_jax.config import Config
from covid_jax.errors import UserError, run_command
from covid_jax.model.conv import neighbours
from covid_jax.training.cost import abstract_params
from covid_jax.transfer.freezing import leaves_by_path, mask
from covid_jax.transfer.strategies import frozen_patterns

_OUTPUT = flags.DEFINE_string("output", None, "Folder of gpu_predictions.json.")

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


def packed_passes(config: Config) -> Counter[tuple[int, int, str]]:
    """How often a step runs each pass: by channels of the input, neighbours, and pass.

    A kernel has a gradient where it is trained, an input where something below it is.
    """
    params = abstract_params(config)
    held = leaves_by_path(mask(params, frozen_patterns(config)[0]))
    trains = {"": False}
    found: Counter[tuple[int, int, str]] = Counter()
    for conv in convolutions(config):
        trained = not held[f"{conv.path}/kernel"]
        trains[conv.path] = trained or any(trains[path] for path, _ in conv.inputs)
        for path, channels in conv.inputs if not conv.transposed else ():
            shape = (*conv.kernel_size, channels, conv.features)
            strides = (conv.strides[0], conv.strides[1], conv.strides[2])
            count = neighbours(shape, strides, conv.input_size[2])
            if count > 1:
                runs = (True, trained, trains[path])
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


def main() -> None:
    """Predicts, writes and prints."""
    if not _OUTPUT.value:
        raise UserError("--output is missing (see --help)")
    lines = [predict(strategy) for strategy in STRATEGIES]
    path = Path(_OUTPUT.value) / "gpu_predictions.json"
    environment.save(path, lines, predicted=True, copy_bytes_per_second=COPY_RATE)
    print(gpu_predictions_table(lines))
    print(path)


if __name__ == "__main__":
    run_command(main, __doc__)
