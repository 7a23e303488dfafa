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

The network of a plan: --config=configs/nnunet.py --config.data.prepared_dir=FOLDER, with plan.json
of `prepare --planner` in it, and the prepared data where it is there; or --config.pretrained=RUN, a
run or an imported network. It is the same in all benchmarks that have --config.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from benchmarks.harness import environment
from benchmarks.harness.measure import candidates_of, epoch_times, paper_seconds, whole_epoch
from benchmarks.harness.tables import Line, epoch_time_table
from covid_jax.command import as_process, require, run_command
from covid_jax.config import (
    STRATEGY_NAMES,
    check_config_arguments,
    config_from_flag,
    define_config_flag,
)
from covid_jax.device import announce_device
from covid_jax.errors import UserError

_FLAGS = flags.FlagValues()
define_config_flag(_FLAGS)
_STRATEGIES = flags.DEFINE_string("strategies", "all", "all, or some by commas.", _FLAGS)
_PEER = flags.DEFINE_enum("peer", None, ["torch"], "What to time beside ours.", _FLAGS)
_COMPILE = flags.DEFINE_bool(
    "compile", False, "Time the peer through torch.compile as well.", _FLAGS
)
_REAL = flags.DEFINE_bool("real", False, "Time ours with its own input pipeline as well.", _FLAGS)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of epoch_time.json.", _FLAGS)
_ROUNDS = flags.DEFINE_integer(
    "rounds", 6, "Turns that each has.", lower_bound=1, flag_values=_FLAGS
)
_SECONDS = flags.DEFINE_float(
    "seconds", 2.0, "Length of a turn, of one step at least.", lower_bound=0, flag_values=_FLAGS
)
_FULL = flags.DEFINE_bool("full", False, "Measure a whole epoch of each as well.", _FLAGS)


def work() -> None:
    """Measures what the flags say."""
    require(_OUTPUT)
    announce_device()
    config = environment.of_plan(config_from_flag(_FLAGS))
    wanted = STRATEGY_NAMES if _STRATEGIES.value == "all" else _STRATEGIES.value.split(",")
    if unknown := sorted(set(wanted) - set(STRATEGY_NAMES)):
        raise UserError(f"--strategies={_STRATEGIES.value}: no strategy {', '.join(unknown)}")
    path = Path(_OUTPUT.value) / "epoch_time.json"
    config, platform = environment.here(config)
    print(environment.network(config), flush=True)

    candidates = [
        candidate
        for strategy in wanted
        for candidate in candidates_of(
            dataclasses.replace(config, strategy=strategy),
            platform,
            peer=_PEER.value == "torch",
            compiled=_COMPILE.value,
            real=path.parent if _REAL.value else None,
        )
    ]
    lines: list[Line] = []
    for lines in epoch_times(candidates, _ROUNDS.value, _SECONDS.value):
        environment.save(path, lines, paper=paper_seconds())
    if _FULL.value:
        for line, one in zip(lines, candidates, strict=True):
            line |= {"seconds_per_epoch": whole_epoch(one), "epoch": "measured whole"}
            environment.save(path, lines, paper=paper_seconds())
    print(epoch_time_table(lines, paper_seconds()))
    print(f"{path}")


def main(arguments: Sequence[str]) -> int:
    """This command; returns its exit status."""
    return run_command(work, _FLAGS, __doc__, arguments, check_config_arguments)


if __name__ == "__main__":
    as_process(main)
