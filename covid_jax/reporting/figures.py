"""The figures of a report. Each function draws one figure; `note` says what data it shows."""

from collections.abc import Mapping, Sequence

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from covid_jax.reporting.tables import Run

matplotlib.use("agg")

LUNG_WINDOW_HU = (-1250, 250)
_REFERENCE, _PREDICTION = "#35b779", "#ff5a36"


def learning_curves(runs: Sequence[Run], note: str) -> Figure:
    """Training loss and validation Dice of every run, by epoch."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
    for run in runs:
        epochs = [line["epoch"] + 1 for line in run.log]
        left.plot(epochs, [line["loss"] for line in run.log], ".-", label=run.strategy)
        dice = [line.get("validation_dice", np.nan) for line in run.log]
        right.plot(epochs, dice, ".-", label=run.strategy)
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set(xlabel="epoch", ylabel="training loss")
    right.set(xlabel="epoch", ylabel="Dice over validation patches", ylim=(0, 1))
    right.legend(fontsize=8)
    return _titled(figure, note)


def dice_of_cases(runs: Sequence[Run], note: str) -> Figure:
    """The DSC of each test case under each strategy; a line follows a case."""
    figure, axes = plt.subplots(figsize=(6.5, 3.8))
    cases = sorted({case for run in runs for case in run.cases})
    for case in cases:
        values = [run.cases[case]["dsc"] if case in run.cases else np.nan for run in runs]
        axes.plot(range(len(runs)), values, "-", color="0.8", linewidth=0.8, zorder=1)
        axes.scatter(range(len(runs)), values, s=16, color="#31688e", zorder=2)
    means = [run.mean("dsc") for run in runs]
    axes.scatter(range(len(runs)), means, marker="_", s=500, color=_PREDICTION, zorder=3)
    axes.set_xticks(range(len(runs)), [_label(run) for run in runs], fontsize=8)
    axes.set(ylabel="DSC (line: mean)", ylim=(-0.02, 1))
    return _titled(figure, note)


def dice_against_seconds(runs: Sequence[Run], note: str) -> Figure:
    """Mean DSC against seconds an epoch: the trade-off of the paper's Table III."""
    figure, axes = plt.subplots(figsize=(5, 3.8))
    for run in runs:
        axes.scatter(run.epoch_seconds, run.mean("dsc"), s=40)
        axes.annotate(
            _label(run),
            (run.epoch_seconds, run.mean("dsc")),
            textcoords="offset points",
            xytext=(6, 4),
            fontsize=8,
        )
    axes.set(xlabel="seconds an epoch, training alone", ylabel="mean DSC")
    axes.margins(x=0.35, y=0.3)
    return _titled(figure, note)


def overlays(
    scans: Mapping[str, np.ndarray],
    masks: Mapping[str, Mapping[str, np.ndarray]],
    references: Mapping[str, np.ndarray],
    note: str,
) -> Figure:
    """A slice of each scan in lung window, with the contour of every run's mask.

    The slice is the one with most reference; of a scan without a reference, with most prediction.

    Args:
      scans: name -> (D, H, W) in HU.
      masks: name -> run -> (D, H, W).
      references: name -> (D, H, W); names may be missing.
    """
    columns = ["scan", *next(iter(masks.values()))]
    figure, grid = plt.subplots(
        len(scans), len(columns), figsize=(2.1 * len(columns), 1.75 * len(scans)), squeeze=False
    )
    for row, (name, scan) in zip(grid, scans.items(), strict=True):
        reference = references.get(name)
        chosen = reference if reference is not None else np.sum(list(masks[name].values()), axis=0)
        index = int(np.argmax(chosen.sum((1, 2))))
        for axes, column in zip(row, columns, strict=True):
            low, high = LUNG_WINDOW_HU
            axes.imshow(scan[index], cmap="gray", vmin=low, vmax=high)
            if reference is not None:
                _contour(axes, reference[index], _REFERENCE)
            if column in masks[name]:
                _contour(axes, masks[name][column][index], _PREDICTION)
            axes.set_xticks([])
            axes.set_yticks([])
        row[0].set_ylabel(name, fontsize=7)
    for axes, column in zip(grid[0], columns, strict=True):
        axes.set_title(column, fontsize=8)
    shown = "green: reference, " if references else ""
    return _titled(figure, f"{note} ({shown}red: prediction)")


def _contour(axes: Axes, mask: np.ndarray, colour: str) -> None:
    if mask.any():
        axes.contour(mask, [0.5], colors=[colour], linewidths=0.9)


def _label(run: Run) -> str:
    name = run.strategy.replace("_", "\n")
    return name if run.fold == 0 else f"{name}\nfold {run.fold}"


def _titled(figure: Figure, note: str) -> Figure:
    figure.suptitle(note, fontsize=9)
    figure.tight_layout()
    return figure
