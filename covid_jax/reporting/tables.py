"""The runs of a study as the rows of the paper's Tables I to III, beside the paper's numbers."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import median
from typing import Any

from covid_jax.evaluation.metrics import EXTRAS, METRICS, NOT_OVER_LABELS, PAPER
from covid_jax.files import whole_file, write_json
from covid_jax.reporting.paper import Pair, PaperRow, paper_table
from covid_jax.reporting.runs import Kind, Run, kinds_of
from covid_jax.reporting.statistics import Comparison, Summary, Trial, Values, compare, summarise

HEADINGS = {metric.name: metric.heading for metric in METRICS}
_BASELINE = Kind("scratch", "none")
_FOLDS = range(5)


@dataclass(frozen=True)
class Cell:
    """A metric of some runs, beside the paper's.

    Attributes:
      runs: the names of the folders that it comes from.
      ours: missing where there is no run.
      paper: mean and deviation, missing where the paper prints none.
    """

    runs: tuple[str, ...]
    ours: Summary | None
    paper: Pair | None

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's mean."""
        return None if self.ours is None or self.paper is None else self.ours.mean - self.paper[0]

    @property
    def outside(self) -> bool | None:
        """Whether our interval excludes the paper's mean."""
        if self.ours is None or self.paper is None:
            return None
        return not self.ours.low <= self.paper[0] <= self.ours.high


@dataclass(frozen=True)
class Row:
    """A kind of run, in all folds or in one, with its cells by column.

    Attributes:
      seconds: in Table III: an epoch's of training alone, an epoch's validation, its steps, and the
        paper's for an epoch.
    """

    kind: Kind
    cells: dict[str, Cell]
    fold: int | None = None
    seconds: dict[str, float] | None = None


@dataclass(frozen=True)
class Table:
    """Rows; and in `groups` the keys of columns that are shown together, with their headings."""

    name: str
    title: str
    groups: tuple[dict[str, str], ...]
    rows: tuple[Row, ...]


def all_tables(runs: Sequence[Run]) -> tuple[Table, ...]:
    """Tables I to III, a fourth of metrics that the paper does not have, and of several labels a
    fifth with each one's DSC.

    The paper's rows come first, also where no run is there yet, then kinds of run that it lacks.
    """
    tables = (_table_1(runs), _table_2(runs), _table_3(runs), _table_4(runs))
    return (*tables, _table_5(runs)) if any(run.labels for run in runs) else tables


def comparisons(runs: Sequence[Run], metric: str) -> dict[Kind, Comparison]:
    """Every kind of run against scratch in the folds and seeds that both have, if any."""
    scratch = values_of(_of(runs, _BASELINE), metric)
    others = [kind for kind in kinds_of(runs) if kind != _BASELINE]
    return compare({kind: (values_of(_of(runs, kind), metric), scratch) for kind in others})


def values_of(runs: Sequence[Run], metric: str) -> Values:
    """Of each of these runs, its fold and seed with the value of every case that has one."""
    found = {Trial(run.fold, run.config.seed): run.values(metric) for run in runs}
    return {trial: values for trial, values in found.items() if values}


def write_tables(report: Path, runs: Sequence[Run], tables: Sequence[Table], note: str) -> None:
    """Writes table_N.csv and table_N.tex, and results.json with all of it; each has the note."""
    for table in tables:
        rows = [_flat(row) | {"note": note} for row in table.rows]
        _write(report / f"table_{table.name}.csv", _as_csv(rows))
        _write(report / f"table_{table.name}.tex", as_latex(table, note))
    results = {
        "note": note,
        "runs": [
            {
                "name": run.name,
                **run.kind._asdict(),
                "fold": run.fold,
                "seed": run.config.seed,
                "cases": run.cases,
                "epoch_seconds": run.epoch_seconds,
                "validation_seconds": run.validation_seconds,
            }
            for run in runs
        ],
        "against_scratch": [
            {**kind._asdict(), "metric": metric, **asdict(comparison)}
            for metric in PAPER
            for kind, comparison in comparisons(runs, metric).items()
        ],
        **{f"table_{table.name}": [_flat(row) for row in table.rows] for table in tables},
    }
    write_json(report / "results.json", results)


