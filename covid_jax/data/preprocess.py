"""From a scan to what a network sees, and back: crop, normalise, resample, as nnU-Net."""

import functools
from collections.abc import Iterable, Iterator, Sequence
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
from covid_jax.data.labels import check_grid
from covid_jax.data.normalization import CT, normalized
from covid_jax.data.plan import Plan
from covid_jax.data.resample import resample, resample_label, resample_planes, resampled_size
from covid_jax.data.volume import read_volume
from covid_jax.errors import UserError
from covid_jax.label_space import CLASSES, OUTSIDE, LabelSpace

Box = tuple[slice, slice, slice]
_MOST_VOXELS = 2e9  # of a prepared image: 8 GB


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
    """image (D, H, W, C) float32, normalised; label (D, H, W) uint8 or None; the way back."""

    image: np.ndarray
    label: np.ndarray | None
    geometry: Geometry


def read_scan(path: str | Path) -> Volume:
    """The scan at `path` in HU; what had to be assumed for that is in its notes.

    Raises:
      UserError: as read_volume; or its values are not finite, or neither HU nor 8-bit grey.
    """
    return read_scan_as(path, "auto")[0]


def read_scan_as(path: str | Path, told: str) -> tuple[Volume, str]:
    """The scan at `path` in HU, and how its values were read (read_as). Raises as read_scan."""
    volume = read_volume(path)
    try:
        return read_as(volume, told)
    except UserError as error:
        raise UserError(f"{path}: {'; '.join([str(error), *volume.notes])}") from error


def read_channels(
    paths: Sequence[Path], schemes: Sequence[str], told: str
) -> tuple[tuple[Volume, ...], str]:
    """The channels of a scan, those of CT in HU, and how their values were read.

    Args:
      paths: of each channel.
      schemes: how each is normalised; HU are asked of CT alone.
      told: how the values of CT are read (read_as).

    Raises:
      UserError: another number of channels, or one on another grid than the first; as read_scan.
    """
    if len(paths) != len(schemes):
        raise UserError(
            f"{paths[0]}: the scan has {len(paths)} channels, and the plan {len(schemes)}"
        )
    ways = [told if scheme == CT else "no_ct" for scheme in schemes]
    read = [read_scan_as(path, way) for path, way in zip(paths, ways, strict=True)]
    first, *others = (volume for volume, _ in read)
    channels = [first]
    for path, volume in zip(paths[1:], others, strict=True):
        channel = turned_like(volume, first)
        check_grid(path, channel, first, f"the first channel, {paths[0].name}")
        channels.append(channel)
    return tuple(channels), " and ".join(dict.fromkeys(how for _, how in read))


def check_extent(path: Path, volume: Volume, plan: Plan) -> None:
    """Raises a UserError where a scan would have more voxels on a plan's grid than memory has."""
    extent = volume.voxels.shape * volume.spacing_mm
    voxels = float(np.prod(extent) / np.prod(plan.spacing_mm))
    if voxels > _MOST_VOXELS:
        size = " x ".join(f"{mm:.0f}" for mm in extent)
        raise UserError(
            f"{path}: is {size} mm large, {voxels:.2g} voxels at the plan's spacing; is its own "
            "spacing right?"
        )


def nonzero(channels: Sequence[np.ndarray]) -> np.ndarray:
    """(D, H, W) bool: where any channel (D, H, W) is not zero."""
    some = channels[0] != 0
    for voxels in channels[1:]:
        some |= voxels != 0
    return some


def nonzero_box(channels: Sequence[np.ndarray]) -> Box:
    """The box around all voxels that are not zero in all channels; everything where all are."""
    boxes = ndimage.find_objects(nonzero(channels).astype(np.uint8))
    return boxes[0] if boxes else tuple(slice(0, size) for size in channels[0].shape)  # type: ignore[return-value]


