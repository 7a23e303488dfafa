"""The test of a run: the masks of its fold's test cases, and their metrics."""

import itertools
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from covid_jax.config import Config, to_dict
from covid_jax.data.geometry import turned_like
from covid_jax.data.plan import Plan
from covid_jax.data.preprocess import Geometry, Piece, PreparedCase, as_volume, gathered
from covid_jax.data.scans import ending, stem, visible, voxel_files
from covid_jax.data.store import StoredDataset, digests, load_case
from covid_jax.data.volume import read_volume
from covid_jax.errors import listed, writing
from covid_jax.evaluation.folders import evaluate_folders, save_metrics
from covid_jax.evaluation.metrics import dice
from covid_jax.inference.ensemble import digest_of
from covid_jax.inference.masks import Origin, origin_of, write_mask
from covid_jax.inference.postprocess import (
    Postprocessing,
    load_postprocessing,
    mask_of,
    save_postprocessing,
    to_mask,
)
from covid_jax.inference.scan import make_predictor
from covid_jax.label_space import CLASSES, IGNORED, LabelSpace
from covid_jax.training.platform import Platform

_ENDING = ".nii.gz"
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

    Masks in predictions/ that somebody made or corrected are moved to predictions_kept/ before.
    `platform` is that of one device.

    Returns:
      the content of metrics.json
    """
    predict = make_predictor(config, plan, params, config.inference.mirror, platform)
    folder, space = workdir / "predictions", config.label_space
    split = dataset.split(config.fold)

    def predicted(name: str) -> tuple[Iterator[Piece], Geometry]:
        case = load_case(dataset, name)
        return predict(PreparedCase(case.image, None, case.geometry)), case.geometry

    def compared(name: str) -> tuple[np.ndarray, np.ndarray]:
        pieces, geometry = predicted(name)
        probabilities = gathered(pieces, geometry, space)
        reference = read_volume(dataset.reference(name))
        # The plan's axes need not be the Volume's.
        return probabilities, turned_like(reference, as_volume(probabilities[0], geometry)).voxels

    if config.inference.choose:
        save_postprocessing(workdir, choose((compared(name) for name in split.train), space))
    postprocessing = load_postprocessing(workdir, config.inference)
    keep_others(folder, workdir / "predictions_kept")
    settings = json.dumps([to_dict(config), plan.hash, asdict(postprocessing)])
    run, scans = digest_of(settings, *jax.tree.leaves(params)), digests(dataset)
    for name in tqdm(split.test, "testing", unit="case", mininterval=1, disable=None):
        pieces, geometry = predicted(name)
        mask = mask_of(pieces, geometry.shape, postprocessing, space)
        origin = Origin(run, scans[name].arrays)
        write_mask(folder / f"{name}{_ENDING}", as_volume(mask, geometry), origin)
    metrics = evaluate_folders(
        folder,
        dataset.references,
        labels=dataset.label_space.scored,
        ignored=IGNORED,
        cases=split.test,  # of a test before, with other cases, masks may be there
    )
    save_metrics(workdir / "metrics.json", metrics)
    return metrics


def keep_others(folder: Path, kept: Path) -> None:
    """Moves masks that this program did not write, or that were changed since, and says so.

    They go from `folder` to `kept`, or where that holds one of their names to kept_2, and so on.
    """
    entries = visible(folder) if folder.is_dir() else []
    files = [path for path in entries if path.is_file() and ending(path) == _ENDING]
    ours = {path for path in files if origin_of(path)}
    theirs = [path for path in entries if ending(path) and path not in ours]
    data_of_mhd = voxel_files(map(stem, theirs))
    theirs += [path for path in entries if path.name in data_of_mhd]
    if not theirs:
        return
    numbered = (kept.with_name(f"{kept.name}_{number}") for number in itertools.count(2))
    places = itertools.chain([kept], numbered)
    place = next(p for p in places if not any(os.path.lexists(p / path.name) for path in theirs))
    with writing(place):
        place.mkdir(parents=True, exist_ok=True)
        for path in theirs:
            path.rename(place / path.name)
    names = listed(path.name for path in theirs)
    print(f"{folder}: not written by this program, or changed since, kept in {place}: {names}")


def choose(
    cases: Iterable[tuple[np.ndarray, np.ndarray]], label_space: LabelSpace = CLASSES
) -> Postprocessing:
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
        masks = (to_mask(probabilities, one, label_space) > 0 for one in candidates)
        scores.append([dice(mask & counted, (reference > 0) & counted) for mask in masks])
    return candidates[int(np.mean(scores, axis=0).argmax())]
