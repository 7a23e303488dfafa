"""The plan: what every case of a comparison is resampled and normalised to.

It is made from the training cases of one dataset, kept in one plan.json, and shared by the
pre-training sources and all folds (nnU-Net: ExperimentPlanner and DatasetFingerprintExtractor).
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from covid_jax.config import ANISOTROPY, check_types
from covid_jax.data.geometry import AXES, Volume
from covid_jax.errors import UserError
from covid_jax.files import write_json

VERSION = 2
"""Of plan.json; one without a version is of version 1."""

_VERSION_1 = (
    "spacing_mm",
    "lower_hu",
    "upper_hu",
    "mean_hu",
    "std_hu",
    "median_shape",
    "training_cases",
    "file_axes",
)

FINGERPRINT_VOXELS = 10_000_000
"""Lesion voxels from which the statistics come, shared out evenly among the training cases."""


@dataclass(frozen=True)
class Fingerprint:
    """What the plan takes from one training case: its grid and its lesions' intensities (HU)."""

    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    foreground_hu: np.ndarray


@dataclass(frozen=True)
class Resampling:
    """How voxels come to another grid (nnU-Net: the arguments of resample_data_or_seg_to_shape).

    Attributes:
      order: of the splines, 0 to 5: in the slices across a coarse axis, or along all three.
      coarse_order: along a coarse axis, where that is treated apart; 0 is the nearest slice.
      separate: whether the coarsest axis is treated apart; None: where the voxels before, or else
        those after, are more than `anisotropy` times as coarse along it as along the finest.
    """

    order: int
    coarse_order: int = 0
    separate: bool | None = None
    anisotropy: float = ANISOTROPY


