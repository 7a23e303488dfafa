"""Augmentation of a batch on the device, pure and jitted, keyed by step.

The transforms and their probabilities are nnU-Net's (moreDA); each is drawn for each sample.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array


def augment(key: Array, image: Array, label: Array) -> tuple[Array, Array]:
    """Noise, brightness, contrast, gamma, and mirroring of every axis.

    Args:
      key: a jax.random key; the same key gives the same batch.
      image: (N, D, H, W, C), normalised.
      label: (N, D, H, W).

    Returns:
      image and label of the same shapes
    """
    keys = jax.random.split(key, image.shape[0])
    return jax.vmap(_augment_sample)(keys, image, label)


def _augment_sample(key: Array, image: Array, label: Array) -> tuple[Array, Array]:
    noise, brightness, contrast, inverted, gamma, flips = jax.random.split(key, 6)
    image = _sometimes(0.1, noise, gaussian_noise, image)
    image = _sometimes(0.15, brightness, scale_brightness, image)
    image = _sometimes(0.15, contrast, scale_contrast, image)
    image = _sometimes(0.1, inverted, lambda k, x: -gamma_correction(k, -x), image)
    image = _sometimes(0.3, gamma, gamma_correction, image)
    return mirror(flips, image, label)


def _sometimes(
    probability: float, key: Array, transform: Callable[[Array, Array], Array], image: Array
) -> Array:
    chosen, drawn = jax.random.split(key)
    return jnp.where(jax.random.uniform(chosen) < probability, transform(drawn, image), image)


def gaussian_noise(key: Array, image: Array) -> Array:
    """Adds normal noise whose deviation is uniform in 0 .. 0.1 (nnU-Net calls it variance)."""
    drawn, noise = jax.random.split(key)
    deviation = jax.random.uniform(drawn, maxval=0.1)
    return image + deviation * jax.random.normal(noise, image.shape, image.dtype)


def scale_brightness(key: Array, image: Array) -> Array:
    """Multiplies by a factor uniform in 0.75 .. 1.25."""
    return image * jax.random.uniform(key, minval=0.75, maxval=1.25)


def scale_contrast(key: Array, image: Array) -> Array:
    """Multiplies the distance to the mean, half of the draws below 1; the range is kept."""
    below, lower, upper = jax.random.split(key, 3)
    factor = jnp.where(
        jax.random.bernoulli(below),
        jax.random.uniform(lower, minval=0.75, maxval=1),
        jax.random.uniform(upper, minval=1, maxval=1.25),
    )
    mean = image.mean()
    return jnp.clip((image - mean) * factor + mean, image.min(), image.max())


def gamma_correction(key: Array, image: Array) -> Array:
    """Raises intensities, scaled to 0 .. 1, to a power in 0.7 .. 1.5; mean and deviation stay."""
    below, lower, upper = jax.random.split(key, 3)
    gamma = jnp.where(
        jax.random.bernoulli(below),
        jax.random.uniform(lower, minval=0.7, maxval=1),
        jax.random.uniform(upper, minval=1, maxval=1.5),
    )
    low, high = image.min(), image.max()
    bent = jnp.power((image - low) / jnp.maximum(high - low, 1e-7), gamma)
    return (bent - bent.mean()) / jnp.maximum(bent.std(), 1e-8) * image.std() + image.mean()


def mirror(key: Array, image: Array, label: Array) -> tuple[Array, Array]:
    """Flips each of D, H, W with probability 0.5."""
    for axis, flip in enumerate(jax.random.bernoulli(key, shape=(3,))):
        image = jnp.where(flip, jnp.flip(image, axis), image)
        label = jnp.where(flip, jnp.flip(label, axis), label)
    return image, label
