"""The paper's metrics of a binary mask (section IV-C), and two more. A new one is a Metric here.

Where both masks are empty a score is 1, and 0 where one is; accuracy needs no such convention, and
the Hausdorff distance has no value there. Where no voxel is counted nothing has a value.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree
from skimage.measure import marching_cubes, mesh_surface_area

BOTH_EMPTY, NO_PREDICTION, NO_REFERENCE = "both masks", "prediction", "reference"
"""What "empty" of metrics.json says of a case: which of its masks is."""

Spacing = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Surfaces:
    """How far the surfaces of two masks lie from each other, prediction's first.

    Attributes:
      distances_mm: of each surface element to the nearest of the other mask.
      areas_mm2: of each surface element.
    """

    distances_mm: tuple[np.ndarray, np.ndarray]
    areas_mm2: tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Compared:
    """What metrics are of: two masks, in the voxels that are counted, which are some.

    Attributes:
      prediction, reference, counted: (D, H, W), bool; neither mask has a voxel that is not counted.
      spacing_mm: (3,) in the order of the axes.
      tolerance_mm: of the surface Dice.
    """

    prediction: np.ndarray
    reference: np.ndarray
    counted: np.ndarray
    spacing_mm: Spacing
    tolerance_mm: float

    @property
    def masks(self) -> tuple[np.ndarray, np.ndarray]:
        """The prediction and the reference."""
        return self.prediction, self.reference

    @functools.cached_property
    def surfaces(self) -> Surfaces:
        """Of both masks, found once for all metrics that ask."""
        return surface_distances(self.prediction, self.reference, self.spacing_mm)


@dataclass(frozen=True)
class Metric:
    """What metrics.json has of each case, and tables show.

    Attributes:
      name: in metrics.json, with its unit where it has one.
      heading: of its column.
      of: its value; None where there is none.
      over_labels: which labels of a case the mean is over: "all"; "has": those that one of both
        masks has, and no mean where one of these has no value; "none": there is no mean.
      in_paper: whether the paper reports it.
      within: between which values it lies.
    """

    name: str
    heading: str
    of: Callable[[Compared], float | None]
    over_labels: Literal["all", "has", "none"] = "all"
    in_paper: bool = False
    within: tuple[float, float] = (0.0, 1.0)


def segmentation_metrics(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing_mm: Spacing,
    tolerance_mm: float = 3.0,
    counted: np.ndarray | None = None,
) -> dict[str, float | None]:
    """All metrics of `prediction` against `reference`.

    Args:
      prediction, reference: (D, H, W), bool or 0 and 1.
      spacing_mm: (3,) in the order of the axes.
      tolerance_mm: of the surface Dice (nsd).
      counted: (D, H, W) bool, the voxels that take part; None: all.

    Returns:
      A value for each of METRICS: {"dsc", "nsd", "sensitivity", "f1", "accuracy"}, each in 0 .. 1;
      "hd95_mm", None where a mask is empty; and "volume_difference_ml", of the prediction over the
      reference. All are None where no voxel is counted.

    Raises:
      ValueError: the masks differ in shape.
    """
    prediction, reference = np.asarray(prediction, bool), np.asarray(reference, bool)
    if prediction.shape != reference.shape:
        raise ValueError(f"shapes differ: {prediction.shape} and {reference.shape}")
    counted = np.ones(reference.shape, bool) if counted is None else counted
    if not counted.any():
        return dict.fromkeys(metric.name for metric in METRICS)
    compared = Compared(
        prediction & counted, reference & counted, counted, spacing_mm, tolerance_mm
    )
    return {metric.name: metric.of(compared) for metric in METRICS}


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
    return float((prediction == reference).mean()) if prediction.size else 1.0


def surface_distances(
    prediction: np.ndarray, reference: np.ndarray, spacing_mm: Spacing
) -> Surfaces:
    """The surfaces of both masks and how far each lies from the other.

    As google-deepmind/surface-distance: a surface element lies where 2 x 2 x 2 voxels are not all
    alike, and weighs its area by marching cubes. Memory grows with the surfaces alone and with the
    box around both masks, not with the scan. Of an empty mask there are no elements, and what lies
    nearest to it is infinitely far.
    """
    spacing = np.asarray(spacing_mm, float)
    boxes = ndimage.find_objects((prediction | reference).astype(np.uint8))
    box = boxes[0] if boxes else tuple(slice(0, 0) for _ in spacing)
    elements, areas = zip(
        *(_surface(mask[box], spacing) for mask in (prediction, reference)), strict=True
    )
    distances = (
        _nearest(elements[0], elements[1], spacing),
        _nearest(elements[1], elements[0], spacing),
    )
    return Surfaces(distances, areas)


def surface_dice(surfaces: Surfaces, tolerance_mm: float) -> float:
    """Normalised surface Dice (NSD): the share of both surfaces within tolerance of the other."""
    total = sum(float(area.sum()) for area in surfaces.areas_mm2)
    if total == 0:
        return 1.0
    near = sum(
        float(area[distance <= tolerance_mm].sum())
        for distance, area in zip(surfaces.distances_mm, surfaces.areas_mm2, strict=True)
    )
    return near / total


def hausdorff_95(surfaces: Surfaces) -> float | None:
    """The distance in mm within which 95 % of either surface lie; None where a mask is empty.

    surface-distance: compute_robust_hausdorff.
    """
    farthest = 0.0
    for distance, area in zip(surfaces.distances_mm, surfaces.areas_mm2, strict=True):
        if not (len(distance) and np.isfinite(distance).all()):
            return None
        order = np.argsort(distance)
        share = np.cumsum(area[order]) / area.sum()
        place = min(int(np.searchsorted(share, 0.95)), len(share) - 1)
        farthest = max(farthest, float(distance[order][place]))
    return farthest


def volume_difference(prediction: np.ndarray, reference: np.ndarray, spacing_mm: Spacing) -> float:
    """By how many ml the prediction is larger than the reference."""
    voxels = int(prediction.sum()) - int(reference.sum())
    return voxels * float(np.prod(spacing_mm)) / 1000


METRICS = (
    Metric("dsc", "DSC", lambda c: dice(*c.masks), in_paper=True),
    Metric("nsd", "NSD", lambda c: surface_dice(c.surfaces, c.tolerance_mm), in_paper=True),
    Metric("sensitivity", "Sensitivity", lambda c: sensitivity(*c.masks), in_paper=True),
    Metric("f1", "F1", lambda c: f1(*c.masks), in_paper=True),
    Metric(
        "accuracy",
        "Accuracy",
        lambda c: accuracy(*(mask[c.counted] for mask in c.masks)),
        in_paper=True,
    ),
    Metric(
        "hd95_mm",
        "HD95, mm",
        lambda c: hausdorff_95(c.surfaces),
        over_labels="has",
        within=(0.0, math.inf),
    ),
    Metric(
        "volume_difference_ml",
        "Volume over reference, ml",
        lambda c: volume_difference(*c.masks, c.spacing_mm),
        over_labels="none",  # too much of one label would make up for too little of another
        within=(-math.inf, math.inf),
    ),
)
"""In the order of metrics.json and tables."""

PAPER = tuple(metric.name for metric in METRICS if metric.in_paper)
EXTRAS = tuple(metric.name for metric in METRICS if not metric.in_paper)


def not_over_labels(called: Callable[[Metric], str], noun: str = "label") -> str:
    """What a mean over labels does not have, in words; `called` is how a metric is named there."""
    never, not_always = (
        ", ".join(called(metric) for metric in METRICS if metric.over_labels == which)
        for which in ("none", "has")
    )
    return f"there is no {never}, nor {not_always} of a case where one mask alone has a {noun}"


NOT_OVER_LABELS = not_over_labels(lambda metric: metric.name)


def _nearest(elements: np.ndarray, others: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """The distance in mm (n,) of each element (n, 3), in voxels, to the nearest of the others."""
    if not (len(elements) and len(others)):
        return np.full(len(elements), np.inf)
    _, nearest = KDTree(others * spacing_mm).query(elements * spacing_mm)
    # From whole voxels, so that a distance of just the tolerance is not rounded over it.
    return np.linalg.norm((elements - others[nearest]) * spacing_mm, axis=1)


def _surface(mask: np.ndarray, spacing_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The corners between voxels (n, 3) where the surface passes, and its area in mm2 there."""
    padded = np.pad(mask, 1).astype(np.uint8)
    code = np.zeros([n - 1 for n in padded.shape], np.uint8)
    for bit, (i, j, k) in enumerate(itertools.product((0, 1), repeat=3)):
        d, h, w = code.shape
        code |= padded[i : i + d, j : j + h, k : k + w] << bit
    elements = np.argwhere((code != 0) & (code != 255))
    areas = _element_areas(tuple(float(mm) for mm in spacing_mm))
    return elements, areas[code[tuple(elements.T)]]


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


