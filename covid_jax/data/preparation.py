"""A raw dataset becomes a prepared one: its cases by one plan, each whole or absent."""

import functools
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from covid_jax.config import NAME
from covid_jax.data import phantom, store
from covid_jax.data.datasets import Case, RawDataset, Split, read_dataset, with_splits
from covid_jax.data.geometry import Volume
from covid_jax.data.labels import read_label
from covid_jax.data.normalization import CT
from covid_jax.data.plan import (
    FINGERPRINT_VOXELS,
    Fingerprint,
    Plan,
    fingerprint,
    load_plan,
    make_plan,
    save_plan,
    with_topology,
)
from covid_jax.data.planner import Planning, Topology
from covid_jax.data.preprocess import check_extent, nonzero_box, prepare_case, read_channels
from covid_jax.data.processes import each
from covid_jax.data.volume import files_of
from covid_jax.errors import UserError, listed
from covid_jax.files import digest, refuse_inside
from covid_jax.lock import only_here

_FILES_OF_CASE = {"image", "label"}  # of what a case was made from, what is its alone


def open_dataset(
    name: str,
    raw_dir: Path,
    intensities: str = "auto",
    called: str = "",
    splits: Path | None = None,
) -> RawDataset:
    """The raw dataset in `raw_dir`, in the layout `name`.

    Args:
      intensities: how its CT is read.
      called: its name, if not the layout's.
      splits: a file of its folds, as nnU-Net's splits_final.json; else they are the layout's.

    Raises:
      UserError: as read_dataset; or something is told of CT, and it has none.
    """
    raw = read_dataset(name, raw_dir)
    if called and not re.fullmatch(NAME, called):
        raise UserError(f"--name={called}: must be a name of letters, digits and . + - _")
    raw = replace(raw, name=called or raw.name)
    if splits:
        raw = with_splits(raw, splits)
    if intensities not in ("auto", "as_is") and CT not in raw.schemes:
        raise UserError(
            f"{raw_dir / 'dataset.json'}: its channels are {', '.join(raw.channels)}, and "
            f"--intensities={intensities} is of CT"
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
    a line that says why. `as_planned` takes the normalisations of `plan` whatever the channels are
    called, and is for a plan of as many channels. The other arguments are open_dataset's.

    Raises:
      UserError: the raw dataset is incomplete, a case of it is damaged (names the file), or
        `out_dir` holds another dataset of this name, another plan than `plan`, or one on another
        grid than that of `planning`, or lies in `raw_dir`.
    """
    raw = open_dataset(name, raw_dir, intensities, called, splits)
    name = raw.name
    check_places(raw, out_dir)
    for note in raw.notes:
        tqdm.write(f"{name}: {note}")
    if as_planned and plan:
        _refuse_another_number(raw, plan)
        raw = replace(raw, planned_schemes=plan.schemes)
    if skip_bad:
        findings = check_dataset(raw, processes, known_plan(out_dir))
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


def known_plan(out_dir: Path | None) -> Plan | None:
    """The plan in `out_dir`, where there is one."""
    path = out_dir / "plan.json" if out_dir else None
    return load_plan(path) if path and path.is_file() else None


def check_plan_fold(raw: RawDataset, fold: int) -> None:
    """Raises a UserError where a fold has no training cases to make a plan from."""
    splits = raw.splits
    if fold < len(splits) and splits[fold].train:
        return
    others = [str(number) for number, split in enumerate(splits) if split.train]
    if others:
        raise UserError(
            f"--plan_fold={fold}: {raw.name} has no training cases of that fold, but of "
            f"{', '.join(others)}"
        )
    raise UserError(
        f"{raw.folder}: no fold of its {len(raw.cases)} cases has any to train on, and a plan is "
        "made from such; at least two cases are needed"
    )


def _prepare(
    raw: RawDataset,
    out_dir: Path,
    plan_fold: int,
    processes: int,
    planning: Planning | None,
    given: Plan | None,
) -> RawDataset:
    folder = out_dir / raw.name
    sources = _sources(raw, _each_digests(raw, processes))
    known = store.facts_of(folder, processes)
    _refuse_another_dataset(folder, raw.folder, known, sources)
    plan = _plan(raw, out_dir, plan_fold, processes, planning, given)
    if (planning or given) and plan.topology:
        tqdm.write(f"{out_dir / 'plan.json'}: {_network(plan.topology, plan.spacing_mm)}")
    changes = _changes(raw, known, sources, plan, store.folds_of(folder))
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


def _refuse_other_channels(raw: RawDataset, plan: Plan, path: Path) -> None:
    """Raises a UserError where the dataset's channels are not what a plan is of."""
    if raw.schemes != plan.schemes:
        channels = ", ".join(raw.channels)
        raise UserError(
            f"{raw.folder}: its channels ({channels}) want {', '.join(raw.schemes)}, and {path} is "
            f"of {', '.join(plan.schemes)}; give another --out_dir, or by --plans the plan that it "
            "is"
        )


def _refuse_another_number(raw: RawDataset, plan: Plan) -> None:
    """Raises a UserError where a dataset has not as many channels as a plan."""
    if len(raw.channels) != len(plan.normalization):
        raise UserError(
            f"{raw.folder}: has {len(raw.channels)} channels ({', '.join(raw.channels)}), and the "
            f"plan that is given {len(plan.normalization)}"
        )


@dataclass(frozen=True)
class Changes:
    """What is to be done to a prepared dataset.

    Attributes:
      missing: cases to prepare.
      removed: cases to remove.
      again: of those to prepare whose own files changed, a line that says so.
      lines: what else is to be told.
    """

    missing: tuple[str, ...]
    removed: tuple[str, ...]
    again: dict[str, str]
    lines: tuple[str, ...]


def changes_in(
    raw: RawDataset, out_dir: Path, findings: Sequence["Finding"], processes: int
) -> Changes:
    """What prepare_dataset would do to what `out_dir` holds of a dataset; writes nothing.

    `findings` are check_dataset's; of cases that are refused nothing is to be done.
    """
    folder = out_dir / raw.name
    known = store.facts_of(folder, processes)
    refused = {finding.case for finding in findings if finding.refused}
    sources = _sources(raw, {finding.case: finding.digests for finding in findings})
    if read := {name: source for name, source in sources.items() if "image" in source}:
        _refuse_another_dataset(folder, raw.folder, known, read)
    sources = {name: source for name, source in sources.items() if name not in refused}
    judged = {name: facts for name, facts in known.items() if name not in refused - raw.left_out}
    return _changes(raw, judged, sources, known_plan(out_dir), store.folds_of(folder))


def _changes(
    raw: RawDataset,
    known: dict[str, dict[str, Any]],
    sources: dict[str, dict[str, Any]],
    plan: Plan | None,
    folds: Sequence[Split],
) -> Changes:
    damaged = {name for name in sources if known.get(name) == {}}
    unknown = {name for name in sources if known.get(name) and not known[name]["source"]}
    differ = {  # what of each case: image, label, labels, ignored, intensities, ...
        name: [part for part in source | was if source.get(part) != was.get(part)]
        for name, source in sources.items()
        if known.get(name) and (was := known[name]["source"])
    }
    again = dict.fromkeys(damaged, "is damaged, changed or lacks a file")
    again |= dict.fromkeys(unknown, "nothing is known of the raw files that it came from")
    for name, parts in differ.items():
        if own := [f"its {part}" for part in parts if part in _FILES_OF_CASE]:
            again[name] = f"{', '.join(own)} changed since it was prepared"
    changed = {*again, *(name for name in differ if differ[name])}
    removed = tuple(sorted(known.keys() - sources.keys()))
    missing = [
        name
        for name in sources
        if name in changed or not plan or known.get(name, {}).get("plan") != plan.hash
    ]
    lines = [
        f"{name}: {'cannot be read' if name in raw.left_out else 'is not there any more'} in "
        f"{raw.folder}: removed"
        for name in removed
    ]
    lines += _read_otherwise(known, sources, differ)
    lines += _folds_dealt_anew(raw, folds)
    voxels = {name for name in differ if _FILES_OF_CASE & set(differ[name])}
    if stale := sorted(set(plan.training_cases if plan else ()) & {*voxels, *removed}):
        lines.append(
            f"plan.json was made from cases that changed since ({listed(stale)}) and is kept; "
            "delete it for a plan of what is there now"
        )
    told = {name: f"{name}: {again[name]}: prepared again" for name in sources if name in again}
    return Changes(tuple(missing), removed, told, tuple(lines))


def _read_otherwise(
    known: dict[str, dict[str, Any]],
    sources: dict[str, dict[str, Any]],
    differ: dict[str, list[str]],
) -> list[str]:
    """A line for each way in which cases were read that is another one now."""
    cases: dict[str, list[str]] = defaultdict(list)
    for name, parts in differ.items():
        for part in parts:
            if part not in _FILES_OF_CASE:
                before, now = (of.get(part) for of in (known[name]["source"], sources[name]))
                cases[f"{part} {_rewritten(before, now)}"].append(name)
    return [
        f"{what} changed since {len(names)} cases were prepared ({listed(names)})"
        for what, names in cases.items()
    ]


def _rewritten(before: Any, now: Any) -> str:
    """What was there and what is; of two lists that which differs."""
    if isinstance(before, list) and isinstance(now, list):
        gone, new = ([n for n in a if n not in b] for a, b in ((before, now), (now, before)))
        before, now = (gone, new) if gone or new else (before, now)
    return f"{before} -> {now}"


def _folds_dealt_anew(raw: RawDataset, before: Sequence[Split]) -> list[str]:
    """A line where a dataset's folds are others than they were, with who is tested on now."""
    if not before or tuple(before) == raw.splits:
        return []
    moved = [
        f"fold {number}: {listed(seen)}"
        for number, (old, new) in enumerate(zip(before, raw.splits, strict=False))
        if (seen := {*old.train} & {*new.test})
    ]
    told = f"tested on now, and trained on by these: {'; '.join(moved)}" if moved else ""
    return [
        "the folds are dealt anew, as other cases are there; runs of before are of the old folds"
        f"{'; ' if moved else ''}{told}"
    ]


def _each_digests(raw: RawDataset, processes: int) -> dict[str, dict[str, str]]:
    """Of each case, _digests."""
    found = each(_digests, raw.cases, processes, f"raw files of {raw.name}")
    return dict(zip((case.name for case in raw.cases), found, strict=True))


def _sources(raw: RawDataset, digests: dict[str, dict[str, str]]) -> dict[str, dict[str, Any]]:
    """What each case is made from: digests of its raw files, and how they are read."""
    space = raw.label_space
    how: dict[str, Any] = {
        "labels": list(space.names),
        "ignored": space.ignored,
        "intensities": raw.intensities,
    }
    if space.regions:
        how["regions"] = [list(region) for region in space.regions]
    if space.ignored is not None:
        how["sampled"] = "where annotated"
    if raw.channels != RawDataset.channels:  # a case of one channel is told as it always was
        how["channels"] = list(raw.channels)
    return {name: {**of_case, **how} for name, of_case in digests.items()}


def _digests(case: Case) -> dict[str, str]:
    _check_label(case)
    return {"image": image_digest(case), "label": digest(files_of(case.label))}


def image_digest(case: Case) -> str:
    """Of the raw files of a case's image: whatever it is called, the same scan has the same."""
    return digest([file for image in case.images for file in files_of(image)])


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


@dataclass(frozen=True)
class Finding:
    """What reading a raw case found: what was mended, or why it is refused (empty: it is not).

    `read_as` says how its values are read, `digests` is of its raw files.
    """

    case: str
    mended: tuple[str, ...]
    refused: str
    read_as: str = ""
    digests: dict[str, str] = field(default_factory=dict)


def check_dataset(raw: RawDataset, processes: int, plan: Plan | None = None) -> list[Finding]:
    """Reads every case of a raw dataset as it would be prepared by `plan`, and writes nothing."""
    check = functools.partial(_check_case, raw=raw, plan=plan)
    return list(each(check, raw.cases, processes, f"checking {raw.name}"))


def without_refused(raw: RawDataset, findings: Sequence[Finding]) -> RawDataset:
    """The dataset without the cases that check_dataset refused. Raises a UserError if it is all."""
    rest = raw.without({finding.case for finding in findings if finding.refused})
    if not rest.cases:
        raise UserError(f"{raw.folder}: every case of it is refused; see the lines above")
    return rest


def summary(read_as: Sequence[str]) -> str:
    """A line on how the values of a dataset's scans are read."""
    counts = Counter(how for how in read_as if how)
    if not counts:
        return "no scan was read"
    return "values are read " + "; ".join(f"{how} ({n} scans)" for how, n in sorted(counts.items()))


def _network(topology: Topology, spacing_mm: Sequence[float]) -> str:
    """A line on what was planned."""
    blocks = "residual" if topology.n_blocks_per_stage else "plain"
    patch = " x ".join(str(n) for n in topology.patch_size)
    spacing = " x ".join(f"{mm:.3g}" for mm in spacing_mm)
    return (
        f"a {blocks} network of {len(topology.strides)} stages, for {topology.batch_size} patches "
        f"of {patch} at {spacing} mm"
    )


def _check_case(case: Case, raw: RawDataset, plan: Plan | None) -> Finding:
    digests: dict[str, str] = {}
    try:
        digests = _digests(case)
        channels, label, how = _read(case, raw)
        if plan:
            check_extent(case.images[0], channels[0], plan)
        return Finding(case.name, _notes(channels, label), "", how, digests)
    except UserError as error:
        return Finding(case.name, (), str(error), digests=digests)


def _prepare_case(
    case: Case, raw: RawDataset, plan: Plan, folder: Path, sources: dict[str, dict[str, Any]]
) -> tuple[str, tuple[str, ...]]:
    """Prepares and stores a case; returns how its values were read, and what was mended."""
    channels, label, how = _read(case, raw)
    check_extent(case.images[0], channels[0], plan)
    notes = _notes(channels, label)
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


def _notes(channels: Sequence[Volume], label: Volume) -> tuple[str, ...]:
    return (*dict.fromkeys(note for volume in channels for note in volume.notes), *label.notes)


def prepare_phantom(out_dir: Path, num_cases: int, seed: int) -> None:
    """Makes and prepares the synthetic dataset `phantom` in `out_dir`, if it is not there yet."""
    if (out_dir / "phantom" / "dataset.json").is_file():
        return
    raw_dir = out_dir / "raw_phantom"
    phantom.write_raw_dataset("phantom", raw_dir, num_cases, seed)
    prepare_dataset("phantom", raw_dir, out_dir)


def read_case(case: Case, raw: RawDataset) -> tuple[tuple[Volume, ...], Volume]:
    """Channels (CT in HU) and label of a raw case. Raises a UserError that names the file."""
    channels, label, _ = _read(case, raw)
    return channels, label


def _read(case: Case, raw: RawDataset) -> tuple[tuple[Volume, ...], Volume, str]:
    _check_label(case)
    channels, how = read_channels(case.images, raw.schemes, raw.intensities)
    space = raw.label_space
    label = read_label(case.label, channels[0], len(space.values) + 1, space.ignored)
    return channels, label, how


def _check_label(case: Case) -> None:
    if not case.label.is_file():
        raise UserError(f"{case.label}: missing label of case {case.name}")


def _plan(
    raw: RawDataset,
    out_dir: Path,
    fold: int,
    processes: int,
    planning: Planning | None,
    given: Plan | None,
) -> Plan:
    """The plan in `out_dir`; made, or given another network, by one preparation alone.

    Raises:
      UserError: it is of other channels, or on another grid than the one that is given or planned.
    """
    path = out_dir / "plan.json"
    if planning or given or not known_plan(out_dir):
        with only_here(out_dir, "a preparation that makes plan.json"):
            before = known_plan(out_dir)
            if not before:
                save_plan(path, _first_plan(raw, fold, processes, planning, given))
            else:
                _refuse_other_channels(raw, before, path)
                if given and given.schemes != raw.schemes:
                    given = _with_intensities_of(before, given)
                topology = _network_for(before, raw, path, fold, processes, planning, given)
                if topology != before.topology:
                    save_plan(path, replace(before, topology=topology))
                    which = "another network" if before.topology else "a network"
                    tqdm.write(f"{path}: {which}, on the grid that it has: its cases stay")
    plan = load_plan(path)
    _refuse_other_channels(raw, plan, path)
    return plan


def _network_for(
    plan: Plan,
    raw: RawDataset,
    path: Path,
    fold: int,
    processes: int,
    planning: Planning | None,
    given: Plan | None,
) -> Topology | None:
    """The network that is asked for, where it is one for the grid of the plan at `path`."""
    if given:
        if given.hash != plan.hash:
            raise UserError(
                f"{path}: is there already, and another plan than the one that is given; give "
                "another --out_dir"
            )
        return given.topology or plan.topology
    if not planning:
        return plan.topology
    cases = list(_fingerprints(raw, fold, processes, 0).values())
    planned = with_topology(plan, cases, _named_labels(raw), planning)
    turned = plan.file_axes or plan.axes != Plan.axes  # where no planning sees the cases
    if turned or (planned.spacing_mm, planned.transpose) != (plan.spacing_mm, plan.transpose):
        here, there = (" x ".join(f"{mm:.3g}" for mm in p.spacing_mm) for p in (plan, planned))
        raise UserError(
            f"{path}: is there already, on another grid ({here} mm) than what is to be planned "
            f"({there} mm); give another --out_dir, or delete it, and the cases are prepared again"
        )
    return planned.topology


def _first_plan(
    raw: RawDataset,
    fold: int,
    processes: int,
    planning: Planning | None,
    given: Plan | None,
) -> Plan:
    if given and given.schemes == raw.schemes:
        return given
    own = _plan_of(raw, fold, processes, planning)
    if not given:
        return own
    count, theirs = len(given.schemes), f"of {', '.join(given.schemes)}"
    tqdm.write(
        f"{raw.name}: its channels ({', '.join(raw.channels)}) are normalised by its own "
        "intensities, as the plan that is given is "
        + (theirs if count == len(raw.channels) else f"of {count} channel{'s' * (count > 1)}")
    )
    return _with_intensities_of(own, given)


def _with_intensities_of(own: Plan, given: Plan) -> Plan:
    """The plan that is given, for the channels of another one."""
    return replace(given, normalization=own.normalization, training_cases=own.training_cases)


def _plan_of(raw: RawDataset, fold: int, processes: int, planning: Planning | None) -> Plan:
    fingerprints = _fingerprints(raw, fold, processes, FINGERPRINT_VOXELS)
    plan = make_plan(list(fingerprints), list(fingerprints.values()), raw.schemes)
    if planning:
        plan = with_topology(plan, list(fingerprints.values()), _named_labels(raw), planning)
    return plan


def _named_labels(raw: RawDataset) -> int:
    """How many labels dataset.json names."""
    return 1 + len(raw.labels) + (raw.label_space.ignored is not None)


def _fingerprints(
    raw: RawDataset, fold: int, processes: int, voxels: int
) -> dict[str, Fingerprint]:
    """Of the training cases of a fold, by their names, from `voxels` of lesions in all."""
    check_plan_fold(raw, fold)
    training = raw.splits[fold].train
    cases = [case for case in raw.cases if case.name in training]
    of_case = functools.partial(_fingerprint, raw=raw, samples=voxels // len(cases))
    found = each(of_case, cases, processes, "fingerprint")
    return dict(zip((case.name for case in cases), found, strict=True))


def _fingerprint(case: Case, raw: RawDataset, samples: int) -> Fingerprint:
    channels, label = read_case(case, raw)
    box = nonzero_box([channel.voxels for channel in channels])
    *cropped, label = (replace(one, voxels=one.voxels[box]) for one in (*channels, label))
    share = label.voxels.size / channels[0].voxels.size
    return fingerprint(cropped, label, samples, share)
