"""Volume: voxels with their geometry, whatever the axes of the file that they come from.

Its axes are (D, H, W) = towards the head, the back and the left of the patient, as a radiologist
looks at axial slices. The file's own grid is kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from nibabel.orientations import (
    aff2axcodes,
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)

from covid_jax.errors import UserError

AXES = ("S", "P", "L")  # where D, H, W point to, in nibabel's letters
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


def stored_along(volume: Volume, axes: tuple[str, str, str]) -> Volume:
    """The same volume for a file whose axes i, j, k point to `axes`."""
    turn = ornt_transform(io_orientation(volume.affine), axcodes2ornt(axes))
    return replace(volume, file_affine=volume.affine @ inv_ornt_aff(turn, volume.voxels.shape))


def turned_to(volume: Volume, axes: tuple[str, str, str]) -> Volume:
    """The same volume with D, H, W towards `axes`."""
    turned = from_file_axes(in_file_axes(volume), volume.file_affine, axes)
    return replace(turned, notes=volume.notes)


def turned_to_file_axes(volume: Volume) -> Volume:
    """The same volume with D, H, W along the file's axes k, j, i, as ITK and nnU-Net read it."""
    i, j, k = aff2axcodes(volume.file_affine)
    return turned_to(volume, (k, j, i))


def from_spacing(voxels: np.ndarray, spacing_mm: Sequence[float]) -> Volume:
    """The Volume of an array (D, H, W) with its corner at the origin."""
    depth, height, width = spacing_mm
    # A file's axes (i, j, k) are (W, H, D) here: to the left, the back and the head.
    return from_file_axes(voxels.transpose(2, 1, 0), np.diag([-width, -height, depth, 1.0]))


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
