"""A raw dataset becomes a prepared one: its cases by one plan, each whole or absent."""

import functools
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from covid_jax.data import phantom, store
from covid_jax.data.datasets import Case, RawDataset, read_dataset
from covid_jax.data.geometry import Volume
from covid_jax.data.plan import (
    FINGERPRINT_VOXELS,
    Fingerprint,
    Plan,
    fingerprint,
    load_plan,
    make_plan,
    save_plan,
)
from covid_jax.data.preprocess import nonzero_box, prepare_case, read_label, read_scan
from covid_jax.data.processes import each
from covid_jax.errors import UserError


def prepare_dataset(
    name: str,
    raw_dir: Path,
    out_dir: Path,
    plan_fold: int = 0,
    processes: int = 1,
    skip_bad: bool = False,
) -> RawDataset:
    """Prepares every case of a raw dataset into `out_dir`/`name`; done cases are kept.

    The plan is `out_dir`/plan.json; where there is none yet, the training cases of fold
    `plan_fold` of this dataset make it. As many cases are worked on at once as there are
    `processes`. With `skip_bad` all are read first, and those that cannot be read safely are left
    out of the dataset and its folds, each with a line that says why.

    Raises:
      UserError: the raw dataset is incomplete or a case of it is damaged; names the file.
    """
    raw = read_dataset(name, raw_dir)
    for note in raw.notes:
        tqdm.write(f"{name}: {note}")
    if skip_bad:
        bad = [finding for finding in check_dataset(raw, processes) if finding.refused]
        for finding in bad:
            tqdm.write(f"{finding.case}: left out; {finding.refused}")
        raw = raw.without({finding.case for finding in bad})
    plan_path = out_dir / "plan.json"
    if plan_path.is_file():
        plan = load_plan(plan_path)
    else:
        plan = _plan_of(raw, plan_fold, processes)
        save_plan(plan_path, plan)
    folder = out_dir / name
    missing = [case for case in raw.cases if not store.has_case(folder, case.name, plan.hash)]
    prepare = functools.partial(_prepare_case, raw=raw, plan=plan, folder=folder)
    notes = each(prepare, missing, processes, f"preparing {name}")
    for case, of_case in zip(missing, notes, strict=True):
        for note in of_case:
            tqdm.write(f"{case.name}: {note}")
    store.save_dataset(folder, raw, plan.hash)
    return raw


@dataclass(frozen=True)
class Finding:
    """What reading a raw case found: what was mended, or why it is refused (empty: it is not)."""

    case: str
    mended: tuple[str, ...]
    refused: str


def check_dataset(raw: RawDataset, processes: int) -> list[Finding]:
    """Reads every case of a raw dataset and writes nothing."""
    check = functools.partial(_check_case, raw=raw)
    return list(each(check, raw.cases, processes, f"checking {raw.name}"))


def _check_case(case: Case, raw: RawDataset) -> Finding:
    try:
        return Finding(case.name, _notes(*read_case(case, raw)), "")
    except UserError as error:
        return Finding(case.name, (), str(error))


def _prepare_case(case: Case, raw: RawDataset, plan: Plan, folder: Path) -> tuple[str, ...]:
    """Prepares and stores a case; returns what was mended."""
    image, label = read_case(case, raw)
    notes = _notes(image, label)
    facts = {"plan": plan.hash, "notes": notes, "synthetic": raw.synthetic}
    store.save_case(folder, case.name, prepare_case(image, label, plan), label, facts)
    return notes


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
    if not case.label.is_file():
        raise UserError(f"{case.label}: missing label of case {case.name}")
    image = read_scan(case.image)
    return image, read_label(case.label, image, len(raw.labels) + 1, raw.ignored)


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
