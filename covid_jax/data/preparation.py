"""A raw dataset becomes a prepared one: its cases by one plan, each whole or absent."""

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from covid_jax.data import phantom, store
from covid_jax.data.datasets import Case, RawDataset, read_dataset
from covid_jax.data.geometry import Volume
from covid_jax.data.labels import read_label
from covid_jax.data.plan import (
    FINGERPRINT_VOXELS,
    Fingerprint,
    Plan,
    fingerprint,
    load_plan,
    make_plan,
    save_plan,
)
from covid_jax.data.preprocess import check_extent, nonzero_box, prepare_case, read_scan_as
from covid_jax.data.processes import each
from covid_jax.data.scans import listed
from covid_jax.data.volume import files_of
from covid_jax.errors import UserError
from covid_jax.files import digest, refuse_inside
from covid_jax.lock import only_here


def open_dataset(name: str, raw_dir: Path, intensities: str = "auto") -> RawDataset:
    """The raw dataset `name` in `raw_dir`, whose values are read as `intensities` tells.

    Raises:
      UserError: as read_dataset; or its images are said not to be CT, and nothing else is told.
    """
    raw = read_dataset(name, raw_dir)
    if intensities == "auto" and raw.channel.upper() != "CT":
        raise UserError(
            f"{raw_dir / 'dataset.json'}: its channel is {raw.channel!r}, and a plan is in HU of "
            "CT; --intensities=as_is takes the values as they are"
        )
    return replace(raw, intensities=intensities, folder=raw_dir)


def prepare_dataset(
    name: str,
    raw_dir: Path,
    out_dir: Path,
    plan_fold: int = 0,
    processes: int = 1,
    skip_bad: bool = False,
    intensities: str = "auto",
) -> RawDataset:
    """Prepares every case of a raw dataset into `out_dir`/`name`, which then is what the raw is.

    Cases that are there from the same files, in the same way, are kept; cases that the raw dataset
    no longer has are removed. The plan is `out_dir`/plan.json; where there is none yet, the
    training cases of fold `plan_fold` of this dataset make it. As many cases are worked on at once
    as there are `processes`. With `skip_bad` all are read first, and those that cannot be read
    safely are left out of the dataset and its folds, each with a line that says why.

    Raises:
      UserError: the raw dataset is incomplete, a case of it is damaged (names the file), or
        `out_dir` holds another dataset of this name, or lies in `raw_dir`.
    """
    folder = out_dir / name
    refuse_inside(out_dir, raw_dir, "--out_dir")
    refuse_inside(raw_dir, folder, "--raw_dir")
    raw = open_dataset(name, raw_dir, intensities)
    for note in raw.notes:
        tqdm.write(f"{name}: {note}")
    if skip_bad:
        bad = [finding for finding in check_dataset(raw, processes) if finding.refused]
        for finding in bad:
            tqdm.write(f"{finding.case}: left out; {finding.refused}")
        raw = raw.without({finding.case for finding in bad})
        if not raw.cases:
            raise UserError(f"{raw_dir}: every case of it is refused; see the lines above")
    with only_here(folder, "another preparation"):
        return _prepare(raw, out_dir, plan_fold, processes)


def _prepare(raw: RawDataset, out_dir: Path, plan_fold: int, processes: int) -> RawDataset:
    folder = out_dir / raw.name
    sources = _sources(raw, processes)
    known = store.facts_of(folder)
    _refuse_another_dataset(folder, raw.folder, known, sources)
    plan_path = out_dir / "plan.json"
    if plan_path.is_file():
        plan = load_plan(plan_path)
    else:
        plan = _plan_of(raw, plan_fold, processes)
        save_plan(plan_path, plan)
    changes = _changes(raw, known, sources, plan.hash, plan.training_cases)
    if changes.missing or changes.removed:
        store.forget_dataset(folder)  # which counts as prepared again when all of it is
    for line in changes.lines:
        tqdm.write(f"{raw.name}: {line}")
    for name in changes.removed:
        store.remove_case(folder, name)
    missing = [case for case in raw.cases if case.name in changes.missing]
    prepare = functools.partial(_prepare_case, raw=raw, plan=plan, folder=folder, sources=sources)
    read_as = {name: known[name]["read_as"] for name in sources.keys() - set(changes.missing)}
    prepared = each(prepare, missing, processes, f"preparing {raw.name}")
    for case, (how, notes) in zip(missing, prepared, strict=True):
        read_as[case.name] = how
        for note in notes:
            tqdm.write(f"{case.name}: {note}")
    store.save_dataset(folder, raw, plan.hash)
    tqdm.write(f"{raw.name}: {summary(list(read_as.values()))}")
    return raw


