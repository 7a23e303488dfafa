"""The numbers that the paper prints (paper_tables.json beside this file)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from statistics import mean
from typing import Any

from covid_jax.reporting.kinds import Kind

FOLDS = (0, 1, 2, 3, 4)
"""The paper's."""

_METRICS = ("dsc", "nsd", "sensitivity", "f1", "accuracy")  # metrics.PAPER, which needs skimage

Pair = tuple[float, float | None]
"""Mean and standard deviation over test cases, where the paper prints one."""


@dataclass(frozen=True)
class PaperRow:
    """A row of one of the paper's tables; metrics that the table lacks are missing.

    Attributes:
      folds: of each metric, the pairs of folds 0 to 4.
      average: of each metric, the pair of the AVG column.
      epoch_seconds: of folds 0 to 4, on a Tesla V100 32 GB.
    """

    strategy: str
    source: str
    folds: dict[str, tuple[Pair, ...]]
    average: dict[str, Pair]
    epoch_seconds: tuple[float, ...] = ()

    @property
    def kind(self) -> Kind:
        """Of our runs, those that it is beside."""
        return Kind(self.strategy, self.source)

    def over(self, metric: str, folds: Sequence[int]) -> Pair | None:
        """The pair of a metric over folds; None where the paper does not say.

        Of some of its folds there is no deviation. All have 16 test cases, so all weigh the same.
        """
        if tuple(sorted(folds)) == FOLDS:
            return self.average.get(metric)
        if metric not in self.folds or not folds:
            return None
        found = [self.folds[metric][fold] for fold in folds]
        return found[0] if len(found) == 1 else (mean(value for value, _ in found), None)

    def seconds(self, folds: Sequence[int]) -> float | None:
        """Of an epoch, the mean over folds; None where the paper does not say."""
        found = [self.epoch_seconds[fold] for fold in folds if self.epoch_seconds]
        return mean(found) if found else None


@dataclass(frozen=True)
class Paper:
    """What of the paper stands beside a study: its tables, or nothing at all (NOTHING)."""

    table_1: tuple[PaperRow, ...] = ()
    table_2: tuple[PaperRow, ...] = ()
    table_3: tuple[PaperRow, ...] = ()

    def row(self, kind: Kind) -> PaperRow | None:
        """All that the tables print of a kind of run."""
        found = [row for row in (*self.table_3, *self.table_1, *self.table_2) if row.kind == kind]
        if not found:
            return None
        return PaperRow(
            kind.strategy,
            kind.source,
            {name: pairs for row in found for name, pairs in row.folds.items()},
            {name: pair for row in found for name, pair in row.average.items()},
            found[0].epoch_seconds,
        )

    def difference(self, kind: Kind, baseline: Kind, folds: Sequence[int]) -> float | None:
        """Of the mean DSC of two kinds of run, over folds."""
        rows = self.row(kind), self.row(baseline)
        mine, theirs = (row and row.over("dsc", folds) for row in rows)
        return mine[0] - theirs[0] if mine and theirs else None


NOTHING = Paper()


def whole_paper() -> Paper:
    """Tables I to III."""
    return Paper(paper_table(1), paper_table(2), paper_table(3))


@cache
def paper_table(number: int) -> tuple[PaperRow, ...]:
    """Table I, II or III of the paper."""
    text = resources.files("covid_jax.reporting").joinpath("paper_tables.json").read_text()
    return tuple(_row(entry) for entry in json.loads(text)[f"table{number}"])


def _row(entry: dict[str, Any]) -> PaperRow:
    folds = {
        name: tuple(map(tuple, entry[name]))
        for name in _METRICS
        if name in entry and isinstance(entry[name][0], list)
    }
    average = {name: tuple(entry[f"{name}_avg"]) for name in _METRICS if f"{name}_avg" in entry}
    # Table II has averages alone.
    average |= {
        name: tuple(entry[name])
        for name in _METRICS
        if name in entry and not isinstance(entry[name][0], list)
    }
    seconds = tuple(entry.get("epoch_seconds", ()))
    return PaperRow(entry["strategy"], entry["pretrained"], folds, average, seconds)
