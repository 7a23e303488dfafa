"""A raw dataset becomes a prepared one: its cases by one plan, each whole or absent."""

import functools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from covid_jax.config import NAME
from covid_jax.data import phantom, store
from covid_jax.data.changes import changes_between, each_digests, refuse_another_dataset, sources_of
from covid_jax.data.datasets import read_dataset
from covid_jax.data.findings import check_dataset, notes_of, read_case_as, summary, without_refused
from covid_jax.data.normalization import CT
from covid_jax.data.plan import Plan
from covid_jax.data.planner import Planning
from covid_jax.data.planning import check_plan_fold, known_plan, network_told, plan_for
from covid_jax.data.preprocess import check_extent, prepare_case
from covid_jax.data.processes import each
from covid_jax.data.raw import Case, RawDataset, with_splits
from covid_jax.data.volume import files_of
from covid_jax.errors import UserError
from covid_jax.files import refuse_inside
from covid_jax.lock import only_here


def open_dataset(
    name: str,
    raw_dir: Path,
    intensities: str = "auto",
    called: str = "",
    splits: Path | None = None,
    as_planned: Plan | None = None,
) -> RawDataset:
    """The raw dataset in `raw_dir`, in the layout `name`.

    Args:
      intensities: how its CT is read.
      called: its name, if not the layout's.
      splits: a file of its folds, as nnU-Net's splits_final.json; else they are the layout's.
      as_planned: a plan whose normalisations are its channels', whatever these are called.

    Raises:
      UserError: as read_dataset; something is told of CT, and it has none; or `as_planned` is for
        another number of channels.
    """
    raw = read_dataset(name, raw_dir)
    if called and not re.fullmatch(NAME, called):
        raise UserError(f"--name={called}: must be a name of letters, digits and . + - _")
    raw = replace(raw, name=called or raw.name, folder=raw_dir)
    if splits:
        raw = with_splits(raw, splits)
    if as_planned:
        _refuse_another_number(raw, as_planned)
        raw = replace(raw, planned_schemes=as_planned.schemes)
    if intensities not in ("auto", "as_is") and CT not in raw.schemes:
        raise UserError(
            f"{raw_dir / 'dataset.json'}: its channels are {', '.join(raw.channels)}, and "
            f"--intensities={intensities} is of CT"
        )
    return replace(raw, intensities=intensities)


def prepare_dataset(
    name: str,
    raw_dir: Path,
    out_dir: Path,
    plan_fold: int = 0,
    processes: int = 1,
    skip_bad: bool = False,
    intensities: str = "auto",
    planning: Planning | None = None,
    plan: Plan | None = None,
    called: str = "",
    splits: Path | None = None,
    as_planned: bool = False,
) -> RawDataset:
    """Prepares every case of a raw dataset into `out_dir`/NAME, which then is what the raw is.

    Cases that are there from the same files, in the same way, are kept; cases that the raw dataset
    no longer has are removed. The plan is `out_dir`/plan.json; where there is none yet, it is
    `plan` (for channels of other kinds with the dataset's own intensities), or the training cases
    of fold `plan_fold` of this dataset make it, with a network where there is `planning` for one.
    Where there is one, the network of `plan` or of `planning` replaces its own on the same grid.
    As many cases are worked on at once as there are `processes`. With `skip_bad` all are read
    first, and those that cannot be read safely are left out of the dataset and its folds, each with
    a line that says why. With `as_planned` the normalisations too are those of `plan`. The other
    arguments are open_dataset's.

    Raises:
      UserError: the raw dataset is incomplete, a case of it is damaged (names the file), or
        `out_dir` holds another dataset of this name, another plan than `plan`, or one on another
        grid than that of `planning`, or lies in `raw_dir`.
    """
    raw = open_dataset(name, raw_dir, intensities, called, splits, plan if as_planned else None)
    name = raw.name
    check_places(raw, out_dir)
    for note in raw.notes:
        tqdm.write(f"{name}: {note}")
    if skip_bad:
        findings = check_dataset(raw, processes, plan or known_plan(out_dir))
        for finding in findings:
            if finding.refused:
                tqdm.write(f"{finding.case}: left out; {finding.refused}")
        raw = without_refused(raw, findings)
    if not (plan or known_plan(out_dir)):
        check_plan_fold(raw, plan_fold)
    with only_here(out_dir / name, "another preparation"):
        return _prepare(raw, out_dir, plan_fold, processes, planning, plan)


