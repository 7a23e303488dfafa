"""Slices of a series as an even stack: what makes a volume of them, and where it lies.

Positions are in DICOM's axes, mm towards the left, the back and the head.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import minimize_scalar

from covid_jax.errors import UserError


@dataclass(frozen=True)
class Slice:
    """One image of a series, by its header; what the header does not say is empty.

    Attributes:
      file: where it is.
      frame: which of the file's images it is; None in a file of one.
      matrix: rows and columns.
      spacing_mm: (2,) between rows and between columns.
      orientation: (6,) where a row's columns follow each other, and where its rows do.
      position_mm: (3,) of the first voxel's centre.
      frame_of_reference: the UID of what positions are measured from.
      localizer: whether it says that it is one.
    """

    file: Path
    frame: int | None
    matrix: tuple[int, int]
    spacing_mm: tuple[float, ...]
    orientation: tuple[float, ...]
    position_mm: tuple[float, ...]
    frame_of_reference: str
    localizer: bool

    @property
    def path(self) -> Path:
        """What a message calls it: a file, or a[5].dcm for the fifth image of a.dcm."""
        if self.frame is None:
            return self.file
        return self.file.with_stem(f"{self.file.stem}[{self.frame + 1}]")


def parallel(slices: Sequence[Slice]) -> list[list[Slice]]:
    """The slices in groups that look the same way but for some 25 degrees: axial, coronal, ...

    One whose header does not say goes with the first.
    """
    groups: list[list[Slice]] = []
    for image in sorted(slices, key=lambda image: not image.orientation):
        for group in groups:
            if not image.orientation or abs(_normal(image) @ _normal(group[0])) > 0.9:
                group.append(image)
                break
        else:
            groups.append([image])
    return groups


def why_no_volume(slices: Sequence[Slice]) -> str:
    """Why parallel slices are no volume, such as a scan that waits for contrast; "" if they are."""
    if len(slices) == 1:
        return "a single image"
    placed = [image for image in slices if image.position_mm and image.orientation]
    if not placed:
        return "images without ImagePositionPatient or ImageOrientationPatient"
    depths = [np.dot(image.position_mm, _normal(placed[0])) for image in placed]
    return "images of one place" if np.ptp(depths) < 0.01 and placed == list(slices) else ""


def check_alike(slices: Sequence[Slice]) -> None:
    """Raises a UserError for a slice without its place, or that is not as most of them are."""
    for field, tag, tolerance in (
        ("matrix", "matrix of rows and columns", 0),
        ("spacing_mm", "PixelSpacing", 1e-4),
        ("orientation", "ImageOrientationPatient", 1e-3),
        ("position_mm", "ImagePositionPatient", np.inf),
    ):
        values = [getattr(image, field) for image in slices]
        if () in values:
            odd = slices[values.index(())]
            raise UserError(f"{odd.path}: a slice without {tag}; export the series again")
        usual = Counter(values).most_common(1)[0][0]
        apart = np.abs(np.subtract(values, usual)).max(axis=1)
        if apart.max() > tolerance:
            worst = int(apart.argmax())
            raise UserError(
                f"{slices[worst].path}: its {tag} is {_told(values[worst])}, and {_told(usual)} "
                "in most of its series; export the series again, or move that file elsewhere"
            )
    frames = Counter(image.frame_of_reference for image in slices).most_common()
    for image in slices:
        if image.frame_of_reference != frames[0][0]:
            raise UserError(
                f"{image.path}: its FrameOfReferenceUID is not that of most of its series, so its "
                "position is not theirs; export the series again, or move that file elsewhere"
            )


def stack(folder: Path, slices: Sequence[Slice]) -> tuple[list[Slice], np.ndarray, tuple[str, ...]]:
    """The slices in order of position, their affine, and what is to be said of it.

    The affine (4, 4) leads from column, row and slice to mm. The distance of slices, and where
    they begin, fit all positions by least squares, since headers have them rounded.

    Raises:
      UserError: slices are doubled or missing, or lie more than a tenth of their distance off an
        even one, or half a pixel beside each other, as with a tilted gantry.
    """
    directions = np.mean([image.orientation for image in slices], axis=0).reshape(2, 3)
    if np.abs(directions @ directions.T - np.eye(2)).max() > 1e-2:
        raise UserError(
            f"{slices[0].path}: its ImageOrientationPatient is {_told(directions.ravel())}, not "
            "two directions at right angles; export the series again"
        )
    row_mm, column_mm = slices[0].spacing_mm
    if min(row_mm, column_mm) <= 0:
        raise UserError(
            f"{slices[0].path}: its PixelSpacing is {row_mm:g} {column_mm:g}; export the series "
            "again"
        )
    along_row = directions[0] / np.linalg.norm(directions[0])
    normal = np.cross(along_row, directions[1])
    normal /= np.linalg.norm(normal)

    ordered = sorted(slices, key=lambda image: float(np.dot(image.position_mm, normal)))
    names = [str(image.path.relative_to(folder)) for image in ordered]
    corners = np.array([image.position_mm for image in ordered])
    place = np.arange(len(ordered)) - (len(ordered) - 1) / 2  # of each slice, 0 in the middle
    step = place @ (corners @ normal) / (place @ place)
    fitted = corners.mean(axis=0) + np.outer(place, step * normal)
    off = corners - fitted
    above = off @ normal
    _check_gaps(folder, names, corners @ normal)
    _check_beside(folder, names, off - np.outer(above, normal), step, min(row_mm, column_mm))

    affine = np.eye(4)
    affine[:3, 0] = along_row * column_mm
    affine[:3, 1] = np.cross(normal, along_row) * row_mm
    affine[:3, 2] = normal * step
    affine[:3, 3] = fitted[0]
    worst = float(np.linalg.norm(off, axis=1).max())
    note = f"slice positions up to {worst:.2g} mm off even ones: a spacing of {step:.4f} mm fitted"
    return ordered, affine, (note,) if worst > 1e-3 else ()


def _check_gaps(folder: Path, names: Sequence[str], depths: np.ndarray) -> None:
    """Raises a UserError where slices share a place, or lie off all even ones by a tenth."""
    gaps = np.diff(depths)
    if gaps.min() < 0.01:
        first, second = (names[int(gaps.argmin()) + offset] for offset in (0, 1))
        raise UserError(
            f"{folder}: {first} and {second} lie at the same position; remove one of each such pair"
        )
    place = np.arange(len(depths))
    nearest = minimize_scalar(
        lambda step: np.ptp(depths - step * place) / 2, bounds=(0, gaps.max()), method="bounded"
    )
    if nearest.fun <= 0.1 * nearest.x:
        return
    step = float(np.quantile(gaps, 0.5, method="lower"))  # of two, the one without a slice missing
    worst = int(np.abs(gaps - step).argmax())
    first, second = (names[worst + offset] for offset in (0, 1))
    fault = (
        "a slice is missing, fetch the series again"
        if gaps[worst] > 1.5 * step
        else "the slices are not evenly spaced, export them again with one spacing"
    )
    raise UserError(
        f"{folder}: {gaps[worst]:.2f} mm between {first} and {second}, {step:.2f} mm "
        f"between the others; {fault}"
    )


def _check_beside(
    folder: Path, names: Sequence[str], beside: np.ndarray, step: float, pixel_mm: float
) -> None:
    """Raises a UserError where slices that lie `beside` (N, 3) mm off are no upright stack."""
    place = np.arange(len(names)) - (len(names) - 1) / 2
    lean = place @ beside / (place @ place)  # mm for each slice
    slope = float(np.linalg.norm(lean)) / step
    away = np.linalg.norm(beside, axis=1)
    if away.max() <= (0.06 if slope > 1e-2 else pixel_mm / 2):  # rounded to 0.1 mm, a few lean
        return
    if np.linalg.norm(beside - np.outer(place, lean), axis=1).max() > away.max() / 2:
        raise UserError(
            f"{folder / names[int(away.argmax())]}: lies {away.max():.2f} mm beside the other "
            "slices; export the series again"
        )
    raise UserError(
        f"{folder}: the gantry was tilted by {np.degrees(np.arctan(slope)):.1f} degrees; correct "
        "the tilt before, for example with dcm2niix"
    )


def _normal(image: Slice) -> np.ndarray:
    """The direction in which the next slice lies."""
    return np.cross(image.orientation[:3], image.orientation[3:])


def _told(values: Iterable[float]) -> str:
    return " ".join(f"{value:g}" for value in values)
