"""Tables as files: CSV, LaTeX and JSON, and as text for a terminal."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from covid_jax.evaluation.metrics import PAPER
from covid_jax.files import whole_file, write_json
from covid_jax.reporting.kinds import Kind
from covid_jax.reporting.paper import Paper
from covid_jax.reporting.runs import Run, kinds_of
from covid_jax.reporting.statistics import Comparison, Summary
from covid_jax.reporting.tables import (
    HEADINGS,
    Cell,
    Row,
    Table,
    Trials,
    compared_told,
    comparisons,
    seconds_table,
)
from covid_jax.reporting.words import p_told


def write_tables(report: Path, runs: Sequence[Run], tables: Sequence[Table], note: str) -> None:
    """Writes table_N.csv and table_N.tex, and results.json with all of it; each has the note.

    Besides table_against_scratch, where anything is compared.
    """
    compared = {metric: comparisons(runs, metric) for metric in PAPER}
    against = [
        _flat_comparison(kind, metric, found)
        for metric, of_metric in compared.items()
        for kind, found in of_metric.items()
    ]
    if against:
        rows = [row | {"note": note} for row in against]
        _write(report / "table_against_scratch.csv", _as_csv(rows))
        _write(report / "table_against_scratch.tex", _latex_against(compared, note))
    for table in tables:
        rows = [row | {"note": note} for row in _flat(table)]
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
                "labels": run.labels,
                "seen_before": run.seen,
                "machine": run.machine,
                "epoch_seconds": run.epoch_seconds,
                "validation_seconds": run.validation_seconds,
            }
            for run in runs
        ],
        "against_scratch": against,
        **{f"table_{table.name}": _flat(table) for table in tables},
    }
    write_json(report / "results.json", results)


def summary_table(runs: Sequence[Run], paper: Paper, note: str) -> str:
    """Every kind of run as text, those of other folds or seeds apart: the paper's in brackets."""
    metrics = ("dsc", "nsd", "sensitivity")
    table = seconds_table(runs, kinds_of(runs), paper, metrics)
    lines = [["", *(HEADINGS[name] for name in metrics), "s an epoch"]]
    for folds, rows in table.sections:
        lines.append([folds, "", "", "", ""])
        for row in rows:
            assert row.seconds
            seconds = f"{row.seconds.training:.1f}"
            seconds += f" ({row.seconds.paper:.0f})" if row.seconds.paper else ""
            cells = [_as_text(row.cells[metric]) for metric in metrics]
            lines.append([row.label, *cells, seconds])
    width = max(len(line[0]) for line in lines)
    written = [
        (f"{name:{width}}" + "".join(f"{x:>16}" for x in rest)).rstrip() for name, *rest in lines
    ]
    last = "in brackets: the paper's, on full scans, 250 steps an epoch, one V100"
    return "\n".join(filter(None, [note, *written, last * table.beside_paper, table.told]))


def as_latex(table: Table, note: str) -> str:
    """The table for a paper with the package booktabs: ours, and the paper's in brackets."""
    cells = [cell for row in table.rows for cell in row.cells.values()]
    seeds = any(cell.ours and cell.ours.seed_std is not None for cell in cells)
    what = "Mean and standard deviation over cases" + ", and that over seeds" * seeds
    what += "; in brackets the mean of the paper" * table.beside_paper
    parts = []
    for group in table.groups:
        titles = [table.title, group.title] if len(table.groups) > 1 else [table.title]
        caption = [f"{', '.join(filter(None, titles))}. {what}.", table.told, note]
        sections = {
            over: {row.label: [_latex_cell(row.cells[key]) for key in group.headings] for row in of}
            for over, of in table.sections
        }
        parts.append(_latex_table(caption, [*group.headings.values()], sections))
    return "\n".join(parts)


def _latex_against(compared: Mapping[str, Mapping[Kind, Comparison]], note: str) -> str:
    first = next(iter(compared.values()))
    what = (
        "Mean difference to scratch with its 95 % interval, over the folds, seeds and cases that "
        "both have; p of the paired Wilcoxon test over cases after Holm's correction."
    )
    headings = [text for metric in compared for text in (HEADINGS[metric], "p")]
    rows = {
        told: {
            kind.label: [_latex_pair(of.get(kind)) for of in compared.values()] for kind in kinds
        }
        for told, kinds in compared_told(first)
    }
    return _latex_table(["Against scratch.", what, note], headings, rows)


