"""Metrics of a folder of masks against a folder of references."""

import functools
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from covid_jax.config import IGNORED
from covid_jax.data.datasets import label_values
from covid_jax.data.geometry import turned_like
from covid_jax.data.labels import check_grid, check_values, read_mask
from covid_jax.data.processes import each
from covid_jax.data.scans import masks_in
from covid_jax.errors import UserError
from covid_jax.evaluation.metrics import mean_over_labels, segmentation_metrics, summarise
from covid_jax.files import read_json, write_json

_EMPTY = {(True, True): "both masks", (True, False): "prediction", (False, True): "reference"}
_MOST_LABELS = 255  # more values than that are no labels

Scores = dict[int, tuple[dict[str, float | None], str | None]]
"""Of each label value that was scored: its metrics, and which of both masks is empty."""


def evaluate_folders(
    predictions: Path,
    references: Path,
    labels: Mapping[int, str] | None = None,
    known: Collection[int] = (),
    ignored: int | None = None,
    tolerance_mm: float = 3.0,
    processes: int = 1,
    skip_bad: bool = False,
    cases: Collection[str] = (),
) -> dict[str, Any]:
    """The content of metrics.json for every mask in `predictions`.

    Of several labels a case's metrics are the mean over them, and "labels" has each one's own.

    Args:
      labels: value -> name of those to score; empty or None: each value that a file holds.
      known: all values that files may hold; empty: any.
      ignored: value of the references' voxels that are left out.
      skip_bad: leave out what cannot be scored, and say why in "left_out".
      cases: score these alone; empty: all.

    Raises:
      UserError: predictions without a reference, on another grid, or that are no masks; all of
        them are named.
    """
    masks, truths = masks_in(predictions, references)
    masks = {name: path for name, path in masks.items() if not cases or name in cases}
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
    values = sorted(labels or {value for _, found in scored.values() for value in found} or {1})
    names = {value: (labels or {}).get(value, f"label {value}") for value in values}
    of_label = {
        names[value]: {name: _of(value, case, tolerance_mm) for name, (case, _) in scored.items()}
        for value in values
    }
    summaries = {
        label: summarise(
            {name: case for name, (case, _) in cases.items()},
            {name: which for name, (_, which) in cases.items() if which},
            tolerance_mm,
        )
        for label, cases in of_label.items()
    }
    metrics = mean_over_labels(summaries, tolerance_mm)
    metrics["values"] = sorted({value for _, found in scored.values() for value in found})
    return metrics | ({"left_out": bad} if bad else {})


def _scored(
    paths: tuple[Path, Path],
    labels: Mapping[int, str] | None,
    known: Collection[int],
    ignored: int | None,
    tolerance_mm: float,
) -> tuple[Scores, list[int]] | str:
    """The scores of one mask, and the values that it or its reference holds; or what is wrong."""
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
    scores: Scores = {}
    for value in labels or found:
        prediction, reference = mask.voxels == value, truth.voxels == value
        which = _EMPTY.get((not (prediction & counted).any(), not (reference & counted).any()))
        which = which if counted.any() else "all voxels are ignored, so both masks"
        metrics = segmentation_metrics(
            prediction, reference, truth.spacing_mm, tolerance_mm, counted
        )
        scores[value] = metrics, which
    return scores, found


def _of(
    value: int, scores: Scores, tolerance_mm: float
) -> tuple[dict[str, float | None], str | None]:
    """The scores of a label; those of two empty masks where the case was not scored for it."""
    nothing = np.zeros((1, 1, 1), bool)
    empty = segmentation_metrics(nothing, nothing, (1, 1, 1), tolerance_mm)
    return scores.get(value, (empty, _EMPTY[True, True]))


def save_metrics(path: Path, metrics: dict[str, Any]) -> None:
    """Writes metrics.json."""
    write_json(path, metrics)


def check_output(path: Path) -> None:
    """Raises a UserError where `path` is a file that evaluate did not write."""
    try:
        ours = not path.exists() or "tolerance_mm" in read_json(path)
    except UserError:
        ours = False
    if not ours:
        raise UserError(f"--output={path}: is there, and no metrics of this command; give another")


def described(*folders: Path) -> tuple[dict[int, str], int | None]:
    """Names of label values, and the ignored value, from the first dataset.json in or above these.

    Raises:
      UserError: it is damaged.
    """
    places = [place / "dataset.json" for folder in folders for place in (folder, folder.parent)]
    for path in (place for place in places if place.is_file()):
        description = read_json(path)
        try:
            if isinstance(description["labels"], list):  # of a prepared dataset
                return dict(enumerate(description["labels"], start=1)), IGNORED
            if any(isinstance(value, list) for value in description["labels"].values()):
                return {}, None  # of regions, its masks' own values are scored
            values = label_values(description)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: not a dataset.json with labels") from error
        ignored = values.pop("ignore", None)
        return {value: name for name, value in values.items() if value != 0}, ignored
    return {}, None
