"""Instance norm and leaky ReLU: the values and gradients of the plain formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covid_jax.model.norm import instance_norm_leaky_relu


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
        np.testing.assert_allclose(ours, theirs, atol=1e-10)
        for a, b in zip(pull(dz), pull_theirs(dz), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-10)


def test_in_bfloat16_the_statistics_stay_float32(arguments):
    x, scale, bias = (jnp.asarray(a, jnp.float32) for a in arguments)
    half = instance_norm_leaky_relu(x.astype(jnp.bfloat16), scale, bias)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), plain(x, scale, bias), atol=0.05)
