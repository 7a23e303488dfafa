"""How far a study's numbers can be trusted: intervals and tests over cases.

The same case is tested in several folds, by networks that saw other training cases; it stays one
case. So intervals draw cases, each with all that it has in every fold, and tests compare one value
a case, the mean over its folds.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy import stats

_DRAWS = 10_000
_LEVEL = 0.95


@dataclass(frozen=True)
class Summary:
    """A metric over fold-cases.

    Attributes:
      mean, std: over all of them.
      low, high: the 95 % bootstrap interval of the mean, over cases.
      count: of the fold-cases.
    """

    mean: float
    std: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Comparison:
    """One kind of run against the baseline, over the cases that both have.

    Attributes:
      difference: its mean minus the baseline's, with the interval over cases.
      p: of the paired Wilcoxon test, two-sided; 1 where all pairs are equal.
      p_holm: the same for all comparisons of a study at once (Holm).
      count: of the cases.
    """

    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    count: int


Name = TypeVar("Name", bound=Hashable)
Values = Mapping[str, Sequence[float]]
"""Of each case, its value in every fold that tests it."""


def summarise(values: Values) -> Summary:
    """Mean, deviation and interval of a metric. There is at least one value."""
    every = np.concatenate([np.asarray(of_case, float) for of_case in values.values()])
    low, high = _interval(values)
    return Summary(float(every.mean()), float(every.std()), low, high, len(every))


def compare(pairs: Mapping[Name, tuple[Values, Values]]) -> dict[Name, Comparison]:
    """The first of each pair against the second, its baseline, over the cases that both have."""
    found, p_values = {}, {}  # of each name
    for name, (of_name, baseline) in pairs.items():
        shared = [case for case in of_name if case in baseline]
        if not shared:
            continue
        by_case = {c: [float(np.mean(of_name[c]) - np.mean(baseline[c]))] for c in shared}
        differences = np.concatenate(list(by_case.values()))
        p_values[name] = float(stats.wilcoxon(differences).pvalue) if any(differences) else 1.0
        found[name] = (float(differences.mean()), *_interval(by_case), len(shared))
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    return {
        name: Comparison(difference, low, high, p_values[name], adjusted[name], count)
        for name, (difference, low, high, count) in found.items()
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values of a family of tests, each as large as it must be for all (Holm 1979)."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _interval(values: Values) -> tuple[float, float]:
    sums = np.array([np.sum(of_case) for of_case in values.values()])
    counts = np.array([len(of_case) for of_case in values.values()])
    drawn = np.random.default_rng(0).integers(len(sums), size=(_DRAWS, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    tail = (1 - _LEVEL) / 2
    return float(np.quantile(means, tail)), float(np.quantile(means, 1 - tail))
