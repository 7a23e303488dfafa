r"""Whole volumes through a network of windows, beside nnU-Net's predictor with the same weights.

    python -m benchmarks.inference --config=configs/paper.py --config.data.patch_size=16,64,96 \
        --input=examples/covid19/COVID-19-CT-Seg_20cases/coronacases_001.nii.gz --output=DIR \
        [--peer=torch] [--nomirror]

Scans are normalised and not resampled, weights are random: this is the cost of the windows, with
Gaussian weights, config.inference.step_size and config.inference.batch_size windows at once, with
and without the 8 mirrored views. The share of voxels that get another class stands beside them: a
few, since nnU-Net adds up in half precision. A network of several channels sees the scan in each.
Writes inference.json and prints the table.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from benchmarks.harness import environment
from benchmarks.harness.measure import predictions
from benchmarks.harness.tables import Line, inference_table
from covid_jax.command import as_process, require, run_command
from covid_jax.config import check_config_arguments, config_from_flag, define_config_flag
from covid_jax.data.preprocess import read_scan
from covid_jax.device import announce_device
from covid_jax.training.state import new_params
from covid_jax.transfer.strategies import network_of

_FLAGS = flags.FlagValues()
define_config_flag(_FLAGS)
_INPUT = flags.DEFINE_list("input", None, "Scans, by commas.", _FLAGS)
_PEER = flags.DEFINE_enum("peer", None, ["torch"], "What to time beside ours.", _FLAGS)
_MIRROR = flags.DEFINE_bool("mirror", True, "Time with the 8 mirrored views as well.", _FLAGS)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of inference.json.", _FLAGS)
_ROUNDS = flags.DEFINE_integer(
    "rounds", 3, "Turns that each has.", lower_bound=1, flag_values=_FLAGS
)


def work() -> None:
    """Measures what the flags say."""
    require(_OUTPUT, _INPUT)
    announce_device()
    config, platform = environment.here(environment.of_plan(config_from_flag(_FLAGS)))
    path = Path(_OUTPUT.value) / "inference.json"
    shape = (1, *config.data.patch_size, config.model.in_channels)
    params = new_params(network_of(config, "lax"), config.seed, shape)
    lines: list[Line] = []
    for name in _INPUT.value:
        voxels = read_scan(Path(name)).voxels.astype(np.float32)
        normalised = (voxels - voxels.mean()) / voxels.std()
        volume = np.repeat(normalised[..., None], config.model.in_channels, axis=-1)
        for mirror in (False, True) if _MIRROR.value else (False,):
            found = predictions(
                config, platform, volume, params, mirror, _PEER.value == "torch", _ROUNDS.value
            )
            lines += [{"scan": Path(name).name.partition(".")[0], **line} for line in found]
            environment.save(path, lines)
    print(inference_table(lines))
    print(f"{path}")


def main(arguments: Sequence[str]) -> int:
    """This command; returns its exit status."""
    return run_command(work, _FLAGS, __doc__, arguments, check_config_arguments)


if __name__ == "__main__":
    as_process(main)
