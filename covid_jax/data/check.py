"""What prepare would do to a raw dataset, told without doing it."""

from pathlib import Path

from covid_jax.data.preparation import (
    changes_in,
    check_dataset,
    check_places,
    check_plan_fold,
    known_plan,
    open_dataset,
    summary,
    without_refused,
)
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
) -> None:
    """Prints what `raw_dir` holds, and what would become of what `out_dir` holds of it.

    Raises:
      UserError: prepare would refuse a case, or all of it.
    """
    raw = open_dataset(name, raw_dir, intensities, called, splits)
    name = raw.name
    if out_dir:
        check_places(raw, out_dir)
    plan = known_plan(out_dir)
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
