"""Preparation beside nnU-Net v2's, on real CT and on phantoms: plan, crop, voxels, and back."""

import dataclasses
import itertools

import numpy as np
import pytest
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import (
    DatasetFingerprintExtractor,
)
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
    ExperimentPlanner,
)
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet

from benchmarks.peers.torch_preprocessor import DATASET, plans_of
from covid_jax.data.geometry import Volume, from_spacing
from covid_jax.data.labels import read_label
from covid_jax.data.normalization import CT, SCHEMES, Z_SCORE, Normalization, ct
from covid_jax.data.phantom import make_phantom
from covid_jax.data.plan import Fingerprint, Plan, Resampling, fingerprint, make_plan
from covid_jax.data.preprocess import gathered, nonzero_box, prepare_case, read_scan, restore_planes
from covid_jax.data.resample import resample, resample_label, resampled_size
from covid_jax.label_space import OUTSIDE
from tests.networks import assert_near


def lidc(files):
    scan = read_scan(files / "examples" / "lidc" / "LIDC-IDRI-0001")
    label = read_label(files / "tests" / "files" / "LIDC-IDRI-0001_nodule.nii.gz", scan, 2)
    return scan, label


def thorax(files):
    """It has no lesion: its bone stands for one, since a label is a label."""
    scan = read_scan(files / "tests" / "files" / "thorax_crop_1p5mm.nii.gz")
    return scan, dataclasses.replace(scan, voxels=(scan.voxels > 300).astype(np.uint8))


def phantom(spacing):
    def made(files):
        image, label = make_phantom("msd_lung", 0, 0)
        return tuple(dataclasses.replace(v, spacing_mm=np.array(spacing)) for v in (image, label))

    return made


def framed(files):
    """A scan with a frame of zeros, which is cut off."""
    scan, label = thorax(files)
    return tuple(
        dataclasses.replace(v, voxels=np.pad(v.voxels, ((3, 5), (2, 0), (7, 4))))
        for v in (scan, label)
    )


