"""Reading and writing scans: geometry, formats, and damaged files."""

import gzip
import itertools
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from covid_jax.data.dicom import find_series
from covid_jax.data.geometry import from_file_axes, from_spacing, in_file_axes
from covid_jax.data.phantom import write_raw_dataset
from covid_jax.data.scans import scans_in
from covid_jax.data.volume import read_volume, write_volume
from covid_jax.errors import UserError


def test_a_dicom_series_reads_as_simpleitk_reads_it(lidc_series):
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(lidc_series)))
    peer = reader.Execute()
    volume = read_volume(lidc_series)
    np.testing.assert_array_equal(volume.voxels, sitk.GetArrayFromImage(peer))
    np.testing.assert_allclose(volume.spacing_mm[::-1], peer.GetSpacing())
    first = np.array(peer.TransformIndexToPhysicalPoint((0, 0, 0))) * (-1, -1, 1)
    np.testing.assert_allclose(volume.affine[:3, 3], first, atol=1e-4)


def test_axes_point_to_head_back_and_left_whatever_the_file_says(thorax):
    volume = read_volume(thorax)
    assert nib.aff2axcodes(volume.affine) == ("S", "P", "L")
    np.testing.assert_allclose(volume.spacing_mm, 1.5)


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", list(itertools.product((-1, 1), repeat=3)))
def test_every_orientation_keeps_each_voxel_where_it_lies(axes, signs):
    rng = np.random.default_rng(0)
    voxels = rng.integers(0, 99, (3, 4, 5))
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, axes] * signs * np.array([2.0, 0.7, 0.9])
    affine[:3, 3] = (5, -6, 7)
    volume = from_file_axes(voxels, affine)
    np.testing.assert_array_equal(in_file_axes(volume), voxels)
    for index in itertools.product(*(range(n) for n in volume.voxels.shape)):
        world = volume.affine @ (*index, 1)
        there = np.rint(np.linalg.inv(affine) @ world).astype(int)
        assert volume.voxels[index] == voxels[tuple(there[:3])]


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_a_written_volume_reads_back_on_the_same_grid(thorax, tmp_path, suffix):
    volume = read_volume(thorax)
    write_volume(tmp_path / f"copy{suffix}", volume)
    copy = read_volume(tmp_path / f"copy{suffix}")
    np.testing.assert_array_equal(copy.voxels, volume.voxels)
    np.testing.assert_allclose(copy.affine, volume.affine, atol=1e-4)


def test_a_nifti_mask_has_shape_and_affine_of_its_scan_exactly(thorax, tmp_path):
    scan = read_volume(thorax)
    write_volume(tmp_path / "mask.nii.gz", replace(scan, voxels=(scan.voxels > 0).astype(np.uint8)))
    ours, theirs = nib.load(tmp_path / "mask.nii.gz"), nib.load(thorax)
    assert ours.shape == theirs.shape
    np.testing.assert_array_equal(ours.affine, theirs.affine)
    np.testing.assert_array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj) > 0)
    assert ours.get_data_dtype() == np.uint8


def test_spacing_alone_gives_a_volume_in_the_order_of_its_axes():
    volume = from_spacing(np.zeros((2, 3, 4)), (5, 1, 2))
    assert volume.voxels.shape == (2, 3, 4)
    np.testing.assert_allclose(volume.spacing_mm, (5, 1, 2))


@pytest.fixture
def series(lidc_series, tmp_path):
    folder = tmp_path / "series"
    shutil.copytree(lidc_series, folder)
    return folder, sorted(folder.iterdir())


def test_a_missing_slice_is_refused_and_its_neighbours_named(series):
    folder, files = series
    files[5].unlink()
    with pytest.raises(UserError, match=r"5\.00 mm between .*a slice is missing"):
        read_volume(folder)


