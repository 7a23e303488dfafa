"""Volumes at another size: whole, or in slabs of planes that come and go (nnU-Net's resampling)."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from scipy import ndimage

from covid_jax.data.plan import Resampling

_SLAB_BYTES = 1 << 28
"""Of the largest slab that leaves resample_planes, as float32."""


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
    return np.moveaxis(resampled[_nearest(len(slices), size[coarse])], 0, coarse)


def resample_planes(
    slabs: Iterable[np.ndarray],
    shape: Sequence[int],
    size: Sequence[int],
    spacing_mm: Sequence[float] | np.ndarray,
    target_mm: Sequence[float] | np.ndarray,
    how: Resampling,
) -> Iterator[np.ndarray]:
    """`resample` of each channel of an array (K, *shape) that comes and goes in slabs along D.

    So the memory that it takes does not grow with D, where planes are interpolated between their
    neighbours; splines of a higher order see all of them, and take the whole, as nearest voxels do.

    Args:
      slabs: (K, d, H, W) each, in order.
      shape, size: (D, H, W) before and after.

    Returns:
      slabs (K, d, *size[1:]), in order; equal to `resample` to rounding
    """
    coarse = _coarse_axis(spacing_mm, target_mm, how)
    if tuple(size) == tuple(shape):
        for slab in slabs:
            step = _most_planes(slab, size)
            yield from (slab[:, begin : begin + step] for begin in range(0, slab.shape[1], step))
        return
    if how.order != 1 or (coarse is not None and how.coarse_order):
        whole = np.concatenate(list(slabs), axis=1)
        yield np.stack([resample(c, size, spacing_mm, target_mm, how) for c in whole])
        return
    position, nearest = _positions(shape[0], size[0]), _nearest(shape[0], size[0])
    low = nearest if coarse == 0 else np.clip(np.floor(position).astype(int), 0, shape[0] - 1)
    high = nearest if coarse == 0 else np.clip(low + 1, 0, shape[0] - 1)
    held: np.ndarray | None = None
    first = done = 0
    for slab in slabs:
        held = slab if held is None else np.concatenate([held, slab], axis=1)
        stop = first + held.shape[1]
        ready = int(np.searchsorted(high, stop))
        step = _most_planes(held, size)
        for begin in range(done, ready, step):
            end = min(begin + step, ready)
            block = held[:, low[begin] - first : high[end - 1] + 1 - first]
            places = (nearest if coarse == 0 else position)[begin:end] - low[begin]
            yield np.stack([_planes(c, places, shape, size, coarse) for c in block])
        done = max(done, ready)
        if done < size[0]:
            keep = min(int(low[done]), stop)
            held, first = held[:, keep - first :].copy(), keep


def resample_label(
    label: np.ndarray,
    size: Sequence[int],
    spacing_mm: Sequence[float] | np.ndarray,
    target_mm: Sequence[float] | np.ndarray,
    how: Resampling,
) -> np.ndarray:
    """A label (D, H, W) at another size: at each voxel the value with the largest share.

    The share of a value is its mask, resampled as `how` says; of equal shares the nearest voxel's
    value counts, or else the lowest (batchgenerators: resize_segmentation). Along a coarse axis of
    its own order a value is where its share is above a half, and 0 where none is (nnU-Net:
    resample_data_or_seg).
    """
    if tuple(size) == label.shape:
        return label
    coarse = _coarse_axis(spacing_mm, target_mm, how)
    if coarse is not None and how.coarse_order and size[coarse] != label.shape[coarse]:
        plane = [label.shape[coarse] if axis == coarse else n for axis, n in enumerate(size)]
        slices = resample_label(label, plane, spacing_mm, target_mm, how)
        winner = np.zeros(size, label.dtype)
        for value in np.unique(slices):
            mask = (slices == value).astype(float)
            winner[_zoom(mask, size, how.coarse_order, clip=False) > 0.5] = value
        return winner
    nearest = resample(label, size, spacing_mm, target_mm, replace(how, order=0))
    winner, best = np.zeros(size, label.dtype), np.full(size, -1.0)
    for value in np.unique(label):
        mask = (label == value).astype(float)
        share = resample(mask, size, spacing_mm, target_mm, how)
        wins = (share > best) | ((share == best) & (nearest == value))
        winner[wins], best[wins] = value, share[wins]
    return winner


def _most_planes(channels: np.ndarray, size: Sequence[int]) -> int:
    return max(1, _SLAB_BYTES // (4 * len(channels) * size[1] * size[2]))


def _planes(
    block: np.ndarray,
    places: np.ndarray,
    shape: Sequence[int],
    size: Sequence[int],
    coarse: int | None,
) -> np.ndarray:
    """The planes at `places` along D, by linear interpolation, of a part of an array of `shape`."""
    if coarse == 0:
        needed, which = np.unique(places, return_inverse=True)
        return np.stack([_zoom(block[place], size[1:], 1) for place in needed])[which]
    scale = np.array(shape) / np.array(size)
    offset = np.array([places[0], *(scale[1:] / 2 - 0.5)])

    def zoomed(part: np.ndarray, axes: Sequence[int]) -> np.ndarray:
        target = [len(places), *(size[axis] for axis in axes[1:])]
        return ndimage.affine_transform(
            part, scale[axes], offset[axes], target, order=1, mode="nearest"
        )

    if coarse is None:
        return zoomed(block, [0, 1, 2])
    slices = np.stack([zoomed(part, [0, 3 - coarse]) for part in np.moveaxis(block, coarse, 0)])
    return np.moveaxis(slices[_nearest(len(slices), size[coarse])], 0, coarse)


def _positions(before: int, after: int) -> np.ndarray:
    """Where the `after` voxels of an axis lie among the `before` that it had.

    In nnU-Net's order of operations, whose rounding decides between two neighbours.
    """
    return before / after * (np.arange(after) + 0.5) - 0.5


def _nearest(before: int, after: int) -> np.ndarray:
    """The nearest of the `before` voxels to each."""
    return np.clip(np.floor(_positions(before, after) + 0.5).astype(int), 0, before - 1)


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
