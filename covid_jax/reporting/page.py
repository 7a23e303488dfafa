"""The report of a study: a function of its folders, written into STUDY/report."""

import base64
import io
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from covid_jax import __version__
from covid_jax.data.geometry import Volume
from covid_jax.data.volume import read_volume
from covid_jax.errors import UserError
from covid_jax.evaluation.metrics import PAPER
from covid_jax.files import whole_file
from covid_jax.reporting import figures
from covid_jax.reporting.cases import (
    Case,
    ReadCase,
    label_space_of,
    labels_of,
    scan_at,
    stored_cases,
    value_names,
)
from covid_jax.reporting.evidence import Evidence, problems_told, read_evidence
from covid_jax.reporting.findings import findings
from covid_jax.reporting.forest import forest
from covid_jax.reporting.formats import summary_table, write_tables
from covid_jax.reporting.kinds import COLOURS, Kind
from covid_jax.reporting.network import draw_networks
from covid_jax.reporting.runs import Run, kinds_of
from covid_jax.reporting.tables import (
    HEADINGS,
    all_tables,
    compared_told,
    comparisons,
    label_noun,
    machines_told,
)
from covid_jax.reporting.viewer import write_case, write_viewer
from covid_jax.reporting.words import counted, p_told, seen_told

_MOST_COLUMNS = 6  # of masks in a figure; of more kinds of run there is one a strategy
_REM_PER_INCH = 5.6  # so that a figure's letters are readable


@dataclass(frozen=True)
class Picture:
    """A figure in the page: its address, its file, its width in rem, and what is said of it."""

    address: str
    file: str
    width: float
    told: str = ""


def write_report(study: Path) -> Path:
    """Writes report/: index.html, tables as CSV and LaTeX, results.json, figures, viewer/.

    What is missing or damaged in the study's folders is named on the page, and left out.

    Returns:
      the path of index.html

    Raises:
      UserError: the folder is no study, or no run of it is finished.
    """
    evidence = read_evidence(study)
    runs, problems, note = evidence.runs, evidence.problems, evidence.note
    if not runs:
        raise UserError("; ".join([f"{study}: no finished run in it yet", *problems]))
    report, data = study / "report", evidence.config.data.datasets
    for old in (*report.glob("table_*"), *report.glob("figure_*")):  # of rows that may be gone
        old.unlink(missing_ok=True)
    names = {name for run in runs for name in run.cases}
    cases = stored_cases(study, evidence.config, names, problems)
    tables = all_tables(runs, evidence.paper)
    write_tables(report, runs, tables, note)
    drawn = {
        **_test_overlays(evidence, cases),
        "DSC of every test case": (figures.dice_of_cases(runs, note), ""),
        "DSC against time": (figures.dice_against_seconds(runs, note), machines_told(runs)),
        "Learning curves": (figures.learning_curves(runs, note), ""),
        "What is copied, and what is frozen": (_networks(runs), ""),
    }
    for scan in evidence.config.study.scans:
        title = f"{Path(scan).name}: a scan without a reference, so without a score"
        drawn[title] = _scan_overlay(evidence, Path(scan))
    pictures = {
        title: _save(figure, report / f"figure_{number}", told)
        for number, (title, (figure, told)) in enumerate(drawn.items(), start=1)
        if figure is not None
    }
    compared = {metric: comparisons(runs, metric) for metric in PAPER[:3]}
    shown = _write_cases(report / "viewer", evidence, cases)
    space = label_space_of(runs[0].config)
    names_of_values = value_names(space)
    colours = figures.class_colours(list(names_of_values.values()))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("covid_jax.reporting", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html").render(
        title=evidence.title,
        note=note,
        beside_paper=bool(evidence.paper.table_1),
        findings=findings(runs, data, evidence.synthetic),
        forest=forest(runs, evidence.paper),
        colours=COLOURS,
        strategies=dict.fromkeys(run.kind.strategy for run in runs),
        labels=list(labels_of(space)),
        noun=label_noun(runs),
        lacking=evidence.lacking,
        tables=tables,
        comparisons={HEADINGS[metric]: of for metric, of in compared.items()},
        compared=compared_told(compared[PAPER[0]]),
        runs={kind: [run for run in runs if run.kind == kind] for kind in kinds_of(runs)},
        seeds=len({run.config.seed for run in runs}),
        problems=list(dict.fromkeys(line.replace(f"{study}/", "") for line in problems)),
        pictures=pictures,
        cases=shown,
        legend={value: (name, colours[name]) for value, name in names_of_values.items()},
        counted=counted,
        p_told=p_told,
        seen_told=seen_told,
        version=__version__,
    )
    with whole_file(report / "index.html") as partial:
        partial.write_text(page, "utf-8")
    return report / "index.html"


