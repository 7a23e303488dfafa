"""Augmentation: a function of its key, and each transform what scipy or plain numpy makes of it."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from covid_jax.data import augment as aug
from covid_jax.label_space import OUTSIDE
from tests.networks import COMPILED_SOON, assert_near

PATCH = (6, 8, 8)


def compiled(patch, at_once):
    """The augmentation of a batch for this patch."""
    augment = functools.partial(aug.augment, patch_size=patch, at_once=at_once)
    return jax.jit(augment, compiler_options=COMPILED_SOON)


AUGMENT = compiled(PATCH, at_once=False)


@pytest.fixture
def image():
    return jnp.asarray(np.random.default_rng(0).normal(size=(7, 12, 11, 1)), jnp.float32)


def keys(seed, n=4):
    return jax.random.split(jax.random.key(seed), n)


def batch(n=4, size=PATCH):
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.normal(size=(n, *size, 1)), jnp.float32)
    return image, (image[..., 0] > 0.5).astype(jnp.int32)


def test_the_same_key_gives_the_same_batch_and_another_does_not():
    first, again, other = (AUGMENT(keys(seed), *batch()) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first[0], again[0])
    assert not np.allclose(first[0], other[0])


def test_a_sample_depends_on_its_key_and_not_on_the_others():
    image, label = batch()
    changed = image.at[0].add(1)
    whole, other = (AUGMENT(keys(0), x, label)[0] for x in (image, changed))
    np.testing.assert_array_equal(whole[1:], other[1:])


@pytest.mark.parametrize("at_once", [False, True])
def test_masked_channels_are_zero_outside_whatever_is_drawn_and_the_others_are_not(at_once):
    rng = np.random.default_rng(0)
    size = aug.input_size(PATCH)
    image = jnp.asarray(rng.normal(3, 1, (8, *size, 2)), jnp.float32)
    label = jnp.asarray(rng.choice([0, 1, OUTSIDE], (8, *size)), jnp.uint8)
    run = functools.partial(aug.augment, patch_size=PATCH, at_once=at_once)
    plain, _ = jax.jit(run)(keys(0, 8), image, label)
    found, labels = jax.jit(functools.partial(run, masked=(1,)))(keys(0, 8), image, label)
    assert set(np.unique(labels)) == {0, 1}
    assert_near(found[..., 0], plain[..., 0], 1e-5)
    zero = np.asarray(found[..., 1] == 0)
    assert_near(found[..., 1][~zero], plain[..., 1][~zero], 1e-5)
    assert 0.1 < zero.mean() < 0.6
    assert not np.asarray(labels)[zero].any()


@pytest.mark.parametrize("patch", [(4, 16, 16), (12, 16, 14)])
def test_all_samples_at_once_are_what_one_after_another_gives(patch):
    """In float64, where no label hangs on a rounding."""
    with jax.enable_x64(True):
        image, label = batch(8, aug.input_size(patch))
        image = jnp.asarray(image, float)
        one_by_one, at_once = (
            compiled(patch, at_once=how)(keys(0, 8), image, label) for how in (False, True)
        )
    assert_near(one_by_one[0], at_once[0], 1e-11)
    np.testing.assert_array_equal(one_by_one[1], at_once[1])


@pytest.mark.parametrize("planar", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_a_warp_is_scipys_affine_transform(planar, seed):
    rng = np.random.default_rng(seed)
    cut, size = ((5, 20, 22), (5, 14, 12)) if planar else ((16, 20, 22), (12, 14, 12))
    image = rng.normal(size=cut).astype(np.float32)
    angles = rng.uniform(-3, 3, 3) * ([1, 0, 0] if planar else 0.2)
    scale = rng.uniform(0.7, 1.4)
    matrix = aug.rotation_matrix(jnp.asarray(angles)) * jnp.array(
        [1 if planar else scale, scale, scale]
    )
    label = jnp.asarray(image > 0, jnp.int32)
    found, _ = aug.warp(jnp.asarray(image[..., None]), label, matrix, size, planar)
    middle = (np.array(cut) - 1) / 2
    expected = ndimage.affine_transform(
        image,
        np.asarray(matrix, float),
        middle - np.asarray(matrix, float) @ ((np.array(size) - 1) / 2),
        size,
        order=1,
        mode="grid-constant",
    )
    assert_near(found[..., 0], expected, 5e-5)


def test_the_label_of_a_warp_is_that_of_the_largest_share():
    """Against the interpolation of every class apart, outside being a class of its own."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 4, (3, 16, 16))
    matrix = aug.rotation_matrix(jnp.array([0.5, 0.0, 0.0])) * jnp.array([1, 1.3, 1.3])
    _, found = aug.warp(jnp.zeros((3, 16, 16, 1)), jnp.asarray(label), matrix, (3, 16, 16), True)
    offset = 7.5 - np.asarray(matrix, float)[1:, 1:] @ [7.5, 7.5]
    shares = np.stack(
        [
            [
                ndimage.affine_transform(
                    (plane == value).astype(float),
                    np.asarray(matrix, float)[1:, 1:],
                    offset,
                    order=1,
                    mode="grid-constant",
                    cval=float(value == -1),
                )
                for plane in label
            ]
            for value in range(-1, 4)
        ]
    )
    two = np.sort(shares, 0)[-2:]
    clear = two[1] - two[0] > 2e-3
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(found[clear], np.maximum(shares.argmax(0) - 1, 0)[clear])