def prepare_case(scan: Volume | Sequence[Volume], label: Volume | None, plan: Plan) -> PreparedCase:
    """Crops to non-zero, normalises, resamples to the plan's spacing.

    nnU-Net v2: DefaultPreprocessor. Image and label are resampled as the plan says; usually the one
    by cubic splines, the other linearly for each class, and where an axis is coarse (see resample),
    nearest along it. What is outside of the non-zero region is then background, or OUTSIDE where
    the plan has masked channels.

    Args:
      scan: of one channel, or its channels, on one grid.

    Raises:
      UserError: values that a channel's normalisation does not take.
    """
    turn = turned_to_file_axes if plan.file_axes else functools.partial(turned, axes=plan.axes)
    volumes = [
        transposed(turn(volume), plan.transpose)
        for volume in ([scan] if isinstance(scan, Volume) else scan)
    ]
    volume, whole = volumes[0], [one.voxels for one in volumes]
    label = turned_like(label, volume) if label is not None else None
    box = nonzero_box(whole)
    geometry = Geometry(
        shape=volume.voxels.shape,
        box=tuple((side.start, side.stop) for side in box),
        spacing_mm=tuple(float(mm) for mm in volume.spacing_mm),
        affine=tuple(map(tuple, volume.affine.tolist())),
        file_affine=tuple(map(tuple, volume.file_affine.tolist())),
        header=volume.header,
    )
    size = resampled_size(volume.voxels[box].shape, volume.spacing_mm, plan.spacing_mm)
    spacings = volume.spacing_mm, plan.spacing_mm
    apart = plan.masked_channels or (plan.outside_apart and label is not None)
    inside = _inside(whole, label, box) if apart else None
    image = np.empty((*size, len(volumes)), np.float32)
    for channel, (voxels, how) in enumerate(zip(whole, plan.normalization, strict=True)):
        cropped = voxels.astype(np.float32, copy=False)[box]  # a view, see `transposed`
        if plan.resample_first:
            resampled = resample(cropped, size, *spacings, plan.image_resampling)
            image[..., channel] = normalized(resampled, how, inside)
        else:
            scaled = normalized(cropped, how, inside)
            image[..., channel] = resample(scaled, size, *spacings, plan.image_resampling)
    prepared_label = None
    if label is not None:
        cropped = label.voxels[box]
        if inside is not None:  # as nnU-Net, the lowest value, which decides where shares are equal
            cropped = np.where(inside, cropped, np.int16(-1))
        resampled = resample_label(cropped, size, *spacings, plan.label_resampling)
        outside = OUTSIDE if plan.masked_channels else 0
        prepared_label = np.where(resampled < 0, outside, resampled).astype(np.uint8)
    return PreparedCase(image, prepared_label, geometry)


def _inside(channels: Sequence[np.ndarray], label: Volume | None, box: Box) -> np.ndarray:
    """Of the crop, what is not zero or encloses it, and what is labelled (nnU-Net: seg >= 0)."""
    some = nonzero(channels)
    inside = (some if some[box].all() else ndimage.binary_fill_holes(some))[box]
    return inside if label is None else inside | (label.voxels[box] > 0)


Piece = tuple[slice, np.ndarray]
"""Planes along D of a scan's own grid, and probabilities (K, d, H, W) there."""


def restore_planes(
    slabs: Iterable[np.ndarray],
    geometry: Geometry,
    plan: Plan,
    *,
    of_logits: bool = False,
    label_space: LabelSpace = CLASSES,
) -> Iterator[Piece]:
    """Scores on the plan's grid, which come in slabs along D -> probabilities on the scan's grid.

    Outside the crop everything is background; planes along D that lie outside of it do not come.

    Args:
      slabs: (d, H, W, K) each, in order: probabilities; or logits, which are resampled as such
        (nnU-Net v2: convert_predicted_logits_to_segmentation_with_correct_shape), in their own
        dtype.
      of_logits: which of the two they are.
      label_space: what the K channels are.
    """
    (plane, _), *inside = geometry.box
    size = tuple(stop - start for start, stop in geometry.box)
    shape = resampled_size(size, geometry.spacing_mm, plan.spacing_mm)
    came: set[np.dtype] = set()

    def channels() -> Iterator[np.ndarray]:
        for slab in slabs:
            came.add(slab.dtype)
            yield np.moveaxis(slab, -1, 0).astype(np.float32, copy=False)  # scipy takes no half

    spacings = plan.spacing_mm, geometry.spacing_mm
    for piece in resample_planes(channels(), shape, size, *spacings, plan.score_resampling):
        (dtype,) = came
        wide = piece.astype(dtype, copy=False).astype(np.float32, copy=False)
        count, depth = piece.shape[:2]
        full = label_space.outside((count, depth, *geometry.shape[1:]))
        place = tuple(slice(*side) for side in inside)
        full[:, :, *place] = probabilities_of(wide, label_space) if of_logits else wide
        yield slice(plane, plane + depth), full
        plane += depth


def probabilities_of(logits: np.ndarray, label_space: LabelSpace, axis: int = 0) -> np.ndarray:
    """Probabilities of logits whose channels lie along `axis`."""
    sigmoid = label_space.activation == "sigmoid"
    return special.expit(logits) if sigmoid else special.softmax(logits, axis=axis)


def gathered(
    pieces: Iterable[Piece], geometry: Geometry, label_space: LabelSpace = CLASSES
) -> np.ndarray:
    """Pieces as one array of probabilities (K, D, H, W) on the scan's own grid."""
    whole: np.ndarray | None = None
    for planes, probabilities in pieces:
        if whole is None:
            whole = label_space.outside((len(probabilities), *geometry.shape))
        whole[:, planes] = probabilities
    assert whole is not None
    return whole


def as_volume(voxels: np.ndarray, geometry: Geometry) -> Volume:
    """A mask (D, H, W) on the scan's own grid as a Volume that write_volume can write."""
    return Volume(
        voxels=voxels,
        spacing_mm=np.array(geometry.spacing_mm),
        affine=np.array(geometry.affine),
        file_affine=np.array(geometry.file_affine),
        header=geometry.header,
    )
