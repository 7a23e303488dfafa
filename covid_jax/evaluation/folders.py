"""Metrics of a folder of masks against a folder of references."""

from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from covid_jax.config import IGNORED
from covid_jax.data.volume import read_volume, scans_in, write_json
from covid_jax.errors import UserError
from covid_jax.evaluation.metrics import segmentation_metrics, summarise


def evaluate_folders(
    predictions: Path, references: Path, label: int = 1, tolerance_mm: float = 3.0
) -> dict[str, Any]:
    """The content of metrics.json for every mask in `predictions`.

    Raises:
      UserError: a prediction without a reference, or on another grid.
    """
    masks, truths = scans_in(predictions), scans_in(references)
    if missing := sorted(masks.keys() - truths.keys()):
        raise UserError(f"{references}: no reference for {', '.join(missing)}")
    cases = {}
    for name, path in tqdm(masks.items(), "evaluating", unit="case", mininterval=1):
        mask, truth = read_volume(path), read_volume(truths[name])
        if mask.voxels.shape != truth.voxels.shape or not np.allclose(
            mask.affine, truth.affine, atol=1e-2
        ):
            raise UserError(f"{path}: lies on another grid than {truths[name]}")
        cases[name] = segmentation_metrics(
            (mask.voxels == label) & (truth.voxels != IGNORED),
            truth.voxels == label,
            truth.spacing_mm,
            tolerance_mm,
        )
    return summarise(cases, tolerance_mm)


def save_metrics(path: Path, metrics: dict[str, Any]) -> None:
    """Writes metrics.json."""
    write_json(path, metrics)
