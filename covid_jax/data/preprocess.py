"""From a scan to what a network sees, and back: crop, resample, normalise (nnU-Net's for CT)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage, special

from covid_jax.data.geometry import (
    NiftiHeader,
    Volume,
    transposed,
    turned,
    turned_like,
    turned_to_file_axes,
)
from covid_jax.data.intensities import read_as
from covid_jax.data.plan import Plan, Resampling
from covid_jax.data.volume import read_volume
from covid_jax.errors import UserError

Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Geometry:
    """The way back from a prepared case to the scan's own grid.

    Attributes:
      shape: (D, H, W) of the scan.
      box: (start, stop) of the crop along D, H, W.
      spacing_mm, affine, file_affine, header: of the scan, as in Volume.
    """

    shape: tuple[int, ...]
    box: tuple[tuple[int, int], ...]
    spacing_mm: tuple[float, ...]
    affine: tuple[tuple[float, ...], ...]
    file_affine: tuple[tuple[float, ...], ...]
    header: NiftiHeader | None = None


@dataclass(frozen=True)
class PreparedCase:
    """image (D, H, W) float32, normalised; label (D, H, W) uint8 or None; the way back."""

    image: np.ndarray
    label: np.ndarray | None
    geometry: Geometry


def read_scan(path: str | Path) -> Volume:
    """The scan at `path` in HU; what had to be assumed for that is in its notes.

    Raises as read_volume and read_as.
    """
    return read_scan_as(path, "auto")[0]


def read_scan_as(path: str | Path, told: str) -> tuple[Volume, str]:
    """The scan at `path` in HU, and how its values were read (read_as). Raises as read_scan."""
    volume = read_volume(path)
    try:
        return read_as(volume, told)
    except UserError as error:
        raise UserError(f"{path}: {'; '.join([str(error), *volume.notes])}") from error


def nonzero_box(voxels: np.ndarray) -> Box:
    """The box around all voxels that are not zero; everything where all are."""
    boxes = ndimage.find_objects((voxels != 0).astype(np.uint8))
    return boxes[0] if boxes else tuple(slice(0, size) for size in voxels.shape)  # type: ignore[return-value]


def prepare_case(volume: Volume, label: Volume | None, plan: Plan) -> PreparedCase:
    """Crops to non-zero, clips and normalises, resamples to the plan's spacing.

    nnU-Net v2: DefaultPreprocessor with CTNormalization. The image is resampled as the plan says
    (by cubic splines), the label linearly for each class; where an axis is coarse (see resample),
    nearest along it.
    """
    volume = turned_to_file_axes(volume) if plan.file_axes else turned(volume, plan.axes)
    volume = transposed(volume, plan.transpose)
    label = turned_like(label, volume) if label is not None else None
    box = nonzero_box(volume.voxels)
    geometry = Geometry(
        shape=volume.voxels.shape,
        box=tuple((side.start, side.stop) for side in box),
        spacing_mm=tuple(float(mm) for mm in volume.spacing_mm),
        affine=tuple(map(tuple, volume.affine.tolist())),
        file_affine=tuple(map(tuple, volume.file_affine.tolist())),
        header=volume.header,
    )
    cropped = volume.voxels[box].astype(np.float32)
    size = resampled_size(cropped.shape, volume.spacing_mm, plan.spacing_mm)
    spacings = volume.spacing_mm, plan.spacing_mm
    if plan.resample_first:
        image = _normalised(resample(cropped, size, *spacings, plan.image_resampling), plan)
    else:
        image = resample(_normalised(cropped, plan), size, *spacings, plan.image_resampling)
    prepared_label = None
    if label is not None:
        prepared_label = resample_label(label.voxels[box], size, *spacings)
    return PreparedCase(image.astype(np.float32), prepared_label, geometry)


def _normalised(voxels: np.ndarray, plan: Plan) -> np.ndarray:
    return (np.clip(voxels, plan.lower_hu, plan.upper_hu) - plan.mean_hu) / plan.std_hu


def restore(
    scores: np.ndarray, geometry: Geometry, plan: Plan, *, of_logits: bool = False
) -> np.ndarray:
    """Scores (D, H, W, K) on the plan's grid -> probabilities (K, D, H, W) on the scan's own grid.

    Outside the crop everything is background.

    Args:
      scores: probabilities; or logits, which are resampled as such (nnU-Net v2:
        convert_predicted_logits_to_segmentation_with_correct_shape), in their own dtype.
      of_logits: which of the two they are.
    """
    inside = tuple(slice(*side) for side in geometry.box)
    size = tuple(stop - start for start, stop in geometry.box)
    spacings = plan.spacing_mm, geometry.spacing_mm
    cropped = np.empty((scores.shape[-1], *size), scores.dtype)
    for channel, target in zip(np.moveaxis(scores, -1, 0), cropped, strict=True):
        wide = channel.astype(np.float32, copy=False)
        target[...] = resample(wide, size, *spacings, plan.score_resampling)
    full = np.zeros((len(cropped), *geometry.shape), np.float32)
    full[0] = 1
    wide = cropped.astype(np.float32, copy=False)
    full[:, *inside] = special.softmax(wide, axis=0) if of_logits else wide
    return full


def as_volume(voxels: np.ndarray, geometry: Geometry) -> Volume:
    """A mask (D, H, W) on the scan's own grid as a Volume that write_volume can write."""
    return Volume(
        voxels=voxels,
        spacing_mm=np.array(geometry.spacing_mm),
        affine=np.array(geometry.affine),
        file_affine=np.array(geometry.file_affine),
        header=geometry.header,
    )


