"""Prepared cases on disk, memory-mapped.

    PREPARED/plan.json
    PREPARED/DATASET/dataset.json         labels or regions, folds, whether synthetic
    PREPARED/DATASET/cases/CASE/          image.npy, label.npy, foreground.npy, case.json
    PREPARED/DATASET/references/CASE.nii.gz   the label on the scan's own grid

A case appears under its name only when it is whole: it is written beside it and renamed. case.json
keeps digests of its arrays and of its reference, so that what changed since is found.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from covid_jax.config import LAYOUTS, as_tuple
from covid_jax.data.geometry import NiftiHeader, Volume
from covid_jax.data.preprocess import Geometry, PreparedCase
from covid_jax.data.processes import each
from covid_jax.data.raw import RawDataset, Split
from covid_jax.data.volume import write_volume
from covid_jax.errors import UserError, writing
from covid_jax.files import digest, read_json, write_json
from covid_jax.label_space import CLASSES, IGNORED, OUTSIDE, LabelSpace, lies_in

_OF_SYSTEMS = {"@eaDir", "Thumbs.db", "desktop.ini"}  # beside those that begin with a dot
_FILES = {"case.json", "image.npy", "label.npy", "foreground.npy"}
_FOREGROUND_PER_CLASS = 10_000  # nnU-Net's number of voxels kept to centre patches on
_ANNOTATED = 0  # in place of a class: of any, the background among them


@dataclass(frozen=True)
class StoredCase:
    """A prepared case; its arrays are read from disk as they are used, in whatever process.

    Attributes:
      folder: of its files; has the case's name.
      image: (D, H, W, C) float32.
      label: (D, H, W) uint8, with OUTSIDE for background that masked channels do not show.
      foreground: of each class or region that the case has, voxels (n, 3) of it, at most 10,000.
      geometry: the way back to the scan's own grid.
      annotated: at most 10,000 voxels (n, 3) that are not to be ignored, background among them;
        None where the dataset has no label to ignore.
    """

    folder: Path
    image: np.ndarray
    label: np.ndarray
    foreground: tuple[np.ndarray, ...]
    geometry: Geometry
    annotated: np.ndarray | None = None

    def __reduce__(self) -> tuple[Callable[[Path], "StoredCase"], tuple[Path]]:
        """Another process maps the files again; numpy would send it a copy of the voxels."""
        return open_case, (self.folder,)


@dataclass(frozen=True)
class StoredDataset:
    """What dataset.json says."""

    name: str
    folder: Path
    label_space: LabelSpace
    splits: tuple[Split, ...]
    synthetic: bool
    licence: str = ""
    channels: tuple[str, ...] = ()  # as dataset.json calls them; of before it was kept: none
    file_ending: str = ".nii.gz"  # of the raw scans; likewise

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of its classes or regions."""
        return self.label_space.names

    @property
    def references(self) -> Path:
        """The folder of the labels on their scans' own grids."""
        return self.folder / "references"

    def reference(self, case: str) -> Path:
        """The file of a case's label on its scan's own grid."""
        return _reference(self.folder, case)

    def split(self, fold: int) -> Split:
        """The cases of a fold. A dataset with one split has it in every fold.

        Raises:
          UserError: there is no such fold, or it lacks cases to train or test on.
        """
        fold = 0 if len(self.splits) == 1 else fold
        if fold >= len(self.splits):
            last = len(self.splits) - 1
            raise UserError(f"config.fold={fold}: {self.name} has folds 0 to {last}")
        split = self.splits[fold]
        if not (split.train and split.test):
            raise UserError(f"config.fold={fold}: {self.name} lacks its cases to train or test on")
        return split


