"""The test of a run: the masks of its fold's test cases, and their metrics."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from covid_jax.config import IGNORED, Config
from covid_jax.data.geometry import turned_like
from covid_jax.data.plan import Plan
from covid_jax.data.preprocess import Geometry, Piece, PreparedCase, as_volume, gathered
from covid_jax.data.store import StoredDataset, load_case
from covid_jax.data.volume import read_volume, write_volume
from covid_jax.evaluation.folders import evaluate_folders, save_metrics
from covid_jax.evaluation.metrics import dice
from covid_jax.inference.postprocess import (
    Postprocessing,
    load_postprocessing,
    mask_of,
    save_postprocessing,
    to_mask,
)
from covid_jax.inference.scan import make_predictor
from covid_jax.training.platform import Platform

_THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


def score_run(
    config: Config,
    plan: Plan,
    dataset: StoredDataset,
    params: Any,
    workdir: Path,
    platform: Platform,
) -> dict[str, Any]:
    """Predicts the fold's test cases as predict would; writes predictions/ and metrics.json.

    `platform` is that of one device.

    Returns:
      the content of metrics.json
    """
    predict = make_predictor(config, plan, params, config.inference.mirror, platform)
    folder = workdir / "predictions"
    split = dataset.split(config.fold)

    def predicted(name: str) -> tuple[Iterator[Piece], Geometry]:
        case = load_case(dataset, name)
        return predict(PreparedCase(case.image, None, case.geometry)), case.geometry

    def compared(name: str) -> tuple[np.ndarray, np.ndarray]:
        pieces, geometry = predicted(name)
        probabilities = gathered(pieces, geometry)
        reference = read_volume(dataset.reference(name))
        # The plan's axes need not be the Volume's.
        return probabilities, turned_like(reference, as_volume(probabilities[0], geometry)).voxels

    if config.inference.choose:
        selected_by = split.validation or split.train
        save_postprocessing(workdir, choose(compared(name) for name in selected_by))
    postprocessing = load_postprocessing(workdir, config.inference)
    for name in tqdm(split.test, "testing", unit="case", mininterval=1):
        pieces, geometry = predicted(name)
        mask = mask_of(pieces, geometry.shape, postprocessing)
        write_volume(folder / f"{name}.nii.gz", as_volume(mask, geometry))
    metrics = evaluate_folders(
        folder,
        dataset.references,
        labels=dict(enumerate(dataset.labels, start=1)),
        ignored=IGNORED,
        cases=split.test,  # of a test before, with other cases, masks may be there
    )
    save_metrics(workdir / "metrics.json", metrics)
    return metrics


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
