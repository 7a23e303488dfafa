"""How far a study's numbers can be trusted: intervals and tests over cases, folds and seeds.

A run is a trial: a fold, and a seed. The same case is tested in several trials, by networks that
saw other training cases or drew other numbers; it stays one case. So a mean over a study is
uncertain in two ways, and its interval has both: by the cases that happened to be tested, each with
all that it has in every trial, and by the seeds that happened to be drawn in each fold. Tests
compare one value a case, the mean over its trials.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np
from scipy import stats

_LEVEL = 0.95


class Trial(NamedTuple):
    """Which run of a kind this is."""

    fold: int
    seed: int = 0


@dataclass(frozen=True)
class Summary:
    """A metric over the trials of a kind of run.

    Attributes:
      mean: over all cases of all trials.
      std: over the cases of all folds, each the mean over its seeds.
      seed_std: over seeds, of a fold's mean over its cases; None where every fold has one seed.
      low, high: the 95 % interval of the mean, over cases and seeds.
      count: of the cases of all folds.
      seeds: in each fold, at most.
    """

    mean: float
    std: float
    seed_std: float | None
    low: float
    high: float
    count: int
    seeds: int


@dataclass(frozen=True)
class Comparison:
    """One kind of run against the baseline, over the trials and cases that both have.

    Attributes:
      difference: its mean minus the baseline's, with the interval over cases and seeds.
      baseline: the baseline's mean.
      p: of the paired Wilcoxon test over cases, two-sided; 1 where all pairs are equal.
      p_holm: the same for all comparisons of a study at once (Holm).
      lowest_p: what p_holm cannot fall below in any of them, of so few cases.
      count: of the cases.
      ahead: in how many of them it has more than the baseline, in the mean over trials.
      trials: those that both have.
      seen: of the cases, those that a network was trained on, whose scores are no test.
    """

    difference: float
    low: float
    high: float
    baseline: float
    p: float
    p_holm: float
    lowest_p: float
    count: int
    ahead: int
    trials: tuple[Trial, ...]
    seen: tuple[str, ...] = ()


Bounds = tuple[float, float]
EVERYWHERE = (-math.inf, math.inf)

Name = TypeVar("Name", bound=Hashable)
Values = Mapping[Trial, Mapping[str, float]]
"""Of each trial, a value of each of its cases."""


def summarise(values: Values, within: Bounds = EVERYWHERE) -> Summary:
    """Mean, deviations and interval of a metric. There is at least one value.

    The interval is cut at the bounds of the metric: no mean lies beyond them, so it has the truth
    as often as before.
    """
    of_fold: dict[tuple[int, str], list[float]] = {}
    for trial, cases in values.items():
        for case, value in cases.items():
            of_fold.setdefault((trial.fold, case), []).append(value)
    by_fold = _means_by_fold(values)
    pooled = [np.var(means, ddof=1) for means in by_fold.values() if len(means) > 1]
    mean, low, high = interval(values, within)
    return Summary(
        mean=mean,
        std=float(np.std([np.mean(each) for each in of_fold.values()])),
        seed_std=float(np.sqrt(np.mean(pooled))) if pooled else None,
        low=low,
        high=high,
        count=len(of_fold),
        seeds=_seeds(values),
    )


def compare(
    pairs: Mapping[Name, tuple[Values, Values]], within: Bounds = EVERYWHERE
) -> dict[Name, Comparison]:
    """The first of each pair against the second, its baseline, over what both have.

    Intervals are cut at what two values within the bounds can differ by.
    """
    reach = within[1] - within[0]
    found: dict[Name, Comparison] = {}
    for name, (of_name, baseline) in pairs.items():
        differences = {
            trial: {case: cases[case] - before[case] for case in cases if case in before}
            for trial, cases in of_name.items()
            if (before := baseline.get(trial)) is not None
        }
        differences = {trial: cases for trial, cases in differences.items() if cases}
        if not differences:
            continue
        of_case = [float(np.mean(each)) for each in by_case(differences).values()]
        paired = [baseline[trial][case] for trial, cases in differences.items() for case in cases]
        p = float(stats.wilcoxon(of_case).pvalue) if any(of_case) else 1.0
        found[name] = Comparison(
            *interval(differences, (-reach, reach)),
            baseline=float(np.mean(paired)),
            p=p,
            p_holm=p,
            lowest_p=2 / 2 ** len(of_case),  # where all signs are alike
            count=len(of_case),
            ahead=sum(value > 0 for value in of_case),
            trials=tuple(sorted(differences)),
        )
    adjusted = holm([each.p for each in found.values()])
    lowest = min([1.0, *(len(found) * each.lowest_p for each in found.values())])
    return {
        name: replace(each, p_holm=p, lowest_p=lowest)
        for (name, each), p in zip(found.items(), adjusted, strict=True)
    }


def interval(values: Values, within: Bounds = EVERYWHERE) -> tuple[float, float, float]:
    """(mean, low, high): the interval of the mean over cases and seeds, cut at its bounds.

    Its half is that of two independent parts, each Student's, added as squares: over cases, each
    weighing as often as it is tested, and over the seeds of each fold, whose runs are independent.
    All folds tell how far seeds spread, those with one seed too have to bear it. Where few seeds
    tell little the interval is wide; and what a case and a seed have only together is in both
    parts. Of one case there is no interval, and low and high are the mean.
    """
    of_case = list(by_case(values).values())
    counts = np.array([len(each) for each in of_case])
    sums = np.array([np.sum(each) for each in of_case])
    total, cases = counts.sum(), len(of_case)
    mean = float(sums.sum() / total)
    if cases == 1:
        return mean, mean, mean
    by_cases = float(cases / (cases - 1) * ((sums - mean * counts) ** 2).sum() / total**2)
    half = _half(by_cases, cases - 1)
    of_folds = _means_by_fold(values)
    if freedom := sum(len(means) - 1 for means in of_folds.values()):
        tested = dict.fromkeys(of_folds, 0)
        for trial, of_trial in values.items():
            tested[trial.fold] += len(of_trial)
        spread = sum(np.var(means) * len(means) for means in of_folds.values()) / freedom
        weight = sum((tested[f] / total) ** 2 / len(means) for f, means in of_folds.items())
        half = float(np.hypot(half, _half(float(spread * weight), freedom)))
    return mean, max(mean - half, within[0]), min(mean + half, within[1])


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values of a family of tests, each as large as it must be for all (Holm 1979)."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def by_case(values: Values) -> dict[str, list[float]]:
    """Of each case, its value in every trial that tests it."""
    found: dict[str, list[float]] = {}
    for cases in values.values():
        for case, value in cases.items():
            found.setdefault(case, []).append(value)
    return found


def _means_by_fold(values: Values) -> dict[int, list[float]]:
    """Of each fold, the mean over its cases by each seed."""
    found: dict[int, list[float]] = {}
    for trial, cases in values.items():
        found.setdefault(trial.fold, []).append(float(np.mean(list(cases.values()))))
    return found


def _seeds(values: Values) -> int:
    return max(len(means) for means in _means_by_fold(values).values())


def _half(variance: float, freedom: int) -> float:
    """Of Student's interval around a mean of this variance, by its degrees of freedom."""
    return float(stats.t.ppf((1 + _LEVEL) / 2, freedom) * np.sqrt(variance))
