"""Preparation and the way back."""

import itertools
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.transform import resize

from covid_jax.data.geometry import from_file_axes, from_spacing
from covid_jax.data.intensities import read_as
from covid_jax.data.labels import read_label
from covid_jax.data.normalization import CT, ct
from covid_jax.data.plan import Fingerprint, Plan, Resampling, load_plan, make_plan, save_plan
from covid_jax.data.preprocess import (
    as_volume,
    gathered,
    nonzero_box,
    prepare_case,
    read_scan,
    restore_planes,
)
from covid_jax.data.resample import resample, resampled_size
from covid_jax.data.volume import read_volume, write_volume
from covid_jax.errors import UserError
from covid_jax.label_space import IGNORED
from tests.networks import assert_near

PLAN = Plan((3.0, 2.0, 2.0), (ct(-1000.0, 200.0, -500.0, 250.0),), (10, 10, 10), ("a",))


def smooth(shape, seed=0):
    grid = np.meshgrid(*(np.linspace(0, 3, n) for n in shape), indexing="ij")
    return (300 * np.sin(grid[0] + seed) * np.cos(grid[1]) + 100 * grid[2] - 400).astype(np.float32)


@given(
    shape=st.tuples(*[st.integers(3, 12)] * 3),
    size=st.tuples(*[st.integers(2, 14)] * 3),
    order=st.sampled_from([1, 3]),
)
@settings(max_examples=40, deadline=None)
def test_isotropic_resampling_is_skimages_resize_which_nnunet_uses(shape, size, order):
    image = smooth(shape)
    ours = resample(image, size, (1, 1, 1), (1, 1, 1), Resampling(order))
    theirs = resize(image, size, order, mode="edge", anti_aliasing=False, preserve_range=True)
    assert_near(ours, theirs, 1e-5)


def test_a_coarse_axis_is_resampled_by_nearest_neighbour():
    image = np.stack([np.full((8, 8), value, np.float32) for value in (0, 10, 20)])
    out = resample(image, (6, 16, 16), (5, 1, 1), (2.5, 0.5, 0.5), Resampling(order=3))
    assert_near(out[:, 3, 3], [0, 0, 10, 10, 20, 20], 5e-6)


@pytest.mark.parametrize(
    ("how", "slices"),
    [
        (Resampling(order=3), [0, 0, 10, 10, 20, 20]),
        (Resampling(order=3, coarse_order=1), [0, 2.5, 7.5, 12.5, 17.5, 20]),
        (Resampling(order=1, separate=False), [0, 2.5, 7.5, 12.5, 17.5, 20]),
        (Resampling(order=1, anisotropy=6.0), [0, 2.5, 7.5, 12.5, 17.5, 20]),
    ],
)
def test_how_a_coarse_axis_is_resampled_is_the_plans(how, slices):
    image = np.stack([np.full((8, 8), value, np.float32) for value in (0, 10, 20)])
    out = resample(image, (6, 16, 16), (5, 1, 1), (2.5, 0.5, 0.5), how)
    assert_near(out[:, 3, 3], slices, 5e-6)


def test_an_axis_that_is_not_coarse_is_treated_apart_where_that_is_asked_for():
    image = np.stack([np.full((8, 8), value, np.float32) for value in (0, 10, 20)])
    how = Resampling(order=1, separate=True)
    out = resample(image, (6, 8, 8), (2, 1, 1), (1, 1, 1), how)
    assert_near(out[:, 3, 3], [0, 0, 10, 10, 20, 20], 5e-6)


def test_the_number_of_voxels_is_nnunets_where_it_is_decided_at_a_half():
    """17 x 0.7 / 1.4 = 8.5 or not, by the order of operations."""
    for shape, spacing, target in itertools.product(
        (5, 15, 17, 33, 45), (0.3, 0.7, 1.1, 1.5), (0.6, 1.2, 1.4, 2.2)
    ):
        expected = round(spacing / target * shape)  # compute_new_shape
        assert resampled_size((shape,), (spacing,), (target,)) == (max(expected, 1),)


