"""The test cases of a study, as its prepared folder has them: the raw data may be gone."""

import functools
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from covid_jax.config import IGNORED, Config
from covid_jax.data.geometry import Volume, from_file_axes, in_file_axes
from covid_jax.data.plan import Plan, Resampling, load_plan
from covid_jax.data.preprocess import as_volume
from covid_jax.data.resample import resample
from covid_jax.data.store import StoredCase, StoredDataset, load_case, load_dataset
from covid_jax.data.volume import read_volume
from covid_jax.errors import UserError

ReadCase = Callable[[], tuple[Volume, Volume]]
"""Reads a scan's first channel (CT in HU, as far as it was prepared) and its reference.

Both are on the scan's own grid.
"""


def stored_cases(
    study: Path, config: Config, names: Collection[str], problems: list[str]
) -> dict[str, ReadCase]:
    """How to read each of the cases `names` of the target; what is not there joins the problems."""
    found: dict[str, ReadCase] = {}
    try:
        plan = load_plan(study / "prepared" / "plan.json")
        for name in config.data.datasets:
            dataset = load_dataset(study / "prepared", name, plan.hash)
            for split in dataset.splits:
                for case in (*split.train, *split.test):
                    found.setdefault(case, functools.partial(_read, dataset, case, plan))
    except UserError as error:
        problems.append(f"pictures of cases: {error}")
    if found and (lost := sorted(names - found.keys())):
        problems.append(f"pictures of cases: {', '.join(lost)} are not in STUDY/prepared")
    return {case: found[case] for case in sorted(found.keys() & names)}


def lesions(mask: Volume) -> np.ndarray:
    """(D, H, W) bool: the voxels of any lesion."""
    return (mask.voxels > 0) & (mask.voxels != IGNORED)


def _read(dataset: StoredDataset, name: str, plan: Plan) -> tuple[Volume, Volume]:
    """Raises a UserError that names what is missing or damaged."""
    scan = _restored(load_case(dataset, name), plan)
    reference = read_volume(dataset.reference(name))
    if reference.voxels.shape != scan.voxels.shape:
        raise UserError(f"{dataset.reference(name)}: on another grid than its case")
    return scan, reference


def _restored(case: StoredCase, plan: Plan) -> Volume:
    """The first channel on its scan's own grid, CT in HU; around its crop the lowest value."""
    geometry = case.geometry
    size = tuple(stop - start for start, stop in geometry.box)
    how = plan.normalization[0]  # mean 0 and deviation 1 where it is no CT
    values = np.asarray(case.image[..., 0]) * how.std + how.mean
    full = np.full(geometry.shape, how.lower if how.is_ct else values.min(), np.float32)
    inside = tuple(slice(*side) for side in geometry.box)
    full[inside] = resample(values, size, plan.spacing_mm, geometry.spacing_mm, Resampling(order=1))
    volume = as_volume(full, geometry)
    return from_file_axes(in_file_axes(volume), volume.file_affine)  # as masks are read
