"""3D convolution in the form that is fast on each backend, with gradients of its own.

Which form that is, training/platform.py says. XLA's 3D convolutions ("lax") are fast on TPU and on
GPU, there but for few channels, where "packed" hands them fewer, wider voxels (`neighbours`). On
CPU they are about four times too slow. There the passes are oneDNN's ("onednn", onednn.py) where it
is installed. Else ("slices") each is written as what XLA does well on CPU, a 2D convolution or a
matrix product:

- forward, and the gradient to the input: the slices of all cases are one batch of a 2D
  convolution to (depth taps x features) channels, and the taps are added with a shift;
- gradient to the kernel: a matrix product for each slice, accumulated over slices.

All forms give the numbers of `lax.conv_general_dilated` up to rounding. Every kernel is odd, and
padded by (k - 1) / 2, so that an axis of n voxels gives ceil(n / stride).

An input may be a tuple of arrays, which stands for their concatenation along the features. Each
then has a gradient of its own, so XLA drops the one that nothing needs: the gradient into a
skip that comes from a frozen encoder (autodiff through a concatenation would compute it). "lax" and
"packed" never concatenate: the part of the kernel that meets an array convolves it, and cuDNN adds.
"""

import functools
import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from covid_jax.model import onednn

Form = Literal["lax", "packed", "slices", "onednn"]
Triple = tuple[int, int, int]
Padding = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

# Bounds of the gradient to the kernel, in voxels of an output slice, as benchmarks/convolution.py
# measured them: below, one matrix product over all slices beats one a slice; and oneDNN's.
_SMALL_SLICE = 256
_SMALL_SLICE_ONEDNN = 64

# Neighbours along W that a planar convolution takes for one voxel, by its most channels: of those
# measured on an H200, the fastest (docs/benchmarks.md). 64 channels and kernels with a depth lost.
_NEIGHBOURS = ((4, 8), (32, 2))
_MOST_FEATURES = 32


def convolution(
    inputs: Array | Sequence[Array], kernel: Array, strides: Triple, form: Form
) -> Array:
    """The convolution of `inputs` (N, D, H, W, C) with `kernel` (kd, kh, kw, C, features).

    Args:
      inputs: one array, or several that stand for their concatenation along C.
      kernel: odd in each axis.
      strides: along D, H, W.
      form: as above, but for form_in.

    Returns:
      (N, ceil(D / sd), ceil(H / sh), ceil(W / sw), features)
    """
    parts = (inputs,) if isinstance(inputs, jax.Array) else tuple(inputs)
    return _convolution(strides, form_in(kernel.dtype, form), parts, kernel)


def form_in(dtype: jnp.dtype | str, form: Form) -> Form:
    """The form that is taken in `dtype` where `form` is asked for: oneDNN's is for float32."""
    return "slices" if form == "onednn" and jnp.dtype(dtype) != jnp.float32 else form


def neighbours(kernel_shape: Sequence[int], strides: Triple, width: int) -> int:
    """How many neighbours along W "packed" takes for one voxel: 1 where that gains nothing.

    cuDNN has no kernels for a handful of channels: a convolution of 32 at full resolution takes
    three times what its bytes need, the gradient to its kernel seven times.
    """
    depth, _, taps, channels, features = kernel_shape
    if depth > 1 or taps == 1 or strides[2] > 1 or features > _MOST_FEATURES:
        return 1
    found = next((count for most, count in _NEIGHBOURS if channels <= most), 1)
    return math.gcd(found, width)


