r"""Whole volumes through a network of windows, beside nnU-Net's predictor with the same weights.

    python -m benchmarks.inference --config=configs/paper.py --config.data.patch_size=16,64,96 \
        --input=examples/covid19/COVID-19-CT-Seg_20cases/coronacases_001.nii.gz --output=DIR \
        [--peer=torch] [--nomirror]

Scans are normalised and not resampled, weights are random: this is the cost of the windows, with
Gaussian weights, config.inference.step_size and config.inference.batch_size windows at once, with
and without the 8 mirrored views. The share of voxels that get another class stands beside them: a
few, since nnU-Net adds up in half precision. Writes inference.json and prints the table.
"""

import dataclasses
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from benchmarks import environment
from benchmarks.tables import Line, inference_table
from benchmarks.timing import in_turns
from covid_jax.config import (
    Config,
    check_config_arguments,
    config_from_flag,
    define_config_flag,
)
from covid_jax.data.plan import Plan
from covid_jax.data.preprocess import read_scan
from covid_jax.errors import UserError, run_command
from covid_jax.inference.scan import make_scorer
from covid_jax.nnunet.model_folder import Model, plain_dataset, write_model
from covid_jax.training.state import new_params
from covid_jax.transfer.strategies import network_of

_CONFIG = define_config_flag()
flags.declare_key_flag("config")
_INPUT = flags.DEFINE_list("input", None, "Scans, by commas.")
_PEER = flags.DEFINE_enum("peer", None, ["torch"], "What to time beside ours.")
_MIRROR = flags.DEFINE_bool("mirror", True, "Time with the 8 mirrored views as well.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder of inference.json.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns that each has.")

Predict = Callable[[np.ndarray], np.ndarray]
"""normalised volume (D, H, W) -> logits (K, D, H, W)"""


def ours(config: Config, params: Any, mirror: bool) -> Predict:
    """Our sliding window, which averages logits as nnU-Net's does."""
    inference = dataclasses.replace(config.inference, average="logits")
    config, platform = environment.here(dataclasses.replace(config, inference=inference))
    logits_of = make_scorer(config, params, mirror, platform)
    return lambda volume: np.moveaxis(logits_of(volume), -1, 0)


def theirs(config: Config, params: Any, mirror: bool) -> Predict:
    """nnU-Net's predictor of the same network, by way of a model folder."""
    from benchmarks.peers.torch_predictor import predict_logits, predictor

    plan = Plan((1.0, 1.0, 1.0), -1000.0, 1000.0, 0.0, 1.0, (64, 64, 64), (), file_axes=True)
    model = Model(config, plan, params, plain_dataset(config.model.num_classes))
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), model)
        made = predictor(Path(folder), mirror, config.inference.step_size)
        return functools.partial(predict_logits, made)


def measure(config: Config, volume: np.ndarray, params: Any, mirror: bool) -> list[Line]:
    """A line of inference.json for each framework, without its scan."""
    predictors = {"jax": ours(config, params, mirror)}
    if _PEER.value:
        predictors["torch"] = theirs(config, params, mirror)
    runs = [functools.partial(predict, volume) for predict in predictors.values()]
    *_, timings = in_turns(runs, _ROUNDS.value, seconds=0)
    masks = [run().argmax(0) for run in runs]
    return [
        {
            "framework": framework,
            "mirror": mirror,
            "shape": volume.shape,
            "patch_size": list(config.data.patch_size),
            "batch_size": config.inference.batch_size if framework == "jax" else 1,
            "step_size": config.inference.step_size,
            "seconds": timing.median,
            "voxels_unlike_ours": float((mask != masks[0]).mean()),
            **timing.described(),
        }
        for framework, mask, timing in zip(predictors, masks, timings, strict=True)
    ]


def main() -> None:
    """Measures what the flags say."""
    if not _OUTPUT.value or not _INPUT.value:
        raise UserError("--output or --input is missing (see --help)")
    config = config_from_flag(_CONFIG)
    path = Path(_OUTPUT.value) / "inference.json"
    shape = (1, *config.data.patch_size, config.model.in_channels)
    params = new_params(network_of(config, "lax"), config.seed, shape)
    lines: list[Line] = []
    for name in _INPUT.value:
        voxels = read_scan(Path(name)).voxels.astype(np.float32)
        volume = (voxels - voxels.mean()) / voxels.std()
        for mirror in (False, True) if _MIRROR.value else (False,):
            found = measure(config, volume, params, mirror)
            lines += [{"scan": Path(name).name.partition(".")[0], **line} for line in found]
            environment.save(path, lines)
    print(inference_table(lines))
    print(f"{path}")


if __name__ == "__main__":
    run_command(main, __doc__, check_config_arguments)
