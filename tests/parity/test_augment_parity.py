"""Augmentation beside batchgeneratorsv2's, transform by transform, over 500 samples each.

Random numbers differ, so what is compared are distributions: of the mean and the deviation of the
samples, and of all their voxels (the largest distance of the cumulative histograms).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform, create_affine_matrix_3d
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from scipy import stats

from covid_jax.data import augment as aug
from covid_jax.label_space import OUTSIDE
from tests.networks import COMPILED_SOON, assert_near

SAMPLES = 500
SIZE = (6, 24, 28)
AROUND = BGContrast((0.75, 1.25))
BENDING = BGContrast((0.7, 1.5))

PAIRS = {
    "noise": (aug.random_noise, GaussianNoiseTransform((0, 0.1), 1, True)),
    "blur": (aug.random_blur, GaussianBlurTransform((0.5, 1.0), False, False, 1)),
    "brightness": (aug.random_brightness, MultiplicativeBrightnessTransform(AROUND, False, 1)),
    "contrast": (aug.random_contrast, ContrastTransform(AROUND, True, False, 1)),
    "low resolution": (
        lambda key, image: aug.random_low_resolution(key, image, (1, 2)),
        SimulateLowResolutionTransform((0.5, 1), False, True, (0,), None, 1),
    ),
    "gamma": (aug.random_gamma, GammaTransform(BENDING, 0, False, 1, 1)),
    "inverted gamma": (
        lambda key, image: -aug.random_gamma(key, -image),
        GammaTransform(BENDING, 1, False, 1, 1),
    ),
}


def texture():
    """Voxels with the long tails and the neighbourhoods of a scan."""
    rng = np.random.default_rng(0)
    coarse = rng.gamma(2.0, size=(SIZE[0], SIZE[1] // 4, SIZE[2] // 4)).repeat(4, 1).repeat(4, 2)
    return (coarse + 0.3 * rng.normal(size=SIZE) - 2).astype(np.float32)


def assert_alike(ours, theirs):
    """Samples (n, voxels) of two that are to have one distribution."""
    for summary in (np.mean, np.std, np.max, lambda x, axis: np.abs(np.diff(x)).mean(axis)):
        a, b = (summary(x, axis=1) for x in (ours, theirs))
        spread = max(b.std(), 1e-3 * np.abs(b).max())
        assert abs(a.mean() - b.mean()) < 0.25 * spread
        if b.std() > 1e-3 * np.abs(b).max():  # else all samples have the same
            assert 0.85 < a.std() / b.std() < 1.18
    rng = np.random.default_rng(0)
    a, b = (rng.choice(x.ravel(), 200_000, replace=False) for x in (ours, theirs))
    assert stats.ks_2samp(a, b).statistic < 0.02


@pytest.mark.parametrize("name", PAIRS)
def test_outputs_have_the_distribution_of_batchgenerators(name):
    ours, theirs = PAIRS[name]
    image = texture()
    np.random.seed(0)
    torch.manual_seed(0)
    expected = [
        theirs(image=torch.from_numpy(image.copy())[None])["image"].numpy().ravel()
        for _ in range(SAMPLES)
    ]
    keys = jax.random.split(jax.random.key(0), SAMPLES)
    run = jax.jit(
        lambda keys, x: jax.lax.map(lambda key: ours(key, x), keys), compiler_options=COMPILED_SOON
    )
    found = run(keys, jnp.asarray(image)[..., None])
    assert_alike(np.asarray(found).reshape(SAMPLES, -1), np.stack(expected))


def spatial(size, planar, rotation, scale):
    """SpatialTransform with one rotation and one scale, always."""
    return SpatialTransform(
        size[1:] if planar else size,
        patch_center_dist_from_border=0,
        random_crop=False,
        p_rotation=1,
        rotation=rotation,
        p_scaling=1,
        scaling=scale,
        p_synchronize_scaling_across_axes=1,
        bg_style_seg_sampling=False,
        border_mode_seg="constant",
        padding_value_seg=-1,
    )


@pytest.mark.parametrize("planar", [True, False])
@pytest.mark.parametrize(("angle", "scale"), [(0.4, 1.0), (-2.5, 0.7), (0.3, 1.4)])
def test_a_warp_is_nnunets_spatial_transform(planar, angle, scale):
    rng = np.random.default_rng(0)
    cut, size = ((4, 40, 36), (4, 30, 28)) if planar else ((24, 30, 28), (16, 20, 18))
    image = rng.normal(size=cut).astype(np.float32)
    label = rng.integers(0, 3, [-(-n // 3) for n in cut]).repeat(3, 0).repeat(3, 1).repeat(3, 2)
    label = label[: cut[0], : cut[1], : cut[2]]
    transform = spatial(size, planar, angle, scale)
    # In the plane nnU-Net makes the slices channels of one 2D image.
    channels = (lambda x: x) if planar else (lambda x: x[None])
    theirs = transform(
        image=torch.from_numpy(channels(image)),
        segmentation=torch.from_numpy(channels(label.astype(np.int16))),
    )
    angles = [angle, 0.0, 0.0] if planar else [angle] * 3
    scales = [1.0, scale, scale] if planar else [scale] * 3
    matrix = aug.rotation_matrix(jnp.array(angles)) * jnp.array(scales)
    assert_near(matrix, create_affine_matrix_3d(angles, scales), 2e-6)
    ours = aug.warp(jnp.asarray(image)[..., None], jnp.asarray(label), matrix, size, planar)
    assert_near(ours[0][..., 0], theirs["image"].numpy().reshape(size), 1e-4)
    expected = np.maximum(theirs["segmentation"].numpy().reshape(size), 0)
    assert (np.asarray(ours[1]) != expected).mean() < 2e-3  # near ties


@pytest.mark.parametrize("planar", [True, False])
def test_a_masked_channel_is_zero_outside_as_nnunets_mask_transform_makes_it(planar):
    """Around the cut too; after a warp that turns the mask with the image."""
    rng = np.random.default_rng(0)
    cut, size = ((4, 40, 36), (4, 30, 28)) if planar else ((24, 30, 28), (16, 20, 18))
    image = rng.normal(3, 1, (2, *cut)).astype(np.float32)
    label = np.full(cut, -1, np.int16)
    label[1:-1, 8:-6, 7:-5] = 0
    label[2:-2, 12:-12, 12:-12] = 1
    # nnU-Net makes slices channels, and a channel's slices lie one after the other.
    flat = (lambda x: x.reshape(-1, *cut[1:])) if planar else (lambda x: x)
    turned = spatial(size, planar, 0.7, 1.3)(
        image=torch.from_numpy(flat(image)), segmentation=torch.from_numpy(flat(label[None]))
    )
    theirs = {k: v.reshape(-1, *size) for k, v in turned.items()}
    for transform in nnUNetTrainer.get_training_transforms(
        np.array(size), (-np.pi, np.pi), None, (), planar, use_mask_for_norm=[False, True]
    ).transforms[-2:]:
        theirs = transform(**theirs)
    angles, scales = ([0.7, 0, 0], [1, 1.3, 1.3]) if planar else ([0.7] * 3, [1.3] * 3)
    matrix = aug.rotation_matrix(jnp.array(angles)) * jnp.array(scales)
    marked = np.where(label < 0, OUTSIDE, label).astype(np.uint8)
    warped = aug.warp(
        jnp.asarray(np.moveaxis(image, 0, -1)), jnp.asarray(marked), matrix, size, planar, OUTSIDE
    )
    ours = aug.mask_outside(*warped, (1,))
    assert ours[1].dtype == jnp.uint8
    assert (np.asarray(ours[1]) != theirs["segmentation"].numpy()[0]).mean() < 2e-3  # near ties
    warped = theirs["image"].numpy()
    away = np.abs(np.moveaxis(np.asarray(ours[0]), -1, 0) - warped) > 1e-4 * np.abs(warped).max()
    assert away.mean((1, 2, 3)) == pytest.approx([0, 0], abs=2e-3)
    zero = (np.asarray(ours[0]) == 0).mean((0, 1, 2))
    assert zero[1] > 0.2 > zero[0]


@pytest.mark.parametrize("patch", [(56, 160, 192), (16, 64, 96), (64, 64, 64), (80, 96, 112)])
def test_as_much_is_cut_around_a_patch_as_nnunet_cuts(patch):
    planar = aug.is_planar(patch)
    limit = np.pi if planar else np.pi / 6
    theirs = get_patch_size(patch, *[(-limit, limit)] * 3, (0.85, 1.25))
    if planar:
        theirs[0] = patch[0]
    ours = np.array(aug.input_size(patch))
    assert (ours >= theirs).all()
    assert (ours - theirs < (8, 2, 2)).all()


def test_every_transform_of_nnunet_is_there_in_its_order_with_its_probability():
    transforms = nnUNetTrainer.get_training_transforms(
        np.array(SIZE), (-np.pi, np.pi), None, (0, 1, 2), True
    ).transforms
    names = [type(getattr(t, "transform", t)).__name__ for t in transforms]
    assert names == [
        "Convert3DTo2DTransform",
        "SpatialTransform",
        "Convert2DTo3DTransform",
        "GaussianNoiseTransform",
        "GaussianBlurTransform",
        "MultiplicativeBrightnessTransform",
        "ContrastTransform",
        "SimulateLowResolutionTransform",
        "GammaTransform",
        "GammaTransform",
        "MirrorTransform",
        "RemoveLabelTransform",
    ]
    masked = nnUNetTrainer.get_training_transforms(
        np.array(SIZE), (-np.pi, np.pi), None, (0, 1, 2), True, use_mask_for_norm=[True, False]
    ).transforms
    assert [type(t).__name__ for t in masked[-3:]] == [
        "MirrorTransform",
        "MaskImageTransform",
        "RemoveLabelTransform",
    ]
    random = [t for t in transforms if hasattr(t, "apply_probability")]
    assert list(aug.PROBABILITIES.values()) == pytest.approx(
        [transforms[1].p_rotation, transforms[1].p_scaling, *(t.apply_probability for t in random)]
    )
    assert [aug.OF_CHANNEL.get(name, 1.0) for name in list(aug.PROBABILITIES)[2:]] == [
        getattr(t.transform, "p_per_channel", 1.0) for t in random
    ]