def save_case(
    folder: Path,
    name: str,
    case: PreparedCase,
    reference: Volume,
    facts: dict[str, Any],
    label_space: LabelSpace = CLASSES,
) -> None:
    """Writes a case of the dataset in `folder`, whole or not at all.

    `facts` is kept in case.json: the plan's hash, what raw files it came from (source), and what
    was mended; and digests of the arrays and of the reference. A case that was there is removed
    before its reference is written over: no stop leaves one with the other's.
    """
    assert case.label is not None
    final, label_file = folder / "cases" / name, _reference(folder, name)
    partial = folder / "cases" / f".partial-{name}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with writing(final):
            partial.mkdir(parents=True)
            # One channel is stored as it was before there were several.
            image = case.image[..., 0] if case.image.shape[-1] == 1 else case.image
            np.save(partial / "image.npy", image)
            np.save(partial / "label.npy", case.label)
            foreground = _foreground(case.label, label_space)
            np.save(partial / "foreground.npy", foreground)
            geometry = dataclasses.asdict(case.geometry)
            of_arrays = _digest(geometry, image, case.label, foreground)
            shutil.rmtree(final, ignore_errors=True)
            write_volume(label_file, reference)
            known = {"geometry": geometry, "sha256": of_arrays, "reference": digest([label_file])}
            text = json.dumps({**facts, **known}, indent=1)
            (partial / "case.json").write_text(text + "\n")
            os.replace(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def facts_of(folder: Path, processes: int = 1) -> dict[str, dict[str, Any]]:
    """What is known of each case of the dataset in `folder`, by its name; of a damaged one nothing.

    {"plan", "source", "notes", ...}: save_case's facts, and the case's geometry and digests. All
    files are read and compared with the digests, as many cases at once as there are `processes`.

    Raises:
      UserError: there is something that prepare did not write.
    """
    description = folder / "dataset.json"
    if description.is_file() and not {"splits", "plan"} & read_json(description).keys():
        raise UserError(f"{description}: is of no prepared dataset; give another --out_dir")
    cases = [c for c in sorted((folder / "cases").glob("[!.]*")) if c.name not in _OF_SYSTEMS]
    for case in cases:
        if not case.is_dir() or not {file.name for file in case.glob("[!.]*")} <= _FILES:
            raise UserError(f"{case}: prepare did not write this; give another --out_dir")
    if not cases:
        return {}
    facts = each(_facts, cases, processes, f"prepared cases of {folder.name}")
    return dict(zip((case.name for case in cases), facts, strict=True))


def _facts(case: Path) -> dict[str, Any]:
    """Of a case whose files are all there and are those that were written."""
    try:
        facts = read_json(case / "case.json")
        open_case(case, verified=True)
    except UserError:  # damaged: the case is prepared again
        return {}
    source = facts.get("source")
    is_sound = isinstance(source, dict) and {"image", "label"} <= source.keys()
    has_reference = _reference(case.parent.parent, case.name).is_file()
    sound = {"source": source if is_sound else None, "read_as": str(facts.get("read_as", ""))}
    return facts | sound if has_reference else {}


def folds_of(folder: Path) -> tuple[Split, ...]:
    """The folds of the prepared dataset in `folder`; none where there is no dataset.json.

    Raises:
      UserError: it is damaged.
    """
    path = folder / "dataset.json"
    try:
        return _splits(read_json(path).get("splits", []))
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        raise UserError(f"{path}: damaged; delete it, and prepare the data again") from error


def remove_case(folder: Path, name: str) -> None:
    """Removes a case from the dataset in `folder`."""
    shutil.rmtree(folder / "cases" / name)
    _reference(folder, name).unlink(missing_ok=True)


def load_case(dataset: StoredDataset, name: str) -> StoredCase:
    """The prepared case of this name; its files are read once and compared with its digests.

    Its reference is among them, so that no test is scored against another one.

    Raises:
      UserError: it is missing or damaged.
    """
    return open_case(dataset.folder / "cases" / name, verified=True)


def open_case(folder: Path, verified: bool = False) -> StoredCase:
    """Opens the prepared case in `folder`; `verified` as load_case does. Raises as load_case."""
    damaged = f"{folder}: missing or damaged case; prepare the data again"
    try:
        facts = json.loads((folder / "case.json").read_text())
        image = np.load(folder / "image.npy", mmap_mode="r")
        label = np.load(folder / "label.npy", mmap_mode="r")
        foreground = np.load(folder / "foreground.npy")
        of_arrays, geometry = facts["sha256"], _geometry(facts["geometry"])
    except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError) as error:
        raise UserError(damaged) from error
    if verified and _digest(facts["geometry"], image, label, foreground) != of_arrays:
        raise UserError(f"{damaged} (its files are not those that were written)")
    if verified and "reference" in facts:  # it had no digest before
        _check_reference(_reference(folder.parent.parent, folder.name), facts["reference"])
    voxels = {
        value: foreground[foreground[:, 0] == value, 1:] for value in np.unique(foreground[:, 0])
    }
    annotated = voxels.pop(_ANNOTATED, None)
    image = image.reshape(*label.shape, -1)
    return StoredCase(folder, image, label, tuple(voxels.values()), geometry, annotated)


def _check_reference(path: Path, known: str) -> None:
    if not path.is_file() or digest([path]) != known:
        raise UserError(f"{path}: is not the label that prepare wrote; prepare the data again")


@dataclass(frozen=True)
class Digests:
    """What tells a prepared case from others; "" where it is from before that was kept.

    Attributes:
      arrays: of image, label and foreground, as they are prepared.
      reference: of the file of its label on its scan's own grid.
      scan: of the raw files of its image.
    """

    arrays: str
    reference: str = ""
    scan: str = ""


def digests(dataset: StoredDataset) -> dict[str, Digests]:
    """Of each case that the dataset's folds name, what case.json says of its files.

    Raises:
      UserError: a case is missing, or from before there were digests.
    """
    names = {name for split in dataset.splits for name in split.cases}
    found = {}
    for name in sorted(names):
        path = dataset.folder / "cases" / name / "case.json"
        try:
            facts = json.loads(path.read_text())
            scan = (facts.get("source") or {}).get("image", "")
            found[name] = Digests(facts["sha256"], facts.get("reference", ""), scan)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: missing or damaged; prepare the data again") from error
    return found


def forget_dataset(folder: Path) -> None:
    """Removes dataset.json: the dataset no longer counts as prepared."""
    (folder / "dataset.json").unlink(missing_ok=True)


