"""A raw dataset: its cases, its folds, and what its files are called."""

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import numpy as np

from covid_jax.data.normalization import scheme_of
from covid_jax.data.scans import ENDINGS
from covid_jax.errors import UserError, listed
from covid_jax.label_space import LabelSpace
from covid_jax.values import mapping, read, several, text

SYNTHETIC_MARKER = "SYNTHETIC.txt"
"""A raw folder that holds a file of this name is synthetic, and so is all that comes from it."""


@dataclass(frozen=True)
class Case:
    """One scan.

    Attributes:
      images: of each channel: a file, or a folder with a DICOM series.
    """

    name: str
    images: tuple[Path, ...]
    label: Path


@dataclass(frozen=True)
class Split:
    """Names of the cases to train on, and to test on."""

    train: tuple[str, ...]
    test: tuple[str, ...]

    @property
    def cases(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.train, *self.test)


@dataclass(frozen=True)
class RawDataset:
    """A raw dataset as it was found on disk.

    Attributes:
      cases: sorted by name.
      label_space: what the values of its labels are, as they are in the files.
      splits: the folds.
      synthetic: whether it was made by phantom.py.
      notes: what a user should know of it, such as cases of the split that are not there, and
        files that are not taken.
      folder: of the raw data.
      left_out: cases that are there and were taken out by `without`.
      licence: of its scans; empty where nothing is known of it.
      file_ending: of its scans, as dataset.json says.
      channels: what the images are, as dataset.json says.
      planned_schemes: how they are normalised by a plan that is taken as it is, whatever they are
        called; empty without one.
      intensities: how the values of CT are read (intensities.read_as).
    """

    name: str
    cases: tuple[Case, ...]
    label_space: LabelSpace
    splits: tuple[Split, ...]
    synthetic: bool
    notes: tuple[str, ...] = ()
    channels: tuple[str, ...] = ("CT",)
    planned_schemes: tuple[str, ...] = ()
    intensities: str = "auto"
    folder: Path = Path()
    left_out: frozenset[str] = frozenset()
    licence: str = ""
    file_ending: str = ENDINGS[0]

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of its classes or regions."""
        return self.label_space.names

    @property
    def schemes(self) -> tuple[str, ...]:
        """How each channel is normalised (normalization.SCHEMES)."""
        return self.planned_schemes or tuple(map(scheme_of, self.channels))

    def without(self, names: Collection[str]) -> "RawDataset":
        """The dataset without some of its cases, in its folds too."""

        def rest(cases: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(case for case in cases if case not in names)

        return replace(
            self,
            cases=tuple(case for case in self.cases if case.name not in names),
            left_out=self.left_out | frozenset(names),
            splits=tuple(Split(rest(split.train), rest(split.test)) for split in self.splits),
        )


def published_splits(name: str) -> tuple[Split, ...]:
    """The benchmark's folds of a dataset (Ma et al. 2020, arXiv 2004.12537)."""
    text = resources.files("covid_jax.data").joinpath("splits", f"{name}.json").read_text()
    return tuple(Split(tuple(fold["train"]), tuple(fold["test"])) for fold in json.loads(text))


def cross_validation(names: list[str]) -> tuple[Split, ...]:
    """nnU-Net's five folds of `names` (generate_crossval_split): shuffled with its seed."""
    order = np.arange(len(names))
    np.random.RandomState(12345).shuffle(order)
    return tuple(
        Split(
            tuple(names[i] for i in sorted(set(order) - set(test))),
            tuple(names[i] for i in sorted(test)),
        )
        for test in np.array_split(order, min(5, len(names)))
    )


def with_splits(raw: RawDataset, path: Path) -> RawDataset:
    """The dataset with the folds of a file like nnU-Net's splits_final.json.

    Its validation cases are those that are tested on, as in cross_validation.

    Raises:
      UserError: it is none, or names a case that is not there.
    """
    names = several(text)
    try:
        folds = several(mapping)(json.loads(path.read_text("utf-8-sig")))
        splits = tuple(
            Split(*(read(fold, part, names, whose=f"fold {number}:") for part in ("train", "val")))
            for number, fold in enumerate(folds)
        )
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, UserError) as error:
        raise UserError(
            f"{path}: is no list of folds, each with the names of cases under train and val "
            f"({error})"
        ) from error
    here, told = {case.name for case in raw.cases}, {n for split in splits for n in split.cases}
    if not splits or (missing := told - here):
        what = f"names cases that are not there: {listed(missing)}" if splits else "has no fold"
        raise UserError(f"{path}: {what}")
    for number, split in enumerate(splits):
        if both := {*split.train} & {*split.test}:
            raise UserError(f"{path}: fold {number} trains and tests on {listed(both)}")
    notes = not_taken(f"to train or test on, as {path.name} has it", here - told)
    return replace(raw, splits=splits, notes=(*raw.notes, *notes))


def is_synthetic(raw_dir: Path) -> bool:
    """Whether the folder says that its scans were made by phantom.py."""
    return (raw_dir / SYNTHETIC_MARKER).is_file()


def not_taken(what: str, names: Iterable[str]) -> list[str]:
    """A line on what of a folder is not taken; none where there is nothing."""
    names = list(names)
    return [f"{len(names)} not taken, {what}: {listed(names)}"] if names else []
