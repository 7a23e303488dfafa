"""predict knows its own masks again, and those that somebody changed."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from covid_jax.data.geometry import from_spacing
from covid_jax.data.volume import read_volume, write_volume
from covid_jax.inference.masks import Origin, origin_of, write_mask

ORIGIN = Origin("a" * 64, "b" * 64)


@pytest.fixture
def mask(tmp_path):
    voxels = (np.random.default_rng(0).random((4, 5, 6)) > 0.5).astype(np.uint8)
    write_mask(tmp_path / "mask.nii.gz", from_spacing(voxels, (3, 1, 1)), ORIGIN)
    return tmp_path / "mask.nii.gz"


def test_a_mask_is_from_its_run_and_scan_alone(mask):
    assert origin_of(mask) == ORIGIN
    assert origin_of(mask) != Origin("c" * 64, "b" * 64)
    assert origin_of(mask) != Origin("a" * 64, "c" * 64)


def test_probabilities_have_the_mark_too(tmp_path):
    voxels = np.random.default_rng(0).random((4, 5, 6)).astype(np.float32)
    write_mask(tmp_path / "p.nii.gz", from_spacing(voxels, (3, 1, 1)), ORIGIN)
    assert origin_of(tmp_path / "p.nii.gz") == ORIGIN


def test_a_mask_that_somebody_corrected_is_theirs_though_the_mark_is_in_it(mask):
    image = nib.load(mask)
    voxels = np.asarray(image.dataobj).copy()
    voxels[0, 0, 0] = 1 - voxels[0, 0, 0]
    nib.Nifti1Image(voxels, image.affine, image.header).to_filename(mask)
    assert b"covid_jax run=" in nib.load(mask).header["descrip"].item()
    assert origin_of(mask) is None


def test_a_mask_that_somebody_moved_is_theirs(mask):
    image = nib.load(mask)
    image.header["srow_x"][3] += 50
    nib.Nifti1Image(np.asarray(image.dataobj), None, image.header).to_filename(mask)
    assert b"covid_jax run=" in nib.load(mask).header["descrip"].item()
    assert origin_of(mask) is None


def test_a_mask_on_the_grid_of_a_nifti_file_is_ours(tmp_path):
    """Its header says of its place what that file's said, in whatever form."""
    affine = np.array([[-0.7, 0.1, 0, 11.3], [0.1, 0.7, 0, -7.7], [0, 0, 2.5, 3.1], [0, 0, 0, 1]])
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.float32), affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, tmp_path / "scan.nii.gz")
    scan = read_volume(tmp_path / "scan.nii.gz")
    mask = replace(scan, voxels=(scan.voxels > 1).astype(np.uint8))
    write_mask(tmp_path / "mask.nii.gz", mask, ORIGIN)
    assert origin_of(tmp_path / "mask.nii.gz") == ORIGIN


@pytest.mark.parametrize("content", [b"", b"no NIfTI", None])
def test_what_is_no_mask_of_ours_is_theirs(tmp_path, content):
    path = tmp_path / "mask.nii.gz"
    if content is None:
        write_volume(path, from_spacing(np.zeros((2, 2, 2), np.uint8), (1, 1, 1)))
    else:
        path.write_bytes(content)
    assert origin_of(path) is None
    assert origin_of(tmp_path / "nothing.nii.gz") is None
