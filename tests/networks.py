"""Networks for tests: small ones, any ones, and how far two outputs are apart."""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from covid_jax.config import UNetConfig

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

COMPILED_SOON = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
}
"""Options of a jax.jit that compiles in a fifth of the time what computes as fast at tests' sizes.

Not of two programs that are to agree to the last bit.
"""
SOON_IN_A_PROCESS = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
"""The same for all that a process compiles, as its XLA_FLAGS."""

SAMPLES = 40  # voxels of each head that are stored


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


def sampled(logits: np.ndarray) -> np.ndarray:
    """Some of the logits, spread evenly: what is stored of a network."""
    values = np.asarray(logits).ravel()
    return values[np.linspace(0, values.size - 1, SAMPLES).astype(int)]


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference as a share of the largest value."""
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def assert_near(ours: np.ndarray, theirs: np.ndarray, share: float) -> None:
    """That no value of ours is further from theirs than `share` of the largest of theirs."""
    ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=share * np.abs(theirs).max(initial=0))
