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

import numpy as np

from covid_jax.config import ANISOTROPY
from covid_jax.data.geometry import Volume
from covid_jax.errors import UserError
from covid_jax.files import write_json

FINGERPRINT_VOXELS = 10_000_000
"""Lesion voxels from which the statistics come, shared out evenly among the training cases."""


@dataclass(frozen=True)
class Fingerprint:
    """What the plan takes from one training case: its grid and its lesions' intensities (HU)."""

    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    foreground_hu: np.ndarray


@dataclass(frozen=True)
class Plan:
    """Target spacing (D, H, W) and intensity statistics of the foreground voxels.

    With `file_axes` the network sees the axes of each scan's file as they are (slices, rows,
    columns), as nnU-Net does; else every scan is turned to head, back, left (Volume).
    """

    spacing_mm: tuple[float, float, float]
    lower_hu: float  # 0.5 percentile, where intensities are clipped
    upper_hu: float  # 99.5 percentile
    mean_hu: float
    std_hu: float
    median_shape: tuple[int, int, int]  # of a training case at this spacing
    training_cases: tuple[str, ...]
    file_axes: bool = False

    @property
    def hash(self) -> str:
        """Names this plan; data prepared by another one has another hash."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
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
    write_json(path, dataclasses.asdict(plan))


def load_plan(path: Path) -> Plan:
    """Reads plan.json. Raises a UserError where it is missing or damaged."""
    try:
        values = json.loads(path.read_text())
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return Plan(**{**values, **lists})
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; prepare the data first") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: damaged; prepare the data again") from error
