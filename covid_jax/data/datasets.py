"""What each raw dataset looks like on disk. A new dataset is a function and its Dataset here.

Such a function maps a folder to a RawDataset: where the image and the label of each case lie,
which label values it uses, and how its cases are split into training and test cases.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from covid_jax.data.raw import (
    SYNTHETIC_MARKER,
    Case,
    RawDataset,
    Split,
    cross_validation,
    is_synthetic,
    not_taken,
    published_splits,
    with_splits,
)
from covid_jax.data.scans import ENDINGS, channels_of, ending, files_in
from covid_jax.errors import UserError, listed
from covid_jax.files import read_json
from covid_jax.label_space import OUTSIDE, LabelSpace, label_space, unlike_nnunet
from covid_jax.values import mapping, maybe, read, several, text, whole

READERS = {
    "SimpleITKIO": False,
    "NibabelIO": False,
    "SimpleITKIOWithReorient": True,
    "NibabelIOWithReorient": True,
}
"""nnU-Net's readers of medical files, and whether they turn the scan."""


def covid19(raw_dir: Path) -> RawDataset:
    """COVID-19-CT-Seg (Zenodo 3757476), unpacked: images and infection masks; 5 folds of 4/16."""
    images = _folder(raw_dir, "COVID-19-CT-Seg_20cases")
    masks = _folder(raw_dir, "Infection_Mask")
    cases, notes = _pairs(*_of_one_channel(images), masks)
    return _with_published_splits("covid19", raw_dir, cases, ("infection",), notes)


def msd_lung(raw_dir: Path) -> RawDataset:
    """Medical Segmentation Decathlon, Task06_Lung: 1 = cancer."""
    images, labels = _folder(raw_dir, "imagesTr"), _folder(raw_dir, "labelsTr")
    cases, notes = _pairs(*_of_one_channel(images), labels)
    return _with_published_splits("msd_lung", raw_dir, cases, ("lung cancer",), notes)


def structseg_gtv(raw_dir: Path) -> RawDataset:
    """StructSeg 2019, lung cancer: folder N holds data.nii.gz and label.nii.gz (1 = GTV)."""
    cases = [
        Case(f"train_{image.parent.name}", (image,), image.with_name("label.nii.gz"))
        for image in raw_dir.glob("*/data.nii.gz")
    ]
    taken = {case.label.parent for case in cases}
    marker = raw_dir / SYNTHETIC_MARKER
    notes = not_taken(
        "no folder with data.nii.gz",
        (path.name for path in raw_dir.iterdir() if path not in {*taken, marker}),
    )
    return _with_published_splits("structseg_gtv", raw_dir, cases, ("gross tumour volume",), notes)


def nsclc_effusion(raw_dir: Path) -> RawDataset:
    """NSCLC-Radiomics as DICOM with pleural effusion masks as NIfTI.

    A patient's folder is called LUNG1-NNN, at any depth. A mask's file name carries that id and
    "effusion"; of two reviewers' masks the first one's counts.
    """
    patients: dict[str, Path] = {}
    for folder in sorted(raw_dir.rglob("LUNG1-[0-9]*")):
        if folder.is_dir() and patients.setdefault(folder.name, folder) not in (
            folder,
            *folder.parents,
        ):
            raise UserError(
                f"{folder}: the patient has another folder, {patients[folder.name]}; keep one"
            )
    masks: dict[str, Path] = {}
    others = []
    files = [path for path in raw_dir.rglob("*") if path.is_file() and ending(path)]
    for mask in sorted(files, key=lambda path: ("first" not in path.name.lower(), path)):
        patient = re.search(r"LUNG1-\d+", mask.name)
        of_effusion = patient and "effusion" in mask.name.lower() and mask.name[0] != "."
        if not (patient and of_effusion and masks.setdefault(patient[0], mask) == mask):
            others.append(mask.name)
    cases = [
        Case(name, (folder,), masks[name]) for name, folder in patients.items() if name in masks
    ]
    notes = [
        *not_taken("patients without a mask of an effusion", patients.keys() - masks.keys()),
        *not_taken("masks without their patient", masks.keys() - patients.keys()),
        *not_taken("files that are no first mask of an effusion", others),
    ]
    return _with_published_splits("nsclc_effusion", raw_dir, cases, ("pleural effusion",), notes)


