r"""Where the time of a training step goes: its most costly operations.

    python -m benchmarks.kernels --config=configs/paper.py --config.data.patch_size=16,64,96 \
        --output=DIR

From XLA's profiler over a few steps on dummy data: seconds a step, bytes of operands and results,
and the JAX operation each comes from. Operations that run at the same time add up to more than the
step takes. Writes kernels.json with all of them and prints the first.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from benchmarks.harness import environment
from benchmarks.harness.steps import ours
from benchmarks.harness.tables import kernels_table
from benchmarks.harness.trace import operations
from covid_jax.command import as_process, require, run_command
from covid_jax.config import check_config_arguments, config_from_flag, define_config_flag
from covid_jax.device import announce_device

_FLAGS = flags.FlagValues()
define_config_flag(_FLAGS)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of kernels.json.", _FLAGS)


def work() -> None:
    """Measures what the flags say."""
    require(_OUTPUT)
    announce_device()
    config = environment.of_plan(config_from_flag(_FLAGS))
    path = Path(_OUTPUT.value) / "kernels.json"
    steps = ours(*environment.here(config))
    lines = operations(steps.train, steps.program)
    environment.save(path, lines)
    print(kernels_table(lines))
    print(f"{path}")


def main(arguments: Sequence[str]) -> int:
    """This command; returns its exit status."""
    return run_command(work, _FLAGS, __doc__, arguments, check_config_arguments)


if __name__ == "__main__":
    as_process(main)