def terminal_summary(study: Path) -> str:
    """Every kind of run of a study as text, and what it lacks."""
    evidence = read_evidence(study)
    table = summary_table(evidence.runs, evidence.paper, evidence.note)
    return "\n".join(filter(None, [table, evidence.lacking]))


def _masks(
    evidence: Evidence, runs: Sequence[Run], name: str, case: Case
) -> Iterator[tuple[Run, Volume]]:
    """The mask of a case by every run that has one on the grid of its scan."""
    for run in runs:
        if name in run.cases:
            with problems_told(evidence.problems):
                folder = evidence.folder / "runs" / run.name / "predictions"
                yield run, _mask(folder, name, run, case.scan)


def _mask(folder: Path, case: str, run: Run, scan: Volume) -> Volume:
    try:
        mask = read_volume(folder / f"{case}.nii.gz")
    except UserError as error:
        raise UserError(f"the mask of {case} by {run.name}: {error}") from error
    if mask.voxels.shape != scan.voxels.shape:
        raise UserError(f"the mask of {case} by {run.name}: on another grid than its scan")
    return mask


def _test_overlays(
    evidence: Evidence, cases: dict[str, ReadCase]
) -> dict[str, tuple[Figure | None, str]]:
    """Three cases of a fold under every kind of run, or a kind of each strategy; and a word on it.

    It is the first of the folds that most kinds have, and of several seeds the first.
    """
    kinds = kinds_of(evidence.runs)
    have = Counter(fold for _, fold in {(run.kind, run.fold) for run in evidence.runs})
    fold = min(have, key=lambda fold: (-have[fold], fold))
    here = [run for run in evidence.runs if run.fold == fold]
    of_kind = {run.kind: run for run in reversed(here)}
    printed = [row.kind for row in evidence.paper.table_3]
    chosen = [kind for kind in kinds if kind in of_kind]
    said = []
    if len(chosen) > _MOST_COLUMNS:
        by_strategy: dict[str, Kind] = {}
        for kind in sorted(chosen, key=lambda kind: kind not in printed):
            by_strategy.setdefault(kind.strategy, kind)
        chosen = [kind for kind in chosen if kind in by_strategy.values()]
        said.append(f"one row of each strategy ({len(chosen)} of {len(kinds)} rows)")
    if lacking := [kind.label for kind in kinds if kind not in of_kind]:
        said.append(f"not run in this fold: {'; '.join(lacking)}")
    if len({run.config.seed for run in here}) > 1:
        said.append(f"seed {min(run.config.seed for run in here)}")
    shown = {kind.label: of_kind[kind] for kind in chosen}
    dice: dict[str, list[float]] = {}
    for run in shown.values():
        for name, value in run.values("dsc").items():
            dice.setdefault(name, []).append(value)
    ranked = sorted(dice.keys() & cases.keys(), key=lambda case: (-np.mean(dice[case]), case))
    overlays = {}
    for name in dict.fromkeys([*ranked[:1], *ranked[len(ranked) // 2 :][:1], *ranked[-1:]]):
        with problems_told(evidence.problems):
            case = cases[name]()
            masks = {
                column: mask
                for column, run in shown.items()
                for _, mask in _masks(evidence, [run], name, case)
            }
            overlays[name] = figures.Overlay(case, masks)
    title = f"Test cases of fold {fold}: best, median and worst by mean DSC"
    if not overlays:
        return {title: (None, "")}
    labels = labels_of(label_space_of(evidence.runs[0].config))
    figure = figures.overlays(overlays, list(shown), labels, evidence.note)
    return {title: (figure, _sentence(said))}


def _sentence(parts: Sequence[str]) -> str:
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _scan_overlay(evidence: Evidence, path: Path) -> tuple[Figure | None, str]:
    """A scan of config.study.scans under every run that has a mask of it.

    The scan is read where it is; without it, or without a mask, there is no picture.
    """
    with problems_told(evidence.problems):
        name, case = scan_at(evidence.folder, path)
        masks: dict[str, Volume] = {}
        several = len({(run.fold, run.config.seed) for run in evidence.runs}) > 1
        for run in evidence.runs:
            folder = evidence.folder / "scans" / run.name
            if (folder / f"{name}.nii.gz").is_file():
                with problems_told(evidence.problems):
                    column = run_told(run, evidence.runs) if several else run.kind.label
                    masks[column] = _mask(folder, name, run, case.scan)
        if masks:
            shown = {name: figures.Overlay(case, masks)}
            labels = labels_of(label_space_of(evidence.runs[0].config))
            return figures.overlays(shown, list(masks), labels, evidence.note), ""
        evidence.problems.append(f"{path}: no mask of it in STUDY/scans yet")
    return None, ""


def run_told(run: Run, runs: Sequence[Run]) -> str:
    """A run by its kind, fold, and its seed where there are several."""
    several = len({other.config.seed for other in runs}) > 1
    return f"{run.kind.label}, fold {run.fold}" + f", seed {run.config.seed}" * several


def _networks(runs: Sequence[Run]) -> Figure:
    """The networks of kinds that differ in what they copy or freeze."""
    different: dict[object, Run] = {}
    for run in runs:
        key = (run.kind.strategy, run.config.frozen, run.config.frozen_schedule)
        different.setdefault(key, run)
    shown = list(different.values())
    titles = [" ".join(filter(None, [run.kind.strategy, run.kind.variant])) for run in shown]
    return draw_networks([run.config for run in shown], titles)


def _write_cases(folder: Path, evidence: Evidence, cases: dict[str, ReadCase]) -> list[str]:
    """Writes what the viewer shows; returns the names of its cases, as their files are numbered."""
    write_viewer(folder)
    values = value_names(label_space_of(evidence.runs[0].config))
    shown: list[str] = []
    for name, read in cases.items():
        with problems_told(evidence.problems):
            case = read()
            masks = (
                (run_told(run, evidence.runs), mask)
                for run, mask in _masks(evidence, evidence.runs, name, case)
            )
            if first := next(masks, None):
                path = folder / f"case_{len(shown)}.js"
                write_case(path, name, case, itertools.chain([first], masks), values)
                shown.append(name)
    return shown


def _save(figure: Figure, path: Path, told: str) -> Picture:
    """Saves the figure as PNG, and as SVG where it is all lines; the page has the better one."""
    matplotlib.rcParams["svg.hashsalt"] = "covid_jax"  # the same file each time
    address, file, vector = "", "", not any(axes.images for axes in figure.axes)
    for kind, media in {"png": "png", "svg": "svg+xml"}.items():
        if kind == "svg" and not vector:
            continue
        buffer = io.BytesIO()
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(buffer, format=kind, dpi=110, metadata=metadata)
        with whole_file(path.with_suffix(f".{kind}")) as partial:
            partial.write_bytes(buffer.getvalue())
        address = f"data:image/{media};base64,{base64.b64encode(buffer.getvalue()).decode()}"
        file = path.with_suffix(f".{kind}").name
    return Picture(address, file, round(figure.get_figwidth() * _REM_PER_INCH, 1), told)