def save_dataset(folder: Path, raw: RawDataset, plan_hash: str) -> None:
    """Writes dataset.json, by which a dataset counts as prepared."""
    description = {
        "name": raw.name,
        "labels": raw.labels,
        **_more_of(raw.label_space),
        "splits": [dataclasses.asdict(split) for split in raw.splits],
        "synthetic": raw.synthetic,
        "licence": raw.licence,
        "channels": raw.channels,
        "file_ending": raw.file_ending,
        "plan": plan_hash,
    }
    write_json(folder / "dataset.json", description)


def load_dataset(prepared_dir: str | Path, name: str, plan_hash: str) -> StoredDataset:
    """Reads a prepared dataset. Raises a UserError where there is none, or by another plan."""
    folder = Path(prepared_dir) / name
    path = folder / "dataset.json"
    if not path.is_file():
        layout = name if name in LAYOUTS else f"nnunet --name={name}"
        raise UserError(
            f"{path}: no such file; run python -m covid_jax.prepare --dataset={layout} "
            f"--raw_dir=... --out_dir={prepared_dir}"
        )
    try:
        description = json.loads(path.read_text())
        splits = _splits(description["splits"])
        space, synthetic = prepared_labels(description), bool(description["synthetic"])
        licence, other = str(description.get("licence", "")), description["plan"] != plan_hash
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged; prepare the data again") from error
    if other:
        raise UserError(f"{folder}: prepared by another plan than plan.json; prepare it again")
    channels = tuple(map(str, description.get("channels", ())))
    ending = str(description.get("file_ending", StoredDataset.file_ending))
    return StoredDataset(name, folder, space, splits, synthetic, licence, channels, ending)


def _more_of(space: LabelSpace) -> dict[str, Any]:
    """What dataset.json says of labels beside their names, where there is more to say."""
    told: dict[str, Any] = {}
    if space.regions:
        told |= {"regions": space.regions, "regions_class_order": space.regions_class_order}
    return told | ({"ignored": IGNORED} if space.ignored is not None else {})


def prepared_labels(description: dict[str, Any]) -> LabelSpace:
    """What a prepared dataset's dataset.json says of its labels.

    Raises a KeyError or TypeError where it is none.
    """
    return LabelSpace(
        tuple(description["labels"]),
        as_tuple(description.get("regions", [])),
        tuple(description.get("regions_class_order", [])),
        description.get("ignored"),
    )


def _reference(folder: Path, name: str) -> Path:
    """The file of a case's label on its scan's own grid, of the dataset in `folder`."""
    return folder / "references" / f"{name}.nii.gz"


def _splits(told: Sequence[dict[str, Sequence[str]]]) -> tuple[Split, ...]:
    """What dataset.json says of the folds."""
    splits = tuple(Split(tuple(of["train"]), tuple(of["test"])) for of in told)
    for name in itertools.chain.from_iterable((*split.train, *split.test) for split in splits):
        if Path(name).name != name:
            raise ValueError(f"{name!r} is no name of a case")
    return splits


def _digest(geometry: dict[str, Any], *arrays: np.ndarray) -> str:
    """Of a case's geometry and arrays, with dtypes and shapes."""
    whole = hashlib.sha256(json.dumps(geometry, sort_keys=True).encode())
    for array in arrays:
        whole.update(f"{array.dtype} {array.shape}".encode())
        whole.update(np.ascontiguousarray(array).data)
    return whole.hexdigest()[:16]


def _foreground(label: np.ndarray, space: LabelSpace) -> np.ndarray:
    """(n, 4): class, d, h, w of at most 10,000 voxels of each class, or of each region.

    Regions are numbered from 1 in their order. Where the dataset has a label to ignore, voxels that
    do not have it come too, as _ANNOTATED (nnU-Net: class_locations in DefaultPreprocessor).
    """
    rng = np.random.default_rng(1234)
    rows = [np.zeros((0, 4), np.int32)]
    values = [int(value) for value in np.unique(label) if value not in (0, IGNORED, OUTSIDE)]
    groups = dict(enumerate(space.regions, start=1)) or {value: (value,) for value in values}
    if space.ignored is not None:
        groups[_ANNOTATED] = (0, OUTSIDE, *values)
    for number, group in groups.items():
        places = np.flatnonzero(lies_in(label, group))
        if len(places) > _FOREGROUND_PER_CLASS:
            places = places[rng.choice(len(places), _FOREGROUND_PER_CLASS, replace=False)]
        voxels = np.stack(np.unravel_index(places, label.shape), axis=1)
        rows.append(np.insert(voxels, 0, number, axis=1).astype(np.int32))
    return np.concatenate(rows)


def _geometry(known: dict[str, Any]) -> Geometry:
    """What case.json says; one from before headers were kept has none."""
    header = known.get("header")
    told = NiftiHeader(**{k: as_tuple(v) for k, v in header.items()}) if header else None
    return Geometry(**{k: as_tuple(v) for k, v in known.items()} | {"header": told})
