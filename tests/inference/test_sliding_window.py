"""Windows: where they lie, how they weigh, and that together they are the volume."""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covid_jax.errors import UserError
from covid_jax.inference.sliding_window import (
    gaussian_weight,
    predict_slabs,
    predict_volume,
    window_starts,
)
from tests.networks import assert_near


def voxelwise(image):
    """A network that looks at each voxel alone."""
    return jnp.concatenate([jnp.zeros_like(image), 3 * image], -1)


def expected(volume):
    p = 1 / (1 + np.exp(-3 * volume))
    return np.stack([1 - p, p], -1)


@given(
    shape=st.tuples(*[st.integers(1, 14)] * 3),
    step_size=st.sampled_from([0.25, 0.5, 0.75, 1.0]),
    batch_size=st.integers(1, 4),
)
@settings(max_examples=25, deadline=None)
def test_a_voxelwise_network_gives_each_voxel_its_own_probability(shape, step_size, batch_size):
    volume = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    ours = predict_volume(voxelwise, volume, (4, 6, 6), step_size=step_size, batch_size=batch_size)
    assert_near(ours, expected(volume), 1e-5)


def test_mirrored_views_are_mirrored_back():
    volume = np.random.default_rng(0).normal(size=(5, 9, 7)).astype(np.float32)
    ours = predict_volume(voxelwise, volume, (4, 6, 6), mirror_axes=(0, 1, 2))
    assert_near(ours, expected(volume), 1e-5)


def test_mirroring_makes_a_network_that_knows_left_from_right_symmetric():
    def sided(image):
        ramp = jnp.linspace(-1, 1, image.shape[3])[:, None]
        return jnp.concatenate([0 * image, image + ramp], -1)

    volume = np.zeros((4, 6, 6), np.float32)
    plain = predict_volume(sided, volume, (4, 6, 6))[..., 1]
    mirrored = predict_volume(sided, volume, (4, 6, 6), mirror_axes=(0, 1, 2))[..., 1]
    assert plain[0, 0, 0] < 0.3
    assert_near(mirrored, 0.5, 1e-6)
    others = predict_volume(sided, volume, (4, 6, 6), mirror_axes=(0, 1))[..., 1]
    assert_near(others, plain, 1e-6)


def test_a_window_is_seen_once_for_each_set_of_axes():
    seen = []

    def network(image):
        seen.append(image)
        return jnp.concatenate([image, image], -1)

    volume = np.random.default_rng(0).normal(size=(4, 6, 6)).astype(np.float32)
    for axes, views in (((), 1), ((1,), 2), ((0, 2), 4), ((0, 1, 2), 8)):
        seen.clear()
        predict_volume(network, volume, (4, 6, 6), mirror_axes=axes, batch_size=1)
        assert len({np.asarray(image).tobytes() for image in seen}) == len(seen) == views


def test_sums_in_half_precision_are_those_in_float32_but_for_rounding():
    volume = np.random.default_rng(0).normal(size=(9, 13, 11)).astype(np.float32)
    half = predict_volume(voxelwise, volume, (4, 6, 6), average="logits", sums="float16")
    assert half.dtype == np.float16
    full = predict_volume(voxelwise, volume, (4, 6, 6), average="logits")
    inside = np.s_[2:-2, 3:-3, 3:-3]
    assert_near(half[inside], full[inside], 0.02)


def test_scores_that_half_precision_cannot_hold_are_refused():
    volume = np.full((4, 6, 6), 1e5, np.float32)
    with pytest.raises(UserError, match=r"do not fit into float16; .* float32"):
        predict_volume(voxelwise, volume, (4, 6, 6), average="logits", sums="float16")


@pytest.mark.parametrize(
    ("length", "window", "starts"),
    [(16, 16, [0]), (20, 16, [0, 4]), (100, 32, [0, 14, 27, 41, 54, 68]), (24, 16, [0, 8])],
)
def test_windows_are_spread_as_nnunet_spreads_them(length, window, starts):
    assert window_starts(length, window, 0.5) == starts


def test_weights_fall_from_the_centre_and_never_reach_zero():
    weight = gaussian_weight((16, 32, 32))
    assert weight.max() == weight[8, 16, 16] == 1
    assert weight.min() > 0
    assert weight[8, 16, 20] == pytest.approx(np.exp(-0.5), rel=0.01)  # one deviation: 32 / 8


@pytest.mark.parametrize("depth", [3, 4, 9, 23])
def test_planes_are_given_away_in_order_when_no_window_reaches_them(depth):
    """The same values as of the whole, whose windows are all added up before."""
    volume = np.random.default_rng(0).normal(size=(depth, 9, 7)).astype(np.float32)
    seen = []

    def network(image):
        seen.append(len(slabs))
        return voxelwise(image)

    slabs = []
    for slab in predict_slabs(network, volume, (4, 6, 6), batch_size=1):
        slabs.append(slab)
    assert [slab.shape[1:3] for slab in slabs] == [(9, 7)] * len(slabs)
    assert_near(np.concatenate(slabs), expected(volume), 1e-5)
    assert seen == sorted(seen)
    assert (seen[-1] > 0) == (depth > 4)


def test_scores_that_half_precision_cannot_hold_are_one_line_without_warnings():
    """Whether the planes are taken together or as they come."""
    volume = np.full((8, 6, 6), 1e5, np.float32)
    slabs = predict_slabs(voxelwise, volume, (4, 6, 6), average="logits", sums="float16")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError, match="do not fit into float16"):
            next(slabs)