def test_a_plan_of_version_1_of_nnunet_clips_after_it_resampled():
    voxels = np.full((3, 4, 4), -1000.0, np.float32)
    voxels[1] = 3000
    image = from_spacing(voxels, (6.0, 2.0, 2.0))
    how = Resampling(order=1, separate=False)
    plan = replace(PLAN, image_resampling=how, resample_first=True)
    first = (
        prepare_case(image, None, plan).image[..., 0] * plan.normalization[0].std
        + plan.normalization[0].mean
    )
    second = prepare_case(image, None, replace(plan, resample_first=False)).image[..., 0]
    second = second * plan.normalization[0].std + plan.normalization[0].mean
    assert_near(first[:, 0, 0], [-1000, 0, 200, 200, 0, -1000], 1e-5)
    assert_near(second[:, 0, 0], [-1000, -700, -100, -100, -700, -1000], 1e-5)


def test_the_box_is_that_of_the_voxels_that_are_not_zero():
    voxels = np.zeros((5, 6, 7))
    voxels[1, 2:4, 3] = 1
    voxels[3, 2, 5] = -1
    assert nonzero_box([voxels]) == (slice(1, 4), slice(2, 4), slice(3, 6))
    assert nonzero_box([np.zeros((2, 2, 2))]) == (slice(0, 2),) * 3


def test_intensities_are_clipped_and_normalised_by_the_plan():
    voxels = np.full((6, 6, 6), -500.0)
    voxels[0], voxels[1] = -3000, 3000
    case = prepare_case(from_spacing(voxels, PLAN.spacing_mm), None, PLAN)
    assert_near(case.image[[0, 1, 2], 0, 0, 0], [-2.0, 2.8, 0.0], 1e-6)


@pytest.mark.parametrize("spacing", [(3.0, 2.0, 2.0), (5.0, 0.8, 0.8), (1.2, 1.7, 1.1)])
def test_a_label_comes_back_to_its_own_grid(spacing):
    """Through preparation and back, a mask loses its outermost voxels at most."""
    shape = [round(60 / mm) for mm in spacing]
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    mask = (sum(g**2 for g in grid) < 0.5).astype(np.uint8)
    image, label = from_spacing(smooth(shape), spacing), from_spacing(mask, spacing)
    case = prepare_case(image, label, PLAN)
    certain = np.stack([case.label == 0, case.label == 1], -1).astype(np.float32)
    back = gathered(restore_planes([certain], case.geometry, PLAN), case.geometry).argmax(0)
    assert back.shape == mask.shape
    assert 2 * (back & mask).sum() / (back.sum() + mask.sum()) > 0.93


def test_outside_the_crop_everything_is_background():
    voxels = np.zeros((8, 12, 12))
    voxels[2:6, 3:9, 3:9] = -500
    case = prepare_case(from_spacing(voxels, PLAN.spacing_mm), None, PLAN)
    assert case.image.shape == (4, 6, 6, 1)
    lesion = np.zeros((*case.image.shape[:3], 2), np.float32)
    lesion[..., 1] = 1
    mask = gathered(restore_planes([lesion], case.geometry, PLAN), case.geometry).argmax(0)
    np.testing.assert_array_equal(mask, voxels != 0)


def test_grey_is_mapped_to_its_window_and_hu_is_left_alone(covid19_raw, lidc_series):
    grey = read_volume(covid19_raw / "COVID-19-CT-Seg_20cases" / "coronacases_001.nii.gz")
    mapped, how = read_as(grey)
    assert_near(mapped.voxels, np.interp(grey.voxels, (0, 255), (-1250, 250)), 1e-6)
    assert how == "as 8-bit grey mapped to -1250 ... 250 HU"
    assert how in mapped.notes[0]
    assert read_scan(lidc_series).notes == ()


