"""The figure on top of a report: every row's difference to scratch with its interval.

It is a list of rows in HTML, so that it fits a phone and follows its reader's light or dark; this
is where everything in it stands.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

from covid_jax.reporting.findings import certain
from covid_jax.reporting.kinds import BASELINE, Kind, Look, looks
from covid_jax.reporting.paper import Paper
from covid_jax.reporting.runs import Run
from covid_jax.reporting.statistics import Comparison
from covid_jax.reporting.tables import compared_told, comparisons

_MARGIN = 0.04  # of the axis, on both sides


@dataclass(frozen=True)
class ForestRow:
    """A row's comparison; `low`, `middle`, `high` and `paper` in % of the axis.

    Attributes:
      paper_difference: the paper's, over the same folds, where it stands beside.
      certain: whether the difference is beyond chance.
    """

    kind: Kind
    look: Look
    found: Comparison
    certain: bool
    low: float
    middle: float
    high: float
    paper_difference: float | None
    paper: float | None


@dataclass(frozen=True)
class Forest:
    """Rows, where 0 is in % of the axis, and ticks: where, and what is written there.

    Attributes:
      sections: rows over the same folds and seeds, with what these are.
    """

    sections: tuple[tuple[str, tuple[ForestRow, ...]], ...]
    zero: float
    ticks: tuple[tuple[float, str], ...]

    @property
    def rows(self) -> tuple[ForestRow, ...]:
        """Those of all sections."""
        return tuple(row for _, rows in self.sections for row in rows)


def forest(runs: Sequence[Run], paper: Paper) -> Forest | None:
    """The differences in DSC; None where nothing can be compared."""
    compared = comparisons(runs, "dsc")
    if not compared:
        return None
    papers = {
        kind: paper.difference(kind, BASELINE, sorted({trial.fold for trial in found.trials}))
        for kind, found in compared.items()
    }
    values = [0.0, *(value for value in papers.values() if value is not None)]
    values += [value for found in compared.values() for value in (found.low, found.high)]
    low, high = min(values), max(values)
    reach = max(high - low, 1e-3)
    low, reach = low - _MARGIN * reach, reach * (1 + 2 * _MARGIN)

    def place(value: float) -> float:
        return round(100 * (value - low) / reach, 2)

    locator = MaxNLocator(5, steps=[1, 2, 5, 10], prune=None)
    ticks = [float(tick) for tick in locator.tick_values(low, low + reach)]
    digits = max(2, *(len(f"{tick:.4f}".rstrip("0").partition(".")[2]) for tick in ticks))
    marks = looks(compared)
    rows = {
        kind: ForestRow(
            kind,
            marks[kind],
            found,
            certain(found),
            place(found.low),
            place(found.difference),
            place(found.high),
            papers[kind],
            None if (theirs := papers[kind]) is None else place(theirs),
        )
        for kind, found in compared.items()
    }
    return Forest(
        sections=tuple(
            (told, tuple(rows[kind] for kind in kinds)) for told, kinds in compared_told(compared)
        ),
        zero=place(0.0),
        ticks=tuple(
            (place(tick), f"{tick:+.{digits}f}" if abs(tick) > 1e-9 else "0")
            for tick in ticks
            if low <= tick <= low + reach
        ),
    )
