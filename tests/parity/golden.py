"""Stores what nnU-Net's own networks give, for the tests that run without PyTorch.

    python -m tests.parity.golden [FOLDER]

FOLDER is the unpacked source of nnunet 1.7.1 (PyPI); without it, the values of version 1 are kept.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.peers import torch_nnunet as peer
from tests.networks import CASES, random_image, random_weights

FILE = Path(__file__).resolve().parent.parent / "files" / "golden_networks.json"
SAMPLES = 40  # voxels of each head


def main(version_1_source: str | None) -> None:
    """Writes FILE."""
    golden = json.loads(FILE.read_text()) if FILE.exists() else {}
    for name, (config, _) in CASES.items():
        if name != "version 1":
            golden[name] = values(peer.network(config), name)
        elif version_1_source:
            sys.path.insert(0, version_1_source)
            golden[name] = values(version_1_network(config), name)
    FILE.write_text(json.dumps(golden) + "\n")


def values(net: nn.Module, name: str) -> dict[str, Any]:
    """Names and shapes of the network's weights, and some of its logits for random ones."""
    config, patch = CASES[name]
    shapes = own_shapes(net)
    weights = {key: torch.from_numpy(value) for key, value in random_weights(shapes).items()}
    net.load_state_dict(weights, strict=False)  # the names that are left out are aliases
    image = peer.channels_first(random_image(config, patch))
    with torch.no_grad():
        logits = peer.forward_cropped(net, image) if name == "odd patch" else net(image)
    heads = [peer.channels_last(head).ravel() for head in logits]
    return {"weights": shapes, "logits": [sampled(head).tolist() for head in heads]}


def own_shapes(net: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of every weight, under one name for each."""
    return {name: tuple(weight.shape) for name, weight in net.named_parameters()}


def sampled(logits: np.ndarray) -> np.ndarray:
    """Some of the logits, spread evenly."""
    return logits[np.linspace(0, logits.size - 1, SAMPLES).astype(int)]


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