def summary_table(runs: Sequence[Run], note: str) -> str:
    """Table III as text, and other kinds of run over their folds: the paper's in brackets."""
    metrics = ("dsc", "nsd", "sensitivity")
    lines = [["strategy", *(HEADINGS[name] for name in metrics), "s an epoch"]]
    table_1, table_2, table_3, *_ = all_tables(runs)
    for row in table_3.rows:
        assert row.seconds
        name = row.kind.strategy if "paper" in row.seconds else row.kind.label
        name += f", fold {row.fold}" if row.fold else ""
        paper = f" ({row.seconds['paper']:.0f})" if "paper" in row.seconds else ""
        cells = [_as_text(row.cells[metric]) for metric in metrics]
        lines.append([name, *cells, f"{row.seconds['training']:.1f}{paper}"])
    shown = {row.kind for row in table_3.rows}
    for first, second in zip(table_1.rows, table_2.rows, strict=True):
        mine = _of(runs, first.kind)
        if mine and first.kind not in shown:
            found = (first.cells["dsc_avg"], first.cells["nsd_avg"], second.cells["sensitivity"])
            seconds = f"{median(run.epoch_seconds for run in mine):.1f}"
            lines.append([first.kind.label, *map(_as_text, found), seconds])
    width = max(len(line[0]) for line in lines)
    written = [f"{name:{width}}" + "".join(f"{x:>18}" for x in rest) for name, *rest in lines]
    last = "in brackets: the paper's, on full scans, 250 steps an epoch, one V100"
    return "\n".join([note, *written, last])


def as_latex(table: Table, note: str) -> str:
    """The table for a paper with the package booktabs: ours, and the paper's in brackets."""
    parts = []
    for group in table.groups:
        lines = [
            r"\begin{table}",
            rf"\caption{{{_latex(f'{table.title}. {note}')}}}",
            rf"\begin{{tabular}}{{l{'r' * len(group)}}}",
            r"\toprule",
            " & ".join(["Run", *map(_latex, group.values())]) + r" \\",
            r"\midrule",
        ]
        for row in table.rows:
            fold = "" if row.fold is None else f", fold {row.fold}"
            cells = [_latex_cell(row.cells[key]) for key in group]
            lines.append(" & ".join([_latex(row.kind.label + fold), *cells]) + r" \\")
        parts.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]))
    return "\n".join(parts)


def _table_1(runs: Sequence[Run]) -> Table:
    rows = []
    for kind, paper in _kinds(runs, 1).items():
        cells = {}
        for metric in ("dsc", "nsd"):
            folds = paper.folds[metric] if paper else (None,) * len(_FOLDS)
            mine = _of(runs, kind)
            for fold in _FOLDS:
                here = [run for run in mine if run.fold == fold]
                cells[f"{metric}_fold{fold}"] = _cell(here, metric, folds[fold])
            cells[f"{metric}_avg"] = _cell(mine, metric, paper.average[metric] if paper else None)
        rows.append(Row(kind, cells))
    groups = tuple(
        {**{f"{m}_fold{k}": f"{HEADINGS[m]}, fold {k}" for k in _FOLDS}, f"{m}_avg": "all folds"}
        for m in ("dsc", "nsd")
    )
    return Table("1", "Table I: DSC and NSD by fold", groups, tuple(rows))


def _table_2(runs: Sequence[Run]) -> Table:
    metrics = ("sensitivity", "f1", "accuracy")
    rows = []
    for kind, paper in _kinds(runs, 2).items():
        printed = paper.average if paper else {}
        cells = {name: _cell(_of(runs, kind), name, printed.get(name)) for name in metrics}
        rows.append(Row(kind, cells))
    title = "Table II: sensitivity, F1 and accuracy over all folds"
    return Table("2", title, (_headed(metrics),), tuple(rows))


def _table_3(runs: Sequence[Run]) -> Table:
    metrics = ("dsc", "nsd", "sensitivity")
    rows = []
    for kind, paper in _kinds(runs, 3).items():
        mine = _of(runs, kind)
        for fold in sorted({run.fold for run in mine}):
            here = [run for run in mine if run.fold == fold]
            printed = paper.folds if paper else {}
            cells = {
                name: _cell(here, name, printed[name][fold] if printed else None)
                for name in metrics
            }
            seconds = {
                "training": median(run.epoch_seconds for run in here),
                "validation": median(run.validation_seconds for run in here),
                "steps": here[0].config.steps_per_epoch,
            }
            if paper:
                seconds["paper"] = paper.epoch_seconds[fold]
            rows.append(Row(kind, cells, fold, seconds))
    title = "Table III: the strategies, and the seconds of an epoch"
    return Table("3", title, (_headed(metrics),), tuple(rows))