CASES = {
    "LIDC, real, 2.5 x 0.7 x 0.7 mm": (lidc, (2.5, 0.8, 0.8)),
    "LIDC, real, to thicker slices": (lidc, (5.0, 0.9, 0.9)),
    "thorax, real, isotropic": (thorax, (2.0, 2.0, 2.0)),
    "thorax, real, to finer voxels": (thorax, (1.2, 1.0, 1.0)),
    "thorax, real, framed": (framed, (1.7, 1.4, 1.6)),
    "phantom, isotropic": (phantom((1.5, 1.5, 1.5)), (1.8, 1.2, 1.2)),
    "phantom, anisotropic": (phantom((6.0, 1.0, 1.0)), (5.0, 1.3, 1.3)),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    read, spacing = CASES[request.param]
    scan, label = read(request.config.rootpath)
    box = nonzero_box([scan.voxels])
    image, mask = [dataclasses.replace(v, voxels=v.voxels[box]) for v in (scan, label)]
    plan = make_plan(["case"], [fingerprint([image], mask, 100_000)], [CT])
    return scan, label, dataclasses.replace(plan, spacing_mm=spacing)


def theirs_of(scan: Volume, label: Volume, plan: Plan):
    plans = plans_of(plan)
    return DefaultPreprocessor(verbose=False).run_case_npy(
        scan.voxels[None],
        label.voxels[None].astype(np.int16),
        {"spacing": scan.spacing_mm.tolist()},
        plans,
        plans.get_configuration("3d_fullres"),
        DATASET,
    )


def test_image_label_and_crop_are_those_of_the_default_preprocessor(case):
    scan, label, plan = case
    image, mask, properties = theirs_of(scan, label, plan)
    ours = prepare_case(scan, label, plan)
    assert [list(side) for side in ours.geometry.box] == properties["bbox_used_for_cropping"]
    assert ours.image.shape == (*image.shape[1:], 1)
    near = np.abs(ours.image[..., 0] - image[0]) < 1e-3 * np.abs(image[0]).max()
    assert near.mean() >= 0.999
    foreground = np.maximum(mask[0], 0) > 0
    assert foreground.any()
    assert ((ours.label > 0) != foreground).sum() <= 0.001 * foreground.sum()


@pytest.mark.parametrize("transpose", [*itertools.permutations(range(3))])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("spacing", [(2.0, 1.0, 1.0), (1.7, 1.3, 0.8), (6.0, 1.0, 1.2)])
def test_every_normalisation_is_the_default_preprocessors_to_the_bit(spacing, masked, transpose):
    """Of five channels at once, around which everything is zero, with a hole within.

    And a corner that is cut off, where the label is nnU-Net's -1.
    """
    rng = np.random.default_rng(0)
    inside = np.zeros((14, 22, 20), bool)
    inside[2:12, 3:19, 2:17] = True
    inside[5:7, 8:10, 8:10] = False
    inside[2:6, 3:12, 2:9] = False
    voxels = [rng.normal(100, 40, inside.shape).clip(1, 255) * inside for _ in SCHEMES]
    channels = [from_spacing(one.astype(np.float32), (3.0, 1.0, 1.1)) for one in voxels]
    label = dataclasses.replace(
        channels[0], voxels=(rng.random(inside.shape) > 0.95).astype(np.uint8) * inside
    )
    plan = Plan(
        spacing_mm=spacing,
        normalization=tuple(
            ct(30, 180, 110, 25)
            if scheme == CT
            else Normalization(scheme, use_mask_for_norm=masked and scheme == Z_SCORE)
            for scheme in SCHEMES
        ),
        median_shape=(14, 22, 20),
        training_cases=(),
        outside_apart=True,
        transpose=transpose,
    )
    plans = plans_of(plan)
    image, mask, _ = DefaultPreprocessor(verbose=False).run_case_npy(
        np.stack([one.voxels for one in channels]),
        label.voxels[None].astype(np.int16),
        {"spacing": channels[0].spacing_mm.tolist()},
        plans,
        plans.get_configuration("3d_fullres"),
        DATASET,
    )
    ours = prepare_case(channels, label, plan)
    np.testing.assert_array_equal(np.moveaxis(ours.image, -1, 0), image)
    assert (mask[0] < 0).any()
    expected = np.where(mask[0] < 0, OUTSIDE if masked else 0, mask[0].astype(int))
    np.testing.assert_array_equal(ours.label, expected)
    # In plans from before, what is outside counts as background where shares are weighed.
    before = prepare_case(channels, label, dataclasses.replace(plan, outside_apart=False))
    assert (before.label != expected).mean() <= (0 if masked else 2e-3)


@pytest.mark.parametrize(
    ("slices", "mm", "target_mm"),
    [
        (60, 5.5, 6.0),
        (36, 5.5, 3.0),
        (120, 5.5, 3.0),
        (12, 3.5, 0.9),
        (30, 6.0, 3.3),
        (7, 5.0, 2.5),
    ],
)
def test_slices_halfway_between_two_become_what_nnunets_do(slices, mm, target_mm):
    """Where rounding decides which of two neighbours a slice of a coarse axis is taken from."""
    rng = np.random.default_rng(0)
    scan = from_spacing(rng.normal(size=(slices, 6, 5)).astype(np.float32), (mm, 0.5, 0.5))
    label = dataclasses.replace(scan, voxels=(scan.voxels > 0).astype(np.uint8))
    plan = Plan(
        spacing_mm=(target_mm, 0.5, 0.5),
        normalization=(Normalization(Z_SCORE),),
        median_shape=scan.voxels.shape,
        training_cases=(),
    )
    image, mask, _ = theirs_of(scan, label, plan)
    ours = prepare_case(scan, label, plan)
    np.testing.assert_array_equal(ours.image[..., 0], image[0])
    np.testing.assert_array_equal(ours.label, mask[0])


@pytest.mark.parametrize("separate", [None, True, False])
@pytest.mark.parametrize(("order", "coarse_order"), [(0, 0), (1, 0), (3, 0), (1, 1), (3, 3)])
@pytest.mark.parametrize("spacing", [(2.0, 1.0, 1.4), (5.0, 1.3, 0.8)])
def test_labels_are_resampled_as_the_plan_says(order, coarse_order, separate, spacing):
    """Of four values in blocks, to the voxel."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 4, (6, 7, 8)).repeat(2, 0).repeat(3, 1).repeat(3, 2)
    scan = from_spacing(rng.uniform(1, 2, blocks.shape).astype(np.float32), (3.0, 0.9, 1.1))
    label = dataclasses.replace(scan, voxels=blocks.astype(np.uint8))
    plan = Plan(
        spacing_mm=spacing,
        normalization=(Normalization(Z_SCORE),),
        median_shape=blocks.shape,
        training_cases=(),
        label_resampling=Resampling(order, coarse_order, separate),
    )
    _, mask, _ = theirs_of(scan, label, plan)
    np.testing.assert_array_equal(prepare_case(scan, label, plan).label, mask[0])


def test_labels_of_nnunets_torch_resampling_differ_where_shares_are_equal_alone():
    """To its half precision."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 4, (6, 7, 8)).repeat(2, 0).repeat(3, 1).repeat(3, 2).astype(np.int16)
    for target in ((2.0, 1.0, 1.4), (5.0, 1.3, 0.8)):
        size = resampled_size(blocks.shape, (3.0, 0.9, 1.1), target)
        theirs = resample_torch_fornnunet(blocks[None], size, (3.0, 0.9, 1.1), target, is_seg=True)
        to_target = (size, (3.0, 0.9, 1.1), target, Resampling(order=1))
        ours = resample_label(blocks, *to_target)
        shares = np.stack(
            [resample((blocks == value).astype(float), *to_target) for value in range(4)]
        )
        of_ours, of_theirs = (
            np.take_along_axis(shares, label[None].astype(int), 0) for label in (ours, theirs[0])
        )
        assert_near(of_ours, of_theirs, 1e-3)
        assert (ours != theirs[0]).mean() < 0.02


def test_probabilities_come_back_as_nnunets_do(case):
    scan, label, plan = case
    prepared = prepare_case(scan, label, plan)
    rng = np.random.default_rng(0)
    lesion = np.clip(
        prepared.label * 0.8 + 0.1 + 0.05 * rng.normal(size=prepared.label.shape), 0, 1
    )
    scores = np.stack([1 - lesion, lesion], -1).astype(np.float32)
    ours = gathered(restore_planes([scores], prepared.geometry, plan), prepared.geometry)
    box = prepared.geometry.box
    theirs = resample_data_or_seg_to_shape(
        np.moveaxis(scores, -1, 0),
        [stop - start for start, stop in box],
        plan.spacing_mm,
        scan.spacing_mm.tolist(),
        is_seg=False,
        order=1,
        order_z=0,
        force_separate_z=None,
    )
    inside = ours[:, *(slice(*side) for side in box)]
    assert (np.abs(inside - theirs) < 1e-3).mean() >= 0.999  # of probabilities
    found, expected = inside.argmax(0) == 1, theirs.argmax(0) == 1
    assert (found != expected).sum() <= 0.001 * expected.sum()


def test_the_statistics_of_lesions_are_those_of_nnunets_fingerprint(case):
    scan, label, _ = case
    data, mask, _ = crop_to_nonzero(
        scan.voxels[None].astype(np.float32), label.voxels[None].astype(np.int16)
    )
    (theirs,), _ = DatasetFingerprintExtractor.collect_foreground_intensities(
        mask, data, num_samples=5000
    )
    box = nonzero_box([scan.voxels])
    image, inside = [dataclasses.replace(v, voxels=v.voxels[box]) for v in (scan, label)]
    ours = fingerprint([image], inside, 5000)
    np.testing.assert_array_equal(ours.foreground[0], theirs)
    assert ours.shape == data.shape[1:]
    plan = make_plan(["case"], [ours], [CT])
    assert plan.normalization[0].mean == pytest.approx(np.mean(theirs), rel=1e-6)
    assert plan.normalization[0].std == pytest.approx(np.std(theirs), rel=1e-6)
    low, high = np.percentile(theirs, (0.5, 99.5))
    assert (plan.normalization[0].lower, plan.normalization[0].upper) == (low, high)


@pytest.mark.parametrize("seed", range(20))
def test_the_target_spacing_is_the_planners(seed):
    """Of datasets of all sorts, from isotropic to slices of 8 mm."""
    rng = np.random.default_rng(seed)
    count, thick = 9, rng.choice([1.0, 2.5, 5.0, 8.0])
    spacings = rng.uniform(0.6, 1.0, (count, 3)) * [thick, 1, 1]
    spacings[:, 2] *= rng.choice([1.0, 0.3])
    shapes = np.stack([rng.integers(10, 300, count), *rng.integers(100, 512, (2, count))], 1)
    planner = object.__new__(ExperimentPlanner)
    planner.overwrite_target_spacing = None
    planner.anisotropy_threshold = 3
    planner.dataset_fingerprint = {"spacings": list(spacings), "shapes_after_crop": list(shapes)}
    expected = planner.determine_fullres_target_spacing()
    some = np.array([[-600.0, 0.0]], np.float32)
    fingerprints = [
        Fingerprint(tuple(shape), tuple(spacing), some)
        for shape, spacing in zip(shapes, spacings, strict=True)
    ]
    plan = make_plan([str(k) for k in range(count)], fingerprints, [CT])
    np.testing.assert_allclose(plan.spacing_mm, expected, rtol=1e-12)
