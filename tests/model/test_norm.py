"""Instance norm and leaky ReLU: the values and gradients of the plain formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covid_jax.model.norm import instance_norm_leaky_relu


def plain(x, scale, bias):
    mean = x.mean((1, 2, 3), keepdims=True)
    variance = x.var((1, 2, 3), keepdims=True)
    y = (x - mean) / jnp.sqrt(variance + 1e-5) * scale + bias
    return jnp.where(y > 0, y, 0.01 * y)


@pytest.fixture
def arguments():
    rng = np.random.default_rng(0)
    x = rng.normal(1, 2, (2, 3, 4, 5, 6))
    return x, rng.normal(size=6), rng.normal(size=6)


def test_value_and_gradients_are_those_of_the_plain_formula(arguments):
    with jax.enable_x64(True):
        arguments = [jnp.asarray(a) for a in arguments]
        ours, pull = jax.vjp(instance_norm_leaky_relu, *arguments)
        theirs, pull_theirs = jax.vjp(plain, *arguments)
        dz = jnp.asarray(np.random.default_rng(1).normal(size=ours.shape))
        np.testing.assert_allclose(ours, theirs, atol=1e-10)
        for a, b in zip(pull(dz), pull_theirs(dz), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-10)


def test_in_bfloat16_the_statistics_stay_float32(arguments):
    x, scale, bias = (jnp.asarray(a, jnp.float32) for a in arguments)
    half = instance_norm_leaky_relu(x.astype(jnp.bfloat16), scale, bias)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), plain(x, scale, bias), atol=0.05)
