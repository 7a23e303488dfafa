"""The runs of a study as the rows of the paper's tables, beside the paper's numbers."""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from covid_jax.data.volume import whole_file, write_json
from covid_jax.reporting.paper import PaperRow, paper_table
from covid_jax.training.progress import read_log


@dataclass(frozen=True)
class Run:
    """A finished run of a study.

    Attributes:
      cases: the metrics of each test case.
      epoch_seconds: the median over epochs of training alone, without the first, which compiles.
      validation_seconds: the same of the validation steps.
      log: the lines of its log.jsonl.
    """

    name: str
    strategy: str
    source: str
    fold: int
    cases: dict[str, dict[str, float]]
    epoch_seconds: float
    validation_seconds: float
    steps_per_epoch: int
    log: list[dict[str, Any]]

    def mean(self, metric: str) -> float:
        """The mean of a metric over the test cases."""
        return float(np.mean([case[metric] for case in self.cases.values()]))

    def std(self, metric: str) -> float:
        """The standard deviation of a metric over the test cases."""
        return float(np.std([case[metric] for case in self.cases.values()]))


def finished_runs(study: Path) -> list[Run]:
    """The runs of a study that have metrics, in the order of the paper's Table I."""
    runs = []
    for path in sorted((study / "runs").glob("*/metrics.json")):
        config = json.loads((path.parent / "config.json").read_text())
        log = read_log(path.parent)
        timed = log[1:] or log
        runs.append(
            Run(
                name=path.parent.name,
                strategy=config["strategy"],
                source=config["source"],
                fold=config["fold"],
                cases=json.loads(path.read_text())["cases"],
                epoch_seconds=median(line["seconds"] for line in timed),
                validation_seconds=median(line.get("validation_seconds", 0.0) for line in timed),
                steps_per_epoch=config["steps_per_epoch"],
                log=log,
            )
        )
    order = {(row.strategy, row.source): place for place, row in enumerate(paper_table(1))}
    return sorted(
        runs, key=lambda run: (order.get((run.strategy, run.source), len(order)), run.name)
    )


def table_1(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """DSC and NSD of the paper's 14 rows, by fold and over all fold-cases."""
    rows = []
    for paper in paper_table(1):
        row: dict[str, Any] = {"strategy": paper.strategy, "pretrained": paper.source}
        mine = _of(runs, paper)
        for metric in ("dsc", "nsd"):
            for fold in range(5):
                here = [run for run in mine if run.fold == fold]
                row |= _cells(f"{metric}_fold{fold}", here, metric, paper.folds[metric][fold])
            row |= _cells(f"{metric}_avg", mine, metric, paper.average[metric])
        rows.append(row)
    return rows


def table_2(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Sensitivity, F1 and accuracy over all fold-cases."""
    rows = []
    for paper in paper_table(2):
        row: dict[str, Any] = {"strategy": paper.strategy, "pretrained": paper.source}
        for metric in ("sensitivity", "f1", "accuracy"):
            row |= _cells(metric, _of(runs, paper), metric, paper.average[metric])
        rows.append(row)
    return rows


def table_3(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """DSC, NSD, sensitivity and seconds an epoch of the five strategies, a row for each fold."""
    rows = []
    for paper in paper_table(3):
        for run in _of(runs, paper):
            row: dict[str, Any] = {
                "strategy": run.strategy,
                "pretrained": run.source,
                "fold": run.fold,
                "cases": len(run.cases),
            }
            for metric in ("dsc", "nsd", "sensitivity"):
                row |= _cells(metric, [run], metric, paper.folds[metric][run.fold])
            row["steps_per_epoch"] = run.steps_per_epoch
            row["epoch_seconds"] = run.epoch_seconds
            row["epoch_seconds_with_validation"] = run.epoch_seconds + run.validation_seconds
            row["paper_epoch_seconds"] = paper.epoch_seconds[run.fold]
            rows.append(row)
    return rows


def write_tables(report: Path, runs: Sequence[Run], note: str) -> None:
    """Writes table_1.csv, table_2.csv, table_3.csv and results.json; each carries the note."""
    tables = {1: table_1(runs), 2: table_2(runs), 3: table_3(runs)}
    for number, rows in tables.items():
        with whole_file(report / f"table_{number}.csv") as partial, partial.open("w") as stream:
            names = [*(rows[0] if rows else ()), "note"]
            writer = csv.DictWriter(stream, names)
            writer.writeheader()
            writer.writerows({**row, "note": note} for row in rows)
    results = {
        "note": note,
        "runs": [asdict(run) | {"log": None} for run in runs],
        **{f"table_{number}": rows for number, rows in tables.items()},
    }
    write_json(report / "results.json", results)


def summary_table(runs: Sequence[Run], note: str) -> str:
    """Table III as text, for the terminal: ours, and the paper's in brackets."""
    head = f"{'strategy':16}{'DSC':>18}{'NSD':>18}{'sensitivity':>18}{'s an epoch':>18}"
    lines = [note, head]
    for row in table_3(runs):
        cells = [
            f"{row[f'{m}_mean']:.3f} ({row[f'paper_{m}_mean']:.3f})"
            for m in ("dsc", "nsd", "sensitivity")
        ]
        cells.append(f"{row['epoch_seconds']:.1f} ({row['paper_epoch_seconds']:.0f})")
        lines.append(f"{row['strategy']:16}" + "".join(f"{cell:>18}" for cell in cells))
    lines.append("in brackets: the paper's, on full scans, 250 steps an epoch, one V100")
    return "\n".join(lines)


def _of(runs: Sequence[Run], paper: PaperRow) -> list[Run]:
    return [run for run in runs if (run.strategy, run.source) == (paper.strategy, paper.source)]


def _cells(
    prefix: str, runs: Sequence[Run], metric: str, paper: tuple[float, float | None]
) -> dict[str, Any]:
    values = [case[metric] for run in runs for case in run.cases.values()]
    return {
        f"{prefix}_mean": float(np.mean(values)) if values else None,
        f"{prefix}_std": float(np.std(values)) if values else None,
        f"paper_{prefix}_mean": paper[0],
        f"paper_{prefix}_std": paper[1],
    }
