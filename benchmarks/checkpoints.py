"""What saving costs a run: the wait in its path, and what the steps beside it lose.

    python -m benchmarks.checkpoints --config=configs/paper.py --config.data.patch_size=16,64,96 \
        --output=benchmarks/results

Trains some steps with a save after the first of them, and as many without one, in turns, and writes
checkpoints.json. A save copies parameters and momentum in the run's path; a thread does the rest
beside the steps: digests, compression, writing. The share is of the steps between two saves.
"""

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags

from benchmarks.harness import environment
from benchmarks.harness.steps import ours
from benchmarks.harness.tables import Line, checkpoints_table
from benchmarks.harness.timing import in_turns
from covid_jax.command import as_process, require, run_command
from covid_jax.config import (
    Config,
    check_config_arguments,
    config_from_flag,
    define_config_flag,
)
from covid_jax.device import announce_device
from covid_jax.training.checkpoint import Checkpoints
from covid_jax.training.state import initial_state, new_params, optimizer
from covid_jax.transfer.strategies import network_of

_FLAGS = flags.FlagValues()
define_config_flag(_FLAGS)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of checkpoints.json.", _FLAGS)
_STEPS = flags.DEFINE_integer("steps", 6, "Steps of a turn.", lower_bound=1, flag_values=_FLAGS)
_ROUNDS = flags.DEFINE_integer(
    "rounds", 6, "Turns that each has.", lower_bound=1, flag_values=_FLAGS
)


def measure(config: Config, steps: int, rounds: int) -> list[Line]:
    """Lines for some steps alone, for as many with a save, and for the save's own wait."""
    config, platform = environment.here(config)
    step = ours(config, platform).train
    shape = (1, *config.data.patch_size, config.model.in_channels)
    params = new_params(network_of(config, platform.form), 0, shape)
    state = initial_state(params, optimizer(config.optimizer))
    nothing = jax.tree.map(lambda _: None, params)
    waits: list[float] = []

    def alone() -> None:
        for _ in range(steps):
            step()

    with tempfile.TemporaryDirectory() as folder, Checkpoints(Path(folder)) as checkpoints:

        def with_save() -> None:
            step()
            began = time.perf_counter()
            checkpoints.save(state.replace(step=len(waits)), nothing)
            waits.append(time.perf_counter() - began)
            for _ in range(steps - 1):
                step()
            checkpoints.wait()  # where the steps were too few to hide the rest

        *_, (plain, saving) = in_turns([alone, with_save], rounds, 0)
    megabytes = 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / 1e6
    every = config.checkpoint_every * config.steps_per_epoch
    return [
        {
            "strategy": config.strategy,
            "megabytes": megabytes,
            "steps": steps,
            "steps_between_saves": every,
            "seconds": plain.median,
            "seconds_with_save": saving.median,
            "seconds_in_path": statistics.median(waits),
            "share": (saving.median - plain.median) / (every * plain.median / steps),
            "share_every_epoch": (saving.median - plain.median)
            / (config.steps_per_epoch * plain.median / steps),
            "turns": [list(plain.turns), list(saving.turns)],
        }
    ]


def work() -> None:
    """Measures what the flags say."""
    require(_OUTPUT)
    announce_device()
    path = Path(_OUTPUT.value) / "checkpoints.json"
    lines = measure(environment.of_plan(config_from_flag(_FLAGS)), _STEPS.value, _ROUNDS.value)
    environment.save(path, lines)
    print(checkpoints_table(lines))
    print(path)


def main(arguments: Sequence[str]) -> int:
    """This command; returns its exit status."""
    return run_command(work, _FLAGS, __doc__, arguments, check_config_arguments)


if __name__ == "__main__":
    as_process(main)
