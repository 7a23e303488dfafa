"""The numbers that the paper prints (paper_tables.json beside this file)."""

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

_METRICS = ("dsc", "nsd", "sensitivity", "f1", "accuracy")

Pair = tuple[float, float | None]
"""Mean and standard deviation over test cases."""


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
