"""Instance norm and leaky ReLU: the values and gradients of the plain formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covid_jax.model.norm import instance_norm_leaky_relu, leaky_relu
from tests.networks import assert_near


def plain(x, scale, bias, epsilon=1e-5, slope=0.01):
    mean = x.mean((1, 2, 3), keepdims=True)
    variance = x.var((1, 2, 3), keepdims=True)
    y = (x - mean) / jnp.sqrt(variance + epsilon) * scale + bias
    return jnp.where(y > 0, y, slope * y)


@pytest.fixture
def arguments():
    rng = np.random.default_rng(0)
    x = rng.normal(1, 2, (2, 3, 4, 5, 6))
    return x, rng.normal(size=6), rng.normal(size=6)


@pytest.mark.parametrize("settings", [(), (0.1, 0.3)])
def test_value_and_gradients_are_those_of_the_plain_formula(arguments, settings):
    """With nnU-Net's epsilon and slope, and with others."""
    with jax.enable_x64(True):
        arguments = [jnp.asarray(a) for a in arguments]
        ours, pull = jax.vjp(lambda *a: instance_norm_leaky_relu(*a, *settings), *arguments)
        theirs, pull_theirs = jax.vjp(lambda *a: plain(*a, *settings), *arguments)
        dz = jnp.asarray(np.random.default_rng(1).normal(size=ours.shape))
        assert_near(ours, theirs, 1e-11)
        for a, b in zip(pull(dz), pull_theirs(dz), strict=True):
            assert_near(a, b, 2e-12)


def test_with_a_slope_of_1_it_is_the_norm_alone(arguments):
    """Its gradient too, and where a channel's scale is 0, as a residual block starts."""
    x, scale, bias = (jnp.asarray(a, jnp.float32) for a in arguments)
    scale, bias = scale.at[0].set(0), bias.at[0].set(0)
    ours, pull = jax.vjp(lambda *a: instance_norm_leaky_relu(*a, slope=1.0), x, scale, bias)
    theirs, pull_theirs = jax.vjp(lambda *a: plain(*a, slope=1.0), x, scale, bias)
    dz = jnp.asarray(np.random.default_rng(1).normal(size=ours.shape), jnp.float32)
    assert_near(ours, theirs, 1e-5)
    assert not np.asarray(ours[..., 0]).any()
    for a, b in zip(pull(dz), pull_theirs(dz), strict=True):
        assert_near(a, b, 1e-5)


def test_a_leaky_relu_has_pytorchs_gradient_at_0():
    slopes = jax.vmap(jax.grad(leaky_relu))(jnp.float32([-2, 0, 2]))
    np.testing.assert_allclose(slopes, [0.01, 0.01, 1])


def test_in_bfloat16_the_statistics_stay_float32(arguments):
    x, scale, bias = (jnp.asarray(a, jnp.float32) for a in arguments)
    half = instance_norm_leaky_relu(x.astype(jnp.bfloat16), scale, bias)
    assert half.dtype == jnp.bfloat16
    assert_near(half.astype(jnp.float32), plain(x, scale, bias), 0.015)


def shifted(ratio, dtype):
    """A channel of deviation 1 around `ratio` whose norm is nowhere near the kink at 0."""
    rng = np.random.default_rng(2)
    x = rng.choice([-1, 1], (2, 8, 16, 16, 4)) * rng.uniform(0.5, 1.5, (2, 8, 16, 16, 4))
    scale, bias = rng.uniform(0.5, 2, 4), rng.uniform(-0.1, 0.1, 4)
    dz = rng.normal(1, 1, x.shape)
    given = jnp.asarray(x + ratio, dtype), jnp.float32(scale), jnp.float32(bias)
    return given, jnp.asarray(dz, dtype)


def in_float64(arguments, dz):
    """Value and gradients of the plain formula for the same numbers."""
    with jax.enable_x64(True):
        exact = [jnp.asarray(np.asarray(a, np.float64)) for a in (*arguments, dz)]
        value, pull = jax.vjp(plain, *exact[:3])
        return [np.asarray(a) for a in (value, *pull(exact[3]))]


SUM_ROUNDING = np.finfo(np.float32).eps * (8 * 16 * 16) ** 0.5
"""Of a sum over the voxels of `shifted`, added one after another."""


@pytest.mark.parametrize("ratio", [0, 1, 100, 1000, 1e4])
def test_a_mean_of_many_deviations_costs_no_more_than_the_rounding_of_the_input(ratio):
    arguments, dz = shifted(ratio, jnp.float32)
    value, pull = jax.vjp(jax.jit(instance_norm_leaky_relu), *arguments)
    for ours, theirs in zip((value, *pull(dz)), in_float64(arguments, dz), strict=True):
        apart = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
        assert apart < SUM_ROUNDING * (1 + ratio)


@pytest.mark.parametrize("ratio", [0, 1, 100])  # of more deviations bfloat16 holds no two values
def test_nor_in_bfloat16(ratio):
    arguments, dz = shifted(ratio, jnp.bfloat16)
    value, pull = jax.vjp(jax.jit(instance_norm_leaky_relu), *arguments)
    of_x, of_scale, of_bias = pull(dz)
    exact = in_float64(arguments, dz)
    for ours, theirs in zip((value, of_x), exact, strict=False):
        assert np.linalg.norm(ours - theirs) < 0.004 * np.linalg.norm(theirs)
    for ours, theirs in zip((of_scale, of_bias), exact[2:], strict=True):
        assert_near(ours, theirs, SUM_ROUNDING * (1 + ratio))