@given(axis=st.integers(0, 2), turns=st.integers(1, 3))
@settings(max_examples=12, deadline=None)
def test_a_quarter_turn_moves_voxels_and_changes_none(axis, turns):
    rng = np.random.default_rng(0)
    voxels = rng.integers(0, 9, (6, 6, 6))
    angles = [0.0, 0.0, 0.0]
    angles[axis] = turns * np.pi / 2
    matrix = jnp.round(aug.rotation_matrix(jnp.array(angles)))
    image, label = aug.warp(
        jnp.asarray(voxels, jnp.float32)[..., None], jnp.asarray(voxels), matrix, (6, 6, 6), False
    )
    np.testing.assert_array_equal(image[..., 0], label)
    planes = [k for k in range(3) if k != axis]
    turned = [np.rot90(voxels, k, planes) for k in range(1, 4)]
    assert any(np.array_equal(label, t) for t in turned)


def test_a_patch_that_is_not_turned_is_the_middle_of_the_cut():
    size = (4, 16, 16)
    cut = aug.input_size(size)
    image, label = batch(1, cut)
    place = tuple(slice((c - s) // 2, (c + s) // 2) for c, s in zip(cut, size, strict=True))
    for planar in (True, False):
        found, voted = aug.warp(image[0], label[0], jnp.eye(3), size, planar)
        np.testing.assert_array_equal(found, image[0][place])
        np.testing.assert_array_equal(voted, label[0][place])


@pytest.mark.parametrize("sigma", [0.5, 0.58, 0.6, 0.75, 0.9, 0.95, 1.0])
def test_blur_is_scipys_with_as_many_taps(image, sigma):
    sigmas = np.array([sigma, 1.0, 0.7])
    found = aug.blur(image, jnp.asarray(sigmas))[..., 0]
    expected = np.asarray(image[..., 0], float)
    for axis, s in enumerate(sigmas):
        taps = min((1, 3, 5, 7), key=lambda n: abs(n - (6 * s + 0.5)))
        expected = ndimage.gaussian_filter1d(expected, s, axis, mode="mirror", radius=taps // 2)
    assert_near(found, expected, 5e-6)


@pytest.mark.parametrize("zoom", [0.5, 0.61, 0.83, 1.0])
@pytest.mark.parametrize("axes", [(1, 2), (0, 1, 2)])
def test_low_resolution_takes_nearest_voxels_and_interpolates(image, zoom, axes):
    found = aug.low_resolution(image, jnp.float32(zoom), axes)[..., 0]
    small = np.asarray(image[..., 0])
    for axis in axes:
        n = small.shape[axis]
        m = round(n * zoom)
        small = np.take(small, [int((k + 0.5) * n / m) for k in range(m)], axis)
    grid = []
    for n, m in zip(image.shape, small.shape, strict=False):
        grid.append(np.clip((np.arange(n) + 0.5) * m / n - 0.5, 0, m - 1))
    expected = ndimage.map_coordinates(small, np.meshgrid(*grid, indexing="ij"), order=1)
    assert_near(found, expected, 1e-5)


def test_contrast_and_gamma_are_their_formulas(image):
    x = np.asarray(image)
    for factor in (0.75, 1.2):
        expected = np.clip((x - x.mean()) * factor + x.mean(), x.min(), x.max())
        assert_near(aug.contrast(image, factor), expected, 2e-6)
    for exponent in (0.7, 1.5):
        bent = ((x - x.min()) / (x.max() - x.min())) ** exponent
        expected = (bent - bent.mean()) / bent.std() * x.std() + x.mean()
        assert_near(aug.gamma_correction(image, exponent), expected, 1e-5)


def test_the_label_is_mirrored_with_its_image():
    image, _ = batch()
    flips = set()
    for seed in range(20):
        flipped, label = aug.mirror(jax.random.key(seed), image[0], image[0, ..., 0])
        np.testing.assert_array_equal(flipped[..., 0], label)
        flips.add(tuple(np.asarray(label).ravel()[:4].tolist()))
    assert len(flips) > 4


def test_along_an_axis_that_is_not_mirrored_nothing_is():
    image = jnp.broadcast_to(jnp.arange(6.0)[:, None, None, None], (6, 4, 4, 1))
    for axes, ends in (((1, 2), {0.0}), ((0, 1), {0.0, 5.0})):
        mirrored = (aug.mirror(jax.random.key(s), image, image[..., 0], axes) for s in range(20))
        assert {float(flipped[0, 0, 0, 0]) for flipped, _ in mirrored} == ends


def test_noise_has_mean_zero_and_at_most_its_largest_deviation():
    flat = jnp.zeros((40, 40, 40, 1))
    for seed in range(5):
        noise = aug.random_noise(jax.random.key(seed), flat)
        assert abs(noise.mean()) < 4 * noise.std() / noise.size**0.5
        assert noise.std() < 0.101


@pytest.mark.parametrize("planar", [True, False])
def test_as_many_samples_are_turned_and_scaled_as_nnunet_asks(planar):
    keys = jax.random.split(jax.random.key(0), (2000, 2))
    matrices = np.asarray(jax.vmap(lambda k: aug.random_matrix(*k, planar))(keys))
    scale = np.linalg.norm(matrices[:, :, 2], axis=1)
    turned = ~np.isclose(np.abs(matrices[:, 2, 2]), scale)
    assert turned.mean() == pytest.approx(0.2, abs=0.03)
    assert (~np.isclose(scale, 1)).mean() == pytest.approx(0.2, abs=0.03)
    assert 0.7 <= scale.min() < 0.75
    assert 1.35 < scale.max() <= 1.4 + 1e-5
    if planar:
        np.testing.assert_array_equal(matrices[:, 0], np.tile([1, 0, 0], (2000, 1)))


def test_about_as_many_samples_change_in_intensity_as_nnunet_asks():
    image, label = batch(300, (2, 8, 8))
    augment = compiled((2, 8, 8), at_once=False)
    unchanged = 0
    for start in range(0, 300, 50):
        part = image[start : start + 50]
        out, _ = augment(keys(start, 50), part, label[start : start + 50])
        pair = (np.sort(x.reshape(50, -1)) for x in (out, part))
        unchanged += np.isclose(*pair).all(1).sum()
    left_alone = (0.8, 0.8, 0.9, 0.9, 0.85, 0.85, 0.875, 0.9, 0.7)
    assert unchanged / 300 == pytest.approx(np.prod(left_alone), abs=0.08)


def test_the_cut_is_symmetric_about_the_patch():
    for patch in itertools.product((8, 56, 64), (64, 160), (96, 192)):
        cut = aug.input_size(patch)
        assert all(c >= p and (c - p) % 2 == 0 for c, p in zip(cut, patch, strict=True))
