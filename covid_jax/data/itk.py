"""NRRD and MHA, by SimpleITK."""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np
import SimpleITK as sitk

from covid_jax.data.geometry import LPS, Volume, from_file_axes
from covid_jax.data.headers import (
    check_affine,
    check_numbers,
    check_size,
    one_channel,
    one_line,
    three_axes,
)
from covid_jax.errors import UserError

_READERS = {".nrrd": "NrrdImageIO", ".mha": "MetaImageIO", ".mhd": "MetaImageIO"}
_SPACING = ("spacings", "space directions", "ElementSpacing", "ElementSize")
_AXES = set("123456789")  # of others MetaIO crashes
_LONGEST_HEADER = 1 << 16


def read_itk(path: Path) -> Volume:
    """Reads NRRD or MHA. Raises as read_volume."""
    lines, length = _read_header(path)
    said = dict(lines)
    if wrong := {value for name, value in lines if name == "NDims"} - _AXES:
        raise UserError(f"{path}: NDims of its header is {wrong.pop()}; fetch or export it again")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO(_READERS[path.suffix.lower()])  # by itself it takes no ending in capitals
    with tempfile.TemporaryFile() as printed:
        try:
            with _stderr_to(printed):
                reader.ReadImageInformation()
                _check_information(path, reader, said, length)
                image = reader.Execute()
        except RuntimeError as error:
            printed.seek(0)
            reason = printed.readline().decode("latin-1").strip() or one_line(error)
            raise UserError(
                f"{path}: damaged or not {path.suffix} ({reason}); fetch or export it again"
            ) from error
    array = sitk.GetArrayFromImage(image).transpose()
    check_numbers(path, array.dtype)
    direction = np.reshape(image.GetDirection(), (image.GetDimension(),) * 2)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = direction * image.GetSpacing()[:3]
    affine[:3, 3] = image.GetOrigin()[:3]
    check_affine(path, affine)
    volume = from_file_axes(array.reshape(three_axes(path, array.shape)), LPS @ affine)
    notes = one_channel(array.shape)
    if path.suffix.lower() == ".nrrd" and "space" not in said:
        notes += ("no space in its header: its axes are taken to point left, back and up",)
    return replace(volume, notes=notes)


@contextlib.contextmanager
def _stderr_to(file: IO[bytes]) -> Iterator[None]:
    """Within, what ITK's MetaIO prints, which alone says what is wrong, goes to `file`."""
    before = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def _read_header(path: Path) -> tuple[list[tuple[str, str]], int]:
    """The names and values of a header of lines "name: value" or "name = value", and its bytes."""
    with path.open("rb") as stream:
        start = stream.read(_LONGEST_HEADER)
    end = re.search(rb"^ElementDataFile *=.*\n|\n\r?\n", start, re.MULTILINE)
    length = end.end() if end else len(start)
    said = re.findall(r"^\s*([\w ]+?) *[:=] *(.*?)\s*$", os.fsdecode(start[:length]), re.MULTILINE)
    if path.suffix.lower() in (".nrrd", ".nhdr"):  # whose fields may be written in capitals
        said = [(name.lower(), value) for name, value in said]
    return said, length


def data_files(path: Path) -> list[Path]:
    """The files beside a header that hold its voxels; none where they are in the file itself."""
    lines, length = _read_header(path)
    data = _data(dict(lines))
    if data.upper() == "LOCAL":
        return []
    if data.upper().startswith("LIST"):
        names = os.fsdecode(path.read_bytes()[length:]).split("\n")
        found = [path.parent / name.strip() for name in names if name.strip()]
    elif "%" in data:
        pattern = Path(re.sub(r"%\d*d", "*", data.split(" ")[0]))
        found = sorted((path.parent / pattern.parent).glob(pattern.name))
    else:
        found = [path.parent / data]
    return [file for file in found if file.is_file()]


def _data(said: dict[str, str]) -> str:
    """Where a header says that its voxels are: LOCAL, LIST, or a file."""
    return said.get("ElementDataFile", said.get("data file", said.get("datafile", "LOCAL")))


def _check_information(
    path: Path, reader: sitk.ImageFileReader, said: dict[str, str], length: int
) -> None:
    """Raises a UserError where the header is none of a scan; before a voxel is read."""
    components = reader.GetNumberOfComponents()
    if components > 1:
        raise UserError(
            f"{path}: each of its voxels has {components} components, as colours or vectors have; "
            "save one of them as a scan in HU"
        )
    three_axes(path, reader.GetSize())
    if not any(field in said for field in _SPACING):
        raise UserError(f"{path}: its header says no spacing; add it in mm, or export it again")
    if min(reader.GetSpacing()) <= 0:
        raise UserError(f"{path}: a spacing of its header is not positive; export it again")
    units = set(re.findall(r'"(.*?)"', said.get("space units", ""))) - {"", "mm"}
    if units:
        raise UserError(f"{path}: its space units are {', '.join(sorted(units))}; save it in mm")
    data = _data(said)
    if data.upper() == "LOCAL":
        held = path.stat().st_size - length
    elif data.upper().startswith("LIST") or "%" in data:
        return  # a file for each slice, which ITK opens one after another
    elif (path.parent / data).is_file():
        held = (path.parent / data).stat().st_size
    else:
        raise UserError(f"{path}: its voxels are to be in {data}, which is not beside it")
    raw = said.get("CompressedData", "False").lower() != "true"
    raw &= said.get("encoding", "raw").lower() == "raw"
    voxel = sitk.Image([1, 1, 1], reader.GetPixelID()).GetSizeOfPixelComponent()
    check_size(path, reader.GetSize(), voxel, held, packed=not raw)


def write_itk(path: Path, voxels: np.ndarray, file_affine: np.ndarray) -> None:
    """Writes an array (i, j, k) with its affine to RAS+ mm; a .mhd with its .raw beside it."""
    affine = LPS @ file_affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.transpose()))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    sitk.WriteImage(image, path)
