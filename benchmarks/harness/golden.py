"""Networks of known output: topologies, and random weights that numpy alone can make again.

What PyTorch's nnU-Net does with them is stored beside this file (tests/parity/golden.py writes it).
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from covid_jax.config import UNetConfig

NETWORKS = Path(__file__).resolve().parent / "golden_networks.json"
"""Shapes of the weights, and logits, of each case's network in PyTorch."""
STEPS = NETWORKS.with_name("golden_steps.json")
"""Losses of its first training steps."""

BENCHMARK = UNetConfig()
ISOTROPIC = UNetConfig(
    features_per_stage=(8, 16, 32, 48, 48),
    kernel_sizes=((3, 3, 3),) * 5,
    strides=((1, 1, 1),) + ((2, 2, 2),) * 4,
    n_conv_per_stage=(2,) * 5,
    n_conv_per_stage_decoder=(2,) * 4,
)
UNEVEN = UNetConfig(
    in_channels=2,
    num_classes=4,
    features_per_stage=(6, 10, 14, 18),
    kernel_sizes=((1, 3, 3), (3, 3, 1), (3, 3, 3), (1, 1, 3)),
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 1), (3, 1, 2)),
    n_conv_per_stage=(1, 3, 2, 1),
    n_conv_per_stage_decoder=(3, 1, 2),
)
RESIDUAL = dataclasses.replace(
    UNEVEN,
    features_per_stage=(6, 10, 10, 14),
    n_conv_per_stage=(),
    n_blocks_per_stage=(1, 3, 2, 1),
    n_conv_per_stage_decoder=(1, 2, 1),
)
"""A block whose input goes on pooled alone, blocks with and without a stride and a projection."""
VERSION_1 = UNetConfig(
    features_per_stage=(8, 16, 32, 48, 48, 48),
    kernel_sizes=BENCHMARK.kernel_sizes,
    strides=BENCHMARK.strides,
    head_bias=False,
    kernel_sizes_decoder=tuple(reversed(BENCHMARK.kernel_sizes[1:])),
)
CASES: dict[str, tuple[UNetConfig, tuple[int, int, int]]] = {
    "benchmark": (BENCHMARK, (16, 64, 64)),
    "isotropic": (ISOTROPIC, (32, 32, 16)),
    "uneven": (UNEVEN, (12, 16, 16)),
    "residual": (RESIDUAL, (12, 16, 16)),
    "odd patch": (dataclasses.replace(BENCHMARK, features_per_stage=(8,) * 6), (25, 40, 48)),
    "version 1": (VERSION_1, (16, 64, 64)),
}
"""The networks of the parity tests, and the patch that each one sees."""


def random_weights(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """A random state dict for torch's names and shapes: biases and scales too are not trivial."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name in sorted(shapes):
        shape = shapes[name]
        if len(shape) > 1:
            value = rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
        else:
            value = 0.1 * rng.normal(size=shape) + name.endswith(("norm.weight", "norm.1.weight"))
        weights[name] = value.astype(np.float32)
    return weights


def random_image(config: UNetConfig, patch: tuple[int, int, int], seed: int = 1) -> np.ndarray:
    """Standard normal values, (2, D, H, W, C)."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2, *patch, config.in_channels)).astype(np.float32)


def stored_weights(name: str) -> dict[str, np.ndarray]:
    """Random weights for nnU-Net's network of a case, whose names and shapes are stored."""
    shapes = json.loads(NETWORKS.read_text())[name]["weights"]
    return random_weights({key: tuple(shape) for key, shape in shapes.items()}, seed=0)


def random_batch(name: str) -> dict[str, np.ndarray]:
    """A batch of two for the network of a case, as the training step takes it."""
    config, patch = CASES[name]
    label = np.random.default_rng(2).integers(0, config.num_classes, (2, *patch))
    label[0] *= np.arange(patch[0])[:, None, None] < patch[0] // 2
    return {
        "image": random_image(config, patch),
        "label": label.astype(np.int32),
        "labelled": np.ones((2, config.num_classes), bool),
    }