def _table_4(runs: Sequence[Run]) -> Table:
    rows = [
        Row(kind, {name: _cell(_of(runs, kind), name, None) for name in EXTRAS})
        for kind in kinds_of(runs)
    ]
    title = "Not in the paper, over all folds"
    if any(run.labels for run in runs):
        title += f"; over labels {NOT_OVER_LABELS}"
    return Table("4", title, (_headed(EXTRAS),), tuple(rows))


def _table_5(runs: Sequence[Run]) -> Table:
    names = dict.fromkeys(name for run in runs for name in run.labels)
    rows = []
    for kind in kinds_of(runs):
        of_label = {
            name: [
                replace(run, cases=run.labels[name])
                for run in _of(runs, kind)
                if name in run.labels
            ]
            for name in names
        }
        rows.append(Row(kind, {name: _cell(some, "dsc", None) for name, some in of_label.items()}))
    title = "DSC of each label, over all folds; the other tables have the mean over labels"
    return Table("5", title, ({name: name for name in names},), tuple(rows))


def _headed(metrics: Sequence[str]) -> dict[str, str]:
    return {name: HEADINGS[name] for name in metrics}


def _kinds(runs: Sequence[Run], number: int) -> dict[Kind, PaperRow | None]:
    """The kinds of a table's rows with the paper's row: those of the paper, then variants."""
    kinds: dict[Kind, PaperRow | None] = {
        Kind(row.strategy, row.source): row for row in paper_table(number)
    }
    everywhere = {Kind(row.strategy, row.source) for row in paper_table(1)}
    return kinds | {kind: None for kind in kinds_of(runs) if kind not in everywhere}


def _of(runs: Sequence[Run], kind: Kind) -> list[Run]:
    return [run for run in runs if run.kind == kind]


def _cell(runs: Sequence[Run], metric: str, paper: Pair | None) -> Cell:
    values = values_of(runs, metric)
    return Cell(tuple(run.name for run in runs), summarise(values) if values else None, paper)


def _flat(row: Row) -> dict[str, Any]:
    flat: dict[str, Any] = {"strategy": row.kind.strategy, "pretrained": row.kind.source}
    flat["variant"] = row.kind.variant
    if row.fold is not None:
        flat["fold"] = row.fold
    for name, cell in row.cells.items():
        ours = asdict(cell.ours) if cell.ours else {of.name: None for of in fields(Summary)}
        flat["cases"] = ours.pop("count") or 0
        flat |= {f"{name}_{key}": value for key, value in ours.items()}
        flat[f"paper_{name}_mean"], flat[f"paper_{name}_std"] = cell.paper or (None, None)
        flat[f"{name}_difference"] = cell.difference
        flat[f"{name}_excludes_paper"] = cell.outside
        flat[f"{name}_runs"] = " ".join(f"runs/{run}" for run in cell.runs)
    if row.seconds:
        flat["steps_per_epoch"] = row.seconds["steps"]
        flat["epoch_seconds"] = row.seconds["training"]
        flat["epoch_seconds_with_validation"] = row.seconds["training"] + row.seconds["validation"]
        flat["paper_epoch_seconds"] = row.seconds.get("paper")
    return flat


def _as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]) if rows else ["note"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _write(path: Path, text: str) -> None:
    with whole_file(path) as partial:
        partial.write_text(text, "utf-8")


def _as_text(cell: Cell) -> str:
    assert cell.ours
    return f"{cell.ours.mean:.3f}" + (f" ({cell.paper[0]:.3f})" if cell.paper else "")


def _latex_cell(cell: Cell) -> str:
    if cell.ours is None:
        return "--"
    paper = f" ({cell.paper[0]:.3f})" if cell.paper else ""
    return rf"{cell.ours.mean:.3f} $\pm$ {cell.ours.std:.3f}{paper}"


def _latex(text: str) -> str:
    """`text` with the characters that LaTeX takes for itself written as text."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {character: f"\\{character}" for character in "&%$#_{}"}
    return "".join(special.get(character, character) for character in text)
