"""Networks for tests: topologies, and random weights that numpy alone can make again."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from covid_jax.config import UNetConfig

FILES = Path(__file__).resolve().parent / "files"
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
TINY_VERSION_1 = UNetConfig(
    features_per_stage=(2, 4, 8),
    kernel_sizes=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
    n_conv_per_stage=(2, 2, 2),
    n_conv_per_stage_decoder=(2, 2),
    head_bias=False,
    kernel_sizes_decoder=((3, 3, 3), (3, 3, 3)),
)
TINY_PATCH = (8, 16, 16)
"""Of the model of version 1 in tests/files."""

SAMPLES = 40  # voxels of each head that are stored

CASES: dict[str, tuple[UNetConfig, tuple[int, int, int]]] = {
    "benchmark": (BENCHMARK, (16, 64, 64)),
    "isotropic": (ISOTROPIC, (32, 32, 16)),
    "uneven": (UNEVEN, (12, 16, 16)),
    "residual": (RESIDUAL, (12, 16, 16)),
    "odd patch": (dataclasses.replace(BENCHMARK, features_per_stage=(8,) * 6), (25, 40, 48)),
    "version 1": (VERSION_1, (16, 64, 64)),
}
"""The networks of the parity tests, and the patch that each one sees."""


@st.composite
def topologies(draw: st.DrawFn) -> UNetConfig:
    """Networks with a plain or a residual encoder, of any stages, strides, kernels and channels."""
    stages = draw(st.integers(2, 4))
    odd = st.tuples(*[st.sampled_from((1, 3))] * 3)
    step = st.tuples(*[st.sampled_from((1, 2))] * 3)

    def each(values: st.SearchStrategy[Any], count: int) -> tuple[Any, ...]:
        return tuple(draw(st.lists(values, min_size=count, max_size=count)))

    residual, blocks = draw(st.booleans()), each(st.integers(1, 3), stages)
    return UNetConfig(
        in_channels=draw(st.integers(1, 3)),
        num_classes=draw(st.integers(2, 4)),
        features_per_stage=each(st.integers(2, 9), stages),
        kernel_sizes=each(odd, stages),
        strides=((1, 1, 1), *each(step, stages - 1)),
        n_conv_per_stage=() if residual else blocks,
        n_blocks_per_stage=blocks if residual else (),
        n_conv_per_stage_decoder=each(st.integers(1, 3), stages - 1),
    )


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
    """(2, D, H, W, C)"""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2, *patch, config.in_channels)).astype(np.float32)


def stored_weights(name: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights for nnU-Net's network of a case, whose names and shapes are stored."""
    shapes = json.loads((FILES / "golden_networks.json").read_text())[name]["weights"]
    return random_weights({key: tuple(shape) for key, shape in shapes.items()}, seed)


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


def sampled(logits: np.ndarray) -> np.ndarray:
    """Some of the logits, spread evenly: what is stored of a network."""
    values = np.asarray(logits).ravel()
    return values[np.linspace(0, values.size - 1, SAMPLES).astype(int)]


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference as a share of the largest value."""
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())