@dataclass(frozen=True)
class Changes:
    """What is to be done to a prepared dataset: cases to prepare, to remove, and lines to tell."""

    missing: tuple[str, ...]
    removed: tuple[str, ...]
    lines: tuple[str, ...]


def changes_in(raw: RawDataset, out_dir: Path, processes: int) -> Changes:
    """What prepare_dataset would do to what `out_dir` holds of a dataset; writes nothing."""
    folder, plan_path = out_dir / raw.name, out_dir / "plan.json"
    plan = load_plan(plan_path) if plan_path.is_file() else None
    known = store.facts_of(folder)
    here = [case for case in raw.cases if case.label.is_file()]  # the others are refused
    sources = _sources(replace(raw, cases=tuple(here)), processes)
    _refuse_another_dataset(folder, raw.folder, known, sources)
    return _changes(
        raw, known, sources, plan.hash if plan else "", plan.training_cases if plan else ()
    )


def _changes(
    raw: RawDataset,
    known: dict[str, dict[str, Any]],
    sources: dict[str, dict[str, Any]],
    plan_hash: str,
    planned: Sequence[str],
) -> Changes:
    changed = {
        name: _difference(known[name], source)
        for name, source in sources.items()
        if name in known and known[name].get("source") != source
    }
    removed = tuple(sorted(known.keys() - sources.keys()))
    missing = [
        name for name in sources if name in changed or known.get(name, {}).get("plan") != plan_hash
    ]
    lines = [
        f"{name}: {'cannot be read' if name in raw.left_out else 'is not there any more'} in "
        f"{raw.folder}: removed"
        for name in removed
    ]
    lines += [f"{name}: {what}: prepared again" for name, what in changed.items()]
    voxels = {
        name
        for name in changed
        if (before := known[name].get("source"))
        and any(before[part] != sources[name][part] for part in ("image", "label"))
    }
    if stale := sorted(set(planned) & {*voxels, *removed}):
        lines.append(
            f"plan.json was made from cases that changed since ({listed(stale)}) and is kept; "
            "delete it for a plan of what is there now"
        )
    return Changes(tuple(missing), removed, tuple(lines))


def _sources(raw: RawDataset, processes: int) -> dict[str, dict[str, Any]]:
    """What each case is made from: digests of its raw files, and how they are read."""
    how = {"labels": list(raw.labels), "ignored": raw.ignored, "intensities": raw.intensities}
    digests = each(_digests, raw.cases, processes, f"raw files of {raw.name}")
    return {case.name: {**of_case, **how} for case, of_case in zip(raw.cases, digests, strict=True)}


def _digests(case: Case) -> dict[str, str]:
    _check_label(case)
    return {"image": digest(files_of(case.image)), "label": digest(files_of(case.label))}


def _refuse_another_dataset(
    folder: Path, raw_dir: Path, known: dict[str, Any], sources: dict[str, Any]
) -> None:
    """Raises a UserError where none of the images that are prepared is one of the raw dataset's."""
    theirs = {facts["source"]["image"] for facts in known.values() if facts.get("source")}
    if theirs and not theirs & {source["image"] for source in sources.values()}:
        raise UserError(
            f"{folder}: holds {len(known)} cases of another dataset ({listed(known)}), whose "
            f"images are not in {raw_dir}; give another --out_dir, or delete that folder"
        )