@pytest.mark.parametrize("voxels", [np.full((2, 2, 2), 900), np.full((2, 2, 2), np.nan)])
def test_values_that_are_no_ct_are_refused_by_file(tmp_path, voxels):
    write_volume(tmp_path / "odd.nii.gz", from_spacing(voxels.astype(np.float32), (1, 1, 1)))
    with pytest.raises(UserError, match=r"odd\.nii\.gz"):
        read_scan(tmp_path / "odd.nii.gz")


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.zeros((2, 2, 3)), "its shape"),
        (np.full((2, 2, 2), 7), "holds the value 7"),
        (np.full((2, 2, 2), 0.5), "not whole numbers"),
    ],
)
def test_a_label_that_does_not_fit_is_refused_by_file(tmp_path, label, message):
    image = from_spacing(np.zeros((2, 2, 2)), (1, 1, 1))
    write_volume(tmp_path / "label.nii.gz", from_spacing(label.astype(np.float32), (1, 1, 1)))
    with pytest.raises(UserError, match=rf"label\.nii\.gz: .*{message}"):
        read_label(tmp_path / "label.nii.gz", image, 2)


def test_the_ignored_value_is_kept_apart(tmp_path):
    image = from_spacing(np.zeros((1, 1, 4)), (1, 1, 1))
    written = from_spacing(np.array([[[0.0, 1.0, 5.0, 5.0]]]), (1, 1, 1))
    write_volume(tmp_path / "label.nii.gz", written)
    label = read_label(tmp_path / "label.nii.gz", image, 2, ignored=5)
    assert label.voxels.ravel().tolist() == [0, 1, IGNORED, IGNORED]


@pytest.mark.parametrize("axes", ["LPS", "RAS", "PIR"])
def test_a_plan_with_file_axes_sees_what_itk_reads_and_gives_the_grid_back(tmp_path, axes):
    """Of files whose axes point anywhere."""
    rng = np.random.default_rng(0)
    turn = nib.orientations.axcodes2ornt(tuple(axes))
    affine = np.eye(4)
    for i, (axis, flip) in enumerate(turn.astype(int)):
        affine[:3, i] = np.eye(3)[axis] * flip * (1.0, 2.0, 3.0)[i]
    nib.save(nib.Nifti1Image(rng.normal(size=(4, 5, 6)) - 500, affine), tmp_path / "scan.nii.gz")
    plan = replace(PLAN, spacing_mm=(3.0, 2.0, 1.0), file_axes=True)
    case = prepare_case(read_volume(tmp_path / "scan.nii.gz"), None, plan)
    theirs = sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "scan.nii.gz"))
    np.testing.assert_allclose(
        case.image[..., 0] * PLAN.normalization[0].std + PLAN.normalization[0].mean,
        theirs,
        rtol=1e-5,
    )
    write_volume(tmp_path / "back.nii.gz", as_volume(theirs, case.geometry))
    back = nib.load(tmp_path / "back.nii.gz")
    np.testing.assert_array_equal(back.affine, affine)
    np.testing.assert_allclose(back.get_fdata(), nib.load(tmp_path / "scan.nii.gz").get_fdata())


@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("settings", [{"file_axes": True}, {"axes": ("S", "A", "R")}, {}])
def test_a_label_of_another_orientation_lies_on_its_image_for_every_plan(
    tmp_path, settings, transpose
):
    """And the mask comes back to the scan's own grid."""
    rng = np.random.default_rng(0)
    voxels = rng.integers(-900, 0, (4, 5, 6)).astype(np.int16)
    scan = nib.Nifti1Image(voxels, np.diag([-1, -1, 1, 1]))
    mask = nib.Nifti1Image((voxels > -400).astype(np.uint8), scan.affine)
    to = nib.orientations.ornt_transform(
        nib.io_orientation(scan.affine), nib.orientations.axcodes2ornt(tuple("PIR"))
    )
    nib.save(scan, tmp_path / "scan.nii.gz")
    nib.save(mask.as_reoriented(to), tmp_path / "label.nii.gz")
    plan = replace(PLAN, spacing_mm=(1.0, 1.0, 1.0), transpose=transpose, **settings)
    image = read_volume(tmp_path / "scan.nii.gz")
    label = read_label(tmp_path / "label.nii.gz", image, 2)
    case = prepare_case(image, label, plan)
    intensities = case.image[..., 0] * plan.normalization[0].std + plan.normalization[0].mean
    np.testing.assert_array_equal(case.label == 1, intensities > -400)
    write_volume(tmp_path / "back.nii.gz", as_volume(case.label, case.geometry))
    back = np.asarray(nib.load(tmp_path / "back.nii.gz").dataobj)
    np.testing.assert_array_equal(back, np.asarray(mask.dataobj))


