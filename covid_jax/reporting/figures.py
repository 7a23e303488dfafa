"""The figures of a report. Each function draws one figure; `note` says what data it shows."""

from collections.abc import Mapping, Sequence
from statistics import median

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from covid_jax.reporting.runs import Kind, Run, kinds_of
from covid_jax.reporting.statistics import by_case, summarise
from covid_jax.reporting.tables import values_of

_LUNG_WINDOW_HU = (-1250.0, 250.0)
_AIR_HU = -700.0
_REFERENCE, _PREDICTION, _CASE = "#35b779", "#ff5a36", "#31688e"
_MARKS = {"scratch": "o", "continual": "s", "body": "^", "frozen_encoder": "D"}


def learning_curves(runs: Sequence[Run], note: str) -> Figure:
    """Training loss and validation Dice of every kind of run by epoch, the mean over its folds."""
    figure = Figure(figsize=(10, 3.8))
    left, right = figure.subplots(1, 2)
    for colour, kind in _coloured(runs):
        logs = [run.log for run in runs if run.kind == kind]
        epochs = range(1, 1 + min(map(len, logs)))
        for axes, value in ((left, "loss"), (right, "validation_dice")):
            lines = [[log[epoch - 1].get(value, np.nan) for epoch in epochs] for log in logs]
            axes.plot(epochs, np.mean(lines, axis=0), ".-", color=colour, label=kind.label)
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set(xlabel="epoch", ylabel="training loss")
    right.set(xlabel="epoch", ylabel="Dice over validation patches", ylim=(0, 1))
    right.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return _titled(figure, note)


def dice_of_cases(runs: Sequence[Run], note: str) -> Figure:
    """The DSC of each test case, the mean over its folds and seeds; a line follows a case."""
    kinds = kinds_of(runs)
    of_kind = [values_of([run for run in runs if run.kind == kind], "dsc") for kind in kinds]
    figure = Figure(figsize=(max(6.5, 0.85 * len(kinds)), 4))
    axes = figure.subplots()
    of_case = [by_case(values) for values in of_kind]
    for case in sorted(set().union(*of_case)):
        line = np.array([np.mean(cases.get(case, [np.nan])) for cases in of_case])
        axes.plot(range(len(kinds)), line, "-", color="0.8", linewidth=0.8, zorder=1)
        axes.scatter(range(len(kinds)), line, s=14, color=_CASE, zorder=2)
    for place, values in enumerate(of_kind):
        found = summarise(values)
        axes.plot([place, place], [found.low, found.high], color=_PREDICTION, linewidth=2, zorder=3)
        axes.scatter([place], [found.mean], marker="_", s=300, color=_PREDICTION, zorder=3)
    axes.set_xticks(range(len(kinds)), [_stacked(kind) for kind in kinds], fontsize=7)
    axes.set(ylabel="DSC (red: mean, 95 % interval)", ylim=(-0.02, 1))
    return _titled(figure, note)


def dice_against_seconds(runs: Sequence[Run], note: str) -> Figure:
    """Mean DSC against seconds an epoch: the trade-off of the paper's Table III."""
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    for colour, kind in _coloured(runs):
        mine = [run for run in runs if run.kind == kind]
        found = summarise(values_of(mine, "dsc"))
        seconds = median(run.epoch_seconds for run in mine)
        reach = [[found.mean - found.low], [found.high - found.mean]]
        axes.errorbar(
            seconds,
            found.mean,
            reach,
            fmt=_MARKS.get(kind.strategy, "P"),
            color=colour,
            elinewidth=0.7,
            label=kind.label,
        )
    axes.set(xlabel="seconds an epoch, training alone", ylabel="mean DSC, 95 % interval")
    axes.margins(x=0.2, y=0.2)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return _titled(figure, note)


def window_of(voxels: np.ndarray) -> tuple[float, float]:
    """The values that are drawn black and white: the lung's window of a scan that holds air.

    Of others, such as abdominal CT or MR, the 0.5 and 99.5 percentiles.
    """
    if voxels.min() < _AIR_HU:
        return _LUNG_WINDOW_HU
    low, high = np.percentile(voxels, (0.5, 99.5))
    return float(low), float(max(high, low + 1e-6))


def overlays(
    scans: Mapping[str, np.ndarray],
    masks: Mapping[str, Mapping[str, np.ndarray]],
    references: Mapping[str, np.ndarray],
    runs: Sequence[str],
    note: str,
) -> Figure:
    """A slice of each scan in its window, with the contour of every run's mask.

    The slice is the one with most reference; of a scan without a reference, with most prediction.

    Args:
      scans: name -> (D, H, W), in HU where it is CT.
      masks: name -> run -> (D, H, W); runs may be missing.
      references: name -> (D, H, W); names may be missing.
      runs: the columns.
    """
    columns = ["scan", *runs]
    figure = Figure(figsize=(2.1 * len(columns), 1.75 * len(scans)))
    grid = figure.subplots(len(scans), len(columns), squeeze=False)
    for row, (name, scan) in zip(grid, scans.items(), strict=True):
        reference = references.get(name)
        chosen = reference if reference is not None else np.sum(list(masks[name].values()), axis=0)
        index = int(np.argmax(chosen.sum((1, 2))))
        for axes, column in zip(row, columns, strict=True):
            low, high = window_of(scan)
            axes.imshow(scan[index], cmap="gray", vmin=low, vmax=high)
            if reference is not None:
                _contour(axes, reference[index], _REFERENCE)
            if column in masks[name]:
                _contour(axes, masks[name][column][index], _PREDICTION)
            axes.set_xticks([])
            axes.set_yticks([])
        row[0].set_ylabel(name, fontsize=7, parse_math=False)
    for axes, column in zip(grid[0], columns, strict=True):
        axes.set_title(column, fontsize=8, parse_math=False)
    shown = "green: reference, " if references else ""
    return _titled(figure, f"{note} ({shown}red: prediction)")


def _contour(axes: Axes, mask: np.ndarray, colour: str) -> None:
    if mask.any():
        axes.contour(mask, [0.5], colors=[colour], linewidths=0.9)


def _coloured(runs: Sequence[Run]) -> list[tuple[str, Kind]]:
    kinds = kinds_of(runs)
    colours = matplotlib.colormaps["tab10" if len(kinds) <= 10 else "tab20"]
    return [
        (matplotlib.colors.to_hex(colours(i % colours.N)), kind) for i, kind in enumerate(kinds)
    ]


def _stacked(kind: Kind) -> str:
    return kind.label.replace("_", "\n").replace(", ", "\n")


def _titled(figure: Figure, note: str) -> Figure:
    figure.suptitle(note, fontsize=9, parse_math=False, wrap=True)
    figure.tight_layout()
    return figure
