"""What did a study find: each row's scores, and how far it is from scratch; for docs/study.md.

    python -m benchmarks.study_scores --study=runs/reduced --name=reduced --output=DIR

Writes study_NAME.json: of every kind of run its means over all folds and seeds, its difference to
scratch with interval and p values, and the seconds that the study's steps took.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from absl import flags

from benchmarks.harness import environment
from benchmarks.harness.tables import study_table
from covid_jax.command import as_process, require, run_command
from covid_jax.errors import UserError
from covid_jax.files import read_json
from covid_jax.reporting.evidence import read_evidence
from covid_jax.reporting.runs import Run, kinds_of
from covid_jax.reporting.tables import comparisons, summary_of

_METRICS = ("dsc", "nsd")

_FLAGS = flags.FlagValues()
_STUDY = flags.DEFINE_string("study", None, "Folder of the study.", _FLAGS)
_NAME = flags.DEFINE_string("name", None, "What the result file is called.", _FLAGS)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the result file.", _FLAGS)


def rows_of(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A line for each kind of run."""
    against = {metric: comparisons(runs, metric) for metric in _METRICS}
    rows = []
    for kind in kinds_of(runs):
        own = [run for run in runs if run.kind == kind]
        row: dict[str, Any] = {
            **kind._asdict(),
            "runs": len(own),
            "epoch_seconds": median(run.epoch_seconds for run in own),
            "steps_per_epoch": own[0].config.steps_per_epoch,
        }
        for metric in _METRICS:
            summary = summary_of(own, metric)
            assert summary  # a finished run has a score
            row[metric] = asdict(summary)
            if kind in against[metric]:
                row[f"{metric}_against_scratch"] = asdict(against[metric][kind])
        rows.append(row)
    return rows


def work() -> None:
    """Reads, writes and prints."""
    require(_STUDY, _NAME, _OUTPUT)
    study = Path(_STUDY.value)
    evidence = read_evidence(study)
    if not evidence.runs:
        raise UserError(f"{study}: no finished run in it yet")
    rows, settings = rows_of(evidence.runs), evidence.config
    records = [read_json(path) for path in sorted((study / "steps").glob("*.json"))]
    environment.save(
        Path(_OUTPUT.value) / f"study_{_NAME.value}.json",
        rows,
        title=evidence.title,
        note=evidence.note,
        folds=settings.study.folds,
        seeds=settings.study.seeds or (settings.seed,),
        steps=len(records),
        steps_seconds=sum(record.get("seconds", 0.0) for record in records),
    )
    print(study_table(rows))


def main(arguments: Sequence[str]) -> int:
    """This command; returns its exit status."""
    return run_command(work, _FLAGS, __doc__, arguments)


if __name__ == "__main__":
    as_process(main)
