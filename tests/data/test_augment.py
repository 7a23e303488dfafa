"""Augmentation: a function of its key, and each transform what it says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covid_jax.data import augment as aug


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.normal(size=(4, 6, 8, 8, 1)), jnp.float32)
    return image, (image[..., 0] > 0.5).astype(jnp.int32)


def test_the_same_key_gives_the_same_batch_and_another_does_not(batch):
    first = aug.augment(jax.random.key(0), *batch)
    again = jax.jit(aug.augment)(jax.random.key(0), *batch)
    other = aug.augment(jax.random.key(1), *batch)
    np.testing.assert_allclose(first[0], again[0], atol=1e-5)
    assert not np.allclose(first[0], other[0])


def test_the_label_is_mirrored_with_its_image(batch):
    image, _ = batch
    flips = set()
    for seed in range(20):
        flipped, label = aug.mirror(jax.random.key(seed), image[0], image[0, ..., 0])
        np.testing.assert_array_equal(flipped[..., 0], label)
        flips.add(tuple(np.asarray(label).ravel()[:4].tolist()))
    assert len(flips) > 4


def test_gamma_keeps_mean_and_deviation(batch):
    image = batch[0][0]
    for seed in range(5):
        bent = aug.gamma_correction(jax.random.key(seed), image)
        assert bent.mean() == pytest.approx(float(image.mean()), abs=1e-4)
        assert bent.std() == pytest.approx(float(image.std()), rel=1e-3)
        assert not np.allclose(bent, image)


def test_contrast_keeps_the_range(batch):
    image = batch[0][0]
    for seed in range(8):
        changed = aug.scale_contrast(jax.random.key(seed), image)
        assert image.min() <= changed.min()
        assert changed.max() <= image.max()


def test_brightness_is_one_factor_within_its_bounds(batch):
    image = batch[0][0]
    factors = aug.scale_brightness(jax.random.key(3), image) / image
    assert factors.std() < 1e-4
    assert 0.75 <= factors.mean() <= 1.25


def test_noise_has_mean_zero_and_at_most_its_largest_deviation():
    flat = jnp.zeros((40, 40, 40, 1))
    for seed in range(5):
        noise = aug.gaussian_noise(jax.random.key(seed), flat)
        assert abs(noise.mean()) < 1e-3
        assert noise.std() < 0.101


def test_about_as_many_samples_change_in_intensity_as_nnunet_asks():
    image = jnp.asarray(np.random.default_rng(0).normal(size=(400, 2, 4, 4, 1)), jnp.float32)
    out, _ = aug.augment(jax.random.key(0), image, jnp.zeros(image.shape[:4], jnp.int32))
    unchanged = np.isclose(np.sort(out.reshape(400, -1)), np.sort(image.reshape(400, -1))).all(1)
    expected = 0.9 * 0.85 * 0.85 * 0.9 * 0.7
    assert unchanged.mean() == pytest.approx(expected, abs=0.08)
