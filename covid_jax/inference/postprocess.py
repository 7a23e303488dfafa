"""From probabilities to a mask: a threshold and clean-up of components, both off by default."""

import dataclasses
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cc3d
import numpy as np

from covid_jax.config import IGNORED, InferenceConfig
from covid_jax.data.volume import read_json, write_json
from covid_jax.evaluation.metrics import dice

_THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
_FILE = "postprocessing.json"


@dataclass(frozen=True)
class Postprocessing:
    """How a run's probabilities become masks.

    Attributes:
      threshold: of all lesions' probability together, from which a voxel is one; 0: the likeliest
        class is taken, background among them.
      largest_only: of all lesion voxels, keep those of the largest component (nnU-Net:
        remove_all_but_largest_component).
    """

    threshold: float = 0.0
    largest_only: bool = False


def to_mask(probabilities: np.ndarray, postprocessing: Postprocessing) -> np.ndarray:
    """The mask (D, H, W), uint8, of probabilities (K, D, H, W)."""
    if postprocessing.threshold:
        lesion = 1 - probabilities[0] >= postprocessing.threshold
        mask = np.where(lesion, 1 + probabilities[1:].argmax(0), 0).astype(np.uint8)
    else:
        mask = probabilities.argmax(0).astype(np.uint8)
    return _largest(mask) if postprocessing.largest_only else mask


def choose(cases: Iterable[tuple[np.ndarray, np.ndarray]]) -> Postprocessing:
    """The postprocessing with the best mean DSC of all lesions, the plainest of equals.

    Args:
      cases: probabilities (K, D, H, W) and reference (D, H, W) of each; not those of a test.
    """
    candidates = [
        Postprocessing(threshold, largest)
        for largest, threshold in itertools.product((False, True), (0.0, *_THRESHOLDS))
    ]
    scores = []
    for probabilities, reference in cases:
        counted = reference != IGNORED
        masks = (to_mask(probabilities, one) > 0 for one in candidates)
        scores.append([dice(mask & counted, (reference > 0) & counted) for mask in masks])
    return candidates[int(np.mean(scores, axis=0).argmax())]


def save_postprocessing(workdir: Path, postprocessing: Postprocessing) -> None:
    """Keeps what was chosen for a run in its folder, where predict finds it."""
    write_json(workdir / _FILE, dataclasses.asdict(postprocessing))


def load_postprocessing(workdir: Path, config: InferenceConfig) -> Postprocessing:
    """What was chosen for a run, or what its config says."""
    if chosen := read_json(workdir / _FILE):
        return Postprocessing(**chosen)
    return Postprocessing(config.threshold, config.largest_only)


def _largest(mask: np.ndarray) -> np.ndarray:
    components = cc3d.connected_components(mask > 0, connectivity=26)
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    return np.where((sizes == sizes.max())[components] & (components > 0), mask, 0)