def transposed_convolution(x: Array, kernel: Array, bias: Array | None = None) -> Array:
    """The transposed convolution whose kernel equals its stride: a matrix product.

    Its outputs do not overlap, so each voxel becomes a block of kernel size. lax.conv_transpose
    is 30 times slower for the same numbers (jax issues 23783, 31662).

    Args:
      x: (N, D, H, W, C).
      kernel: (sd, sh, sw, C, features).
      bias: (features,); added to the matrix product, where cuBLAS does it in passing.

    Returns:
      (N, D sd, H sh, W sw, features)
    """
    n, depth, height, width, channels = x.shape
    sd, sh, sw, _, features = kernel.shape
    matrix = kernel.transpose(3, 0, 1, 2, 4).reshape(channels, sd * sh * sw * features)
    product = x @ matrix  # not of a reshaped x, whose parts on several devices it would gather
    if bias is not None:
        product += jnp.tile(bias, sd * sh * sw)
    return _interleave(product.reshape(n, depth, height, width, sd, sh, sw, features))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _convolution(strides: Triple, form: Form, parts: tuple[Array, ...], kernel: Array) -> Array:
    padding = _same(kernel.shape)
    if form in ("lax", "packed"):
        kernels = _of_parts(kernel, parts)
        outputs = [
            _dense(x, k, strides, padding, form) for x, k in zip(parts, kernels, strict=True)
        ]
        return functools.reduce(jnp.add, outputs)
    x = parts[0] if len(parts) == 1 else jnp.concatenate(parts, -1)
    return _dense(x, kernel, strides, padding, form)


def _forward(
    strides: Triple, form: Form, parts: tuple[Array, ...], kernel: Array
) -> tuple[Array, tuple[tuple[Array, ...], Array]]:
    return _convolution(strides, form, parts, kernel), (parts, kernel)


def _backward(
    strides: Triple, form: Form, residuals: tuple[tuple[Array, ...], Array], dy: Array
) -> tuple[tuple[Array, ...], Array]:
    parts, kernel = residuals
    dparts = tuple(
        _gradient_to_input(dy, k, strides, part.shape[1:4], form)
        for part, k in zip(parts, _of_parts(kernel, parts), strict=True)
    )
    dkernels = [_gradient_to_kernel(part, dy, kernel.shape, strides, form) for part in parts]
    return dparts, jnp.concatenate(dkernels, 3)


_convolution.defvjp(_forward, _backward)


def _of_parts(kernel: Array, parts: Sequence[Array]) -> list[Array]:
    """What of the kernel meets each part of the input."""
    edges = np.cumsum([part.shape[-1] for part in parts])[:-1].tolist()
    return jnp.split(kernel, edges, axis=3)


