"""The report of a study: a function of its folders, written into STUDY/report."""

import base64
import contextlib
import io
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import jinja2
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from covid_jax import __version__
from covid_jax.config import Config
from covid_jax.data.geometry import Volume
from covid_jax.data.preprocess import read_scan
from covid_jax.data.volume import read_volume
from covid_jax.errors import UserError
from covid_jax.evaluation.metrics import PAPER
from covid_jax.files import read_json, whole_file
from covid_jax.reporting import figures
from covid_jax.reporting.cases import ReadCase, lesions, stored_cases
from covid_jax.reporting.network import draw_networks
from covid_jax.reporting.paper import paper_table
from covid_jax.reporting.runs import Kind, Run, kinds_of, read_runs
from covid_jax.reporting.tables import (
    HEADINGS,
    all_tables,
    comparisons,
    summary_table,
    write_tables,
)
from covid_jax.reporting.viewer import write_case, write_viewer
from covid_jax.studies.grid import load_study, scan_name
from covid_jax.training.provenance import load_provenance

_MOST_NETWORKS = 5  # side by side in one picture


def write_report(study: Path) -> Path:
    """Writes report/: index.html, tables as CSV and LaTeX, results.json, figures, viewer/.

    What is missing or damaged in the study's folders is named on the page, and left out.

    Returns:
      the path of index.html

    Raises:
      UserError: the folder is no study, or no run of it is finished.
    """
    config = load_study(study)
    runs, problems = read_runs(study)
    if not runs:
        raise UserError("; ".join([f"{study}: no finished run in it yet", *problems]))
    report, note = study / "report", honest_note(study, config, problems)
    cases = stored_cases(study, config, {name for run in runs for name in run.cases}, problems)
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
        drawn[title] = _scan_overlay(study, Path(scan), runs, note, problems)
    pictures = {
        title: _save(
            figure, report / f"figure_{number}", vector=not any(a.images for a in figure.axes)
        )
        for number, (title, figure) in enumerate(drawn.items(), start=1)
        if figure is not None
    }
    shown = _write_cases(report / "viewer", study, cases, runs, problems)
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
        comparisons={HEADINGS[metric]: comparisons(runs, metric) for metric in PAPER[:3]},
        runs={kind: [run for run in runs if run.kind == kind] for kind in kinds_of(runs)},
        problems=list(dict.fromkeys(line.replace(f"{study}/", "") for line in problems)),
        pictures=pictures,
        cases=shown,
        version=__version__,
    )
    with whole_file(report / "index.html") as partial:
        partial.write_text(page, "utf-8")
    return report / "index.html"


def terminal_summary(study: Path) -> str:
    """Table III of a study as text."""
    return summary_table(read_runs(study)[0], honest_note(study, load_study(study), []))


def honest_note(study: Path, config: Config, problems: list[str]) -> str:
    """The study's note, and which of its datasets are synthetic, whatever the note says.

    Both the prepared data and the runs know that, so it is said although one of them is gone.
    """
    synthetic: set[str] = set()
    for path in sorted(study.glob("prepared/*/dataset.json")):
        with _told(problems):
            synthetic |= {path.parent.name} if read_json(path).get("synthetic") else set()
    for run in sorted(study.glob("runs/*")):
        with _told(problems):
            origin = load_provenance(run)
            while origin:  # of the run, of what it started from, and so on
                synthetic |= set(origin.get("synthetic", ()))
                origin = origin.get("pretrained", {})
    said = f"SYNTHETIC data: {', '.join(sorted(synthetic))}" if synthetic else ""
    return " | ".join(filter(None, [config.study.note, said]))


def _masks(
    study: Path, runs: Sequence[Run], case: str, scan: Volume, problems: list[str]
) -> Iterator[tuple[Run, Volume]]:
    """The mask of a case by every run that has one on the grid of its scan."""
    for run in runs:
        if case in run.cases:
            with _told(problems):
                yield run, _mask(study / "runs" / run.name / "predictions", case, run, scan)


def _mask(folder: Path, case: str, run: Run, scan: Volume) -> Volume:
    try:
        mask = read_volume(folder / f"{case}.nii.gz")
    except UserError as error:
        raise UserError(f"the mask of {case} by {run.name}: {error}") from error
    if mask.voxels.shape != scan.voxels.shape:
        raise UserError(f"the mask of {case} by {run.name}: on another grid than its scan")
    return mask


def _test_overlays(
    study: Path,
    cases: dict[str, ReadCase],
    runs: Sequence[Run],
    note: str,
    problems: list[str],
) -> Figure | None:
    """Three cases of the first fold under the runs of Table III, or all where it has none."""
    table_3 = [Kind(row.strategy, row.source) for row in paper_table(3)]
    fold = min(run.fold for run in runs)
    first = [run for run in runs if run.fold == fold]
    shown = {run.kind.strategy: run for run in first if run.kind in table_3}
    shown = shown or {run.kind.label: run for run in first}
    dice: dict[str, list[float]] = {}
    for run in shown.values():
        for case, value in run.values("dsc").items():
            dice.setdefault(case, []).append(value)
    ranked = sorted(dice.keys() & cases.keys(), key=lambda case: (-np.mean(dice[case]), case))
    chosen = dict.fromkeys([*ranked[:1], *ranked[len(ranked) // 2 :][:1], *ranked[-1:]])
    scans, masks, references = {}, {}, {}
    for name in chosen:
        with _told(problems):
            scan, reference = cases[name]()
            scans[name], references[name] = scan.voxels, lesions(reference)
            masks[name] = {
                column: lesions(mask)
                for column, run in shown.items()
                for _, mask in _masks(study, [run], name, scan, problems)
            }
    return figures.overlays(scans, masks, references, list(shown), note) if scans else None


def _scan_overlay(
    study: Path, scan: Path, runs: Sequence[Run], note: str, problems: list[str]
) -> Figure | None:
    """A scan of config.study.scans under every run that has a mask of it.

    The scan is read where it is; without it, or without a mask, there is no picture.
    """
    with _told(problems):
        name, volume = scan_name(str(scan)), read_scan(scan)
        masks: dict[str, np.ndarray] = {}
        for run in runs:
            folder = study / "scans" / run.name
            if (folder / f"{name}.nii.gz").is_file():
                with _told(problems):
                    masks[run.kind.label] = lesions(_mask(folder, name, run, volume))
        if masks:
            return figures.overlays({name: volume.voxels}, {name: masks}, {}, list(masks), note)
        problems.append(f"{scan}: no mask of it in STUDY/scans yet")
    return None


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
) -> list[str]:
    """Writes what the viewer shows; returns the names of its cases, as their files are numbered."""
    write_viewer(folder)
    shown: list[str] = []
    for name, read in cases.items():
        with _told(problems):
            scan, reference = read()
            masks = (
                (f"{run.kind.label}, fold {run.fold}", lesions(mask))
                for run, mask in _masks(study, runs, name, scan, problems)
            )
            if first := next(masks, None):
                path = folder / f"case_{len(shown)}.js"
                all_masks = itertools.chain([first], masks)
                write_case(path, name, scan, lesions(reference), all_masks)
                shown.append(name)
    return shown


@contextlib.contextmanager
def _told(problems: list[str]) -> Iterator[None]:
    """What cannot be read joins the problems."""
    try:
        yield
    except UserError as error:
        problems.append(str(error))


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
