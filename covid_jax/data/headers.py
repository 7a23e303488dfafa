"""What the header of a scan's file may say, of whatever format it is."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from covid_jax.errors import UserError

SPACINGS_MM = (0.01, 100.0)
"""Between which the distances of a scan's voxels lie; others are in another unit."""
_SHEARED = 2e-3  # cosine between two axes; less is the rounding of a header's numbers
_GZIP_AT_BEST = 1032  # how many bytes one byte of deflate can stand for


def three_axes(path: Path, shape: Sequence[int]) -> tuple[int, ...]:
    """The file's (i, j, k), without axes of one behind; a UserError where that is not a scan's."""
    grid = tuple(shape)
    while len(grid) > 3 and grid[-1] == 1:
        grid = grid[:-1]
    if len(grid) < 3:
        raise UserError(
            f"{path}: is flat, its shape is {grid}, and a scan is three-dimensional; "
            "save it as a volume, of one slice where it has no more"
        )
    if len(grid) > 3:
        raise UserError(
            f"{path}: has shape {grid}, a scan is three-dimensional; "
            "save one channel or time point of it, its slices along the third axis"
        )
    if min(grid) < 1:
        raise UserError(f"{path}: is empty, its shape is {grid}; fetch or export it again")
    return grid


def one_channel(shape: Sequence[int]) -> tuple[str, ...]:
    """What is to be said of a file with more axes than a scan."""
    return (f"{len(shape)} axes, of which one channel: read as 3D",) if len(shape) > 3 else ()


def check_numbers(path: Path, dtype: np.dtype) -> None:
    """Raises a UserError where voxels are not real numbers."""
    if dtype.kind not in "iuf":
        held = "colours" if dtype.names else dtype
        raise UserError(f"{path}: holds {held}, a scan holds numbers; save it in HU")


def check_size(path: Path, shape: Sequence[int], voxel: int, held: int, packed: bool) -> None:
    """Raises a UserError where a header asks for more than `held` bytes of voxels can be.

    `voxel` is one voxel's bytes; `packed` says whether those held are compressed.
    """
    if min(shape, default=0) < 0 or math.prod(shape) * voxel > held * (_GZIP_AT_BEST**packed):
        raise UserError(
            f"{path}: its header says {' x '.join(map(str, shape))} voxels of {voxel} bytes, "
            "more than are in the file; fetch or export it again"
        )


def check_affine(path: Path, affine: np.ndarray) -> None:
    """Raises a UserError where a grid is none of a scan in mm: not finite, sheared, too large."""
    columns = affine[:3, :3]
    spacing = np.linalg.norm(columns, axis=0)
    if not np.isfinite(affine).all() or spacing.min() == 0:
        raise UserError(f"{path}: its affine is not one of a scan; export it again")
    if spacing.min() < SPACINGS_MM[0] or spacing.max() > SPACINGS_MM[1]:
        raise UserError(
            f"{path}: its voxels lie {' x '.join(f'{mm:g}' for mm in spacing)} mm apart, which is "
            "no scan of a patient; set the unit or the spacing of its header right"
        )
    cosines = np.abs((columns / spacing).T @ (columns / spacing) - np.eye(3)).max()
    if cosines > _SHEARED:
        angle = np.degrees(np.arcsin(min(cosines, 1)))
        raise UserError(
            f"{path}: its axes are sheared by {angle:.2g} degrees, as with a tilted gantry; "
            "correct the tilt before, for example by dcm2niix from the DICOM series"
        )


def one_line(error: BaseException) -> str:
    """The last thing that an error says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200]
