"""Whole volumes through a network that sees windows (nnU-Net's sliding window)."""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from scipy import ndimage

from covid_jax.errors import UserError

Network = Callable[[Array], Array]
"""image (N, D, H, W, C) -> logits (N, D, H, W, K) at full resolution"""

_SLAB_BYTES = 1 << 27
"""Of the planes that leave predict_slabs at once."""

_PEAK = {"float32": 1, "float16": 10}
"""The largest weight of a window: nnU-Net's 10, of which fewer round to 0 in half precision."""


def predict_volume(
    apply: Network, volume: np.ndarray, patch_size: Sequence[int], **settings: Any
) -> np.ndarray:
    """What a network says of a whole volume, averaged over windows with Gaussian weights.

    Args:
      apply: windows (N, d, h, w, C) -> logits (N, d, h, w, K).
      volume: (D, H, W, C), normalised as in training.
      patch_size: of a window.
      settings: as predict_slabs has them: step_size, mirror_axes, batch_size, average, activation,
        sums.

    Returns:
      (D, H, W, K), in the dtype of `sums`: probabilities, or logits where `average` is so.

    Raises:
      UserError: as predict_slabs.
    """
    return np.concatenate(list(predict_slabs(apply, volume, patch_size, **settings)))


def predict_slabs(
    apply: Network,
    volume: np.ndarray,
    patch_size: Sequence[int],
    *,
    step_size: float = 0.5,
    mirror_axes: Sequence[int] = (),
    batch_size: int = 2,
    average: str = "probabilities",
    activation: str = "softmax",
    sums: str = "float32",
) -> Iterator[np.ndarray]:
    """Probabilities of every voxel, averaged over windows with Gaussian weights.

    Windows of the patch size are spread evenly, at most `step_size` of a window apart; a volume
    smaller than a window is padded with 0 on both sides (nnU-Net: nnUNetPredictor). Planes along D
    are given away when no window reaches them any more, so that memory does not grow with D.

    Args:
      apply: the network, jitted; it sees one shape, (batch_size, *patch_size, C).
      volume: (D, H, W, C), or (D, H, W) of one channel; normalised.
      patch_size: (D, H, W) of a window.
      mirror_axes: of D, H, W (0, 1, 2); average over the views of each window that are mirrored
        along none, some or all of them: 8 where it is all three.
      batch_size: windows that enter the network at once.
      average: "probabilities", as nnU-Net v1, or "logits", as v2; these are then returned.
      activation: "softmax" of classes, or "sigmoid" of regions (LabelSpace.activation).
      sums: the dtype in which windows are added up; "float16" to the bits of nnU-Net v2, which
        rounds scores to few steps where a voxel lies at the edge of all of its windows.

    Yields:
      (d, H, W, K) in the dtype of `sums`, in order along D; those of softmax sum to 1 over K

    Raises:
      UserError: scores that are not finite, as in float16 those of 65520 and more.
    """
    activate = jax.nn.sigmoid if activation == "sigmoid" else jax.nn.softmax
    scores = apply if average == "logits" else lambda image: activate(apply(image))
    volume = volume[..., None] if volume.ndim == 3 else volume
    padded, inside = _pad_to(volume, patch_size)
    starts = [
        window_starts(n, size, step_size)
        for n, size in zip(padded.shape[:3], patch_size, strict=True)
    ]
    corners = list(itertools.product(*starts))
    weight = gaussian_weight(tuple(patch_size), sums)
    depth, plane = patch_size[0], padded.shape[1:3]
    first = 0  # of the planes that are held, as many as a window has
    total: np.ndarray | None = None
    weights = np.zeros((depth, *plane), sums)

    def means(stop: int) -> Iterator[np.ndarray]:
        """Of the planes from `first` to `stop`, as far as they are not padding, a few at once."""
        assert total is not None
        low, high = (np.clip(at, inside[0].start, inside[0].stop) - first for at in (first, stop))
        step = max(1, _SLAB_BYTES // total[0].nbytes)
        for begin in range(low, high, step):
            end = min(begin + step, high)
            with np.errstate(over="ignore", invalid="ignore"):  # told in one line
                planes = total[begin:end] / weights[begin:end, ..., None]
            if not np.isfinite(planes).all():
                mend = "it is damaged, or its training went astray"
                if sums != "float32":
                    mend = "predict with inference.sums of float32 in the run's config.json"
                raise UserError(f"the network's scores do not fit into {sums}; {mend}")
            yield planes[:, *inside[1:]]

    for some, averaged in _predicted(scores, padded, corners, patch_size, mirror_axes, batch_size):
        if total is None:
            total = np.zeros((depth, *plane, averaged.shape[-1]), sums)
        for (d, h, w), window in zip(some, averaged, strict=False):
            if d > first:
                yield from means(d)
                for held in (total, weights):
                    for at in range(depth):  # one by one, without a copy of all
                        held[at] = held[at + d - first] if at + d - first < depth else 0
                first = d
            place = np.s_[:, h : h + patch_size[1], w : w + patch_size[2]]
            with np.errstate(over="ignore", invalid="ignore"):  # told in one line
                total[place] += window * weight[..., None]
            weights[place] += weight
    yield from means(first + depth)


def window_starts(length: int, window: int, step_size: float) -> list[int]:
    """Where windows begin along an axis, from 0 to length - window, evenly spread.

    nnU-Net: compute_steps_for_sliding_window.
    """
    last = length - window
    count = math.ceil(last / (window * step_size)) + 1
    step = last / max(count - 1, 1)
    return [round(step * i) for i in range(count)]


@functools.cache
def gaussian_weight(patch_size: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    """The weight of each voxel of a window: a Gaussian of deviation size / 8, nowhere 0.

    nnU-Net: compute_gaussian.
    """
    impulse = np.zeros(patch_size)
    impulse[tuple(size // 2 for size in patch_size)] = 1
    weight = ndimage.gaussian_filter(impulse, [size / 8 for size in patch_size], mode="constant")
    weight *= _PEAK[dtype] / weight.max()
    rounded = weight.astype(dtype)
    return np.maximum(rounded, rounded[rounded > 0].min())


def _predicted(
    apply: Network,
    volume: np.ndarray,
    corners: Sequence[tuple[int, ...]],
    patch_size: Sequence[int],
    mirror_axes: Sequence[int],
    batch_size: int,
) -> Iterator[tuple[Sequence[tuple[int, ...]], np.ndarray]]:
    """Corners and scores, batch by batch; the device computes one batch ahead."""
    pending: tuple[Sequence[tuple[int, ...]], Array] | None = None
    for start in range(0, len(corners), batch_size):
        some = corners[start : start + batch_size]
        # The last batch is filled up, so that one shape is compiled.
        windows = np.zeros((batch_size, *patch_size, volume.shape[-1]), np.float32)
        for window, corner in zip(windows, some, strict=False):
            window[...] = volume[
                tuple(slice(c, c + size) for c, size in zip(corner, patch_size, strict=True))
            ]
        scores = _views(apply, windows, mirror_axes)
        if pending is not None:
            yield pending[0], np.asarray(pending[1])
        pending = (some, scores)
    assert pending is not None
    yield pending[0], np.asarray(pending[1])


def _views(apply: Network, windows: np.ndarray, mirror_axes: Sequence[int]) -> Array:
    axes = [1 + axis for axis in mirror_axes]
    counts = range(len(axes) + 1)
    views = [flip for count in counts for flip in itertools.combinations(axes, count)]
    total: Array | float = 0.0
    for flip in views:
        total = total + jax.numpy.flip(apply(jax.numpy.asarray(np.flip(windows, flip))), flip)
    return total / len(views)  # type: ignore[return-value]


def _pad_to(volume: np.ndarray, size: Sequence[int]) -> tuple[np.ndarray, tuple[slice, ...]]:
    shape = volume.shape[:3]
    missing = [max(s - n, 0) for n, s in zip(shape, size, strict=True)]
    padded = np.pad(volume, [*((need // 2, need - need // 2) for need in missing), (0, 0)])
    inside = tuple(slice(need // 2, need // 2 + n) for need, n in zip(missing, shape, strict=True))
    return padded, inside