def _same(kernel_shape: Sequence[int]) -> Padding:
    depth, height, width = (((size - 1) // 2,) * 2 for size in kernel_shape[:3])
    return depth, height, width


def _dense(x: Array, kernel: Array, strides: Triple, padding: Padding, form: Form) -> Array:
    if form == "onednn":
        return onednn.forward(x, kernel, strides)
    if form == "lax":
        return lax.conv_general_dilated(
            x, kernel, strides, padding, dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
        )
    if form == "packed":
        return _packed(x, kernel, strides, neighbours(kernel.shape, strides, x.shape[3]))
    if kernel.shape[0] == 1:
        return _planar(x[:, :: strides[0]], kernel[0], strides[1:], padding[1:])
    if strides[0] == 1:
        return _taps_out(x, kernel, strides[1:], padding)
    return _taps_in(x, kernel, strides, padding)


def _packed(x: Array, kernel: Array, strides: Triple, count: int) -> Array:
    """The convolution in which `count` neighbours along W are the channels of one voxel.

    Output o of such a voxel meets input i of the one that lies t further at the tap
    t count + i - o + (kw - 1) / 2 of the kernel, if it has that one; else at 0.
    """
    kd, kh, kw, channels, features = kernel.shape
    if count == 1:
        return _dense(x, kernel, strides, _same(kernel.shape), "lax")
    reach = math.ceil((kw - 1) / 2 / count)
    further = np.arange(-reach, reach + 1)[:, None, None] * count
    tap = further + np.arange(count)[:, None] - np.arange(count) + (kw - 1) // 2
    # By a product, whose gradient is one too: to gather is to scatter backward.
    one_hot = jnp.asarray(tap[..., None] == np.arange(kw), kernel.dtype)
    banded = jnp.einsum("tiok,dhkcf->dhticof", one_hot, kernel, precision="highest")
    banded = banded.reshape(kd, kh, 2 * reach + 1, count * channels, count * features)
    n, depth, height, width, _ = x.shape
    y = lax.conv_general_dilated(
        x.reshape(n, depth, height, width // count, count * channels),
        banded,
        strides,
        (*_same(kernel.shape)[:2], (reach, reach)),
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )
    return y.reshape(*y.shape[:3], width, features)


def _planar(
    x: Array, kernel: Array, strides: tuple[int, int], padding: Sequence[tuple[int, int]]
) -> Array:
    """A 2D convolution of every slice of x (N, D, H, W, C) with kernel (kh, kw, C, features)."""
    n, depth = x.shape[:2]
    y = lax.conv_general_dilated(
        x.reshape(n * depth, *x.shape[2:]),
        kernel,
        strides,
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y.reshape(n, depth, *y.shape[1:])


def _taps_out(x: Array, kernel: Array, strides: tuple[int, int], padding: Padding) -> Array:
    """One planar convolution to all depth taps, which are then added with a shift in depth."""
    taps, kh, kw, channels, features = kernel.shape
    planar = kernel.transpose(1, 2, 3, 0, 4).reshape(kh, kw, channels, taps * features)
    y = _planar(x, planar, strides, padding[1:])
    low, high = padding[0]
    shifted = [
        lax.pad(
            y[..., tap * features : (tap + 1) * features],
            jnp.zeros((), y.dtype),
            ((0, 0, 0), (low - tap, high - taps + 1 + tap, 0), (0, 0, 0), (0, 0, 0), (0, 0, 0)),
        )
        for tap in range(taps)
    ]
    return functools.reduce(jnp.add, shifted)


def _taps_in(x: Array, kernel: Array, strides: Triple, padding: Padding) -> Array:
    """The slices that each output slice sees, side by side as channels of a planar convolution."""
    taps, kh, kw, channels, features = kernel.shape
    planar = kernel.transpose(1, 2, 0, 3, 4).reshape(kh, kw, taps * channels, features)
    return _planar(
        _depth_windows(x, taps, strides[0], padding[0]), planar, strides[1:], padding[1:]
    )


def _depth_windows(x: Array, taps: int, stride: int, padding: tuple[int, int]) -> Array:
    """(N, D, H, W, C) -> (N, D / stride, H, W, taps C): channels of the slices around each."""
    padded = jnp.pad(x, ((0, 0), padding, (0, 0), (0, 0), (0, 0)))
    size = (x.shape[1] + sum(padding) - taps) // stride + 1
    windows = [padded[:, tap : tap + (size - 1) * stride + 1 : stride] for tap in range(taps)]
    # Without the barrier XLA folds the concatenation into the convolution's slow path.
    return lax.optimization_barrier(jnp.concatenate(windows, -1))


def _gradient_to_input(
    dy: Array, kernel: Array, strides: Triple, size: tuple[int, ...], form: Form
) -> Array:
    """The gradient to an input of spatial `size`, as one convolution of dy with stride 1.

    The input voxel s i + r (phase r of block i) met the output o = i + t at the kernel position
    r + p - s t. So the blocks are a convolution of dy with kernels [t, r] picked from the given
    one (zero where the position lies outside), and the phases are interleaved. With stride 1
    there is one phase, and the kernel is the given one flipped. XLA's own form has no such zeros.
    """
    if form == "onednn":
        return onednn.gradient_to_input(dy, kernel, strides, size)
    if form in ("lax", "packed"):
        zero = jnp.zeros((dy.shape[0], *size, kernel.shape[3]), dy.dtype)
        _, pull = jax.vjp(lambda x: _dense(x, kernel, strides, _same(kernel.shape), form), zero)
        return pull(dy)[0]
    padding = []
    for axis, (k, s) in enumerate(zip(kernel.shape[:3], strides, strict=True)):
        p = (k - 1) // 2
        first, last = -((k - 1 - p) // s), (s - 1 + p) // s
        position = np.arange(s) + p - s * np.arange(first, last + 1)[:, None]
        outside = (position < 0) | (position >= k)
        # Each handled axis becomes (taps, phases); the phases gather at the end.
        picked = jnp.take(kernel, jnp.where(outside, 0, position), axis=axis)
        outside = outside.reshape(outside.shape + (1,) * (picked.ndim - axis - 2))
        kernel = jnp.moveaxis(jnp.where(outside, 0, picked), axis + 1, -1)
        padding.append((-first, last))
    taps, (channels, features) = kernel.shape[:3], kernel.shape[3:5]
    phases = kernel.shape[5:]
    flipped = kernel.transpose(0, 1, 2, 4, 5, 6, 7, 3).reshape(
        *taps, features, int(np.prod(phases)) * channels
    )
    blocks = _dense(dy, flipped, (1, 1, 1), (padding[0], padding[1], padding[2]), form)
    blocks = blocks.reshape(*blocks.shape[:4], *phases, channels)
    depth, height, width = size
    return _interleave(blocks)[:, :depth, :height, :width]


def _gradient_to_kernel(
    x: Array, dy: Array, shape: tuple[int, ...], strides: Triple, form: Form
) -> Array:
    """The gradient to a kernel of `shape` (kd, kh, kw, -, features), for the input x alone."""
    kd, kh, kw, _, features = shape
    channels = x.shape[-1]
    if form == "onednn" and dy.shape[2] * dy.shape[3] >= _SMALL_SLICE_ONEDNN:
        return onednn.gradient_to_kernel(x, dy, shape[:3], strides)
    if form in ("lax", "packed"):
        zero = jnp.zeros((kd, kh, kw, channels, features), x.dtype)
        _, pull = jax.vjp(lambda k: _dense(x, k, strides, _same(shape), form), zero)
        return pull(dy)[0]
    pad = (kd - 1) // 2
    if strides[0] == 1:
        # Tap t of slice d meets dy[d - t + pad]: windows over dy, in reversed order of taps.
        dy = _depth_windows(dy, kd, 1, (pad, pad))
    else:
        x = _depth_windows(x, kd, strides[0], (pad, pad))
    n, depth, height, width, _ = dy.shape
    x = jnp.pad(x, ((0, 0), (0, 0), ((kh - 1) // 2,) * 2, ((kw - 1) // 2,) * 2, (0, 0)))

    def columns(slices: Array) -> Array:
        """(..., H, W, C) -> (..., H / sh, W / sw, kh kw C)."""
        return jnp.concatenate(
            [
                slices[
                    ...,
                    i : i + (height - 1) * strides[1] + 1 : strides[1],
                    j : j + (width - 1) * strides[2] + 1 : strides[2],
                    :,
                ]
                for i in range(kh)
                for j in range(kw)
            ],
            -1,
        )

    if height * width < _SMALL_SLICE:
        left = lax.optimization_barrier(columns(x))
        product = left.reshape(-1, left.shape[-1]).T @ dy.reshape(-1, dy.shape[-1])
    else:

        def add_slice(total: Array, slices: tuple[Array, Array]) -> tuple[Array, None]:
            x_slice, dy_slice = slices
            left = columns(x_slice).reshape(height * width, -1)
            return total + left.T @ dy_slice.reshape(height * width, -1), None

        zero = jnp.zeros((kh * kw * x.shape[-1], dy.shape[-1]), x.dtype)
        slices = (x.reshape(n * depth, *x.shape[2:]), dy.reshape(n * depth, *dy.shape[2:]))
        product, _ = lax.scan(add_slice, zero, slices)
    if strides[0] == 1:
        taps_last = product.reshape(kh, kw, channels, kd, features)
        return taps_last.transpose(3, 0, 1, 2, 4)[::-1]
    return product.reshape(kh, kw, kd, channels, features).transpose(2, 0, 1, 3, 4)


def _interleave(blocks: Array) -> Array:
    """(N, D, H, W, sd, sh, sw, C) -> (N, D sd, H sh, W sw, C)."""
    n, depth, height, width, sd, sh, sw, channels = blocks.shape
    return blocks.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(
        n, depth * sd, height * sh, width * sw, channels
    )
