"""Volume: voxels with their geometry, read from and written to the formats that scans come in.

Whatever the orientation of a file, a Volume's axes are (D, H, W) = towards the head, the back and
the left of the patient, as a radiologist looks at axial slices. The file's own grid is kept, and
write_volume goes back to it exactly.
"""

import contextlib
import json
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import (
    aff2axcodes,
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from covid_jax.errors import UserError, writing

AXES = ("S", "P", "L")  # where D, H, W point to, in nibabel's letters
NIFTI = (".nii", ".nii.gz")
ITK = (".nrrd", ".mha", ".mhd")
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM and ITK point x to the left and y to the back


@dataclass(frozen=True)
class Volume:
    """A scan or a mask.

    Attributes:
      voxels: (D, H, W).
      spacing_mm: (3,) distances between voxel centres along D, H, W.
      affine: (4, 4) from the indices (d, h, w) to mm towards right, front, head (NIfTI's RAS+).
      file_affine: (4, 4) of the file's own axes, which write_volume writes.
      notes: what reading it found and mended, for the log.
    """

    voxels: np.ndarray
    spacing_mm: np.ndarray
    affine: np.ndarray
    file_affine: np.ndarray = field(repr=False)
    notes: tuple[str, ...] = ()


def from_file_axes(
    voxels: np.ndarray, file_affine: np.ndarray, axes: tuple[str, str, str] = AXES
) -> Volume:
    """The Volume of an array in a file's own axes (i, j, k) with its affine to RAS+ mm.

    D, H, W point to `axes`.
    """
    turn = ornt_transform(io_orientation(file_affine), axcodes2ornt(axes))
    affine = file_affine @ inv_ornt_aff(turn, voxels.shape)
    return Volume(
        voxels=np.ascontiguousarray(apply_orientation(voxels, turn)),
        spacing_mm=np.linalg.norm(affine[:3, :3], axis=0),
        affine=affine,
        file_affine=np.asarray(file_affine, float),
    )


def in_file_axes(volume: Volume) -> np.ndarray:
    """The voxels in the axes of the file that the volume was read from."""
    turn = ornt_transform(io_orientation(volume.affine), io_orientation(volume.file_affine))
    return apply_orientation(volume.voxels, turn)


def turned_to_file_axes(volume: Volume) -> Volume:
    """The same volume with D, H, W along the file's axes k, j, i, as ITK and nnU-Net read it."""
    i, j, k = aff2axcodes(volume.file_affine)
    turned = from_file_axes(in_file_axes(volume), volume.file_affine, (k, j, i))
    return replace(turned, notes=volume.notes)


def from_spacing(voxels: np.ndarray, spacing_mm: Sequence[float]) -> Volume:
    """The Volume of an array (D, H, W) with its corner at the origin."""
    depth, height, width = spacing_mm
    # A file's axes (i, j, k) are (W, H, D) here: to the left, the back and the head.
    return from_file_axes(voxels.transpose(2, 1, 0), np.diag([-width, -height, depth, 1.0]))


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


def write_volume(path: str | Path, volume: Volume) -> None:
    """Writes the volume in the axes of the file that it came from; whole or not at all."""
    path = Path(path)
    voxels = in_file_axes(volume)
    with whole_file(path) as partial:
        if path.name.endswith(NIFTI):
            image = nib.Nifti1Image(voxels, volume.file_affine)
            image.header.set_xyzt_units("mm")
            image.to_filename(partial)
        elif path.name.endswith(ITK):
            from covid_jax.data.itk import write_itk

            write_itk(partial, voxels, volume.file_affine)
        else:
            raise UserError(f"{path}: can be written as one of {', '.join(NIFTI + ITK)}")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name to write to that becomes `path` when the block ends well, and is gone otherwise."""
    partial = path.with_name(f".partial-{path.name}")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Writes `content` to `path` as JSON; whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """What the JSON file at `path` says; nothing where there is no such file."""
    return json.loads(path.read_text()) if path.is_file() else {}


def scans_in(path: Path) -> dict[str, Path]:
    """The scans at `path`, by name: a file, a folder of files, of DICOM slices, or of such folders.

    Raises:
      UserError: there are none.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if path.is_file():
        return {stem(path): path}
    files = sorted(f for f in path.iterdir() if f.is_file() and not f.name.startswith("."))
    scans = {stem(f): f for f in files if f.name.endswith(NIFTI + ITK)}
    if scans:
        return scans
    from covid_jax.data.dicom import find_series, is_dicom

    if any(is_dicom(f) for f in files):
        return {path.resolve().name: path}
    folders = sorted(f for f in path.iterdir() if f.is_dir())
    scans = {f.name: f for f in folders if find_series(f)}
    if not scans:
        raise UserError(
            f"{path}: no scan in it; put {', '.join(NIFTI + ITK)} files or DICOM folders there"
        )
    return scans


def stem(path: Path) -> str:
    """The name of a case: the file's name without its format."""
    for suffix in sorted(NIFTI + ITK, key=len, reverse=True):
        if path.name.endswith(suffix):
            return path.name[: -len(suffix)]
    return path.name


_GZIP_AT_BEST = 1032
"""How many bytes one byte of deflate can stand for."""


def _read_nifti(path: Path) -> Volume:
    try:
        image = nib.nifti1.Nifti1Image.from_filename(path)
        _check_size(path, image)
        voxels = np.asanyarray(image.dataobj)
    except (
        OSError,
        EOFError,
        ValueError,
        zlib.error,
        ImageFileError,
        HeaderDataError,
        WrapStructError,
    ) as error:
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


def one_channel(voxels: np.ndarray) -> tuple[str, ...]:
    """What is to be said of an array with more axes than a scan."""
    axes = voxels.ndim
    return (f"{axes} axes, of which one channel: read as 3D",) if axes > 3 else ()


def three_dimensional(path: Path, voxels: np.ndarray) -> np.ndarray:
    """The array without its axes of one; a UserError where that is not a scan's."""
    while voxels.ndim > 3 and voxels.shape[-1] == 1:
        voxels = voxels[..., 0]
    if voxels.ndim != 3:
        raise UserError(
            f"{path}: has shape {voxels.shape}, a scan is three-dimensional; "
            "save one channel or time point of it"
        )
    if voxels.dtype.kind not in "iuf":
        raise UserError(f"{path}: holds {voxels.dtype}, a scan holds numbers; save it in HU")
    if min(voxels.shape) == 0:
        raise UserError(f"{path}: is empty, its shape is {voxels.shape}")
    return voxels


def one_line(error: BaseException) -> str:
    """The last thing that an error says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200]
