"""Masks: labels as people store them, read to whole numbers on their scan's grid."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
from nibabel.orientations import aff2axcodes

from covid_jax.data.geometry import SAME_PLACE_MM, Volume, apart_mm, turned_like
from covid_jax.data.volume import read_volume
from covid_jax.errors import UserError
from covid_jax.label_space import IGNORED

_LEAST_BESIDE = 1e-6  # whole numbers: float32's own rounding, of which nothing is said
_MOST_BESIDE = 0.01  # what scaled storage and float resampling leave
_LARGEST = np.iinfo(np.int32).max


def read_mask(path: str | Path) -> Volume:
    """The mask at `path`, int32; what was rounded is in its notes.

    Masks are stored as integers, as floats, or scaled, which leaves them beside whole numbers.

    Raises:
      UserError: values that are not whole numbers, or beyond int32; and as read_volume.
    """
    mask = read_volume(path)
    whole, beside = mask.voxels, 0.0
    if whole.dtype.kind == "f":
        whole = np.rint(mask.voxels)
        beside = max(float(np.abs(p - w).max()) for p, w in zip(mask.voxels, whole, strict=True))
    if not beside <= _MOST_BESIDE:  # nor is NaN
        raise UserError(f"{path}: holds values that are not whole numbers; it is no label")
    if (largest := max(-float(whole.min()), float(whole.max()))) > _LARGEST:
        raise UserError(f"{path}: holds {largest:.0f}, more than a label may be ({_LARGEST})")
    notes = mask.notes
    if beside > _LEAST_BESIDE:
        notes = (*notes, f"values up to {beside:.1g} beside whole numbers: rounded")
    return replace(mask, voxels=whole.astype(np.int32), notes=notes)


def read_label(
    path: str | Path, image: Volume, num_values: int, ignored: int | None = None
) -> Volume:
    """The label of `image` at `path`, as uint8, with IGNORED for the value `ignored`.

    Raises:
      UserError: another grid than the image's, values that are not whole, or outside
        0 .. num_values - 1.
    """
    label = turned_like(read_mask(path), image)
    apart = check_grid(path, label, image, "its image")
    notes = [f"label: {note}" for note in label.notes]
    if aff2axcodes(label.file_affine) != aff2axcodes(image.file_affine):
        notes.append("label: its file's axes are not its image's: turned")
    if apart > 1e-5:  # more than the rounding of a header
        notes.append(f"label: lies {apart:.1g} mm beside its image: taken as the same place")
    values = np.unique(label.voxels)
    check_values(path, values[values != ignored], range(num_values))
    voxels = np.where(label.voxels == ignored, IGNORED, label.voxels).astype(np.uint8)
    return replace(label, voxels=voxels, notes=tuple(notes))


def check_grid(path: str | Path, mask: Volume, other: Volume, what: str) -> float:
    """How many mm a mask lies beside its scan or reference, at the grid's corners.

    Raises:
      UserError: a tenth of a mm or more, or it is of another shape.
    """
    if mask.voxels.shape != other.voxels.shape:
        raise UserError(
            f"{path}: its shape {mask.voxels.shape} is not that of {what}, {other.voxels.shape}; "
            "export both on one grid"
        )
    apart = apart_mm(mask.voxels.shape, mask.affine, other.affine)
    if not apart < SAME_PLACE_MM:
        raise UserError(
            f"{path}: lies elsewhere than {what}, by {apart:.3g} mm; export both on one grid"
        )
    return apart


def check_values(path: str | Path, values: np.ndarray, known: Collection[int]) -> None:
    """Raises a UserError for the first of a mask's values that its dataset does not have."""
    strange = [int(value) for value in values if int(value) not in known]
    if strange:
        raise UserError(
            f"{path}: holds the value {strange[0]}; this dataset's labels are "
            f"{', '.join(map(str, sorted(known)))}"
        )
