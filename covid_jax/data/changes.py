"""What of a raw dataset changed since it was prepared: told from digests of its files."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from covid_jax.data.plan import Plan
from covid_jax.data.processes import each
from covid_jax.data.raw import Case, RawDataset, Split
from covid_jax.data.volume import files_of
from covid_jax.errors import UserError, listed
from covid_jax.files import digest

_FILES_OF_CASE = {"image", "label"}  # of what a case was made from, what is its alone


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


def changes_between(
    raw: RawDataset,
    known: dict[str, dict[str, Any]],
    sources: dict[str, dict[str, Any]],
    plan: Plan | None,
    folds: Sequence[Split],
) -> Changes:
    """What differs between what is prepared and what is there.

    Args:
      known: of each prepared case, facts_of; `folds` are those that it was prepared with.
      sources: of each raw case, sources_of.
      plan: by which it would be prepared now.
    """
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


def each_digests(raw: RawDataset, processes: int) -> dict[str, dict[str, str]]:
    """Of each case, digests_of."""
    found = each(digests_of, raw.cases, processes, f"raw files of {raw.name}")
    return dict(zip((case.name for case in raw.cases), found, strict=True))


def sources_of(raw: RawDataset, digests: dict[str, dict[str, str]]) -> dict[str, dict[str, Any]]:
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


def digests_of(case: Case) -> dict[str, str]:
    """Of the raw files of a case's image and label. Raises a UserError where one is missing."""
    check_label(case)
    return {"image": image_digest(case), "label": digest(files_of(case.label))}


def image_digest(case: Case) -> str:
    """Of the raw files of a case's image: whatever it is called, the same scan has the same."""
    return digest([file for image in case.images for file in files_of(image)])


def refuse_another_dataset(
    folder: Path, raw_dir: Path, known: dict[str, Any], sources: dict[str, Any]
) -> None:
    """Raises a UserError where none of the images that are prepared is one of the raw dataset's."""
    theirs = {facts["source"]["image"] for facts in known.values() if facts.get("source")}
    if theirs and not theirs & {source["image"] for source in sources.values()}:
        raise UserError(
            f"{folder}: holds {len(known)} cases of another dataset ({listed(known)}), whose "
            f"images are not in {raw_dir}; give another --out_dir, or delete that folder"
        )


def check_label(case: Case) -> None:
    """Raises a UserError where a case has no label."""
    if not case.label.is_file():
        raise UserError(f"{case.label}: missing label of case {case.name}")
