"""Stores what nnU-Net's own networks give, and files it wrote, for tests without PyTorch.

    python -m tests.parity.golden [FOLDER]

All of it is computed in float64, so that it is no machine's rounding.

FOLDER is the unpacked source of nnunet 1.7.1 (PyPI); without it, the values of version 1 are kept.
"""

import collections
import contextlib
import copy
import json
import pickle
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.loss import dice
from torch import nn

from benchmarks.harness.golden import (
    CASES,
    NETWORKS,
    STEPS,
    random_batch,
    random_image,
    random_weights,
)
from benchmarks.peers import torch_nnunet as peer
from covid_jax.config import OptimizerConfig
from tests.networks import TINY_PATCH, TINY_VERSION_1, sampled

VERSION_1_MODEL = Path(__file__).resolve().parent.parent / "files" / "nnunet_version_1"


def main(version_1_source: str | None) -> None:
    """Writes NETWORKS."""
    golden = json.loads(NETWORKS.read_text()) if NETWORKS.exists() else {}
    for name, (config, _) in CASES.items():
        if name != "version 1":
            golden[name] = values(peer.network(config), name)
        elif version_1_source:
            sys.path.insert(0, version_1_source)
            golden[name] = values(version_1_network(config), name)
            write_version_1_model(golden)
    NETWORKS.write_text(json.dumps(golden) + "\n")
    STEPS.write_text(json.dumps({"losses": losses("isotropic", steps=5)}) + "\n")


def losses(name: str, steps: int) -> list[float]:
    """The loss of each of some training steps on one random batch, with random weights."""
    config, _ = CASES[name]
    net, batch, settings = peer.network(config), random_batch(name), OptimizerConfig()
    load_random_weights(net)
    net = net.double()
    sgd, loss_of = peer.optimizer(net, settings), peer.loss(len(config.features_per_stage) - 1)
    image, label = peer.channels_first(batch["image"]).double(), torch.from_numpy(batch["label"])
    with dice_sums_in("float64"):
        return [
            peer.train_step(net, sgd, loss_of, image, label, settings.clip_norm)
            for _ in range(steps)
        ]


@contextlib.contextmanager
def dice_sums_in(dtype: str) -> Iterator[None]:
    """Within, nnU-Net's Dice sums in this dtype, where it does in float32 whatever it is given."""
    names = {**vars(torch), "float32": getattr(torch, dtype)}
    before, dice.torch = dice.torch, types.SimpleNamespace(**names)
    try:
        yield
    finally:
        dice.torch = before


def values(net: nn.Module, name: str) -> dict[str, Any]:
    """Names and shapes of the network's weights, and some of its logits for random ones."""
    config, patch = CASES[name]
    load_random_weights(net)
    net, image = net.double(), peer.channels_first(random_image(config, patch)).double()
    with torch.no_grad():
        logits = peer.forward_cropped(net, image) if name == "odd patch" else net(image)
    heads = [sampled(peer.channels_last(head)).tolist() for head in logits]
    return {"weights": own_shapes(net), "logits": heads}


def load_random_weights(net: nn.Module, seed: int = 0) -> None:
    """Gives the network the weights of benchmarks/harness/golden.py."""
    weights = random_weights(own_shapes(net), seed)
    tensors = {name: torch.from_numpy(value) for name, value in weights.items()}
    net.load_state_dict(tensors, strict=False)  # the names that are left out are aliases


