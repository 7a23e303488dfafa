"""Where each voxel lies: ours, nibabel and SimpleITK agree, on scans of all formats and masks."""

import itertools
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from covid_jax.data.geometry import from_file_axes, in_file_axes, turned_like, turned_to_file_axes
from covid_jax.data.volume import read_volume, write_volume

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
UNITS = {"unknown": 1.0, "mm": 1.0, "micron": 1e-3, "meter": 1e3}
FORMS = {"qform": (1, 0), "sform": (0, 1), "both": (1, 1), "aligned": (2, 2), "neither": (0, 0)}
ITK = ("nrrd", "mha", "mhd")
angles = st.one_of(st.sampled_from([0.0, 45.0, -45.0, 90.0]), st.floats(-180, 180))
often = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@st.composite
def grids(draw):
    """The shape of a file, and its affine to RAS+ mm: axes anyhow, oblique, ties at 45 degrees."""
    shape = draw(st.tuples(*[st.integers(1, 4)] * 3))
    spacing = np.array(draw(st.tuples(*[st.floats(0.25, 8)] * 3)))
    order = draw(st.permutations(range(3)))
    signs = draw(st.tuples(*[st.sampled_from([-1, 1])] * 3))
    turned = Rotation.from_euler("xyz", draw(st.tuples(angles, angles, angles)), degrees=True)
    affine = np.eye(4)
    affine[:3, :3] = turned.as_matrix() @ (np.eye(3)[:, order] * signs) * spacing
    affine[:3, 3] = draw(st.tuples(*[st.floats(-400, 400)] * 3))
    return shape, affine


def numbered(shape):
    """An array in which each voxel has a value of its own."""
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape)


def write_itk(path, voxels, affine):
    affine = LPS @ affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image = sitk.GetImageFromArray(voxels.transpose())
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    sitk.WriteImage(image, path)


def write_nifti(path, voxels, affine, version=1, forms="both", units="mm", behind=0):
    """`behind`: how many axes of one come behind the three."""
    kind = {1: nib.Nifti1Image, 2: nib.Nifti2Image}[version]
    in_units = np.diag([*[1 / UNITS[units]] * 3, 1]) @ affine
    image = kind(voxels.reshape(voxels.shape + (1,) * behind), in_units)
    qform, sform = FORMS[forms]
    image.set_qform(in_units, qform)
    image.set_sform(in_units, sform)
    image.header.set_xyzt_units(units, "sec")
    image.to_filename(path)


def positions(shape, affine):
    """(n, 3) mm of all voxels of a grid, in the order of its indices."""
    indices = np.array([(*index, 1) for index in np.ndindex(*shape)])
    return (indices @ affine.T)[:, :3]


def by_nibabel(path):
    """Voxels (i, j, k) and their places, RAS+ in mm."""
    image = nib.load(path)
    voxels = np.asarray(image.dataobj).reshape(image.shape[:3])
    to_mm = UNITS[image.header.get_xyzt_units()[0]]
    return voxels, positions(voxels.shape, image.affine) * to_mm


def by_itk(path):
    image = sitk.ReadImage(path)
    voxels = sitk.GetArrayFromImage(image).transpose()
    indices = [tuple(map(int, index)) for index in np.ndindex(*voxels.shape)]
    places = np.array([image.TransformIndexToPhysicalPoint(index) for index in indices])
    return voxels, places * (-1, -1, 1)


def by_us(path):
    volume = read_volume(path)
    voxels = in_file_axes(volume)
    return voxels, positions(voxels.shape, volume.file_affine)


def assert_same(found, expected, atol=0.02):
    """`atol`, in mm, is that of a qform: near half a turn its float32 is off by 1e-3."""
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], atol=atol)


def mask_of(scan, path):
    """Writes what predict would write for a scan: its voxels' values, on its grid."""
    volume = read_volume(scan)
    write_volume(path, replace(volume, voxels=volume.voxels.astype(np.uint8)))
    return path


