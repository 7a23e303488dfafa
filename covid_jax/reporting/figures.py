"""The figures of a report. Each function draws one figure; `note` says what data it shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from covid_jax.data.geometry import Volume
from covid_jax.label_space import lies_in
from covid_jax.reporting.cases import Case
from covid_jax.reporting.kinds import looks
from covid_jax.reporting.runs import Run, kinds_of
from covid_jax.reporting.statistics import by_case
from covid_jax.reporting.tables import summary_of, values_of

LUNG_WINDOW_HU = (-1250.0, 250.0)
_WIDTH = 5.6  # inches of a figure that a phone shows whole
_AIR_HU = -700.0
_REFERENCE, _PREDICTION, _CASE = "#35b779", "#ff5a36", "#31688e"
_CLASSES = (
    "#ff5a36",
    "#3fa7ff",
    "#ffd23f",
    "#35b779",
    "#c77dff",
    "#ff8ad8",
    "#00d5c8",
    "#b5793c",
    "#9be564",
    "#c8c8c8",
)


def learning_curves(runs: Sequence[Run], note: str) -> Figure:
    """Training loss and validation Dice of every kind of run by epoch, the mean over its runs."""
    figure = Figure(figsize=(_WIDTH, 7.2))
    upper, lower = figure.subplots(2, 1)
    for kind, look in looks(kinds_of(runs)).items():
        logs = [run.log for run in runs if run.kind == kind]
        for axes, name in ((upper, "loss"), (lower, "validation_dice")):
            of_epoch: dict[int, list[float]] = {}  # of runs that may be longer than others
            for log in logs:
                for epoch, line in enumerate(log, start=1):
                    of_epoch.setdefault(epoch, []).append(line.get(name, np.nan))
            axes.plot(
                list(of_epoch),
                [np.mean(values) for values in of_epoch.values()],
                "-",
                marker=look.mark,
                markersize=3.5,
                linewidth=1,
                color=look.colour,
                label=kind.label,
            )
    for axes in (upper, lower):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    upper.set(ylabel="training loss")
    lower.set(xlabel="epoch", ylabel="Dice over validation patches", ylim=(0, 1))
    return _titled(figure, note, *lower.get_legend_handles_labels())


def dice_of_cases(runs: Sequence[Run], note: str) -> Figure:
    """The DSC of each test case, the mean over its folds and seeds; a line follows a case."""
    kinds = kinds_of(runs)
    of_kind = [[run for run in runs if run.kind == kind] for kind in kinds]
    figure = Figure(figsize=(_WIDTH, 1.6 + 0.36 * len(kinds)))
    axes, places = figure.subplots(), range(len(kinds))
    of_case = [by_case(values_of(own, "dsc")) for own in of_kind]
    for case in sorted(set().union(*of_case)):
        line = np.array([np.mean(cases.get(case, [np.nan])) for cases in of_case])
        axes.plot(line, places, "-", color="0.8", linewidth=0.8, zorder=1)
        axes.scatter(line, places, s=14, color=_CASE, zorder=2)
    for place, own in enumerate(of_kind):
        if found := summary_of(own, "dsc"):
            reach = [found.low, found.high]
            axes.plot(reach, [place, place], color=_PREDICTION, linewidth=2, zorder=3)
            axes.scatter([found.mean], [place], marker="|", s=200, color=_PREDICTION, zorder=3)
    axes.set_yticks(places, [kind.label for kind in kinds], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="DSC (red: mean, 95 % interval)", xlim=(-0.02, 1.02))
    return _titled(figure, note)


def dice_against_seconds(runs: Sequence[Run], note: str) -> Figure:
    """Mean DSC against seconds an epoch: the trade-off of the paper's Table III."""
    figure = Figure(figsize=(_WIDTH, 5))
    axes = figure.subplots()
    for kind, look in looks(kinds_of(runs)).items():
        mine = [run for run in runs if run.kind == kind]
        found = summary_of(mine, "dsc")
        assert found  # a run without any score is none
        seconds = median(run.epoch_seconds for run in mine)
        reach = [[found.mean - found.low], [found.high - found.mean]]
        axes.errorbar(
            seconds,
            found.mean,
            reach,
            fmt=look.mark,
            color=look.colour,
            elinewidth=0.7,
            label=kind.label,
        )
    axes.set(xlabel="seconds an epoch, training alone", ylabel="mean DSC, 95 % interval")
    axes.margins(x=0.2, y=0.2)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -0.02), min(high, 1.02))
    return _titled(figure, note, *axes.get_legend_handles_labels())


def window_of(voxels: np.ndarray) -> tuple[float, float]:
    """The values that are drawn black and white: the lung's window of a scan that holds air.

    Of others, such as abdominal CT or MR, the 0.5 and 99.5 percentiles.
    """
    if voxels.min() < _AIR_HU:
        return LUNG_WINDOW_HU
    low, high = np.percentile(voxels, (0.5, 99.5))
    return float(low), float(max(high, low + 1e-6))