def test_a_label_somewhere_else_is_refused(tmp_path):
    image = from_spacing(np.zeros((2, 2, 2)), (1, 1, 1))
    moved = replace(image, file_affine=image.file_affine + np.eye(4)[:, [3, 3, 3, 3]] * 9)
    moved.file_affine[3] = (0, 0, 0, 1)
    moved.file_affine[:3, :3] = image.file_affine[:3, :3]
    moved.file_affine[:3, 3] += 9
    write_volume(tmp_path / "label.nii.gz", moved)
    with pytest.raises(UserError, match="lies elsewhere"):
        read_label(tmp_path / "label.nii.gz", image, 2)


def test_the_plan_has_the_median_spacing_and_the_foregrounds_statistics():
    values = np.linspace(-900, 100, 1001)
    cases = [Fingerprint((10, 20, 20), (mm, 1.0, 1.0), values[None]) for mm in (2.0, 2.5, 9.0)]
    plan = make_plan(["a", "b", "c"], cases, [CT])
    assert plan.spacing_mm == (2.5, 1.0, 1.0)
    assert plan.normalization[0].mean == pytest.approx(-400)
    assert (plan.normalization[0].lower, plan.normalization[0].upper) == (
        pytest.approx(-895),
        pytest.approx(95),
    )


def test_a_coarse_and_short_axis_takes_the_tenth_percentile():
    cases = [Fingerprint((10, 90, 90), (mm, 1.0, 1.0), np.ones((1, 3))) for mm in (2.0, 5.0, 9.0)]
    assert make_plan(["a", "b", "c"], cases, [CT]).spacing_mm[0] == pytest.approx(2.6)


def test_training_cases_without_a_lesion_are_refused():
    with pytest.raises(UserError, match="no lesion voxel"):
        make_plan(["a"], [Fingerprint((1, 1, 1), (1.0, 1.0, 1.0), np.zeros((1, 0)))], [CT])


def test_a_plan_keeps_its_hash_on_disk_and_another_has_another(tmp_path):
    save_plan(tmp_path / "plan.json", PLAN)
    assert load_plan(tmp_path / "plan.json").hash == PLAN.hash
    assert replace(PLAN, normalization=(ct(-1000.0, 200.0, 0.0, 250.0),)).hash != PLAN.hash


def test_a_damaged_plan_is_refused_by_file(tmp_path):
    (tmp_path / "plan.json").write_text('{"spacing_mm": [1,')
    with pytest.raises(UserError, match=r"plan\.json: damaged"):
        load_plan(tmp_path / "plan.json")


@pytest.mark.parametrize("file_axes", [False, True])
def test_a_label_in_other_axes_than_its_scan_is_prepared_on_the_scans(tmp_path, file_axes):
    voxels = np.arange(60, dtype=np.int16).reshape(3, 4, 5) - 50
    affine = np.diag([-3.0, -2.0, 2.0, 1.0])
    write_volume(tmp_path / "scan.nii", from_file_axes(voxels, affine))
    spun = np.ascontiguousarray((voxels > 0).astype(np.uint8).transpose(1, 2, 0))
    write_volume(tmp_path / "label.nii", from_file_axes(spun, affine[:, [1, 2, 0, 3]]))
    image = read_volume(tmp_path / "scan.nii")
    label = read_label(tmp_path / "label.nii", image, num_values=2)
    spacing = (2.0, 2.0, 3.0)
    plan = replace(
        PLAN, spacing_mm=spacing, normalization=(ct(-1000.0, 200.0, 0.0, 1.0),), file_axes=file_axes
    )
    case = prepare_case(image, label, plan)
    np.testing.assert_array_equal(case.label > 0, case.image[..., 0] > 0)
