"""The paper's metrics of a binary mask (section IV-C). A new metric is one function here.

Every metric is 1 where both masks are empty and 0 where one is; accuracy alone needs no such
convention.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import ndimage
from skimage.measure import marching_cubes, mesh_surface_area

METRICS = ("dsc", "nsd", "sensitivity", "f1", "accuracy")


def segmentation_metrics(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing_mm: Sequence[float] | np.ndarray,
    tolerance_mm: float = 3.0,
) -> dict[str, float]:
    """All five metrics of `prediction` against `reference`.

    Args:
      prediction, reference: (D, H, W), bool or 0 and 1.
      spacing_mm: (3,) in the order of the axes.
      tolerance_mm: of the surface Dice (nsd).

    Returns:
      {"dsc", "nsd", "sensitivity", "f1", "accuracy"}, each in 0 .. 1

    Raises:
      ValueError: the masks differ in shape.
    """
    prediction, reference = np.asarray(prediction, bool), np.asarray(reference, bool)
    if prediction.shape != reference.shape:
        raise ValueError(f"shapes differ: {prediction.shape} and {reference.shape}")
    return {
        "dsc": dice(prediction, reference),
        "nsd": surface_dice(prediction, reference, spacing_mm, tolerance_mm),
        "sensitivity": sensitivity(prediction, reference),
        "f1": f1(prediction, reference),
        "accuracy": accuracy(prediction, reference),
    }


def dice(prediction: np.ndarray, reference: np.ndarray) -> float:
    """Dice similarity coefficient, 2 |A and B| / (|A| + |B|)."""
    total = int(prediction.sum()) + int(reference.sum())
    return 2 * int((prediction & reference).sum()) / total if total else 1.0


def sensitivity(prediction: np.ndarray, reference: np.ndarray) -> float:
    """Share of the reference that was found, tp / (tp + fn)."""
    positives = int(reference.sum())
    if positives == 0:
        return 0.0 if prediction.any() else 1.0
    return int((prediction & reference).sum()) / positives


def f1(prediction: np.ndarray, reference: np.ndarray) -> float:
    """Harmonic mean of precision and sensitivity; of binary masks it equals Dice."""
    true_positives = int((prediction & reference).sum())
    if true_positives == 0:
        return 0.0 if prediction.any() or reference.any() else 1.0
    precision = true_positives / int(prediction.sum())
    recall = true_positives / int(reference.sum())
    return 2 * precision * recall / (precision + recall)


def accuracy(prediction: np.ndarray, reference: np.ndarray) -> float:
    """Share of all voxels that are labelled right."""
    return float((prediction == reference).mean())


def surface_dice(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing_mm: Sequence[float] | np.ndarray,
    tolerance_mm: float,
) -> float:
    """Normalised surface Dice (NSD): the share of both surfaces within tolerance of the other.

    As google-deepmind/surface-distance: a surface element lies where 2 x 2 x 2 voxels are not all
    alike, and weighs its area by marching cubes.
    """
    both = prediction | reference
    if not both.any():
        return 1.0
    if not (prediction.any() and reference.any()):
        return 0.0
    box = ndimage.find_objects(both.astype(np.uint8))[0]
    sides = [_surface(mask[box], spacing_mm) for mask in (prediction, reference)]
    near = total = 0.0
    for (border, area), (other_border, _) in (sides, sides[::-1]):
        distance = ndimage.distance_transform_edt(~other_border, sampling=spacing_mm)
        near += area[border][distance[border] <= tolerance_mm].sum()
        total += area[border].sum()
    return float(near / total)


def _surface(
    mask: np.ndarray, spacing_mm: Sequence[float] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(is a surface element, its area in mm2) at the corners between voxels."""
    padded = np.pad(mask, 1).astype(np.uint8)
    code = np.zeros([n - 1 for n in padded.shape], np.uint8)
    for bit, (i, j, k) in enumerate(itertools.product((0, 1), repeat=3)):
        d, h, w = code.shape
        code |= padded[i : i + d, j : j + h, k : k + w] << bit
    areas = _element_areas(tuple(float(mm) for mm in spacing_mm))
    return (code != 0) & (code != 255), areas[code]


@functools.lru_cache(maxsize=64)
def _element_areas(spacing_mm: tuple[float, ...]) -> np.ndarray:
    """The area of the surface inside a cube of 8 voxels, for each of their 256 patterns."""
    areas = np.zeros(256)
    for code in range(1, 255):
        corners = np.array([(code >> bit) & 1 for bit in range(8)]).reshape(2, 2, 2)
        # The surface around the fewer voxels; in ambiguous patterns the other one is larger.
        corners = corners if corners.sum() <= 4 else 1 - corners
        vertices, faces, _, _ = marching_cubes(
            corners.astype(np.float32), 0.5, spacing=spacing_mm, method="lorensen"
        )
        areas[code] = mesh_surface_area(vertices, faces)
    return areas


def summarise(cases: Mapping[str, Mapping[str, float]], tolerance_mm: float) -> dict[str, object]:
    """The content of metrics.json: each case, and mean and standard deviation over cases."""
    values = {name: [case[name] for case in cases.values()] for name in METRICS}
    return {
        "cases": {name: dict(case) for name, case in cases.items()},
        "mean": {name: float(np.mean(value)) for name, value in values.items()},
        "std": {name: float(np.std(value)) for name, value in values.items()},
        "tolerance_mm": tolerance_mm,
    }