def test_a_doubled_slice_is_refused_and_both_files_named(series):
    folder, files = series
    image = pydicom.dcmread(files[5])
    image.SOPInstanceUID += ".1"
    image.save_as(folder / "doubled.dcm")
    with pytest.raises(UserError, match=rf"{files[5].name} and doubled.dcm lie at the same"):
        read_volume(folder)


def test_a_tilted_gantry_is_refused(series):
    folder, files = series
    for file in files:
        image = pydicom.dcmread(file)
        image.ImageOrientationPatient = [1, 0, 0, 0, np.cos(0.2), np.sin(0.2)]
        image.save_as(file)
    with pytest.raises(UserError, match="tilted"):
        read_volume(folder)


def test_a_truncated_slice_is_refused_by_name(series, truncated_slice):
    folder, files = series
    for file in files:
        file.unlink()
    shutil.copy(truncated_slice, folder / "cut.dcm")
    with pytest.raises(UserError, match=r"cut\.dcm: damaged"):
        read_volume(folder)


@pytest.fixture
def truncated_slice():
    from tests.conftest import ROOT

    return ROOT / "tests" / "files" / "truncated_slice.dcm"


def test_two_series_in_a_folder_are_refused(series):
    folder, files = series
    image = pydicom.dcmread(files[0])
    image.SeriesInstanceUID = pydicom.uid.generate_uid()
    image.save_as(files[0])
    with pytest.raises(UserError, match="2 CT series"):
        read_volume(folder)


def test_rtstruct_siblings_of_a_series_are_passed_over(tmp_path):
    write_raw_dataset("nsclc_effusion", tmp_path / "raw", 2, seed=0)
    patient = next((tmp_path / "raw" / "NSCLC-Radiomics").iterdir())
    assert len(list(patient.rglob("*RTSTRUCT/*.dcm"))) == 1
    ((_, files),) = find_series(patient).items()
    assert len(files) == read_volume(patient).voxels.shape[0]


def test_a_truncated_nifti_is_refused_by_name(thorax, tmp_path):
    path = tmp_path / "cut.nii.gz"
    path.write_bytes(thorax.read_bytes()[:100_000])
    with pytest.raises(UserError, match=r"cut\.nii\.gz: damaged"):
        read_volume(path)


def test_something_else_called_nifti_is_refused(tmp_path):
    path = tmp_path / "text.nii.gz"
    path.write_bytes(gzip.compress(b"not an image" * 100))
    with pytest.raises(UserError, match=r"text\.nii\.gz"):
        read_volume(path)


def test_a_4d_image_is_refused_and_one_of_one_channel_is_not(tmp_path):
    nib.Nifti1Image(np.zeros((4, 5, 6, 2), np.int16), np.eye(4)).to_filename(tmp_path / "a.nii")
    with pytest.raises(UserError, match="three-dimensional"):
        read_volume(tmp_path / "a.nii")
    nib.Nifti1Image(np.zeros((4, 5, 6, 1), np.int16), np.eye(4)).to_filename(tmp_path / "b.nii")
    assert read_volume(tmp_path / "b.nii").voxels.size == 120


@pytest.mark.parametrize("name", ["nowhere.nii.gz", "nowhere"])
def test_a_path_that_is_not_there_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="no such file"):
        read_volume(tmp_path / name)


def test_an_empty_folder_holds_no_scan(tmp_path):
    with pytest.raises(UserError, match="no scan in it"):
        scans_in(tmp_path)


def test_scans_are_named_by_file_or_by_series_folder(lidc_series, thorax):
    assert list(scans_in(lidc_series).paths) == ["LIDC-IDRI-0001"]
    assert list(scans_in(lidc_series.parent).paths) == ["LIDC-IDRI-0001"]
    assert list(scans_in(thorax).paths) == ["thorax_crop_1p5mm"]


def test_a_write_that_fails_leaves_no_file(thorax, tmp_path):
    with pytest.raises(UserError):
        write_volume(tmp_path / "mask.txt", read_volume(thorax))
    assert not list(tmp_path.iterdir())
