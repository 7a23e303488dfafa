"""From a scan to what a network sees, and back: crop, resample, normalise (nnU-Net's for CT)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from nibabel.orientations import aff2axcodes
from scipy import ndimage, special

from covid_jax.config import ANISOTROPY, IGNORED
from covid_jax.data.geometry import Volume, turned_to_file_axes
from covid_jax.data.plan import Plan
from covid_jax.data.volume import read_volume
from covid_jax.errors import UserError

GREY_WINDOW_HU = (-1250.0, 250.0)
"""The window from which the 8-bit radiopaedia volumes of COVID-19-CT-Seg are said to come."""

Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Geometry:
    """The way back from a prepared case to the scan's own grid.

    Attributes:
      shape: (D, H, W) of the scan.
      box: (start, stop) of the crop along D, H, W.
      spacing_mm, affine, file_affine: of the scan, as in Volume.
    """

    shape: tuple[int, ...]
    box: tuple[tuple[int, int], ...]
    spacing_mm: tuple[float, ...]
    affine: tuple[tuple[float, ...], ...]
    file_affine: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class PreparedCase:
    """image (D, H, W) float32, normalised; label (D, H, W) uint8 or None; the way back."""

    image: np.ndarray
    label: np.ndarray | None
    geometry: Geometry


def read_scan(path: str | Path) -> Volume:
    """The scan at `path` in HU; what had to be assumed for that is in its notes."""
    volume = read_volume(path)
    try:
        return to_hounsfield(volume)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def to_hounsfield(volume: Volume) -> Volume:
    """Maps a volume of 8-bit grey (0 to 255) linearly to the window it is said to come from.

    CT in HU has air around -1000, so a volume without a negative value is not in HU.

    Raises:
      UserError: neither HU nor 8-bit grey, or not finite.
    """
    low, high = float(volume.voxels.min()), float(volume.voxels.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise UserError("holds values that are not finite; export the scan again")
    if low < 0:
        return volume
    if high > 255:
        raise UserError(
            f"its values {low:g} to {high:g} are neither HU nor 8-bit grey; export it in HU"
        )
    bottom, top = GREY_WINDOW_HU
    voxels = volume.voxels.astype(np.float32) / 255 * (top - bottom) + bottom
    note = f"8-bit grey mapped to {bottom:g} ... {top:g} HU"
    return replace(volume, voxels=voxels, notes=(*volume.notes, note))


def read_label(
    path: str | Path, image: Volume, num_values: int, ignored: int | None = None
) -> Volume:
    """The label of `image` at `path`, as uint8, with IGNORED for the value `ignored`.

    Raises:
      UserError: another grid than the image's, values that are not whole, or outside
        0 .. num_values - 1.
    """
    label = read_volume(path)
    if label.voxels.shape != image.voxels.shape:
        raise UserError(
            f"{path}: its shape {label.voxels.shape} is not its image's {image.voxels.shape}; "
            "export both on one grid"
        )
    if not np.allclose(label.affine, image.affine, atol=0.1):
        raise UserError(f"{path}: lies elsewhere than its image; export both on one grid")
    notes = [f"label: {note}" for note in label.notes]
    if aff2axcodes(label.file_affine) != aff2axcodes(image.file_affine):
        notes.append("label: its file's axes are not its image's: turned")
    if (apart := float(np.abs(label.affine - image.affine).max())) > 1e-6:
        notes.append(f"label: lies {apart:.1g} mm beside its image: taken as the same place")
    values = np.unique(label.voxels)
    whole = np.rint(values)
    if (rest := float(np.abs(values - whole).max())) > 0:
        notes.append(f"label: values up to {rest:.1g} beside whole numbers: rounded")
    if not rest <= 0.01:  # nor is NaN
        raise UserError(f"{path}: holds values that are not whole numbers; it is no label")
    outside = whole[(whole != ignored) & ((whole < 0) | (whole >= num_values))]
    if outside.size:
        raise UserError(
            f"{path}: holds the value {outside[0]:g}; this dataset's labels are "
            f"0 to {num_values - 1}"
        )
    voxels = np.rint(label.voxels).astype(np.uint8)
    if ignored in whole:
        voxels[np.rint(label.voxels) == ignored] = IGNORED
    return replace(label, voxels=voxels, notes=tuple(notes))


def nonzero_box(voxels: np.ndarray) -> Box:
    """The box around all voxels that are not zero; everything where all are."""
    boxes = ndimage.find_objects((voxels != 0).astype(np.uint8))
    return boxes[0] if boxes else tuple(slice(0, size) for size in voxels.shape)  # type: ignore[return-value]


def prepare_case(volume: Volume, label: Volume | None, plan: Plan) -> PreparedCase:
    """Crops to non-zero, clips and normalises, resamples to the plan's spacing.

    nnU-Net v2: DefaultPreprocessor with CTNormalization (v1 resamples first). The image is
    resampled by cubic splines, the label linearly for each class; where an axis is coarse (see
    resample), nearest along it.
    """
    if plan.file_axes:
        volume = turned_to_file_axes(volume)
        label = turned_to_file_axes(label) if label is not None else None
    box = nonzero_box(volume.voxels)
    geometry = Geometry(
        shape=volume.voxels.shape,
        box=tuple((side.start, side.stop) for side in box),
        spacing_mm=tuple(float(mm) for mm in volume.spacing_mm),
        affine=tuple(map(tuple, volume.affine.tolist())),
        file_affine=tuple(map(tuple, volume.file_affine.tolist())),
    )
    cropped = volume.voxels[box].astype(np.float32)
    size = resampled_size(cropped.shape, volume.spacing_mm, plan.spacing_mm)
    normalised = (np.clip(cropped, plan.lower_hu, plan.upper_hu) - plan.mean_hu) / plan.std_hu
    image = resample(normalised, size, volume.spacing_mm, plan.spacing_mm, order=3)
    prepared_label = None
    if label is not None:
        spacings = volume.spacing_mm, plan.spacing_mm
        prepared_label = resample_label(label.voxels[box], size, *spacings)
    return PreparedCase(image.astype(np.float32), prepared_label, geometry)


def restore(
    scores: np.ndarray, geometry: Geometry, plan: Plan, *, of_logits: bool = False
) -> np.ndarray:
    """Scores (D, H, W, K) on the plan's grid -> probabilities (K, D, H, W) on the scan's own grid.

    Outside the crop everything is background.

    Args:
      scores: probabilities; or logits, which are resampled as such (nnU-Net v2:
        convert_predicted_logits_to_segmentation_with_correct_shape).
      of_logits: which of the two they are.
    """
    inside = tuple(slice(*side) for side in geometry.box)
    size = tuple(stop - start for start, stop in geometry.box)
    cropped = np.stack(
        [
            resample(channel, size, plan.spacing_mm, geometry.spacing_mm, order=1)
            for channel in np.moveaxis(scores, -1, 0)
        ]
    )
    full = np.zeros((len(cropped), *geometry.shape), np.float32)
    full[0] = 1
    full[:, *inside] = special.softmax(cropped, axis=0) if of_logits else cropped
    return full


def as_volume(voxels: np.ndarray, geometry: Geometry) -> Volume:
    """A mask (D, H, W) on the scan's own grid as a Volume that write_volume can write."""
    return Volume(
        voxels=voxels,
        spacing_mm=np.array(geometry.spacing_mm),
        affine=np.array(geometry.affine),
        file_affine=np.array(geometry.file_affine),
    )