@often
@given(
    grid=grids(),
    version=st.sampled_from([1, 2]),
    forms=st.sampled_from(sorted(FORMS)),
    units=st.sampled_from(sorted(UNITS)),
    behind=st.integers(0, 2),
)
def test_all_agree_on_a_nifti_scan_and_on_its_mask(tmp_path, grid, version, forms, units, behind):
    shape, affine = grid
    scan, mask = tmp_path / "scan.nii", tmp_path / "mask.nii.gz"
    write_nifti(scan, numbered(shape), affine, version, forms, units, behind)
    mask_of(scan, mask)
    ours, theirs = (nib.load(path) for path in (mask, scan))
    assert type(ours) is type(theirs)
    assert ours.shape == theirs.shape
    for field in read_volume(scan).header.fields:
        np.testing.assert_array_equal(ours.header[field], theirs.header[field], field)
    readers = [by_nibabel, by_us] if version == 2 else [by_nibabel, by_us, by_itk]
    for reader in readers:
        assert_same(reader(mask), reader(scan), atol=1e-6)
        if reader is not by_itk or forms != "neither":  # of which ITK has a reading of its own
            assert_same(reader(scan), by_nibabel(scan))


@often
@given(grid=grids(), suffix=st.sampled_from(ITK))
def test_all_agree_on_an_itk_scan_and_on_its_mask(tmp_path, grid, suffix):
    shape, affine = grid
    scan, mask = tmp_path / f"scan.{suffix}", tmp_path / "mask.nii.gz"
    write_itk(scan, numbered(shape), affine)
    mask_of(scan, mask)
    for found in (by_us(scan), by_us(mask), by_itk(mask), by_nibabel(mask)):
        assert_same(found, by_itk(scan))


TIE = np.eye(4)
TIE[:3, :3] = Rotation.from_euler("z", 45, degrees=True).as_matrix()


@often
@given(grid=grids())
@example(grid=((2, 3, 4), TIE))
@example(grid=((2, 3, 4), TIE[:, [2, 1, 0, 3]]))
def test_a_volume_turned_anyhow_comes_back_to_its_file(grid):
    shape, affine = grid
    voxels = numbered(shape)
    volume = from_file_axes(voxels, affine)
    for turned in (volume, turned_to_file_axes(volume)):
        np.testing.assert_array_equal(in_file_axes(turned), voxels)
        for index in np.ndindex(*turned.voxels.shape):
            there = np.linalg.inv(affine) @ turned.affine @ (*index, 1)
            assert turned.voxels[index] == voxels[tuple(np.rint(there[:3]).astype(int))]


@often
@given(grid=grids(), order=st.permutations(range(3)), noise=st.sampled_from([0.0, 1e-7, -1e-7]))
@example(grid=((2, 3, 4), TIE), order=[1, 0, 2], noise=1e-7)
def test_a_label_in_other_axes_is_turned_to_its_scan(grid, order, noise):
    shape, affine = grid
    scan = from_file_axes(numbered(shape), affine)
    spun = affine[:, [*order, 3]]
    spun[:3, :3] = Rotation.from_rotvec([0, 0, noise]).as_matrix() @ spun[:3, :3]
    label = turned_like(from_file_axes(numbered(shape).transpose(order), spun), scan)
    np.testing.assert_array_equal(label.voxels, scan.voxels)
    np.testing.assert_allclose(label.affine, scan.affine, atol=1e-4)


@pytest.mark.parametrize("behind", [0, 1, 2])
def test_file_axes_are_those_that_itk_reads(tmp_path, behind):
    for axes, signs in itertools.product(
        itertools.permutations(range(3)), itertools.product((-1, 1), repeat=3)
    ):
        affine = np.eye(4)
        affine[:3, :3] = np.eye(3)[:, axes] * signs
        write_nifti(tmp_path / "scan.nii", numbered((2, 3, 4)), affine, behind=behind)
        turned = turned_to_file_axes(read_volume(tmp_path / "scan.nii"))
        np.testing.assert_array_equal(
            turned.voxels, sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "scan.nii"))
        )
