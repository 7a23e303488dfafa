"""The report of a study: a function of its folders, written into STUDY/report."""

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path

import jinja2
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from covid_jax import __version__
from covid_jax.config import Config, from_dict
from covid_jax.data.datasets import read_dataset
from covid_jax.data.preprocess import read_scan
from covid_jax.data.volume import read_volume, scans_in, whole_file
from covid_jax.errors import UserError
from covid_jax.reporting import figures
from covid_jax.reporting.tables import Run, finished_runs, summary_table, table_3, write_tables


def write_report(study: Path) -> Path:
    """Writes report/index.html, the tables as CSV, results.json and the figures as PNG.

    Returns:
      the path of index.html

    Raises:
      UserError: the folder is no study, or no run of it is finished.
    """
    description = study / "study.json"
    if not description.is_file():
        raise UserError(f"{study}: not the folder of a study, it has no study.json")
    config = from_dict(json.loads(description.read_text()))
    runs = finished_runs(study)
    if not runs:
        raise UserError(f"{study}: no finished run in it yet")
    report = study / "report"
    note = honest_note(study, config)
    write_tables(report, runs, note)
    drawn = {
        "Masks of test cases: best, median and worst by mean DSC": _test_overlays(
            study, config, runs, note
        ),
        "DSC of every test case": figures.dice_of_cases(runs, note),
        "Learning curves": figures.learning_curves(runs, note),
        "DSC against time": figures.dice_against_seconds(runs, note),
    }
    for scan in config.study.scans:
        title = f"{Path(scan).name}: another scanner, no reference, no claim"
        drawn[title] = _scan_overlay(study, Path(scan), runs, note)
    pictures = {
        title: _save(figure, report / f"figure_{number}.png")
        for number, (title, figure) in enumerate(drawn.items(), start=1)
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("covid_jax.reporting", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html").render(
        title=config.study.title,
        note=note,
        rows=table_3(runs),
        runs=runs,
        pictures=pictures,
        version=__version__,
    )
    with whole_file(report / "index.html") as partial:
        partial.write_text(page)
    return report / "index.html"


def terminal_summary(study: Path) -> str:
    """Table III of a study as text."""
    config = from_dict(json.loads((study / "study.json").read_text()))
    return summary_table(finished_runs(study), honest_note(study, config))


def honest_note(study: Path, config: Config) -> str:
    """The study's note, and which of its datasets are synthetic, whatever the note says."""
    datasets = [json.loads(path.read_text()) for path in study.glob("prepared/*/dataset.json")]
    synthetic = sorted(dataset["name"] for dataset in datasets if dataset["synthetic"])
    said = f"SYNTHETIC data: {', '.join(synthetic)}" if synthetic else ""
    return " | ".join(filter(None, [config.study.note, said]))


def _test_overlays(study: Path, config: Config, runs: Sequence[Run], note: str) -> Figure:
    first = [run for run in runs if run.fold == runs[0].fold]
    means = {case: np.mean([run.cases[case]["dsc"] for run in first]) for case in first[0].cases}
    ranked = sorted(means, key=lambda case: -means[case])
    chosen = [ranked[0], ranked[len(ranked) // 2], ranked[-1]]
    (dataset,) = config.data.datasets
    raw_dir = getattr(config.study.raw, dataset) or study / "raw" / dataset
    cases = {case.name: case for case in read_dataset(dataset, raw_dir).cases}
    return figures.overlays(
        {name: read_scan(cases[name].image).voxels for name in chosen},
        {
            name: {
                run.strategy: read_volume(
                    study / "runs" / run.name / "predictions" / f"{name}.nii.gz"
                ).voxels
                for run in first
            }
            for name in chosen
        },
        {name: read_volume(cases[name].label).voxels for name in chosen},
        note,
    )


def _scan_overlay(study: Path, scan: Path, runs: Sequence[Run], note: str) -> Figure:
    (name,) = scans_in(scan)
    masks = {
        run.strategy: read_volume(study / "scans" / run.name / f"{name}.nii.gz").voxels
        for run in runs
        if (study / "scans" / run.name / f"{name}.nii.gz").is_file()
    }
    return figures.overlays({name: read_scan(scan).voxels}, {name: masks}, {}, note)


def _save(figure: Figure, path: Path) -> str:
    """Saves the figure as PNG; returns it in base64 for the page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    with whole_file(path) as partial:
        partial.write_bytes(buffer.getvalue())
    return base64.b64encode(buffer.getvalue()).decode()
