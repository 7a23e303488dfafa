"""CT series in DICOM, by pydicom and highdicom."""

import contextlib
import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import highdicom
import numpy as np
import pydicom

from covid_jax.data.geometry import LPS, Volume, from_file_axes, one_line
from covid_jax.errors import UserError

CT_STORAGE = "1.2.840.10008.5.1.4.1.1.2"


def find_series(folder: Path) -> dict[str, list[Path]]:
    """The files of each CT series below `folder`, by SeriesInstanceUID.

    Other DICOM objects, such as RTSTRUCT and SEG, and files that are not DICOM are passed over.
    """
    series: dict[str, list[Path]] = defaultdict(list)
    for file in sorted(folder.rglob("*")):
        if not file.is_file() or not is_dicom(file):
            continue
        tags = ["SOPClassUID", "SeriesInstanceUID"]
        with _damage_is_a_user_error(file):
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=tags)
            if header.get("SOPClassUID") == CT_STORAGE:
                series[str(header.get("SeriesInstanceUID", "unnamed"))].append(file)
    return dict(series)


@contextlib.contextmanager
def _damage_is_a_user_error(path: Path) -> Iterator[None]:
    """Turns what pydicom and highdicom raise on damaged bytes into one line."""
    try:
        yield
    except (
        ArithmeticError,
        AttributeError,
        EOFError,
        LookupError,
        NotImplementedError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
        struct.error,
        pydicom.errors.BytesLengthException,
        pydicom.errors.InvalidDicomError,
    ) as error:
        raise UserError(
            f"{path}: damaged or not sound ({one_line(error)}); fetch the series again"
        ) from error


def is_dicom(file: Path) -> bool:
    """Whether a file begins as DICOM does."""
    with file.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def read_series(folder: Path) -> Volume:
    """The Volume of the one CT series below `folder`. Raises as read_volume."""
    series = find_series(folder)
    if not series:
        raise UserError(f"{folder}: no CT series in it; give the folder of its DICOM slices")
    if len(series) > 1:
        counts = ", ".join(f"{len(files)} slices in {files[0].parent}" for files in series.values())
        raise UserError(f"{folder}: {len(series)} CT series ({counts}); give the folder of one")
    (files,) = series.values()
    slices = []
    for file in files:
        with _damage_is_a_user_error(file):
            slices.append(pydicom.dcmread(file))
            _ = slices[-1].pixel_array
    with _damage_is_a_user_error(folder):  # values are decoded when they are first asked for
        _check_positions(folder, files, slices)
        volume = highdicom.get_volume_from_series(slices)
    voxels = volume.array
    if np.array_equal(voxels, voxels.astype(np.int16)):
        voxels = voxels.astype(np.int16)
    return from_file_axes(voxels, LPS @ volume.affine)


def _check_positions(folder: Path, files: list[Path], slices: list[pydicom.Dataset]) -> None:
    """Raises a UserError for doubled, missing or tilted slices, naming them."""
    try:
        rows = np.array([image.ImageOrientationPatient for image in slices], float)
        corners = np.array([image.ImagePositionPatient for image in slices], float)
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{folder}: slices without a position; export the series again") from error
    if len(slices) < 2:
        raise UserError(f"{folder}: one slice is not a volume; give the folder of the series")
    if np.abs(rows - rows[0]).max() > 1e-3:
        raise UserError(f"{folder}: its slices are not parallel; export the series again")
    normal = np.cross(rows[0, :3], rows[0, 3:])
    depth = corners @ normal
    order = np.argsort(depth, kind="stable")
    gaps = np.diff(depth[order])
    step = np.median(gaps)
    doubled = np.flatnonzero(gaps < 0.01)
    if doubled.size:
        first, second = (files[order[doubled[0] + offset]].name for offset in (0, 1))
        raise UserError(
            f"{folder}: {first} and {second} lie at the same position; remove one of each such pair"
        )
    uneven = np.flatnonzero(np.abs(gaps - step) > max(0.01 * step, 0.01))
    if uneven.size:
        first, second = (files[order[uneven[0] + offset]].name for offset in (0, 1))
        raise UserError(
            f"{folder}: {gaps[uneven[0]]:.2f} mm between {first} and {second}, {step:.2f} mm "
            "between the others; a slice is missing, fetch the series again"
        )
    shift = (corners[order[-1]] - corners[order[0]]) / (depth[order[-1]] - depth[order[0]]) - normal
    if np.abs(shift).max() > 1e-2:
        tilt = np.degrees(np.arctan(np.linalg.norm(shift)))
        raise UserError(
            f"{folder}: the gantry was tilted by {tilt:.1f} degrees; correct the tilt before, "
            "for example with dcm2niix"
        )