def check_places(raw: RawDataset, out_dir: Path) -> None:
    """Raises a UserError where prepared data would fall among inputs, whatever links lead there.

    No folder of it may be, or lie in, one that holds an image or a label, nor the raw folder; and
    none of these may lie in the folder of the prepared dataset.
    """
    folder = out_dir / raw.name
    files = [file for case in raw.cases for file in _files(case) if file.exists()]
    holders = {file.parent for file in files} | {file.resolve().parent for file in files}
    for inputs in (raw.folder, *sorted(holders)):
        for output in (out_dir, folder, folder / "cases", folder / "references"):
            refuse_inside(output, inputs, "--out_dir")
        if folder.resolve() in (inputs.resolve(), *inputs.resolve().parents):
            raise UserError(
                f"--raw_dir={raw.folder}: {inputs} lies in {folder}, where prepared data goes; "
                "give another --out_dir"
            )


def _files(case: Case) -> list[Path]:
    """Of a case's image and label."""
    try:
        return [file for path in (*case.images, case.label) for file in files_of(path)]
    except UserError:  # damaged: told where it is read
        return [*case.images, case.label]


def _prepare(
    raw: RawDataset,
    out_dir: Path,
    plan_fold: int,
    processes: int,
    planning: Planning | None,
    given: Plan | None,
) -> RawDataset:
    folder = out_dir / raw.name
    sources = sources_of(raw, each_digests(raw, processes))
    known = store.facts_of(folder, processes)
    refuse_another_dataset(folder, raw.folder, known, sources)
    plan = plan_for(raw, out_dir, plan_fold, processes, planning, given)
    if (planning or given) and plan.topology:
        tqdm.write(f"{out_dir / 'plan.json'}: {network_told(plan.topology, plan.spacing_mm)}")
    changes = changes_between(raw, known, sources, plan, store.folds_of(folder))
    for line in changes.lines:
        tqdm.write(f"{raw.name}: {line}")
    if changes.missing or changes.removed:
        store.forget_dataset(folder)  # which counts as prepared again when all of it is
    for name in changes.removed:
        store.remove_case(folder, name)
    missing = [case for case in raw.cases if case.name in changes.missing]
    prepare = functools.partial(_prepare_case, raw=raw, plan=plan, folder=folder, sources=sources)
    read_as = {name: known[name]["read_as"] for name in sources.keys() - set(changes.missing)}
    prepared = each(prepare, missing, processes, f"preparing {raw.name}")
    for case, (how, notes) in zip(missing, prepared, strict=True):
        read_as[case.name] = how
        if case.name in changes.again:
            tqdm.write(f"{raw.name}: {changes.again[case.name]}")
        for note in notes:
            if note != f"values are read {how}":  # which the summary says of all
                tqdm.write(f"{case.name}: {note}")
    store.save_dataset(folder, raw, plan.hash)
    tqdm.write(f"{raw.name}: {summary(list(read_as.values()))}")
    return raw


def _refuse_another_number(raw: RawDataset, plan: Plan) -> None:
    """Raises a UserError where a dataset has not as many channels as a plan."""
    if len(raw.channels) != len(plan.normalization):
        raise UserError(
            f"{raw.folder}: has {len(raw.channels)} channels ({', '.join(raw.channels)}), and the "
            f"plan that is given {len(plan.normalization)}"
        )


def _prepare_case(
    case: Case, raw: RawDataset, plan: Plan, folder: Path, sources: dict[str, dict[str, Any]]
) -> tuple[str, tuple[str, ...]]:
    """Prepares and stores a case; returns how its values were read, and what was mended."""
    channels, label, how = read_case_as(case, raw)
    check_extent(case.images[0], channels[0], plan)
    notes = notes_of(channels, label)
    facts = {
        "plan": plan.hash,
        "source": sources[case.name],
        "read_as": how,
        "notes": notes,
        "synthetic": raw.synthetic,
    }
    try:
        prepared = prepare_case(channels, label, plan)
    except UserError as error:
        raise UserError(f"{case.images[0]}: {error}") from error
    store.save_case(folder, case.name, prepared, label, facts, raw.label_space)
    return how, notes


def prepare_phantom(out_dir: Path, num_cases: int, seed: int) -> None:
    """Makes and prepares the synthetic dataset `phantom` in `out_dir`, if it is not there yet."""
    if (out_dir / "phantom" / "dataset.json").is_file():
        return
    raw_dir = out_dir / "raw_phantom"
    phantom.write_raw_dataset("phantom", raw_dir, num_cases, seed)
    prepare_dataset("phantom", raw_dir, out_dir)