def own_shapes(net: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of every weight, under one name for each."""
    return {name: tuple(weight.shape) for name, weight in net.named_parameters()}


def write_version_1_model(golden: dict[str, Any]) -> None:
    """A tiny model folder as nnU-Net v1 leaves it, and logits of its network.

    The checkpoint is in the format of PyTorch before 1.6, in which the first of them were written.
    """
    net = version_1_network(TINY_VERSION_1)
    load_random_weights(net)
    image = peer.channels_first(random_image(TINY_VERSION_1, TINY_PATCH))
    with torch.no_grad():
        logits = copy.deepcopy(net).double()(image.double())
    golden["version 1 file"] = [sampled(peer.channels_last(head)).tolist() for head in logits]
    sgd = torch.optim.SGD(net.parameters(), 0.01, momentum=0.99)
    fold = VERSION_1_MODEL / "fold_0"
    fold.mkdir(parents=True, exist_ok=True)
    torch.save(
        {
            "epoch": 1000,
            "state_dict": net.state_dict(),
            "optimizer_state_dict": sgd.state_dict(),
            "lr_scheduler_state_dict": None,
            "plot_stuff": ([np.float64(0.1)], [np.float32(0.2)], [], [0.5]),
            "best_stuff": (np.float64(0.5), None, None),
        },
        fold / "model_final_checkpoint.model",
        _use_new_zipfile_serialization=False,
    )
    plans = version_1_plans()
    arguments = ("plans.pkl", 0, "results", "data", True, 0, True, False, True)
    for path, content in {
        VERSION_1_MODEL / "plans.pkl": plans,
        fold / "model_final_checkpoint.model.pkl": collections.OrderedDict(
            init=arguments, name="nnUNetTrainerV2", plans=plans
        ),
    }.items():
        path.write_bytes(pickle.dumps(content, protocol=4))


def version_1_plans() -> dict[str, Any]:
    """Plans with the keys and types that ExperimentPlanner of version 1 writes."""
    network = TINY_VERSION_1
    stage = {
        "batch_size": 2,
        "num_pool_per_axis": [1, 2, 2],
        "patch_size": np.array(TINY_PATCH),
        "median_patient_size_in_voxels": np.array([20, 40, 40]),
        "current_spacing": np.array([5.0, 1.5, 1.5]),
        "original_spacing": np.array([5.0, 0.75, 0.75]),
        "do_dummy_2D_data_aug": True,
        "pool_op_kernel_sizes": [list(stride) for stride in network.strides[1:]],
        "conv_kernel_sizes": [list(kernel) for kernel in network.kernel_sizes],
    }
    intensities = {
        "median": np.float64(-300.0),
        "mean": np.float64(-400.0),
        "sd": np.float64(250.0),
        "mn": -1024.0,
        "mx": 900.0,
        "percentile_99_5": np.float64(200.0),
        "percentile_00_5": np.float64(-950.0),
    }
    return {
        "num_stages": 1,
        "num_modalities": 1,
        "modalities": {0: "CT"},
        "normalization_schemes": collections.OrderedDict({0: "CT"}),
        "dataset_properties": {"intensityproperties": collections.OrderedDict({0: intensities})},
        "original_spacings": [np.array([5.0, 0.75, 0.75])],
        "original_sizes": [(20, 80, 80)],
        "num_classes": network.num_classes - 1,
        "all_classes": [1],
        "base_num_features": network.features_per_stage[0],
        "use_mask_for_norm": collections.OrderedDict({0: False}),
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "conv_per_stage": 2,
        "plans_per_stage": {0: stage},
    }


def version_1_network(config: Any) -> nn.Module:
    """Generic_UNet as nnUNetTrainerV2 makes it."""
    from nnunet.network_architecture.generic_UNet import Generic_UNet

    return Generic_UNet(
        config.in_channels,
        config.features_per_stage[0],
        config.num_classes,
        len(config.strides) - 1,
        conv_op=nn.Conv3d,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        dropout_op=nn.Dropout3d,
        dropout_op_kwargs={"p": 0, "inplace": True},
        nonlin_kwargs={"negative_slope": 1e-2, "inplace": True},
        final_nonlin=lambda x: x,
        pool_op_kernel_sizes=[list(stride) for stride in config.strides[1:]],
        conv_kernel_sizes=[list(kernel) for kernel in config.kernel_sizes],
        convolutional_pooling=True,
        convolutional_upsampling=True,
        max_num_features=config.features_per_stage[-1],
    )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
