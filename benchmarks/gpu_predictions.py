"""PREDICTED: the step on an H200 with what has been changed since it was measured there.

    python -m benchmarks.gpu_predictions --output=benchmarks/results

Nothing is timed. To the measured step are added, for each convolution that now takes neighbours
along W for channels, what its kernels gained where they were measured alone on the H200; and for
what XLA's program moves outside of convolutions, the difference in bytes over the rate of a copy.
Writes gpu_predictions.json.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from benchmarks.harness import environment
from benchmarks.harness.gpu_times import COPY_RATE, STRATEGIES, predict
from benchmarks.harness.tables import gpu_predictions_table
from covid_jax.command import as_process, require, run_command

_FLAGS = flags.FlagValues()
_OUTPUT = flags.DEFINE_string("output", None, "Folder of gpu_predictions.json.", _FLAGS)


def work() -> None:
    """Predicts, writes and prints."""
    require(_OUTPUT)
    lines = [predict(strategy) for strategy in STRATEGIES]
    path = Path(_OUTPUT.value) / "gpu_predictions.json"
    environment.save(path, lines, predicted=True, copy_bytes_per_second=COPY_RATE)
    print(gpu_predictions_table(lines))
    print(path)


def main(arguments: Sequence[str]) -> int:
    """This command; returns its exit status."""
    return run_command(work, _FLAGS, __doc__, arguments)


if __name__ == "__main__":
    as_process(main)
