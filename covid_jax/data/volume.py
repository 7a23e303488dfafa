"""Volumes, read from and written to the formats that scans come in.

Each format's reader is imported where such a file is read. write_volume goes back to the grid of
the file exactly.
"""

import math
import zlib
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from covid_jax.data.geometry import (
    Volume,
    from_file_axes,
    in_file_axes,
    one_channel,
    one_line,
    three_dimensional,
)
from covid_jax.errors import UserError
from covid_jax.files import whole_file

NIFTI = (".nii", ".nii.gz")
ITK = (".nrrd", ".mha", ".mhd")
NO_NIFTI = (
    OSError,
    EOFError,
    ValueError,
    zlib.error,
    ImageFileError,
    HeaderDataError,
    WrapStructError,
)
"""What nibabel raises of a file that is damaged or no NIfTI."""


def read_volume(path: str | Path) -> Volume:
    """Reads NIfTI, NRRD, MHA, or the DICOM series in a folder.

    Raises:
      UserError: nothing there, damaged, not three-dimensional, or slices that are missing,
        doubled or tilted.
    """
    path = Path(path)
    if path.is_dir():
        from covid_jax.data.dicom import read_series  # pydicom where there is DICOM, and not before

        return read_series(path)
    if not path.exists():
        raise UserError(f"{path}: no such file")
    if path.name.endswith(NIFTI):
        return _read_nifti(path)
    if path.name.endswith(ITK):
        from covid_jax.data.itk import read_itk

        return read_itk(path)
    raise UserError(
        f"{path}: unknown format; a scan is one of {', '.join(NIFTI + ITK)} or a DICOM folder"
    )


def write_volume(path: str | Path, volume: Volume, description: str = "") -> None:
    """Writes the volume in the axes of the file that it came from; whole or not at all.

    NIfTI keeps the `description`, of at most 79 letters (descrip).
    """
    path = Path(path)
    voxels = in_file_axes(volume)
    with whole_file(path) as partial:
        if path.name.endswith(NIFTI):
            image = nib.Nifti1Image(voxels, volume.file_affine)
            image.header.set_xyzt_units("mm")
            image.header["descrip"] = description
            image.to_filename(partial)
        elif path.name.endswith(ITK):
            from covid_jax.data.itk import write_itk

            write_itk(partial, voxels, volume.file_affine)
        else:
            raise UserError(f"{path}: can be written as one of {', '.join(NIFTI + ITK)}")


_GZIP_AT_BEST = 1032
"""How many bytes one byte of deflate can stand for."""


def _read_nifti(path: Path) -> Volume:
    try:
        image = nib.nifti1.Nifti1Image.from_filename(path)
        _check_size(path, image)
        voxels = np.asanyarray(image.dataobj)
    except NO_NIFTI as error:
        raise UserError(
            f"{path}: damaged or not NIfTI ({one_line(error)}); fetch or export it again"
        ) from error
    assert image.affine is not None
    corner = image.affine[:3, :3]
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(corner)) < 1e-9:
        raise UserError(f"{path}: its affine is not one of a scan; export it again")
    notes = one_channel(voxels) + _two_forms(path, image)
    volume = from_file_axes(three_dimensional(path, voxels), image.affine)
    return replace(volume, notes=notes)


def _check_size(path: Path, image: nib.Nifti1Image) -> None:
    """Raises a UserError where the header asks for more voxels than the file can hold."""
    voxel = image.header.get_data_dtype().itemsize
    wanted = math.prod(image.shape) * voxel
    held = path.stat().st_size * (_GZIP_AT_BEST if path.name.endswith(".gz") else 1)
    if min(image.shape) < 0 or wanted > held:
        raise UserError(
            f"{path}: its header says {' x '.join(map(str, image.shape))} voxels of {voxel} bytes, "
            "more than are in the file; fetch or export it again"
        )


def _two_forms(path: Path, image: nib.Nifti1Image) -> tuple[str, ...]:
    """What is to be said of a header whose qform and sform are not the same.

    Raises:
      UserError: they differ by a tenth of a millimetre or more, so that one of them is wrong.
    """
    sform, qform = (form(coded=True)[0] for form in (image.get_sform, image.get_qform))
    if sform is None or qform is None:
        return ()
    corners = np.array([[*np.multiply(image.shape[:3], at), 1] for at in np.ndindex(2, 2, 2)])
    apart = float(np.abs(corners @ (sform - qform).T).max())
    if apart < 1e-4:
        return ()
    if apart < 0.1:
        return (f"qform and sform differ by {apart:.1g} mm: the sform is taken",)
    raise UserError(
        f"{path}: its qform and sform lie {apart:.3g} mm apart, and nothing tells which is right; "
        "export the file again, or set one of the two codes to 0"
    )
