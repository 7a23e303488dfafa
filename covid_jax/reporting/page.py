"""The report of a study: a function of its folders, written into STUDY/report."""

import base64
import functools
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jinja2
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from covid_jax import __version__
from covid_jax.config import Config, from_dict
from covid_jax.data.datasets import read_dataset
from covid_jax.data.geometry import Volume
from covid_jax.data.preparation import read_case
from covid_jax.data.preprocess import read_scan
from covid_jax.data.scans import scans_in
from covid_jax.data.volume import read_volume
from covid_jax.errors import UserError
from covid_jax.evaluation.metrics import METRICS
from covid_jax.files import whole_file
from covid_jax.reporting import figures
from covid_jax.reporting.network import draw_networks
from covid_jax.reporting.paper import paper_table
from covid_jax.reporting.runs import Kind, Run, kinds_of, read_runs
from covid_jax.reporting.tables import (
    HEADINGS,
    all_tables,
    comparisons,
    summary_table,
    values_of,
    write_tables,
)
from covid_jax.reporting.viewer import write_case, write_viewer

ReadCase = Callable[[], tuple[Volume, Volume]]
_MOST_NETWORKS = 5  # side by side in one picture


def write_report(study: Path) -> Path:
    """Writes report/: index.html, tables as CSV and LaTeX, results.json, figures, viewer/.

    Returns:
      the path of index.html

    Raises:
      UserError: the folder is no study, or no run of it is finished.
    """
    config = _config(study)
    runs, problems = read_runs(study)
    if not runs:
        raise UserError("; ".join([f"{study}: no finished run in it yet", *problems]))
    report, note = study / "report", honest_note(study, config)
    cases = _tested_cases(study, config, runs)
    tables = all_tables(runs)
    write_tables(report, runs, tables, note)
    drawn = {
        "Test cases: best, median and worst by mean DSC": _test_overlays(
            study, cases, runs, note, problems
        ),
        "DSC of every test case": figures.dice_of_cases(runs, note),
        "DSC against time": figures.dice_against_seconds(runs, note),
        "Learning curves": figures.learning_curves(runs, note),
        "What is copied, and what is frozen": _networks(runs),
    }
    for scan in config.study.scans:
        title = f"{Path(scan).name}: another scanner, no reference, no claim"
        drawn[title] = _scan_overlay(study, Path(scan), runs, note)
    pictures = {
        title: _save(
            figure, report / f"figure_{number}", vector=not any(a.images for a in figure.axes)
        )
        for number, (title, figure) in enumerate(drawn.items(), start=1)
    }
    _write_cases(report / "viewer", study, cases, runs, problems)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("covid_jax.reporting", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html").render(
        title=config.study.title,
        note=note,
        tables=tables,
        comparisons={HEADINGS[metric]: comparisons(runs, metric) for metric in METRICS[:3]},
        runs={kind: [run for run in runs if run.kind == kind] for kind in kinds_of(runs)},
        problems=list(dict.fromkeys(problems)),
        pictures=pictures,
        cases=list(cases),
        version=__version__,
    )
    with whole_file(report / "index.html") as partial:
        partial.write_text(page)
    return report / "index.html"


def terminal_summary(study: Path) -> str:
    """Table III of a study as text."""
    return summary_table(read_runs(study)[0], honest_note(study, _config(study)))


def honest_note(study: Path, config: Config) -> str:
    """The study's note, and which of its datasets are synthetic, whatever the note says."""
    datasets = [json.loads(path.read_text()) for path in study.glob("prepared/*/dataset.json")]
    synthetic = sorted(dataset["name"] for dataset in datasets if dataset["synthetic"])
    said = f"SYNTHETIC data: {', '.join(synthetic)}" if synthetic else ""
    return " | ".join(filter(None, [config.study.note, said]))


def _config(study: Path) -> Config:
    description = study / "study.json"
    if not description.is_file():
        raise UserError(f"{study}: not the folder of a study, it has no study.json")
    return from_dict(json.loads(description.read_text()))


