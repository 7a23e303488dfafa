"""Metrics of a folder of masks against a folder of references."""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from covid_jax.config import IGNORED
from covid_jax.data.processes import each
from covid_jax.data.volume import read_volume, scans_in
from covid_jax.errors import UserError
from covid_jax.evaluation.metrics import segmentation_metrics, summarise
from covid_jax.files import write_json

_EMPTY = {(True, True): "both masks", (True, False): "prediction", (False, True): "reference"}


def evaluate_folders(
    predictions: Path,
    references: Path,
    label: int = 1,
    tolerance_mm: float = 3.0,
    processes: int = 1,
) -> dict[str, Any]:
    """The content of metrics.json for every mask in `predictions`.

    Raises:
      UserError: a prediction without a reference, or on another grid.
    """
    masks, truths = scans_in(predictions), scans_in(references)
    if missing := sorted(masks.keys() - truths.keys()):
        raise UserError(f"{references}: no reference for {', '.join(missing)}")
    score = functools.partial(_score, label=label, tolerance_mm=tolerance_mm)
    pairs = [(path, truths[name]) for name, path in masks.items()]
    scored = dict(zip(masks, each(score, pairs, processes, "evaluating"), strict=True))
    empty = {name: which for name, (_, which) in scored.items() if which}
    return summarise({name: case for name, (case, _) in scored.items()}, empty, tolerance_mm)


def _score(
    paths: tuple[Path, Path], label: int, tolerance_mm: float
) -> tuple[dict[str, float | None], str | None]:
    """The metrics of one mask, and which of both is empty."""
    mask, truth = map(read_volume, paths)
    if mask.voxels.shape != truth.voxels.shape or not np.allclose(
        mask.affine, truth.affine, atol=1e-2
    ):
        raise UserError(f"{paths[0]}: lies on another grid than {paths[1]}")
    prediction = (mask.voxels == label) & (truth.voxels != IGNORED)
    reference = truth.voxels == label
    which = _EMPTY.get((not prediction.any(), not reference.any()))
    return segmentation_metrics(prediction, reference, truth.spacing_mm, tolerance_mm), which


def save_metrics(path: Path, metrics: dict[str, Any]) -> None:
    """Writes metrics.json."""
    write_json(path, metrics)
