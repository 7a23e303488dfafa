"""NIfTI, by nibabel: both versions, whatever units and forms its header has.

A header may describe its grid three times (spacing, qform, sform), and nibabel and ITK do not take
the same one. What they would put in different places is refused.
"""

import gzip
import logging
import zlib
from collections.abc import Callable
from dataclasses import replace
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from covid_jax.data.geometry import (
    SAME_PLACE_MM,
    NiftiHeader,
    Volume,
    apart_mm,
    from_file_axes,
    in_file_axes,
)
from covid_jax.data.headers import (
    check_affine,
    check_numbers,
    check_size,
    one_channel,
    one_line,
    three_axes,
)
from covid_jax.errors import UserError

Describe = Callable[[bytes], str]
"""What a NIfTI header says of the voxels' place, as bytes -> a description of the file"""

_OF_PLACE = (
    *("dim", "pixdim", "xyzt_units", "qform_code", "sform_code"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
)

_KINDS: dict[int, Any] = {1: nib.Nifti1Image, 2: nib.Nifti2Image}
_MM = {1: 1000.0, 2: 1.0, 3: 0.001}
"""By NIfTI's codes of units: metre, mm, micron. Without one it is mm, as for nibabel and ITK."""
_UNITS = {1: "metres", 3: "micron"}
_FIELDS = (
    *("xyzt_units", "qform_code", "sform_code", "pixdim"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
)
_CODES = range(6)
_SILENT = logging.getLogger(f"{__name__}.nibabel")
_SILENT.disabled = True  # nibabel tells there what it mends; what matters of it is refused


def read_nifti(path: Path) -> Volume:
    """Reads NIfTI, compressed or not, whatever its name says of that. Raises as read_volume."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as stream:
            version, raw = _read_header(stream)
            header = raw.copy()
            header.check_fix(logger=_SILENT)
            _check_fields(path, raw)
            said = NiftiHeader(
                version=version,
                shape=tuple(map(int, raw.get_data_shape())),
                fields={field: raw[field].tolist() for field in _FIELDS},
            )
            shape = three_axes(path, said.shape)
            check_numbers(path, header.get_data_dtype())
            voxel = header.get_data_dtype().itemsize
            check_size(path, said.shape, voxel, path.stat().st_size, packed)
            affine, notes = _affine_mm(path, header)
            voxels = np.asanyarray(ArrayProxy(stream, header)).reshape(shape)
    except (
        OSError,
        EOFError,
        ArithmeticError,
        ValueError,
        zlib.error,
        HeaderDataError,
        WrapStructError,
    ) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # of the disk, not of what is on it
        raise UserError(
            f"{path}: damaged or not NIfTI ({one_line(error)}); fetch or export it again"
        ) from error
    volume = from_file_axes(voxels, affine)
    return replace(volume, notes=one_channel(said.shape) + notes, header=said)


def _read_header(stream: BufferedIOBase) -> tuple[int, Any]:
    """The version, and the header as it is, without its extensions."""
    start = stream.read(4)
    version = 2 if 540 in (int.from_bytes(start, "little"), int.from_bytes(start, "big")) else 1
    kind = _KINDS[version].header_class
    return version, kind(start + stream.read(kind.sizeof_hdr - 4), check=False)


def write_nifti(path: Path, volume: Volume, describe: Describe | None = None) -> None:
    """Writes the volume with shape, units and forms of the NIfTI file that it was read from.

    Where it was read from another, both forms have its affine, in mm. `describe` says at most 79
    letters of what its header says of its place (descrip).
    """
    voxels, said = in_file_axes(volume), volume.header
    if said is None or said.shape[:3] != voxels.shape:  # a grid of another size is no longer its
        image = nib.Nifti1Image(voxels, volume.file_affine)
        image.set_qform(volume.file_affine, "scanner")
        image.set_sform(volume.file_affine, "scanner")
        image.header.set_xyzt_units("mm")
    else:
        kind = _KINDS[said.version]
        header = kind.header_class()
        header.set_data_dtype(voxels.dtype)
        header.set_data_shape(said.shape)
        for field, value in said.fields.items():
            header[field] = value
        image = kind(voxels.reshape(said.shape), None, header)
    if describe:
        image.update_header()
        image.header["descrip"] = describe(_place(image.header))
    image.to_filename(path)


def description_of(path: Path) -> tuple[str, bytes]:
    """What describes a file that can be read (descrip), and what its header says of its place."""
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    with gzip.open(path) if packed else path.open("rb") as stream:
        header = _read_header(stream)[1]
    return str(header["descrip"].item().decode("latin1")), _place(header)


def _place(header: Any) -> bytes:
    return b"".join(np.asarray(header[field]).tobytes() for field in _OF_PLACE)


def _check_fields(path: Path, header: Any) -> None:
    """Raises a UserError for what readers mend each in its own way."""
    if header["magic"].item() == header.pair_magic:
        raise UserError(f"{path}: is the header of a pair of files; save both as one .nii.gz")
    for field in ("qform_code", "sform_code"):
        if int(header[field]) not in _CODES:
            raise UserError(
                f"{path}: its {field} is {int(header[field])}, which NIfTI does not know; "
                "export it again"
            )
    spacing = header["pixdim"][1:4]
    if not (np.isfinite(spacing) & (spacing > 0)).all():
        raise UserError(
            f"{path}: its spacing (pixdim) is {' x '.join(f'{mm:g}' for mm in spacing)}; "
            "export it again"
        )


def _with_unit_quaternion(header: nib.Nifti1Header) -> nib.Nifti1Header:
    """As others read it: of a quaternion that rounding made longer than 1 nibabel makes nothing."""
    names = [f"quatern_{part}" for part in "bcd"]
    length = sum(float(header[name]) ** 2 for name in names) ** 0.5
    if not 1 < length < 1 + 1e-5:
        return header
    rounded = header.copy()
    for name in names:
        rounded[name] = header[name] / length
    return rounded


def _affine_mm(path: Path, header: Any) -> tuple[np.ndarray, tuple[str, ...]]:
    """The affine to RAS+ mm, and what had to be assumed for it.

    Raises:
      UserError: it is none of a scan, or qform, sform and spacing put the scan's corners a tenth of
        a millimetre or more apart, so that one of them is wrong.
    """
    code, header = int(header["xyzt_units"]) & 7, _with_unit_quaternion(header)
    to_mm = np.array([[_MM.get(code, 1.0)]] * 3 + [[1.0]])
    affine = to_mm * header.get_best_affine()
    check_affine(path, affine)
    notes = []
    if code in _UNITS:
        notes.append(f"in {_UNITS[code]}: read in mm")
    shape = header.get_data_shape()[:3]
    sform, qform = (form(coded=True)[0] for form in (header.get_sform, header.get_qform))
    if sform is None and qform is None:
        notes.append(
            "no form code in its header: its axes are taken to point left, front and up, as by "
            "nibabel; ITK takes left, back and up"
        )
    elif sform is not None and qform is not None:
        rounded = header.copy()
        rounded.set_qform(sform)  # near half a turn a quaternion of float32 is off by 1e-3
        apart = apart_mm(shape, to_mm * rounded.get_qform(), to_mm * qform)
        if not apart < SAME_PLACE_MM:  # nor is NaN
            raise UserError(
                f"{path}: its qform and sform lie {apart:.3g} mm apart, and nothing tells which is "
                "right; export the file again, or set one of the two codes to 0"
            )
        if apart >= 1e-4:
            notes.append(f"qform and sform differ by {apart:.1g} mm: the sform is taken")
    elif sform is not None:  # whose lengths ITK takes from pixdim
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        scaled = affine.copy()
        scaled[:3, :3] *= header["pixdim"][1:4] * to_mm[0, 0] / lengths
        apart = apart_mm(shape, affine, scaled)
        if not apart < SAME_PLACE_MM:  # nor is NaN
            raise UserError(
                f"{path}: its spacing (pixdim) and its sform lie {apart:.3g} mm apart, and nothing "
                "tells which is right; export the file again"
            )
    return affine, tuple(notes)
