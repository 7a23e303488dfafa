"""The test cases of a study, as its prepared folder has them: the raw data may be gone."""

import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from covid_jax.config import Config
from covid_jax.data.geometry import Volume, from_file_axes, in_file_axes
from covid_jax.data.plan import Plan, Resampling, load_plan
from covid_jax.data.preprocess import as_volume, read_channels
from covid_jax.data.resample import resample
from covid_jax.data.scans import cases_in
from covid_jax.data.store import StoredCase, StoredDataset, load_case, load_dataset
from covid_jax.data.volume import read_volume
from covid_jax.errors import UserError
from covid_jax.label_space import LabelSpace, values_of


@dataclass(frozen=True)
class Case:
    """A scan to be shown.

    Attributes:
      channels: by their names; CT in HU, as far as it was prepared.
      reference: label values on the same grid, if it has one.
    """

    channels: dict[str, Volume]
    reference: Volume | None

    @property
    def scan(self) -> Volume:
        """The first channel, whose grid all share."""
        return next(iter(self.channels.values()))


ReadCase = Callable[[], Case]
"""Raises a UserError that names what is missing or damaged."""


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


def scan_at(study: Path, path: Path) -> tuple[str, Case]:
    """The one scan at a place that config.study.scans names, with its name. It has no reference."""
    plan = load_plan(study / "prepared" / "plan.json")
    scans, _ = cases_in(path, len(plan.normalization))
    name, files = next(iter(scans.items()))
    volumes, _ = read_channels(files, [how.scheme for how in plan.normalization], "auto")
    return name, Case(dict(zip(_channel_names(plan, ()), volumes, strict=True)), None)


def label_space_of(config: Config) -> LabelSpace:
    """What a run segments; classes that nobody named have names of their own."""
    space = config.label_space
    return space if space.names else LabelSpace(space.names_of(config.model.num_classes))


def labels_of(space: LabelSpace) -> dict[str, tuple[int, ...]]:
    """The label values of each class, or region, by its name."""
    return {name: values_of(label) for label, name in space.scored.items()}


def value_names(space: LabelSpace) -> dict[int, str]:
    """How each label value is called in a mask; of regions, by the one that writes it.

    So where regions lie in each other, a value is the innermost one there.
    """
    if not space.regions:
        return dict(zip(space.values, space.names, strict=True))
    written = dict(zip(space.regions_class_order, space.names, strict=True))
    return {value: written.get(value, f"label {value}") for value in space.values}


def _read(dataset: StoredDataset, name: str, plan: Plan) -> Case:
    stored = load_case(dataset, name)
    channels = {
        channel: _restored(stored, plan, number)
        for number, channel in enumerate(_channel_names(plan, dataset.channels))
    }
    case = Case(channels, read_volume(dataset.reference(name)))
    assert case.reference
    if case.reference.voxels.shape != case.scan.voxels.shape:
        raise UserError(f"{dataset.reference(name)}: on another grid than its case")
    return case


def _channel_names(plan: Plan, names: Sequence[str]) -> list[str]:
    """Each another one: as the dataset calls them, or by how they are normalised."""
    names = plan.channel_names(names)
    return [
        name if names.count(name) == 1 else f"{name} {number}"
        for number, name in enumerate(names, start=1)
    ]


def _restored(case: StoredCase, plan: Plan, channel: int) -> Volume:
    """A channel on its scan's own grid, CT in HU; around its crop the lowest value."""
    geometry = case.geometry
    size = tuple(stop - start for start, stop in geometry.box)
    how = plan.normalization[channel]  # mean 0 and deviation 1 where it is no CT
    values = np.asarray(case.image[..., channel]) * how.std + how.mean
    full = np.full(geometry.shape, how.lower if how.is_ct else values.min(), np.float32)
    inside = tuple(slice(*side) for side in geometry.box)
    full[inside] = resample(values, size, plan.spacing_mm, geometry.spacing_mm, Resampling(order=1))
    volume = as_volume(full, geometry)
    return from_file_axes(in_file_axes(volume), volume.file_affine)  # as masks are read