def nnunet(raw_dir: Path) -> RawDataset:
    """Any nnU-Net raw dataset, of one or several channels, with nnU-Net's own folds.

    Or with those of a splits_final.json beside its dataset.json.
    """
    description = raw_dir / "dataset.json"
    if not description.is_file():
        raise UserError(f"{description}: missing; an nnU-Net raw dataset has one")
    content = read_json(description)
    _refuse_names_twice(description)
    try:
        space, channels = label_space(content), _channels(content)
        file_ending = read(content, "file_ending", text, ENDINGS[0])
        expected = read(content, "numTraining", maybe(whole), None)
        reader = read(content, "overwrite_image_reader_writer", maybe(text), None) or "None"
    except UserError as error:
        raise UserError(f"{description}: {error}") from error
    if not file_ending.lower().endswith(ENDINGS):
        raise UserError(
            f"{description}: its scans are {file_ending} files, which are not read; convert them "
            f"to one of {', '.join(ENDINGS)}"
        )
    if reader not in {*READERS, "None"}:
        supported = ", ".join(READERS)
        raise UserError(f"{description}: its images are read by {reader}; supported: {supported}")
    if len(space.values) >= OUTSIDE:
        raise UserError(f"{description}: {len(space.values)} labels; at most {OUTSIDE - 1} work")
    notes = [f"{description}: {line}" for line in unlike_nnunet(content)]
    if "dataset" in content:
        cases, of_files = _named_cases(description, content, len(channels))
    else:
        images, masks = _folder(raw_dir, "imagesTr"), _folder(raw_dir, "labelsTr")
        found = files_in(images)
        scans, others = channels_of(images, found.paths, len(channels))
        cases, of_files = _pairs(scans, found.left_out, masks)
        of_files += not_taken(
            f"images without nnU-Net's _0000 of their channel in {images}", others
        )
    notes += of_files
    notes += _other_endings(description, content.get("file_ending"), cases)
    if (raw_dir / "imagesTs").is_dir():
        notes.append(f"{raw_dir / 'imagesTs'}: not prepared; predict reads it as it is")
    if expected not in (None, len(cases)):
        notes.append(f"{description} says numTraining {expected}, and there are {len(cases)} cases")
    ordered = _checked("nnunet", raw_dir, cases, notes)
    raw = RawDataset(
        "nnunet",
        ordered,
        space,
        cross_validation([case.name for case in ordered]),
        is_synthetic(raw_dir),
        tuple(notes),
        channels,
        licence=str(content.get("licence") or content.get("license") or ""),
        file_ending=file_ending,
    )
    splits = raw_dir / "splits_final.json"
    return with_splits(raw, splits) if splits.is_file() else raw


def phantom(raw_dir: Path) -> RawDataset:
    """Synthetic cases, laid out as an nnU-Net raw dataset (see phantom.py)."""
    raw = nnunet(raw_dir)
    return replace(raw, name="phantom")


@dataclass(frozen=True)
class Dataset:
    """What is known of a raw dataset before it is there.

    Attributes:
      read: what is in its folder.
      layout: of the folder, in words.
      licence: of its scans, as its publishers state it.
    """

    read: Callable[[Path], RawDataset]
    layout: str
    licence: str = ""


DATASETS = {
    "covid19": Dataset(
        covid19,
        "COVID-19-CT-Seg_20cases/CASE.nii.gz, Infection_Mask/CASE.nii.gz",
        "CC BY-NC-SA 4.0 (scans of the Coronacases Initiative and Radiopaedia)",
    ),
    "msd_lung": Dataset(
        msd_lung,
        "imagesTr/lung_001.nii.gz, labelsTr/lung_001.nii.gz",
        "CC BY-SA 4.0 (Medical Segmentation Decathlon)",
    ),
    "structseg_gtv": Dataset(structseg_gtv, "N/data.nii.gz, N/label.nii.gz"),
    "nsclc_effusion": Dataset(
        nsclc_effusion,
        "LUNG1-NNN/ with a DICOM series at any depth, and masks *LUNG1-NNN*effusion*.nii.gz",
    ),
    "nnunet": Dataset(
        nnunet,
        "dataset.json, imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz (or .nrrd, .mha), and "
        "nnU-Net's splits_final.json, if other folds are wanted than nnU-Net's (or --splits=FILE); "
        "several such datasets are told apart by --name",
    ),
    "phantom": Dataset(phantom, "synthetic cases, written to --raw_dir first"),
}


def read_dataset(name: str, raw_dir: str | Path) -> RawDataset:
    """The dataset called `name` (a key of DATASETS) in `raw_dir`.

    Raises:
      UserError: the folder is missing or empty, or lacks what the dataset's layout has.
    """
    raw_dir = Path(raw_dir)
    if not raw_dir.is_dir():
        raise UserError(f"{raw_dir}: no such folder; give the unpacked {name} dataset")
    raw = DATASETS[name].read(raw_dir)
    return raw if raw.synthetic else replace(raw, licence=raw.licence or DATASETS[name].licence)


def _with_published_splits(
    name: str, raw_dir: Path, cases: list[Case], labels: tuple[str, ...], notes: list[str]
) -> RawDataset:
    ordered = _checked(name, raw_dir, cases, notes)
    here = {case.name for case in ordered}
    published = published_splits(name)
    splits = tuple(
        Split(
            tuple(case for case in split.train if case in here),
            tuple(case for case in split.test if case in here),
        )
        for split in published
    )
    expected = set(published[0].train) | set(published[0].test)
    if (missing := sorted(expected - here)) and not is_synthetic(raw_dir):
        notes.append(f"{len(missing)} of {len(expected)} cases are not there: {', '.join(missing)}")
    if extra := sorted(here - expected):
        notes.append(f"{len(extra)} cases are in no fold and stay unused: {', '.join(extra)}")
    if not any(split.train and split.test for split in splits):
        raise UserError(
            f"{raw_dir}: no fold of {name} has cases to train and to test on; "
            f"its cases are called {published[0].train[0]}, ..."
        )
    space = LabelSpace(labels)
    return RawDataset(name, ordered, space, splits, is_synthetic(raw_dir), tuple(notes))


