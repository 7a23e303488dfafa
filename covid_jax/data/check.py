"""What prepare would do to a raw dataset, told without doing it."""

from collections.abc import Sequence
from pathlib import Path

from covid_jax.data import store
from covid_jax.data.changes import Changes, changes_between, refuse_another_dataset, sources_of
from covid_jax.data.findings import Finding, check_dataset, summary, without_refused
from covid_jax.data.plan import Plan
from covid_jax.data.planning import check_plan_fold, known_plan
from covid_jax.data.preparation import check_places, open_dataset
from covid_jax.data.raw import RawDataset
from covid_jax.errors import UserError


def check(
    name: str,
    raw_dir: Path,
    out_dir: Path | None,
    plan_fold: int,
    processes: int,
    skip_bad: bool,
    intensities: str,
    called: str = "",
    splits: Path | None = None,
    given: Plan | None = None,
    as_planned: bool = False,
) -> None:
    """Prints what `raw_dir` holds, and what would become of what `out_dir` holds of it.

    `given` is the plan of prepare_dataset, as are the other arguments.

    Raises:
      UserError: prepare would refuse a case, or all of it.
    """
    raw = open_dataset(name, raw_dir, intensities, called, splits, given if as_planned else None)
    name = raw.name
    if out_dir:
        check_places(raw, out_dir)
    plan = given or known_plan(out_dir)
    findings = check_dataset(raw, processes, plan)
    refused = [finding.case for finding in findings if finding.refused]
    label = "SYNTHETIC " if raw.synthetic else ""
    kind = raw.label_space.kind
    print(f"{len(raw.cases)} {label}cases of {name}, {kind}: {', '.join(raw.labels)}")
    channels = zip(raw.channels, raw.schemes, strict=True)
    print(f"channels: {', '.join(f'{channel} ({scheme})' for channel, scheme in channels)}")
    for note in raw.notes:
        print(note)
    for finding in findings:
        for note in finding.mended:
            print(f"{finding.case}: {note}")
        if finding.refused:
            print(f"{finding.case}: {'left out' if skip_bad else 'REFUSED'}; {finding.refused}")
    if skip_bad:
        raw = without_refused(raw, findings)
    for number, split in enumerate(raw.splits):
        print(f"fold {number}: {len(split.train)} to train on, {len(split.test)} to test on")
    print(summary([finding.read_as for finding in findings]))
    if (ignored := raw.label_space.ignored) is not None:
        print(f"voxels of the value {ignored} are ignored")
    if out_dir:
        changes = changes_in(raw, out_dir, findings, processes)
        print("\n".join([*changes.lines, *changes.again.values()]))
        print(f"{len(changes.missing)} cases would be prepared")
    mended = sum(bool(finding.mended) for finding in findings)
    print(f"{len(findings) - len(refused)} cases can be prepared, {mended} of them are mended")
    if refused and not skip_bad:
        raise UserError(
            f"{raw_dir}: {len(refused)} cases would be refused ({', '.join(refused)}); "
            "mend them, or leave them out with --skip_bad"
        )
    if not plan:
        check_plan_fold(raw, plan_fold)


def changes_in(
    raw: RawDataset, out_dir: Path, findings: Sequence[Finding], processes: int
) -> Changes:
    """What prepare_dataset would do to what `out_dir` holds of a dataset; writes nothing.

    `findings` are check_dataset's; of cases that are refused nothing is to be done.
    """
    folder = out_dir / raw.name
    known = store.facts_of(folder, processes)
    refused = {finding.case for finding in findings if finding.refused}
    sources = sources_of(raw, {finding.case: finding.digests for finding in findings})
    if read := {name: source for name, source in sources.items() if "image" in source}:
        refuse_another_dataset(folder, raw.folder, known, read)
    sources = {name: source for name, source in sources.items() if name not in refused}
    judged = {name: facts for name, facts in known.items() if name not in refused - raw.left_out}
    return changes_between(raw, judged, sources, known_plan(out_dir), store.folds_of(folder))
