"""Volume: voxels with their geometry, whatever the axes of the file that they come from.

Its axes are (D, H, W) = towards the head, the back and the left of the patient, as a radiologist
looks at axial slices. The file's own grid is kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)

AXES = ("S", "P", "L")  # where D, H, W point to, in nibabel's letters
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM and ITK point x to the left and y to the back


@dataclass(frozen=True)
class NiftiHeader:
    """What a NIfTI file says of its grid, so that a mask of it says the same, bit for bit.

    Attributes:
      version: 1 or 2.
      shape: of the file: (i, j, k), and the axes of one behind them.
      fields: units, both forms with their codes, pixdim; by their names in NIfTI.
    """

    version: int
    shape: tuple[int, ...]
    fields: dict[str, Any]


@dataclass(frozen=True)
class Volume:
    """A scan or a mask.

    Attributes:
      voxels: (D, H, W).
      spacing_mm: (3,) distances between voxel centres along D, H, W.
      affine: (4, 4) from the indices (d, h, w) to mm towards right, front, head (NIfTI's RAS+).
      file_affine: (4, 4) of the file's own axes, which write_volume writes.
      notes: what reading it found and mended, for the log.
      header: of the NIfTI file that it was read from; None where it was another.
    """

    voxels: np.ndarray
    spacing_mm: np.ndarray
    affine: np.ndarray
    file_affine: np.ndarray = field(repr=False)
    notes: tuple[str, ...] = ()
    header: NiftiHeader | None = field(default=None, repr=False)


def from_file_axes(voxels: np.ndarray, file_affine: np.ndarray) -> Volume:
    """The Volume of an array in a file's own axes (i, j, k) with its affine to RAS+ mm."""
    turn = ornt_transform(io_orientation(file_affine), axcodes2ornt(AXES))
    file_affine = np.asarray(file_affine, float)
    return _turned(Volume(voxels, np.zeros(3), file_affine, file_affine), turn)


def in_file_axes(volume: Volume) -> np.ndarray:
    """The voxels in the axes of the file that the volume was read from."""
    return apply_orientation(volume.voxels, _turn_to(volume.file_affine, volume.affine))


def stored_along(volume: Volume, axes: tuple[str, str, str]) -> Volume:
    """The same volume for a file whose axes i, j, k point to `axes`."""
    turn = ornt_transform(io_orientation(volume.affine), axcodes2ornt(axes))
    return replace(volume, file_affine=volume.affine @ inv_ornt_aff(turn, volume.voxels.shape))


def turned_to_file_axes(volume: Volume) -> Volume:
    """The same volume with D, H, W along the file's axes k, j, i, as ITK and nnU-Net read it."""
    to_file = _turn_to(volume.file_affine, volume.affine)
    return _turned(volume, [(2 - axis, flip) for axis, flip in to_file])


def turned(volume: Volume, axes: tuple[str, str, str]) -> Volume:
    """A volume whose D, H, W point to AXES, with them pointing to `axes`."""
    if axes == AXES:
        return volume
    return _turned(volume, ornt_transform(axcodes2ornt(AXES), axcodes2ornt(axes)))


def transposed(volume: Volume, order: Sequence[int]) -> Volume:
    """The same volume with its axes in another order: `order[0]` of them is the new D.

    A view of its voxels: a float32 sum takes them as they lie, and so is nnU-Net's to the bit.
    """
    if tuple(order) == (0, 1, 2):
        return volume
    affine = volume.affine[:, [*order, 3]]
    return replace(
        volume,
        voxels=volume.voxels.transpose(order),
        spacing_mm=np.linalg.norm(affine[:3, :3], axis=0),
        affine=affine,
    )


def turned_like(volume: Volume, other: Volume) -> Volume:
    """The same volume with D, H, W along those of `other`, whatever its file's axes are."""
    return _turned(volume, _turn_to(other.affine, volume.affine))


def _turn_to(target: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The orientation (nibabel's) that turns an array of `affine` to the axes of `target`.

    Taken between both, where each axis of one runs along one of the other: between an oblique grid
    and the patient, axes at 45 degrees are a tie that rounding would decide.
    """
    return io_orientation(np.linalg.inv(target) @ affine)


def _turned(volume: Volume, turn: Any) -> Volume:
    turn = np.asarray(turn, float)
    affine = volume.affine @ inv_ornt_aff(turn, volume.voxels.shape)
    return replace(
        volume,
        voxels=np.ascontiguousarray(apply_orientation(volume.voxels, turn)),
        spacing_mm=np.linalg.norm(affine[:3, :3], axis=0),
        affine=affine,
    )


SAME_PLACE_MM = 0.1
"""What two descriptions of one grid may differ by, at its corners."""


def apart_mm(shape: Sequence[int], affine: np.ndarray, other: np.ndarray) -> float:
    """How many mm two affines put the corners of a grid apart, at most along an axis."""
    corners = np.insert(np.array(list(np.ndindex(2, 2, 2))) * shape, 3, 1, axis=1)
    return float(np.abs(corners @ (affine - other).T).max())


def from_spacing(voxels: np.ndarray, spacing_mm: Sequence[float]) -> Volume:
    """The Volume of an array (D, H, W) with its corner at the origin."""
    depth, height, width = spacing_mm
    # A file's axes (i, j, k) are (W, H, D) here: to the left, the back and the head.
    return from_file_axes(voxels.transpose(2, 1, 0), np.diag([-width, -height, depth, 1.0]))
