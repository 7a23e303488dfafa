"""Instance normalisation and leaky ReLU as one operation with one gradient, and each alone."""

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax

EPSILON = 1e-5  # nnU-Net's
SLOPE = 0.01  # nnU-Net's, of the leaky ReLU
_SPACE = (1, 2, 3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def instance_norm_leaky_relu(
    x: Array, scale: Array, bias: Array, epsilon: float = EPSILON, slope: float = SLOPE
) -> Array:
    """Normalises each channel of each sample over space, scales, shifts, and applies leaky ReLU.

    Both are affine in x for a given channel, up to the sign, so forward and backward each take
    one pass for two sums and one for the result. Statistics are float32 whatever x is, and as
    good as x is rounded, however many deviations its mean is away from 0.

    Args:
      x: (N, D, H, W, C).
      scale, bias: (C,).
      epsilon: what is added to the variance.
      slope: of the leaky ReLU below 0; 1: the norm alone, of which XLA drops the rest.

    Returns:
      (N, D, H, W, C) in x's dtype
    """
    return _forward(x, scale, bias, epsilon, slope)[0]


def leaky_relu(x: Array, slope: float = SLOPE) -> Array:
    """Leaky ReLU, whose gradient at 0 is the slope, as in PyTorch."""
    return jnp.where(x > 0, x, slope * x)


def _coefficients(
    x: Array, scale: Array, bias: Array, epsilon: float
) -> tuple[Array, Array, Array, Array]:
    """Mean and 1 / deviation of each channel, and the a, b for which the norm is a x + b."""
    wide = x.astype(_accumulator(x))
    # Subtracted here alone: what is used twice, XLA for CPU writes down in front of a sum.
    near = _near_mean(wide)
    mean = wide.mean(_SPACE, keepdims=True)
    variance = jnp.square(wide - near).mean(_SPACE, keepdims=True) - jnp.square(mean - near)
    inverse = lax.rsqrt(jnp.maximum(variance, 0) + epsilon)
    a = scale * inverse
    return mean, inverse, a, bias - mean * a


def _forward(
    x: Array, scale: Array, bias: Array, epsilon: float, slope: float
) -> tuple[Array, tuple[Array, ...]]:
    mean, inverse, a, b = _coefficients(x, scale, bias, epsilon)
    y = x.astype(a.dtype) * a + b
    return jnp.where(y > 0, y, slope * y).astype(x.dtype), (x, scale, bias, mean, inverse)


def _backward(
    epsilon: float, slope: float, residuals: tuple[Array, ...], dz: Array
) -> tuple[Array, Array, Array]:
    del epsilon  # it is in `inverse`
    x, scale, bias, mean, inverse = residuals
    # Else XLA may keep the signs of the forward pass: a byte a voxel, to write and to read.
    x = lax.optimization_barrier(x)
    a = scale * inverse
    b = bias - mean * a
    wide, dz = x.astype(a.dtype), dz.astype(a.dtype)
    dy = jnp.where(wide * a + b > 0, dz, slope * dz)
    sum_dy = dy.sum(_SPACE, keepdims=True)
    sum_dy_x = (dy * wide).sum(_SPACE, keepdims=True)
    sum_dy_normal = (sum_dy_x - mean * sum_dy) * inverse
    voxels = x.shape[1] * x.shape[2] * x.shape[3]
    # dx = a (dy - (sum dy + normal sum(dy normal)) / voxels) with normal = (x - mean) inverse
    slope_x = -a * inverse * sum_dy_normal / voxels
    shift = -a * sum_dy / voxels - mean * slope_x
    dx = (a * dy + slope_x * wide + shift).astype(x.dtype)
    total = functools.partial(jnp.sum, axis=(0, *_SPACE))
    return dx, total(sum_dy_normal).astype(scale.dtype), total(sum_dy).astype(bias.dtype)


def _near_mean(x: Array) -> Array:
    """(N, 1, 1, 1, C), a value near each channel's mean: the mean of 4 x 4 voxels of every slice.

    It is known before the pass that sums. A mean of squares minus the square of a mean loses the
    digits that both share, nearly all where the mean is many deviations; squares of distances to
    this value share few. Depth is not thinned: on several devices each has its own slices at hand.
    """
    steps = [max(size // 4, 1) for size in x.shape[2:4]]
    rows, columns = (slice(step // 2, None, step) for step in steps)
    return x[:, :, rows, columns].mean(_SPACE, keepdims=True)


def _accumulator(x: Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)


instance_norm_leaky_relu.defvjp(_forward, _backward)