def _latex_pair(found: Comparison | None) -> str:
    """Two cells: the difference, and its p."""
    if found is None:
        return "-- & --"
    interval = f"{found.low:+.3f} to {found.high:+.3f}"
    of_one = found.count == 1
    return (
        f"${found.difference:+.3f}$"
        + f" ({interval})" * (not of_one)
        + f" & ${p_told(found.p_holm)}$"
    )


def _latex_table(
    caption: Sequence[str],
    headings: Sequence[str],
    sections: Mapping[str, Mapping[str, Sequence[str]]],
) -> str:
    """Sections of rows with cells; only these are LaTeX already."""
    lines = [
        r"\begin{table}",
        rf"\caption{{{_latex(' '.join(filter(None, caption)))}}}",
        rf"\begin{{tabular}}{{l{'r' * len(headings)}}}",
        r"\toprule",
        " & ".join(["Run", *map(_latex, headings)]) + r" \\",
    ]
    for title, rows in sections.items():
        whole = rf"\multicolumn{{{1 + len(headings)}}}{{l}}{{\emph{{{_latex(title)}}}}}"
        lines += [r"\midrule", rf"{whole} \\"]
        lines += [" & ".join([_latex(name), *cells]) + r" \\" for name, cells in rows.items()]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _flat(table: Table) -> list[dict[str, Any]]:
    """The rows as columns and values; those of the paper where the table has any."""
    return [_flat_row(row, table.beside_paper) for row in table.rows]


def _flat_row(row: Row, beside_paper: bool) -> dict[str, Any]:
    flat: dict[str, Any] = {"strategy": row.kind.strategy, "pretrained": row.kind.source}
    flat |= {"variant": row.kind.variant, **_flat_trials(row.trials)}
    flat["seen_before"] = " ".join(row.seen)
    for name, cell in row.cells.items():
        ours = asdict(cell.ours) if cell.ours else {of.name: None for of in fields(Summary)}
        flat["cases"] = max(flat.get("cases", 0), ours.pop("count") or 0)
        flat |= {f"{name}_{key}": value for key, value in ours.items()}
        if beside_paper:
            flat[f"paper_{name}_mean"], flat[f"paper_{name}_std"] = cell.paper or (None, None)
            flat[f"{name}_difference"] = cell.difference
            flat[f"{name}_excludes_paper"] = cell.outside
        flat[f"{name}_runs"] = " ".join(f"runs/{run}" for run in cell.runs)
    if row.seconds:
        flat["steps_per_epoch"] = row.seconds.steps
        flat["epoch_seconds"] = row.seconds.training
        flat["epoch_seconds_with_validation"] = row.seconds.training + row.seconds.validation
        if beside_paper:
            flat["paper_epoch_seconds"] = row.seconds.paper
    return flat


def _flat_comparison(kind: Kind, metric: str, found: Comparison) -> dict[str, Any]:
    flat = {**kind._asdict(), "metric": metric, **asdict(found)}
    return flat | _flat_trials(flat.pop("trials")) | {"seen": " ".join(flat["seen"])}


def _flat_trials(trials: Trials) -> dict[str, str]:
    """The folds and seeds, each once, with blanks between."""
    of_each = {"folds": {fold for fold, _ in trials}, "seeds": {seed for _, seed in trials}}
    return {name: " ".join(map(str, sorted(numbers))) for name, numbers in of_each.items()}


def _as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    stream = io.StringIO()
    columns = dict.fromkeys(key for row in rows for key in row)
    writer = csv.DictWriter(stream, list(columns), lineterminator="\n")
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
    seeds = "" if cell.ours.seed_std is None else rf" $\pm$ {cell.ours.seed_std:.3f}"
    return rf"{cell.ours.mean:.3f} $\pm$ {cell.ours.std:.3f}{seeds}{paper}"


def _latex(text: str) -> str:
    """`text` with the characters that LaTeX takes for itself written as text."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {character: f"\\{character}" for character in "&%$#_{}"}
    return "".join(special.get(character, character) for character in text)
