"""Volumes, read from and written to the formats that scans come in.

SimpleITK and pydicom are imported where such a file is read. write_volume goes back to the grid of
the file exactly.
"""

import os
import tempfile
from pathlib import Path

from covid_jax.data.geometry import Volume, in_file_axes
from covid_jax.data.headers import one_line
from covid_jax.data.nifti import Describe, read_nifti, write_nifti
from covid_jax.errors import UserError, writing
from covid_jax.files import check_regular, whole_file

NIFTI = (".nii", ".nii.gz")
ITK = (".nrrd", ".mha", ".mhd")
_PAIR = (".hdr", ".img", ".hdr.gz", ".img.gz")


def read_volume(path: str | Path) -> Volume:
    """Reads NIfTI, NRRD, MHA, or the DICOM series in a folder; endings in capitals too.

    Raises:
      UserError: nothing there, damaged, not three-dimensional, a grid that is sheared or that
        readers take to lie in different places, or slices that are missing, doubled or tilted.
    """
    path = Path(path)
    try:
        return _read(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or one_line(error)})") from error


def _read(path: Path) -> Volume:
    if path.is_dir():
        from covid_jax.data.dicom import read_series  # pydicom where there is DICOM, and not before

        return read_series(path)
    if not path.exists():
        raise UserError(f"{path}: no such file")
    check_regular(path)
    name = path.name.lower()
    if name.endswith(NIFTI):
        return read_nifti(path)
    if name.endswith(ITK):
        from covid_jax.data.itk import read_itk

        return read_itk(path)
    if name.endswith(_PAIR):
        raise UserError(f"{path}: is one of a pair of files; save both as one .nii.gz")
    raise UserError(
        f"{path}: unknown format; a scan is one of {', '.join(NIFTI + ITK)} or a DICOM folder"
    )


def files_of(path: Path) -> list[Path]:
    """The files that read_volume reads: of a series all below its folder, of a header its data too.

    Raises:
      UserError: there are none, or a folder cannot be read.
    """
    if path.is_dir():
        from covid_jax.data.dicom import files_below

        files = [file for file in files_below(path) if file.is_file()]  # no pipe, no dead link
    elif path.name.lower().endswith(ITK) and path.exists():
        from covid_jax.data.itk import data_files

        files = [path, *data_files(path)]
    else:
        files = [path]
    if not files:
        raise UserError(f"{path}: no file in it")
    return files


def write_volume(path: str | Path, volume: Volume, describe: Describe | None = None) -> None:
    """Writes the volume in the axes of the file that it came from; whole or not at all.

    As NIfTI it has shape, units and both forms of that file where it was NIfTI, and else its affine
    in mm as both forms.

    Args:
      describe: what a NIfTI header's description says, made from the bytes of its other fields that
        tell where the voxels lie; without it, nothing.

    Raises:
      UserError: another ending than those that are written, or the disk does not take it.
    """
    path = Path(path)
    if path.name.endswith(".mhd"):
        _write_mhd(path, volume)
        return
    with whole_file(path) as partial:
        if path.name.endswith(NIFTI):
            write_nifti(partial, volume, describe)
        elif path.name.endswith(ITK):
            _write_itk(partial, path, volume)
        else:
            raise UserError(f"{path}: can be written as one of {', '.join(NIFTI + ITK)}")


def _write_itk(partial: Path, path: Path, volume: Volume) -> None:
    from covid_jax.data.itk import write_itk

    try:
        write_itk(partial, in_file_axes(volume), volume.file_affine)
    except RuntimeError as error:
        raise UserError(f"{path}: cannot be written ({one_line(error)})") from error


def _write_mhd(path: Path, volume: Volume) -> None:
    """Writes a header that names its data file; both get their names when both are whole."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=path.parent) as folder:
            header = Path(folder) / path.name
            _write_itk(header, path, volume)
            path.unlink(missing_ok=True)  # no old header beside new voxels
            os.replace(header.with_suffix(".raw"), path.with_suffix(".raw"))
            os.replace(header, path)
