"""Whether two frameworks end alike, as far as their seeds let it be told."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

Scores = Mapping[str, Sequence[float]]
"""Of each of two frameworks, the score of every seed."""
Curve = list[float]
"""The score of a seed after every epoch."""


def agreement(scores: Scores) -> dict[str, float]:
    """The first's mean minus the second's, and the larger range of their seeds."""
    first, second = (np.array(of_one) for of_one in scores.values())
    return {
        "difference_of_means": float(first.mean() - second.mean()),
        "spread_of_seeds": float(max(np.ptp(first), np.ptp(second))),
    }


def agreement_table(scores: Scores) -> str:
    """A line for each with its mean and seeds, and one that compares them."""
    found = agreement(scores)
    lines = [
        f"{name:<18} {np.mean(of_one):.3f} ({', '.join(f'{value:.3f}' for value in of_one)})"
        for name, of_one in scores.items()
    ]
    difference, spread = found["difference_of_means"], found["spread_of_seeds"]
    return "\n".join(
        [*lines, f"difference of means {difference:+.3f}, spread of seeds {spread:.3f}"]
    )


def draw_curves(axes: Axes, curves: Mapping[str, Sequence[Curve]]) -> None:
    """The mean curve of each framework, over the band of its seeds."""
    for (name, runs), colour in zip(curves.items(), ("#31688e", "#ff5a36"), strict=True):
        values = np.array(runs)
        epochs = np.arange(1, values.shape[1] + 1)
        axes.fill_between(epochs, values.min(0), values.max(0), color=colour, alpha=0.2)
        axes.plot(epochs, values.mean(0), color=colour, label=f"{name}, mean of {len(runs)} seeds")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=8, loc="lower right")
