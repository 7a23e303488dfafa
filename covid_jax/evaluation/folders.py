"""Metrics of a folder of masks against a folder of references."""

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from covid_jax.data.geometry import turned_like
from covid_jax.data.labels import check_grid, check_values, read_mask
from covid_jax.data.processes import each
from covid_jax.data.scans import masks_in
from covid_jax.data.store import prepared_labels
from covid_jax.errors import UserError, listed
from covid_jax.evaluation.metrics import (
    BOTH_EMPTY,
    NO_PREDICTION,
    NO_REFERENCE,
    PAPER,
    mean_over_labels,
    segmentation_metrics,
    summarise,
)
from covid_jax.files import is_number, read_json, write_json
from covid_jax.label_space import IGNORED, Label, label_values, lies_in, take_ignored, values_of

_EMPTY = {(True, True): BOTH_EMPTY, (True, False): NO_PREDICTION, (False, True): NO_REFERENCE}
_MOST_LABELS = 255  # more values than that are no labels

Scores = tuple[dict[str, float | None], str | None]
"""The metrics of a label in a case, and which of both masks is empty."""


@dataclass(frozen=True)
class _Case:
    """What was found of a case.

    Attributes:
      scores: of each label or region that was scored.
      values: that its mask or its reference holds, but 0.
      others: the scores of labels that neither holds.
    """

    scores: dict[Label, Scores]
    values: list[int]
    others: Scores


def evaluate_folders(
    predictions: Path,
    references: Path,
    labels: Mapping[Label, str] | None = None,
    known: Collection[int] = (),
    ignored: int | None = None,
    tolerance_mm: float = 3.0,
    processes: int = 1,
    skip_bad: bool = False,
    cases: Collection[str] = (),
) -> dict[str, Any]:
    """The content of metrics.json for every mask in `predictions`.

    Of several labels a case's metrics are the mean over them, and "labels" has each one's own. A
    case of which every voxel is ignored has no scores, and no part in means.

    Args:
      labels: value -> name of those to score, of a region all its values; empty or None: each value
        that a file holds.
      known: all values that files may hold; empty: any.
      ignored: value of the references' voxels that are left out.
      skip_bad: leave out what cannot be scored, and say why in "left_out".
      cases: score these alone; empty: all.

    Raises:
      UserError: predictions without a reference, on another grid, or that are no masks; all of
        them are named. Or they are the files of their references.
    """
    masks, truths = masks_in(predictions, references)
    masks = {name: path for name, path in masks.items() if not cases or name in cases}
    if same := [name for name in masks.keys() & truths.keys() if _are_one(masks, truths, name)]:
        raise UserError(
            f"{predictions}: {listed(same)} there are the very files of the references in "
            f"{references}; give the folder of the predicted masks"
        )
    pairs = [(masks[name], truths[name]) for name in masks if name in truths]
    score = functools.partial(
        _scored, labels=labels, known=known, ignored=ignored, tolerance_mm=tolerance_mm
    )
    results = dict(
        zip(
            (name for name in masks if name in truths),
            each(score, pairs, processes, "evaluating"),
            strict=True,
        )
    )
    bad = {name: f"{references}: no reference for {name}" for name in masks.keys() - truths.keys()}
    bad |= {name: result for name, result in results.items() if isinstance(result, str)}
    scored = {name: result for name, result in results.items() if not isinstance(result, str)}
    if bad and not (skip_bad and scored):
        raise UserError("; ".join(bad[name] for name in sorted(bad)))
    held = sorted({value for case in scored.values() for value in case.values})
    values = sorted(labels or held or {1})
    names = {value: (labels or {}).get(value, f"label {value}") for value in values}
    of_label = {
        names[value]: {name: case.scores.get(value, case.others) for name, case in scored.items()}
        for value in values
    }
    summaries = {
        label: summarise(
            {name: metrics for name, (metrics, _) in of.items()},
            {name: which for name, (_, which) in of.items() if which},
            tolerance_mm,
        )
        for label, of in of_label.items()
    }
    metrics = mean_over_labels(summaries, tolerance_mm)
    metrics["values"] = held
    return metrics | ({"left_out": bad} if bad else {})


def _are_one(masks: Mapping[str, Path], truths: Mapping[str, Path], name: str) -> bool:
    """Whether both are one file, whatever links lead there."""
    return masks[name].resolve() == truths[name].resolve()