@dataclass(frozen=True)
class Plan:
    """Target spacing (D, H, W) and intensity statistics of the foreground voxels.

    A field that came after version 1 has a default that means what version 1 did, so that the hash
    of a plan, by which prepared data and runs know it, outlives the field.

    Attributes:
      spacing_mm: of the network's grid, along its axes.
      file_axes: the network sees the axes of each scan's file as they are (slices, rows, columns),
        as nnU-Net does; else every scan is turned so that they point to `axes`.
      axes: where D, H, W point to, in nibabel's letters.
      transpose: which of these axes becomes the network's D, H, W (nnU-Net: transpose_forward).
      image_resampling: of the image, to the plan's spacing.
      score_resampling: of what the network predicts, back to the scan's grid.
      resample_first: before the intensities are clipped, as nnU-Net v1; v2 clips them first.
    """

    spacing_mm: tuple[float, float, float]
    lower_hu: float  # 0.5 percentile, where intensities are clipped
    upper_hu: float  # 99.5 percentile
    mean_hu: float
    std_hu: float
    median_shape: tuple[int, int, int]  # of a training case at this spacing
    training_cases: tuple[str, ...]
    file_axes: bool = False
    axes: tuple[str, str, str] = AXES
    transpose: tuple[int, int, int] = (0, 1, 2)
    image_resampling: Resampling = Resampling(order=3)
    score_resampling: Resampling = Resampling(order=1)
    resample_first: bool = False

    @property
    def hash(self) -> str:
        """Names this plan; data prepared by another one has another hash.

        It is over version 1's fields, and of later ones over those that are not at their default.
        """
        told = [
            field.name
            for field in dataclasses.fields(self)
            if field.name in _VERSION_1 or getattr(self, field.name) != field.default
        ]
        values = dataclasses.asdict(self)
        text = json.dumps({name: values[name] for name in told}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint(volume: Volume, label: Volume, samples: int) -> Fingerprint:
    """The fingerprint of a case whose `volume` is in HU, cropped as preprocess crops it.

    Of its lesion voxels `samples` are drawn, with replacement and nnU-Net's seed, so that a case
    counts the same whatever the size of its lesions.
    """
    foreground = volume.voxels[label.voxels > 0].astype(np.float32)
    if foreground.size:
        foreground = np.random.RandomState(1234).choice(foreground, samples)
    return Fingerprint(
        volume.voxels.shape, tuple(float(mm) for mm in volume.spacing_mm), foreground
    )


def make_plan(cases: Sequence[str], fingerprints: Sequence[Fingerprint]) -> Plan:
    """The plan of the training cases with these fingerprints.

    The spacing is the median of each axis. Where the coarsest axis of it is more than three times
    as coarse as the others, and less than a third as long, that axis takes its 10th percentile
    instead (nnU-Net: determine_fullres_target_spacing).

    Raises:
      UserError: no training case has a foreground voxel.
    """
    spacings = np.array([case.spacing_mm for case in fingerprints])
    shapes = np.array([case.shape for case in fingerprints])
    foreground = np.concatenate([case.foreground_hu for case in fingerprints])
    if foreground.size == 0:
        raise UserError(
            f"no lesion voxel in the training cases ({', '.join(cases)}); check the labels"
        )
    spacing = np.median(spacings, axis=0)
    size = np.median(shapes, axis=0)
    coarsest = int(np.argmax(spacing))
    others = np.delete(np.arange(3), coarsest)
    if (
        spacing[coarsest] > ANISOTROPY * spacing[others].max()
        and size[coarsest] * ANISOTROPY < size[others].min()
    ):
        target = np.percentile(spacings[:, coarsest], 10)
        finest = spacing[others].max()
        spacing[coarsest] = target if target >= finest else finest + 1e-5
    lower, upper = np.percentile(foreground, (0.5, 99.5))
    median_shape = np.median(np.round(shapes * spacings / spacing), axis=0)
    depth_mm, height_mm, width_mm = (float(mm) for mm in spacing)
    depth, height, width = (int(n) for n in median_shape)
    return Plan(
        spacing_mm=(depth_mm, height_mm, width_mm),
        lower_hu=float(lower),
        upper_hu=float(upper),
        mean_hu=float(foreground.mean()),
        std_hu=float(max(foreground.std(), 1e-8)),
        median_shape=(depth, height, width),
        training_cases=tuple(cases),
    )


def save_plan(path: Path, plan: Plan) -> None:
    """Writes plan.json."""
    write_json(path, {"version": VERSION, **dataclasses.asdict(plan)})


def load_plan(path: Path) -> Plan:
    """Reads plan.json, of this version or an older one.

    Raises:
      UserError: it is missing, damaged, or of a newer version.
    """
    try:
        values = json.loads(path.read_text("utf-8-sig"))
        version = values.pop("version", 1)
        unknown = values.keys() - {field.name for field in dataclasses.fields(Plan)}
        if version > VERSION or unknown:
            raise UserError(
                f"{path}: written by a newer version of covid_jax "
                f"({', '.join(sorted(unknown)) or f'version {version}'}); update this one"
            )
        plan = Plan(**{name: _from_json(value) for name, value in values.items()})
        _check(plan)
        return plan
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; prepare the data first") from error
    except (AttributeError, ValueError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}); prepare the data again") from error


def _check(plan: Plan) -> None:
    """Raises a ValueError for what no plan holds."""
    try:
        check_types(plan, "plan")
    except UserError as error:
        raise ValueError(str(error)) from error
    numbers = (plan.lower_hu, plan.upper_hu, plan.mean_hu, plan.std_hu, *plan.spacing_mm)
    holds = (
        np.isfinite(numbers).all()
        and min(plan.std_hu, *plan.spacing_mm) > 0
        and plan.lower_hu <= plan.upper_hu
        and sorted(plan.transpose) == [0, 1, 2]
        and all(len({*plan.axes} & {*pair}) == 1 for pair in ("RL", "AP", "SI"))
        and all(
            0 <= order <= 5
            for how in (plan.image_resampling, plan.score_resampling)
            for order in (how.order, how.coarse_order)
        )
    )
    if not holds:
        raise ValueError("a value that cannot be")


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        return Resampling(**value)
    return tuple(value) if isinstance(value, list) else value
