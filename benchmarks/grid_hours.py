"""SIMULATED: the hours of the paper's grid on 1, 8 and 64 devices, and what meshes lose to links.

    python -m benchmarks.grid_hours --output=benchmarks/results

Nothing is timed here: harness/cluster.py says what was measured and what is assumed. Writes
grid_hours.json.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from benchmarks.harness import environment
from benchmarks.harness.cluster import LATENCY, LINK, simulate
from benchmarks.harness.tables import grid_hours_table
from covid_jax.command import as_process, require, run_command

_FLAGS = flags.FlagValues()
_OUTPUT = flags.DEFINE_string("output", None, "Folder of grid_hours.json.", _FLAGS)


def work() -> None:
    """Simulates, writes and prints."""
    require(_OUTPUT)
    lines = simulate()
    path = Path(_OUTPUT.value) / "grid_hours.json"
    environment.save(
        path, lines, simulated=True, link_bytes_per_second=LINK, latency_seconds=LATENCY
    )
    print(grid_hours_table(lines))
    print(path)


def main(arguments: Sequence[str]) -> int:
    """This command; returns its exit status."""
    return run_command(work, _FLAGS, __doc__, arguments)


if __name__ == "__main__":
    as_process(main)