def _tested_cases(study: Path, config: Config, runs: Sequence[Run]) -> dict[str, ReadCase]:
    """Of each case that a run was tested on, by name, how to read its scan and its label."""
    (dataset,) = config.data.datasets
    raw_dir = getattr(config.study.raw, dataset) or study / "raw" / dataset
    tested = {name for run in runs for name in run.cases}
    raw = read_dataset(dataset, raw_dir)
    return {
        case.name: functools.partial(read_case, case, raw)
        for case in raw.cases
        if case.name in tested
    }


def _masks(
    study: Path, runs: Sequence[Run], case: str, problems: list[str]
) -> Iterator[tuple[Run, Volume]]:
    """The mask of a case by every run that has one; one that cannot be read joins the problems."""
    for run in runs:
        if case in run.cases:
            try:
                mask = read_volume(study / "runs" / run.name / "predictions" / f"{case}.nii.gz")
            except UserError as error:
                problems.append(f"the mask of {case} by {run.name}: {error}")
                continue
            yield run, mask


def _test_overlays(
    study: Path,
    cases: dict[str, ReadCase],
    runs: Sequence[Run],
    note: str,
    problems: list[str],
) -> Figure:
    """Three cases of the first fold under the runs of Table III, or all where it has none."""
    table_3 = [Kind(row.strategy, row.source) for row in paper_table(3)]
    fold = min(run.fold for run in runs)
    first = [run for run in runs if run.fold == fold]
    shown = {run.kind.strategy: run for run in first if run.kind in table_3}
    shown = shown or {run.kind.label: run for run in first}
    dice = values_of(list(shown.values()), "dsc")
    ranked = sorted(dice, key=lambda case: -np.mean(dice[case]))
    chosen = list(dict.fromkeys([ranked[0], ranked[len(ranked) // 2], ranked[-1]]))
    read = {name: cases[name]() for name in chosen}
    return figures.overlays(
        {name: scan.voxels for name, (scan, _) in read.items()},
        {
            name: {
                column: mask.voxels
                for column, run in shown.items()
                for _, mask in _masks(study, [run], name, problems)
            }
            for name in chosen
        },
        {name: label.voxels == 1 for name, (_, label) in read.items()},
        list(shown),
        note,
    )


def _scan_overlay(study: Path, scan: Path, runs: Sequence[Run], note: str) -> Figure:
    (name,) = scans_in(scan).paths
    masks = {
        run.kind.label: read_volume(study / "scans" / run.name / f"{name}.nii.gz").voxels
        for run in runs
        if (study / "scans" / run.name / f"{name}.nii.gz").is_file()
    }
    return figures.overlays({name: read_scan(scan).voxels}, {name: masks}, {}, list(masks), note)


def _networks(runs: Sequence[Run]) -> Figure:
    """The networks of kinds that differ in what they copy or freeze."""
    different = {
        (run.kind.strategy, run.config.frozen, run.config.frozen_schedule): run for run in runs
    }
    shown = list(different.values())[:_MOST_NETWORKS]
    titles = [" ".join(filter(None, [run.kind.strategy, run.kind.variant])) for run in shown]
    return draw_networks([run.config for run in shown], titles)


def _write_cases(
    folder: Path,
    study: Path,
    cases: dict[str, ReadCase],
    runs: Sequence[Run],
    problems: list[str],
) -> None:
    write_viewer(folder)
    for number, (name, read) in enumerate(cases.items()):
        masks = (
            (f"{run.kind.label}, fold {run.fold}", mask)
            for run, mask in _masks(study, runs, name, problems)
        )
        write_case(folder / f"case_{number}.js", name, *read(), masks)


def _save(figure: Figure, path: Path, vector: bool) -> str:
    """Saves the figure as PNG, and as SVG if that serves; returns the better as a data: address."""
    matplotlib.rcParams["svg.hashsalt"] = "covid_jax"  # the same file each time
    address = ""
    for kind, media in {"png": "png", "svg": "svg+xml"}.items():
        if kind == "svg" and not vector:
            continue
        buffer = io.BytesIO()
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(buffer, format=kind, dpi=110, metadata=metadata)
        with whole_file(path.with_suffix(f".{kind}")) as partial:
            partial.write_bytes(buffer.getvalue())
        address = f"data:image/{media};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return address