def class_colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each class or region, on a dark ground."""
    if len(names) <= len(_CLASSES):
        return dict(zip(names, _CLASSES, strict=False))
    hues = matplotlib.colormaps["hsv"](np.linspace(0, 1, len(names), endpoint=False))
    return {name: matplotlib.colors.to_hex(hue) for name, hue in zip(names, hues, strict=True)}


@dataclass(frozen=True)
class Overlay:
    """A scan, and masks on its grid (label values) by the names of runs; some may be missing."""

    case: Case
    masks: Mapping[str, Volume]


def overlays(
    shown: Mapping[str, Overlay],
    runs: Sequence[str],
    labels: Mapping[str, Sequence[int]],
    note: str,
) -> Figure:
    """A slice of each scan, a channel a column, with the contours of every run's masks.

    One class is drawn over its reference. Several have a colour each, and the reference a column of
    its own. The slice has most of all classes of the reference; without one, of the masks.

    Args:
      shown: by the names of the scans, whose channels are called alike.
      runs: the columns.
      labels: the label values of each class, or region, by its name.
    """
    channels = list(next(iter(shown.values())).case.channels)
    single = len(labels) == 1
    with_reference = any(each.case.reference for each in shown.values())
    columns = [*channels, *["reference"] * (with_reference and not single), *runs]
    figure = Figure(figsize=(2.1 * len(columns), 0.5 + 1.8 * len(shown)))
    grid = figure.subplots(len(shown), len(columns), squeeze=False)
    colours = dict.fromkeys(labels, _PREDICTION) if single else class_colours(list(labels))
    for row, (name, each) in zip(grid, shown.items(), strict=True):
        reference = each.case.reference
        index = _fullest([reference] if reference else list(each.masks.values()), labels)
        aspect = each.case.scan.spacing_mm[1] / each.case.scan.spacing_mm[2]
        for axes, column in zip(row, columns, strict=True):
            volume = each.case.channels.get(column, each.case.scan)
            low, high = window_of(volume.voxels)
            axes.imshow(volume.voxels[index], cmap="gray", vmin=low, vmax=high, aspect=aspect)
            if reference and single:
                _contours(axes, reference.voxels[index], labels, dict.fromkeys(labels, _REFERENCE))
            elif reference and column == "reference":
                _contours(axes, reference.voxels[index], labels, colours)
            if column in runs and column in each.masks:
                _contours(axes, each.masks[column].voxels[index], labels, colours)
            axes.set_xticks([])
            axes.set_yticks([])
        row[0].set_ylabel(name, fontsize=7, parse_math=False)
    for axes, column in zip(grid[0], columns, strict=True):
        axes.set_title(column, fontsize=8, parse_math=False)
    if single:
        legend = {f"{name}, prediction": _PREDICTION for name in labels}
        if with_reference:
            legend |= {f"{name}, reference": _REFERENCE for name in labels}
    else:
        legend = colours
    lines = [Line2D([], [], color=colour) for colour in legend.values()]
    return _titled(figure, note, lines, list(legend))


def _fullest(masks: Sequence[Volume], labels: Mapping[str, Sequence[int]]) -> int:
    """The slice with most of all classes together, each by its share."""
    total: np.ndarray | float = 0.0
    for mask in masks:
        for values in labels.values():
            area = lies_in(mask.voxels, values).sum((1, 2))
            total = total + area / max(1, area.sum())
    return int(np.argmax(total))


def _contours(
    axes: Axes,
    mask: np.ndarray,
    labels: Mapping[str, Sequence[int]],
    colours: Mapping[str, str],
) -> None:
    for name, values in labels.items():
        inside = lies_in(mask, values)
        if inside.any() and not inside.all():
            axes.contour(inside, [0.5], colors=[colours[name]], linewidths=0.9)


def _titled(
    figure: Figure, note: str, lines: Sequence[Artist] = (), names: Sequence[str] = ()
) -> Figure:
    """The figure with its note above, and below it what its lines are."""
    figure.suptitle(note, fontsize=9, parse_math=False, wrap=True)
    if lines:
        columns = min(len(lines), max(2, int(figure.get_figwidth() / 1.8)))
        drawn = figure.legend(
            lines, names, loc="lower center", ncols=columns, fontsize=8, frameon=False
        )
        for text in drawn.get_texts():
            text.set_parse_math(False)
        rows = -(-len(lines) // columns)
        height = (0.1 + 0.18 * rows) / figure.get_figheight()
        figure.tight_layout(rect=(0, height, 1, 1))
    else:
        figure.tight_layout()
    return figure
