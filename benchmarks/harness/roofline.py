"""What the device can do at best, measured: against it a step's share is reported."""

import functools
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp


@functools.cache
def matrix_rate(dtype: str, platform: str) -> float:
    """Operations a second of a large matrix product in `dtype`, accumulated in float32.

    Of random numbers: a GPU that multiplies a constant draws less power, and so runs faster.
    """
    size = 8192 if platform == "gpu" else 2048
    a = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
    product = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=jnp.float32))
    return 2 * size**3 / _seconds(lambda: product(a))


@functools.cache
def bandwidth(platform: str) -> float:
    """Bytes a second to and from the device's memory: an array is read and written in place."""
    size = 2**28 if platform == "gpu" else 2**26
    a = jnp.ones(size, jnp.float32)
    scale = jax.jit(lambda a: a * 0.5 + 1, donate_argnums=0)

    def run() -> jax.Array:
        nonlocal a
        a = scale(a)
        return a

    return 2 * a.nbytes / _seconds(run)


def _seconds(run: Callable[[], jax.Array], times: int = 7) -> float:
    run().block_until_ready()
    found = []
    for _ in range(times):
        begin = time.perf_counter()
        run().block_until_ready()
        found.append(time.perf_counter() - begin)
    return statistics.median(found)