def resampled_size(
    shape: Sequence[int],
    spacing_mm: Sequence[float] | np.ndarray,
    target_mm: Sequence[float] | np.ndarray,
) -> tuple[int, ...]:
    """The number of voxels along each axis at another spacing, at least 1.

    In nnU-Net's order of operations (compute_new_shape), which decides at halves.
    """
    size = np.round(np.array(spacing_mm) / np.array(target_mm) * np.array(shape)).astype(int)
    return tuple(np.maximum(size, 1).tolist())


def resample(
    voxels: np.ndarray,
    size: Sequence[int],
    spacing_mm: Sequence[float] | np.ndarray,
    target_mm: Sequence[float] | np.ndarray,
    how: Resampling,
) -> np.ndarray:
    """`voxels` (D, H, W) at another size.

    Where a coarse axis is treated apart (Resampling.separate), each slice across it is resampled
    alone, and then the axis (nnU-Net: resample_data_or_seg with separate z).
    """
    if tuple(size) == voxels.shape:
        return voxels
    coarse = _coarse_axis(spacing_mm, target_mm, how)
    if coarse is None:
        return _zoom(voxels, size, how.order)
    slices = np.moveaxis(voxels, coarse, 0)
    plane = [n for axis, n in enumerate(size) if axis != coarse]
    resampled = np.stack([_zoom(image, plane, how.order) for image in slices])
    if how.coarse_order and size[coarse] != len(slices):
        full = (size[coarse], *plane)
        return np.moveaxis(_zoom(resampled, full, how.coarse_order, clip=False), 0, coarse)
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
    nearest = resample(label, size, spacing_mm, target_mm, Resampling(order=0))
    winner, best = np.zeros(size, label.dtype), np.full(size, -1.0)
    for value in np.unique(label):
        mask = (label == value).astype(float)
        share = resample(mask, size, spacing_mm, target_mm, Resampling(order=1))
        wins = (share > best) | ((share == best) & (nearest == value))
        winner[wins], best[wins] = value, share[wins]
    return winner


def _zoom(voxels: np.ndarray, size: Sequence[int], order: int, *, clip: bool = True) -> np.ndarray:
    factors = np.array(size) / voxels.shape
    zoomed = ndimage.zoom(voxels, factors, order=order, mode="nearest", grid_mode=True)
    return np.clip(zoomed, voxels.min(), voxels.max()) if clip else zoomed  # splines overshoot


def _coarse_axis(
    spacing_mm: Sequence[float] | np.ndarray,
    target_mm: Sequence[float] | np.ndarray,
    how: Resampling,
) -> int | None:
    """The axis that is treated apart (nnU-Net: determine_do_sep_z_and_axis)."""
    if how.separate is False:
        return None
    for spacing in (np.asarray(spacing_mm), np.asarray(target_mm)):
        if how.separate or spacing.max() > how.anisotropy * spacing.min():
            # An oblique file's spacing comes from its affine, rounded.
            coarsest = np.flatnonzero(np.isclose(spacing, spacing.max(), rtol=1e-6, atol=0))
            return int(coarsest[0]) if coarsest.size == 1 else None
    return None
