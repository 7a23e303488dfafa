"""Augmentation of a batch on the device, pure and jitted: a function of its key.

The transforms, their order, probabilities and ranges are nnU-Net v2's (get_training_transforms),
each drawn for each sample. A function that draws takes a key and calls the one beside it that does
what was drawn, so that this one can be compared with others' (tests/parity/test_augment_parity.py).
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from covid_jax.config import ANISOTROPY
from covid_jax.label_space import OUTSIDE

Triple = tuple[int, int, int]
Transform = Callable[[Array, Array], Array]
"""(key, image (D, H, W, C)) -> an image of the same shape"""
Choose = Callable[..., Any]
"""(chosen, then, otherwise, *operands) -> what `then` or `otherwise` makes of the operands."""

PROBABILITIES = {
    "rotation": 0.2,
    "scaling": 0.2,
    "noise": 0.1,
    "blur": 0.2,
    "brightness": 0.15,
    "contrast": 0.15,
    "low_resolution": 0.25,
    "inverted_gamma": 0.1,
    "gamma": 0.3,
}
"""That each transform is applied to a sample (nnU-Net's probabilities)."""

OF_CHANNEL = {"blur": 0.5, "low_resolution": 0.5}
"""That it then changes a channel of the sample (p_per_channel); 1 of those that are not here."""
_OUTSIDE = -1  # the label of what lies outside of the array, while a warp decides


def is_planar(patch_size: Triple) -> bool:
    """Whether patches are rotated and scaled in the slice plane only (nnU-Net: dummy 2D)."""
    return max(patch_size) / patch_size[0] > ANISOTROPY


def input_size(patch_size: Triple) -> Triple:
    """The size to cut, so that a rotated patch finds as much around it as nnU-Net's.

    nnU-Net: get_patch_size, with its range of scales, which is not that of the transform. Rounded
    up so that the patch lies in the middle.
    """
    size = np.array(patch_size, float)
    angle = math.pi / 2 if is_planar(patch_size) else math.pi / 6
    largest = size
    for first, second in ((1, 2), (2, 0), (0, 1)):  # the axes that turn about D, H, W
        turned = size.copy()
        turned[first] = math.cos(angle) * size[first] + math.sin(angle) * size[second]
        turned[second] = abs(math.cos(angle) * size[second] - math.sin(angle) * size[first])
        largest = np.maximum(largest, turned)
    wanted = [int(n) for n in largest / 0.85]
    if is_planar(patch_size):
        wanted[0] = patch_size[0]
    depth, height, width = (
        n + math.ceil((want - n) / 2) * 2 for n, want in zip(patch_size, wanted, strict=True)
    )
    return depth, height, width


def augment(
    keys: Array,
    image: Array,
    label: Array,
    *,
    patch_size: Triple,
    at_once: bool,
    mirror_axes: Sequence[int] = (0, 1, 2),
    masked: tuple[int, ...] = (),
) -> tuple[Array, Array]:
    """Rotates, scales, disturbs and mirrors each sample.

    Args:
      keys: (N,), a jax.random key for each sample; the same key gives the same sample.
      image: (N, D', H', W', C), normalised; of `input_size`, or any other not less than the patch.
      label: (N, D', H', W'), of any integers.
      patch_size: (D, H, W), cut from the middle.
      at_once: all samples together, each through every transform, drawn or not, which keeps a GPU
        busy. Else one after another through what was drawn. The result is the same up to rounding.
      mirror_axes: of D, H, W (0, 1, 2), along which samples are mirrored.
      masked: channels that are 0 again at the end where the label is OUTSIDE, which then is
        background.

    Returns:
      image (N, D, H, W, C) and label (N, D, H, W)
    """
    choose = _both if at_once else jax.lax.cond

    def one(key: Array, image: Array, label: Array) -> tuple[Array, Array]:
        return _augment_sample(key, image, label, patch_size, mirror_axes, masked, choose)

    if at_once:
        return jax.vmap(one)(keys, image, label)
    return jax.lax.map(lambda sample: one(*sample), (keys, image, label))


def _both(
    chosen: Array, then: Callable[..., Any], otherwise: Callable[..., Any], *given: Any
) -> Any:
    """As jax.lax.cond, with both computed.

    jax.vmap would make that of a cond as well, but not within jax.shard_map: there the branches'
    constants do not get the axes over which their operands vary.
    """
    return jax.tree.map(functools.partial(jnp.where, chosen), then(*given), otherwise(*given))


def _augment_sample(
    key: Array,
    image: Array,
    label: Array,
    patch_size: Triple,
    mirror_axes: Sequence[int],
    masked: tuple[int, ...],
    choose: Choose,
) -> tuple[Array, Array]:
    planar = is_planar(patch_size)
    names = (*PROBABILITIES, "mirror")
    keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
    matrix = random_matrix(keys["rotation"], keys["scaling"], planar)
    image, label = choose(
        (matrix == jnp.eye(3)).all(),
        lambda image, label: (middle(image, patch_size), middle(label, patch_size)),
        lambda image, label: warp(
            image, label, matrix, patch_size, planar, OUTSIDE if masked else _OUTSIDE
        ),
        image,
        label,
    )
    axes = (1, 2) if planar else (0, 1, 2)
    transforms: dict[str, Transform] = {
        "noise": random_noise,
        "blur": random_blur,
        "brightness": random_brightness,
        "contrast": random_contrast,
        "low_resolution": lambda key, image: random_low_resolution(key, image, axes),
        "inverted_gamma": lambda key, image: -random_gamma(key, -image),
        "gamma": random_gamma,
    }
    for name, transform in transforms.items():
        chosen, drawn = jax.random.split(keys[name])
        probability, of_channel = PROBABILITIES[name], OF_CHANNEL.get(name, 1.0)
        if image.shape[-1] == 1:
            probability *= of_channel
        elif name != "noise":  # which has one deviation for all channels
            transform = by_channel(transform, of_channel)
        applies = jax.random.bernoulli(chosen, probability)
        image = choose(applies, transform, lambda _, image: image, drawn, image)
    image, label = mirror(keys["mirror"], image, label, mirror_axes, choose)
    return mask_outside(image, label, masked) if masked else (image, label)


def mask_outside(image: Array, label: Array, channels: tuple[int, ...]) -> tuple[Array, Array]:
    """These channels are 0 where the label is OUTSIDE, and that is background from here on.

    nnU-Net: MaskImageTransform and RemoveLabelTransform.
    """
    outside = label == OUTSIDE
    chosen = jnp.isin(jnp.arange(image.shape[-1]), jnp.array(channels))
    return jnp.where(outside[..., None] & chosen, 0, image), jnp.where(outside, 0, label)


def by_channel(transform: Transform, probability: float) -> Transform:
    """`transform` drawn for each channel apart, and applied to it with this probability."""

    def changed(key: Array, channel: Array) -> Array:
        chosen, drawn = jax.random.split(key)
        applies = jax.random.bernoulli(chosen, probability)
        return jnp.where(applies, transform(drawn, channel), channel)

    def transform_all(key: Array, image: Array) -> Array:
        keys = jax.random.split(key, image.shape[-1])
        channels = jnp.split(image, image.shape[-1], axis=-1)
        return jnp.concatenate([changed(*one) for one in zip(keys, channels, strict=True)], axis=-1)

    return transform_all


def middle(array: Array, size: Triple) -> Array:
    """The part of `size` (D, H, W) in the middle of an array (D', H', W', ...)."""
    for axis, n in enumerate(size):
        start = (array.shape[axis] - n) // 2
        array = jax.lax.slice_in_dim(array, start, start + n, axis=axis)
    return array


def random_matrix(rotation: Array, scaling: Array, planar: bool) -> Array:
    """From output to input coordinates (D, H, W): (3, 3), the identity in most cases.

    In the plane a rotation is by up to 180 degrees, else by up to 30 about each axis; scales in
    0.7 .. 1.4 are the same along all axes, and more than 1 makes things smaller.
    """
    chosen, drawn = jax.random.split(rotation)
    limit = math.pi * (jnp.array([1.0, 0.0, 0.0]) if planar else jnp.full(3, 1 / 6))
    angles = jax.random.uniform(drawn, (3,), minval=-limit, maxval=limit)
    angles = jnp.where(jax.random.bernoulli(chosen, PROBABILITIES["rotation"]), angles, 0.0)
    chosen, drawn = jax.random.split(scaling)
    scale = jax.random.uniform(drawn, minval=0.7, maxval=1.4)
    scale = jnp.where(jax.random.bernoulli(chosen, PROBABILITIES["scaling"]), scale, 1.0)
    along = jnp.where(jnp.array([planar, False, False]), 1.0, scale)
    return rotation_matrix(angles) * along


def rotation_matrix(angles: Array) -> Array:
    """The rotation by `angles` (3,) about D, then H, then W. nnU-Net: create_affine_matrix_3d."""
    (c0, c1, c2), (s0, s1, s2) = jnp.cos(angles), jnp.sin(angles)
    about_d = jnp.array([[1, 0, 0], [0, c0, -s0], [0, s0, c0]])
    about_h = jnp.array([[c1, 0, s1], [0, 1, 0], [-s1, 0, c1]])
    about_w = jnp.array([[c2, -s2, 0], [s2, c2, 0], [0, 0, 1]])
    return about_w @ about_h @ about_d


def warp(
    image: Array,
    label: Array,
    matrix: Array,
    size: Triple,
    planar: bool,
    outside: int = _OUTSIDE,
) -> tuple[Array, Array]:
    """The patch of `size` whose voxel x, from the middle, is the input's at `matrix` @ x.

    The image is interpolated linearly, with 0 outside. The label is the one with most weight among
    the neighbours, of equals the nearest; outside it is background. nnU-Net: SpatialTransform.

    Args:
      image: (D', H', W', C).
      label: (D', H', W').
      matrix: (3, 3); in the plane its first row and column are those of the identity.
      size: (D, H, W).
      planar: the slices stay what they are.
      outside: the label there, if it is not background.

    Returns:
      image (D, H, W, C) and label (D, H, W)
    """
    first = 1 if planar else 0
    if planar:
        _, height, width = label.shape
        image, label = (middle(array, (size[0], height, width)) for array in (image, label))
    shape = image.shape[first:3]
    grid = jnp.stack(
        jnp.meshgrid(*(jnp.arange(n) - (n - 1) / 2 for n in size[first:]), indexing="ij")
    )
    centre = (jnp.array(shape) - 1) / 2
    place = jnp.tensordot(matrix[first:, first:], grid, 1, precision="highest")
    place += centre.reshape(-1, *(1,) * len(shape))
    low = jnp.floor(place)
    images, labels, weights = [], [], []
    for corner in itertools.product((0, 1), repeat=len(shape)):
        step = jnp.array(corner).reshape(-1, *(1,) * len(shape))
        voxel = low.astype(jnp.int32) + step
        weight = jnp.where(step == 1, place - low, 1 - (place - low)).prod(0)
        limit = jnp.array(shape).reshape(step.shape)
        inside = ((voxel >= 0) & (voxel < limit)).all(0)
        index = (slice(None),) * first + tuple(jnp.clip(voxel, 0, limit - 1))
        images.append(jnp.where(inside, weight, 0)[..., None] * image[index])
        labels.append(jnp.where(inside, label[index].astype(jnp.int32), outside))
        weights.append(jnp.broadcast_to(weight, labels[-1].shape))
    voted = _vote(labels, weights)
    voted = jnp.where(voted == _OUTSIDE, 0, voted).astype(label.dtype)
    return sum(images[1:], images[0]), voted


def _vote(labels: Sequence[Array], weights: Sequence[Array]) -> Array:
    """Of the neighbours' labels the one whose weights add up to most; of equals the nearest."""
    best, best_votes, best_weight = labels[0], jnp.full(labels[0].shape, -1.0), weights[0]
    for label, weight in zip(labels, weights, strict=True):
        votes = sum(jnp.where(label == labels[k], weights[k], 0) for k in range(len(labels)))
        # nnU-Net's half precision, of a thousand, sees no smaller difference.
        equal = abs(votes - best_votes) < 5e-4
        better = jnp.where(equal, weight > best_weight, votes > best_votes)
        best, best_votes, best_weight = (
            jnp.where(better, new, old)
            for new, old in ((label, best), (votes, best_votes), (weight, best_weight))
        )
    return best


def random_noise(key: Array, image: Array) -> Array:
    """Adds normal noise whose deviation is uniform in 0 .. 0.1 (nnU-Net calls it variance)."""
    drawn, noise = jax.random.split(key)
    deviation = jax.random.uniform(drawn, maxval=0.1)
    return image + deviation * jax.random.normal(noise, image.shape, image.dtype)


def random_blur(key: Array, image: Array) -> Array:
    """Blurs with a Gaussian whose deviation along each axis is uniform in 0.5 .. 1 voxels."""
    return blur(image, jax.random.uniform(key, (3,), minval=0.5, maxval=1))


def blur(image: Array, sigmas: Array) -> Array:
    """Gaussian blur of (D, H, W, C) by `sigmas` (3,) of at most 1; reflected at the border.

    The kernel of an axis has the odd number of taps next to 6 sigma + 0.5. nnU-Net: blur_dimension.
    """
    taps = np.arange(-3, 4)
    for axis in range(3):
        length = 6 * sigmas[axis] + 0.5
        reach = jnp.where(length < 4, 1, jnp.where(length < 6, 2, 3))
        weights = jnp.exp(-0.5 * (taps / sigmas[axis]) ** 2) * (np.abs(taps) <= reach)
        weights /= weights.sum()
        padding = [(3, 3) if k == axis else (0, 0) for k in range(4)]
        padded = jnp.pad(image, padding, mode="reflect")
        n = image.shape[axis]
        image = sum(
            (
                weights[tap] * jax.lax.slice_in_dim(padded, tap, tap + n, axis=axis)
                for tap in range(7)
            ),
            jnp.zeros_like(image),
        )
    return image


def random_brightness(key: Array, image: Array) -> Array:
    """Multiplies by a factor in 0.75 .. 1.25."""
    return image * _around_one(key, 0.75, 1.25)


def random_contrast(key: Array, image: Array) -> Array:
    """Multiplies the distance to the mean by a factor in 0.75 .. 1.25; the range is kept."""
    return contrast(image, _around_one(key, 0.75, 1.25))


def contrast(image: Array, factor: Array) -> Array:
    """The image with `factor` times its distance to its mean, clipped to its range."""
    mean = image.mean()
    return jnp.clip((image - mean) * factor + mean, image.min(), image.max())


def random_low_resolution(key: Array, image: Array, axes: Sequence[int]) -> Array:
    """Takes the resolution along `axes` down to a share in 0.5 .. 1."""
    return low_resolution(image, jax.random.uniform(key, minval=0.5, maxval=1), axes)


def low_resolution(image: Array, zoom: Array, axes: Sequence[int]) -> Array:
    """Scales (D, H, W, C) along `axes` down to a share `zoom`, nearest, and up again, linear.

    nnU-Net: SimulateLowResolutionTransform.
    """
    for axis in axes:
        n = image.shape[axis]
        small = jnp.round(n * zoom)
        place = jnp.maximum((jnp.arange(n) + 0.5) * small / n - 0.5, 0)
        low = jnp.floor(place)
        high = jnp.minimum(low + 1, small - 1)
        # A voxel k of the small image is the one at its middle, (k + 0.5) n / small; in whole
        # numbers, as a program may round a quotient that is whole to below it.
        below, above = (
            jnp.take(image, (2 * k + 1) * n // (2 * small.astype(jnp.int32)), axis, mode="clip")
            for k in (low.astype(jnp.int32), high.astype(jnp.int32))
        )
        share = (place - low).reshape(-1, *(1,) * (image.ndim - axis - 1))
        image = below * (1 - share) + above * share
    return image


def random_gamma(key: Array, image: Array) -> Array:
    """Raises intensities to an exponent in 0.7 .. 1.5."""
    return gamma_correction(image, _around_one(key, 0.7, 1.5))


def gamma_correction(image: Array, exponent: Array) -> Array:
    """Raises intensities, scaled to 0 .. 1, to `exponent`; mean and deviation stay."""
    low, high = image.min(), image.max()
    bent = jnp.power((image - low) / jnp.maximum(high - low, 1e-7), exponent)
    return (bent - bent.mean()) / jnp.maximum(bent.std(), 1e-8) * image.std() + image.mean()


def _around_one(key: Array, lowest: float, highest: float) -> Array:
    """Half of the draws uniform in lowest .. 1, half in 1 .. highest. nnU-Net: BGContrast."""
    below, lower, upper = jax.random.split(key, 3)
    return jnp.where(
        jax.random.bernoulli(below),
        jax.random.uniform(lower, minval=lowest, maxval=1),
        jax.random.uniform(upper, minval=1, maxval=highest),
    )


def mirror(
    key: Array,
    image: Array,
    label: Array,
    axes: Sequence[int] = (0, 1, 2),
    choose: Choose = jax.lax.cond,
) -> tuple[Array, Array]:
    """Flips each of the axes of D, H, W with probability 0.5."""
    flips = jax.random.bernoulli(key, shape=(3,))
    for axis, flip in ((axis, flips[axis]) for axis in axes):
        image, label = choose(
            flip,
            lambda image, label, axis=axis: (jnp.flip(image, axis), jnp.flip(label, axis)),
            lambda image, label: (image, label),
            image,
            label,
        )
    return image, label