def _difference(known: dict[str, Any], ours: dict[str, Any]) -> str:
    """In words, why a case that is there is prepared again."""
    if not known:
        return "is damaged or lacks a file"
    theirs = known.get("source")
    if not theirs:
        return "nothing is known of the raw files that it came from"
    names = {"image": "its image", "label": "its label"}
    parts = [
        names.get(key, f"{key} {theirs.get(key)} -> {value}")
        for key, value in ours.items()
        if theirs.get(key) != value
    ]
    return f"{', '.join(parts)} changed since it was prepared"


@dataclass(frozen=True)
class Finding:
    """What reading a raw case found: what was mended, or why it is refused (empty: it is not).

    `read_as` says how its values are read.
    """

    case: str
    mended: tuple[str, ...]
    refused: str
    read_as: str = ""


def check_dataset(raw: RawDataset, processes: int) -> list[Finding]:
    """Reads every case of a raw dataset and writes nothing."""
    check = functools.partial(_check_case, raw=raw)
    return list(each(check, raw.cases, processes, f"checking {raw.name}"))


def summary(read_as: Sequence[str]) -> str:
    """A line on how the values of a dataset's scans are read."""
    counts = Counter(how for how in read_as if how)
    if not counts:
        return "no scan was read"
    return "values are read " + "; ".join(f"{how} ({n} scans)" for how, n in sorted(counts.items()))


def _check_case(case: Case, raw: RawDataset) -> Finding:
    try:
        image, label, how = _read(case, raw)
        return Finding(case.name, _notes(image, label), "", how)
    except UserError as error:
        return Finding(case.name, (), str(error))


def _prepare_case(
    case: Case, raw: RawDataset, plan: Plan, folder: Path, sources: dict[str, dict[str, Any]]
) -> tuple[str, tuple[str, ...]]:
    """Prepares and stores a case; returns how its values were read, and what was mended."""
    image, label, how = _read(case, raw)
    check_extent(case.image, image, plan)
    notes = _notes(image, label)
    facts = {
        "plan": plan.hash,
        "source": sources[case.name],
        "read_as": how,
        "notes": notes,
        "synthetic": raw.synthetic,
    }
    store.save_case(folder, case.name, prepare_case(image, label, plan), label, facts)
    return how, notes


def _notes(image: Volume, label: Volume) -> tuple[str, ...]:
    return (*image.notes, *label.notes)


def prepare_phantom(out_dir: Path, num_cases: int, seed: int) -> None:
    """Makes and prepares the synthetic dataset `phantom` in `out_dir`, if it is not there yet."""
    if (out_dir / "phantom" / "dataset.json").is_file():
        return
    raw_dir = out_dir / "raw_phantom"
    phantom.write_raw_dataset("phantom", raw_dir, num_cases, seed)
    prepare_dataset("phantom", raw_dir, out_dir)


def read_case(case: Case, raw: RawDataset) -> tuple[Volume, Volume]:
    """Image (HU) and label of a raw case. Raises a UserError that names the file."""
    image, label, _ = _read(case, raw)
    return image, label


def _read(case: Case, raw: RawDataset) -> tuple[Volume, Volume, str]:
    _check_label(case)
    image, how = read_scan_as(case.image, raw.intensities)
    return image, read_label(case.label, image, len(raw.labels) + 1, raw.ignored), how


def _check_label(case: Case) -> None:
    if not case.label.is_file():
        raise UserError(f"{case.label}: missing label of case {case.name}")


def _plan_of(raw: RawDataset, fold: int, processes: int) -> Plan:
    if fold >= len(raw.splits) or not raw.splits[fold].train:
        raise UserError(f"--plan_fold={fold}: {raw.name} has no training cases of that fold")
    training = raw.splits[fold].train
    cases = [case for case in raw.cases if case.name in training]
    samples = FINGERPRINT_VOXELS // len(cases)
    of_case = functools.partial(_fingerprint, raw=raw, samples=samples)
    fingerprints = list(each(of_case, cases, processes, "fingerprint"))
    return make_plan([case.name for case in cases], fingerprints)


def _fingerprint(case: Case, raw: RawDataset, samples: int) -> Fingerprint:
    image, label = read_case(case, raw)
    box = nonzero_box(image.voxels)
    image, label = (replace(one, voxels=one.voxels[box]) for one in (image, label))
    return fingerprint(image, label, samples)