def _of_one_channel(images: Path) -> tuple[dict[str, tuple[Path, ...]], tuple[str, ...]]:
    """The images in a folder by their names, and lines on what there is no image."""
    found = files_in(images)
    return {name: (path,) for name, path in found.paths.items()}, found.left_out


def _pairs(
    images: dict[str, tuple[Path, ...]], left_out: Iterable[str], labels: Path
) -> tuple[list[Case], list[str]]:
    """A case of each image with its label in the folder `labels`, and lines on what is not taken.

    A label that is missing is found missing when the case is read.
    """
    found = files_in(labels)
    cases = [
        Case(name, channels, found.paths.get(name, labels / f"{name}.nii.gz"))
        for name, channels in images.items()
    ]
    alone = [found.paths[name].name for name in found.paths.keys() - images.keys()]
    notes = [*left_out, *found.left_out]
    return cases, notes + not_taken(f"labels without an image in {labels}", alone)


def _named_cases(
    description: Path, content: dict[str, Any], channels: int
) -> tuple[list[Case], list[str]]:
    """The cases whose files dataset.json names itself, and lines on what it does not name.

    Its paths are relative to its folder, with variables of the environment filled in (nnU-Net:
    get_filenames_of_train_images_and_targets).

    Raises a UserError where a file is not there, or a case has not a file for each channel.
    """
    folder = description.parent

    def path_of(told: str) -> Path:
        return Path(os.path.abspath(folder / os.path.expandvars(told)))

    cases = []
    try:
        told = read(content, "dataset", mapping)
        for name in told:
            if not name or name.startswith(".") or Path(name).name != name:
                raise UserError(f"its dataset has a case {name!r}, which cannot name a file")
            files, whose = read(told, name, mapping, whose="its dataset:"), f"its case {name}:"
            scans = read(files, "images", several(text, channels), whose=whose)
            label = path_of(read(files, "label", text, whose=whose))
            cases.append(Case(name, tuple(map(path_of, scans)), label))
    except UserError as error:
        raise UserError(f"{description}: {error}") from error
    taken = [file for case in cases for file in (*case.images, case.label)]
    if missing := [str(file) for file in taken if not file.exists()]:
        raise UserError(f"{description}: names files that are not there: {listed(missing)}")
    images = folder / "imagesTr"
    held = files_in(images).paths.values() if images.is_dir() else ()
    others = {file.resolve() for file in held} - {file.resolve() for file in taken}
    unnamed = f"images in {images} that {description.name} does not name"
    return cases, not_taken(unnamed, (file.name for file in others))


def _channels(description: dict[str, Any]) -> tuple[str, ...]:
    """The channels' names in their order; one of CT where dataset.json has none.

    Raises a UserError where they are not numbered 0, 1, 2, ...
    """
    key = "channel_names" if description.get("channel_names") else "modality"
    told = read(description, key, mapping, {})
    if {*told} != {str(number) for number in range(len(told))}:
        raise UserError(f"its {key} are of {listed(map(repr, told))}; wanted: '0', '1', '2', ...")
    whose = f"its {key}:"
    return tuple(read(told, str(n), text, whose=whose) for n in range(len(told))) or ("CT",)


def _refuse_names_twice(path: Path) -> None:
    """Raises a UserError where a JSON file says one name twice, of which readers take the last."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = Counter(name for name, _ in pairs)
        if twice := [name for name, count in names.items() if count > 1]:
            raise UserError(f"{path}: says {listed(map(repr, twice))} twice in one place; keep one")
        return dict(pairs)

    json.loads(path.read_text("utf-8-sig"), object_pairs_hook=once)


def _other_endings(description: Path, told: Any, cases: Iterable[Case]) -> list[str]:
    """A line on files that do not end as dataset.json says: taken here, and not by nnU-Net."""
    files = [file for case in cases for file in (*case.images, case.label) if file.is_file()]
    others = [file.name for file in files if told and not file.name.endswith(str(told))]
    if not others:
        return []
    return [
        f"{description} says file_ending {told}, and {len(others)} of {len(files)} files end "
        f"otherwise, which nnU-Net would not take: {listed(others)}"
    ]


def _checked(name: str, raw_dir: Path, cases: list[Case], notes: Iterable[str]) -> tuple[Case, ...]:
    if not cases:
        expected = f"{raw_dir}: no case in it; expected: {DATASETS[name].layout}"
        raise UserError("; ".join([expected, *notes]))
    return tuple(sorted(cases, key=lambda case: case.name))


def _folder(raw_dir: Path, name: str) -> Path:
    folder = raw_dir / name
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; {raw_dir} must hold the unpacked dataset")
    return folder