def resampled_size(
    shape: Sequence[int],
    spacing_mm: Sequence[float] | np.ndarray,
    target_mm: Sequence[float] | np.ndarray,
) -> tuple[int, ...]:
    """The number of voxels along each axis at another spacing, at least 1."""
    size = np.round(np.array(shape) * spacing_mm / np.array(target_mm)).astype(int)
    return tuple(np.maximum(size, 1).tolist())


def resample(
    voxels: np.ndarray,
    size: Sequence[int],
    spacing_mm: Sequence[float] | np.ndarray,
    target_mm: Sequence[float] | np.ndarray,
    order: int,
) -> np.ndarray:
    """`voxels` (D, H, W) at another size, by splines of `order`.

    Where one axis of the given spacing, or else of the target, is more than three times as coarse
    as the finest, each slice across it is resampled alone and the axis by nearest neighbour
    (nnU-Net: resample_data_or_seg with separate z).
    """
    if tuple(size) == voxels.shape:
        return voxels
    coarse = _coarse_axis(spacing_mm, target_mm)
    if coarse is None:
        return _zoom(voxels, size, order)
    slices = np.moveaxis(voxels, coarse, 0)
    plane = [n for axis, n in enumerate(size) if axis != coarse]
    resampled = np.stack([_zoom(image, plane, order) for image in slices])
    position = (np.arange(size[coarse]) + 0.5) * len(slices) / size[coarse] - 0.5
    nearest = np.clip(np.floor(position + 0.5).astype(int), 0, len(slices) - 1)
    return np.moveaxis(resampled[nearest], 0, coarse)


def resample_label(
    label: np.ndarray,
    size: Sequence[int],
    spacing_mm: Sequence[float] | np.ndarray,
    target_mm: Sequence[float] | np.ndarray,
) -> np.ndarray:
    """A label (D, H, W) at another size: at each voxel the value with the largest share.

    The share of a value is its mask, resampled linearly; of equal shares the nearest voxel's value
    counts, or else the lowest (batchgenerators: resize_segmentation).
    """
    if tuple(size) == label.shape:
        return label
    nearest = resample(label, size, spacing_mm, target_mm, order=0)
    winner, best = np.zeros(size, label.dtype), np.full(size, -1.0)
    for value in np.unique(label):
        share = resample((label == value).astype(float), size, spacing_mm, target_mm, order=1)
        wins = (share > best) | ((share == best) & (nearest == value))
        winner[wins], best[wins] = value, share[wins]
    return winner


def _zoom(voxels: np.ndarray, size: Sequence[int], order: int) -> np.ndarray:
    factors = np.array(size) / voxels.shape
    zoomed = ndimage.zoom(voxels, factors, order=order, mode="nearest", grid_mode=True)
    return np.clip(zoomed, voxels.min(), voxels.max())  # splines overshoot


def _coarse_axis(
    spacing_mm: Sequence[float] | np.ndarray, target_mm: Sequence[float] | np.ndarray
) -> int | None:
    for spacing in (np.asarray(spacing_mm), np.asarray(target_mm)):
        if spacing.max() > ANISOTROPY * spacing.min():
            coarsest = np.flatnonzero(spacing == spacing.max())
            return int(coarsest[0]) if coarsest.size == 1 else None
    return None
