r"""What freezing saves: every prefix of the encoder, then the decoder from its deepest stage up.

    python -m benchmarks.freezing --config=configs/paper.py --config.data.patch_size=16,64,96 \
        --output=DIR [--peer=torch]

Of each frozen part the training step of the network of config.strategy, in turns with full
training, with optax's recipe (harness/steps.py: the whole tree is differentiated, updates of
frozen leaves are set to zero; clipped inside the partition, and in front of it) and with PyTorch's
requires_grad=False: seconds, operations by XLA's count, peak bytes. Writes freezing.json after
every part, and prints the table.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from benchmarks.harness import environment
from benchmarks.harness.measure import freezing
from benchmarks.harness.tables import Line, freezing_table
from covid_jax.command import as_process, require, run_command
from covid_jax.config import check_config_arguments, config_from_flag, define_config_flag
from covid_jax.device import announce_device
from covid_jax.errors import UserError

_FLAGS = flags.FlagValues()
define_config_flag(_FLAGS)
_PEER = flags.DEFINE_enum("peer", None, ["torch"], "What to time beside ours.", _FLAGS)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of freezing.json.", _FLAGS)
_ROUNDS = flags.DEFINE_integer(
    "rounds", 4, "Turns that each has.", lower_bound=1, flag_values=_FLAGS
)
_SECONDS = flags.DEFINE_float(
    "seconds", 2.0, "Length of a turn, of one step at least.", lower_bound=0, flag_values=_FLAGS
)


def work() -> None:
    """Measures what the flags say."""
    require(_OUTPUT)
    announce_device()
    config = environment.of_plan(config_from_flag(_FLAGS))
    if config.strategy == "multi_encoder":
        raise UserError("freezing is measured on the network of one encoder: --config=FILE:scratch")
    path = Path(_OUTPUT.value) / "freezing.json"
    lines: list[Line] = []
    peer = _PEER.value == "torch"
    config, platform = environment.here(config)
    for lines in freezing(config, platform, peer, _ROUNDS.value, _SECONDS.value):
        environment.save(path, lines)
    print(freezing_table(lines))
    print(f"{path}")


def main(arguments: Sequence[str]) -> int:
    """This command; returns its exit status."""
    return run_command(work, _FLAGS, __doc__, arguments, check_config_arguments)


if __name__ == "__main__":
    as_process(main)