def summarise(
    cases: Mapping[str, Mapping[str, float | None]], empty: Mapping[str, str], tolerance_mm: float
) -> dict[str, Any]:
    """The content of metrics.json: each case, and mean and standard deviation over cases.

    `empty` says of which cases a mask is empty. A metric without a value takes no part in means.
    """
    values = {
        metric.name: [value for case in cases.values() if (value := case[metric.name]) is not None]
        for metric in METRICS
    }
    return {
        "cases": {name: dict(case) for name, case in cases.items()},
        "mean": {name: float(np.mean(value)) for name, value in values.items() if value},
        "std": {name: float(np.std(value)) for name, value in values.items() if value},
        "count": {name: len(value) for name, value in values.items()},
        "empty": dict(empty),
        "tolerance_mm": tolerance_mm,
    }


def mean_over_labels(
    summaries: Mapping[str, Mapping[str, Any]], tolerance_mm: float
) -> dict[str, Any]:
    """The content of metrics.json from that of each label: the mean over them of every case.

    Of one label it is that label's own. "labels" keeps each one's. Which labels of a case a mean is
    of, Metric.over_labels says: of distances there is none where a label of the case has none, as
    what was not found would make it better.
    """
    if len(summaries) == 1:
        return dict(next(iter(summaries.values())))
    cases = {
        name: {metric.name: _over_labels(summaries.values(), name, metric) for metric in METRICS}
        for name in next(iter(summaries.values()))["cases"]
    }
    empty: dict[str, str] = {}
    for label, summary in summaries.items():
        for name, which in summary["empty"].items():
            empty[name] = "; ".join(filter(None, [empty.get(name), f"{which} of {label}"]))
    return summarise(cases, empty, tolerance_mm) | {"labels": dict(summaries)}


def never_predicted(summary: Mapping[str, Any]) -> bool:
    """Whether no mask has the label that this summary is of, though a reference does."""
    scored = summary["cases"].keys() - set(unscored(summary))
    found = [summary["empty"].get(name) for name in scored]
    return NO_PREDICTION in found and set(found) <= {NO_PREDICTION, BOTH_EMPTY}


def unscored(metrics: Mapping[str, Any]) -> list[str]:
    """The cases of metrics.json that have no scores, as all their voxels are ignored."""
    return [name for name, case in metrics["cases"].items() if case["dsc"] is None]


def _over_labels(summaries: Iterable[Mapping[str, Any]], case: str, metric: Metric) -> float | None:
    """The mean over labels; None where there is none."""
    values = [
        summary["cases"][case][metric.name]
        for summary in summaries
        if metric.over_labels == "all" or summary["empty"].get(case) != BOTH_EMPTY
    ]
    if metric.over_labels == "none" or not values or None in values:
        return None
    return float(np.mean(values))