def _scored(
    paths: tuple[Path, Path],
    labels: Mapping[Label, str] | None,
    known: Collection[int],
    ignored: int | None,
    tolerance_mm: float,
) -> _Case | str:
    """The scores of one mask; or what is wrong."""
    try:
        mask, truth = map(read_mask, paths)
        mask = turned_like(mask, truth)
        check_grid(paths[0], mask, truth, str(paths[1]))
        counted = (
            truth.voxels != ignored if ignored is not None else np.ones_like(truth.voxels, bool)
        )
        held = [np.unique(one.voxels[counted]) for one in (mask, truth)]
        for path, values in zip(paths, held, strict=True):
            if known:
                check_values(path, values, known)
            if len(values) > _MOST_LABELS:
                raise UserError(f"{path}: holds {len(values)} values; is it a mask?")
    except UserError as error:
        return str(error)
    found = [int(value) for value in np.union1d(*held) if value != 0]

    def scores(prediction: np.ndarray, reference: np.ndarray, counted: np.ndarray) -> Scores:
        metrics = segmentation_metrics(
            prediction, reference, truth.spacing_mm, tolerance_mm, counted
        )
        which = _EMPTY.get((not (prediction & counted).any(), not (reference & counted).any()))
        return metrics, which if counted.any() else None

    nothing = np.zeros((1, 1, 1), bool)
    return _Case(
        {
            label: scores(
                lies_in(mask.voxels, values_of(label)),
                lies_in(truth.voxels, values_of(label)),
                counted,
            )
            for label in labels or found
        },
        found,
        others=scores(nothing, nothing, np.full((1, 1, 1), counted.any())),
    )


def save_metrics(path: Path, metrics: dict[str, Any]) -> None:
    """Writes metrics.json."""
    write_json(path, metrics)


def load_metrics(path: Path) -> dict[str, Any]:
    """The content of a metrics.json; of versions before with what they wrote.

    Raises:
      UserError: it is missing, or damaged.
    """
    content = read_json(path)
    labels = content.get("labels", {})
    whole = _is_summary(content) and isinstance(labels, dict)
    if not (whole and all(_is_summary(one, content["cases"]) for one in labels.values())):
        raise UserError(
            f"{path}: damaged; it is no result of a test. Delete it, and the run that is started "
            "again is tested again"
        )
    return content


def _is_summary(content: Any, names: Collection[str] = ()) -> bool:
    """Whether this is what `summarise` makes, of the cases `names` where they are known."""
    if not isinstance(content, dict):
        return False
    parts: list[Any] = [content.get(part) for part in ("cases", "mean", "std", "empty")]
    if not all(isinstance(part, dict) for part in parts):
        return False
    cases, mean, std, empty = parts
    return (
        len(cases) > 0
        and cases.keys() == set(names or cases)
        and all(map(_is_case, cases.values()))
        and _is_numbers(mean)
        and _is_numbers(std)
        and mean.keys() == std.keys()
        and all((n in mean) == any(c[n] is not None for c in cases.values()) for n in PAPER)
        and _is_numbers(content.get("count", {}))
        and all(isinstance(which, str) for which in empty.values())
    )


def _is_case(case: Any) -> bool:
    """Whether these are metrics: the paper's all or, of a case that is ignored, none."""
    if not (isinstance(case, dict) and set(PAPER) <= case.keys()):
        return False
    found = {name: value for name, value in case.items() if value is not None}
    return _is_numbers(found) and len(set(PAPER) & found.keys()) in (0, len(PAPER))


def _is_numbers(values: Any) -> bool:
    return isinstance(values, dict) and all(map(is_number, values.values()))


def check_output(path: Path) -> None:
    """Raises a UserError where `path` is a file that evaluate did not write, or in a run's folder.

    There a file could be taken for the run's own test, by the study that it is of before it began.
    """
    folder = path.resolve().parent
    of_study = folder.parent.name == "runs" and (folder.parent.parent / "study.json").is_file()
    if of_study or (folder / "config.json").is_file():
        raise UserError(
            f"--output={path}: lies in the folder of a run, beside its own test result; "
            "give another"
        )
    try:
        ours = not path.exists() or "tolerance_mm" in read_json(path)
    except UserError:
        ours = False
    if not ours:
        raise UserError(f"--output={path}: is there, and no metrics of this command; give another")


def what_is_scored(*folders: Path) -> tuple[dict[Label, str], int | None]:
    """What is scored, and the ignored value, from the first dataset.json in or above these.

    The names of label values; or those of regions, by all of their values.

    Raises:
      UserError: it is damaged.
    """
    places = [place / "dataset.json" for folder in folders for place in (folder, folder.parent)]
    for path in (place for place in places if place.is_file()):
        description = read_json(path)
        try:
            if isinstance(description["labels"], list):  # of a prepared dataset
                return prepared_labels(description).scored, IGNORED
            values = label_values(description)
            ignored = take_ignored(values)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: not a dataset.json with labels") from error
        regions = any(len(several) > 1 for several in values.values())
        return {
            several if regions else several[0]: name
            for name, several in values.items()
            if several != (0,)
        }, ignored
    return {}, None
