"""Runs that predict together, as nnU-Net's folds do; one alone is an ensemble of one."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from covid_jax.config import Config, to_dict
from covid_jax.data.geometry import Volume
from covid_jax.data.plan import Plan
from covid_jax.data.preprocess import as_volume, prepare_case
from covid_jax.errors import UserError
from covid_jax.inference.postprocess import Postprocessing, load_postprocessing, mask_of
from covid_jax.inference.scan import Predictor, make_ensemble
from covid_jax.label_space import LabelSpace
from covid_jax.training.platform import platform_here
from covid_jax.training.pretrained import load_run


@dataclass(frozen=True)
class Ensemble:
    """What predicts masks.

    Attributes:
      plan: that the runs share.
      num_classes: of their probabilities, background included where it is one.
      label_space: what these channels are.
      predict: the probabilities of their mean (make_ensemble).
      postprocessing: from those to a mask.
      digest: of all that a mask depends on but the scan: parameters and settings.
      notes: what a user should know.
    """

    plan: Plan
    num_classes: int
    label_space: LabelSpace
    predict: Predictor
    postprocessing: Postprocessing
    digest: str
    notes: tuple[str, ...]


def open_ensemble(
    workdirs: Sequence[str | Path],
    mirror: bool | None = None,
    intensities: str = "auto",
) -> Ensemble:
    """The runs in these folders as one, the same in whatever order they are given.

    They predict on this process's own device.

    Args:
      mirror: whether they average over mirrored views; None: as each run says.
      intensities: how the values of scans will be read, which masks depend on.

    Raises:
      UserError: a folder is no run; runs of different plans, numbers of classes or regions.
    """
    runs = [load_run(workdir) for workdir in workdirs]
    first, plan, _ = runs[0]
    for workdir, (config, other, _) in zip(workdirs, runs, strict=True):
        if other.hash != plan.hash or _channels(config) != _channels(first):
            raise UserError(
                f"{workdir}: another plan, number of classes or regions than {workdirs[0]}; "
                "only runs on the same prepared data can be averaged"
            )
        named, names = (one.label_space.names for one in (config, first))
        if named and names and named != names:
            raise UserError(
                f"{workdir}: segments {', '.join(named)}, and {workdirs[0]} {', '.join(names)}; "
                "only runs of the same labels can be averaged"
            )
    chosen: dict[Postprocessing, str | Path] = {}
    digests, notes = [], []
    for workdir, (config, _, params) in zip(workdirs, runs, strict=True):
        mirrors = config.inference.mirror if mirror is None else mirror
        if mirrors:
            views = 2 ** len(config.inference.mirror_axes)
            notes.append(
                f"{workdir}: averages over {views} mirrored views, in {views} times the time"
            )
        settings = json.dumps([to_dict(config), mirrors, plan.hash, intensities])
        digests.append(digest_of(settings, *jax.tree.leaves(params)))
        chosen[load_postprocessing(workdir, config.inference)] = workdir
    # The rounding of a mean depends on the order.
    in_order = [run for _, run in sorted(zip(digests, runs, strict=True), key=lambda one: one[0])]
    postprocessing = next(iter(chosen)) if len(chosen) == 1 else Postprocessing()
    if len(chosen) > 1:
        each = "; ".join(f"{workdir}: {asdict(one)}" for one, workdir in chosen.items())
        notes.append(f"the runs differ in how masks are made ({each}): by none of that here")
    return Ensemble(
        plan,
        first.model.num_classes,
        first.label_space,
        make_ensemble(in_order, mirror, platform_here()),
        postprocessing,
        digest_of(json.dumps([asdict(postprocessing), *sorted(digests)])),
        tuple(notes),
    )


def segment(ensemble: Ensemble, scan: Volume | Sequence[Volume]) -> Volume:
    """The mask of a scan, in memory: what `predict` writes of its file.

    Args:
      scan: of one channel (a CT in HU, as read_scan gives it), or its channels, on one grid.

    Returns:
      A Volume of uint8, (D, H, W), on the scan's own grid.

    Raises:
      UserError: another number of channels than the runs have, or values that they do not take.
    """
    count, wanted = 1 if isinstance(scan, Volume) else len(scan), len(ensemble.plan.schemes)
    if count != wanted:
        raise UserError(f"the scan has {count} channels, and the runs {wanted}")
    case = prepare_case(scan, None, ensemble.plan)
    mask = mask_of(
        ensemble.predict(case),
        case.geometry.shape,
        ensemble.postprocessing,
        ensemble.label_space,
    )
    return as_volume(mask, case.geometry)


def _channels(config: Config) -> tuple[Any, ...]:
    """What a network's channels are, whatever they are called."""
    space = config.label_space
    return config.model.num_classes, space.regions, space.regions_class_order


def digest_of(text: str, *arrays: np.ndarray) -> str:
    """Of settings, as text, and parameters: of all that masks depend on but their scans."""
    digest = hashlib.sha256(text.encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
