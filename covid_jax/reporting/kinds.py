"""What the runs of one row share, and how it looks in every figure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from covid_jax.config import SOURCES, STRATEGY_NAMES

COLOURS = (
    ("#5b6770", "#aab6c0"),
    ("#b8560a", "#ff9f5e"),
    ("#0b7f5c", "#41d3a5"),
    ("#2a6fc9", "#7db4ff"),
    ("#b02a73", "#ff8cc0"),
)
"""Of each strategy, on a white ground and on a dark one."""

_MARKS = (
    ("o", "M6 1a5 5 0 1 0 .01 0z"),
    ("s", "M1.5 1.5h9v9h-9z"),
    ("^", "M6 .5 11.5 11H.5z"),
    ("D", "M6 0 12 6 6 12 0 6z"),
    ("v", "M6 11.5 .5 1h11z"),
    ("P", "M4 .5h4V4h3.5v4H8v3.5H4V8H.5V4H4z"),
    ("*", "M6 0l1.5 4.1 4.3.1-3.4 2.6 1.2 4.2L6 8.6 2.4 11l1.2-4.2L.2 4.2l4.3-.1z"),
    ("<", "M.5 6 11 .5v11z"),
    (">", "M11.5 6 1 11.5V.5z"),
    ("X", "M3.2.4 6 3.2 8.8.4l2.8 2.8L8.8 6l2.8 2.8-2.8 2.8L6 8.8l-2.8 2.8L.4 8.8 3.2 6 .4 3.2z"),
)
"""Matplotlib's, and the same as a path in a square of 12."""


class Kind(NamedTuple):
    """What the runs of one row of a table share."""

    strategy: str
    source: str
    variant: str = ""

    @property
    def label(self) -> str:
        """Its parts in words: "body, msd"; no source, no word."""
        return ", ".join(part for part in self if part not in ("", "none"))

    @property
    def place(self) -> tuple[object, ...]:
        """By which kinds are sorted: strategies and sources as the paper has them, others behind.

        Variants come after all that are none.
        """
        sources = list(SOURCES)
        known = sources.index(self.source) if self.source in sources else len(sources)
        return bool(self.variant), STRATEGY_NAMES.index(self.strategy), known, *self[1:]


BASELINE = Kind("scratch", "none")
"""What the others are compared with."""


@dataclass(frozen=True)
class Look:
    """How a kind is drawn: strategies differ by colour, sources and variants by mark.

    Attributes:
      strategy: its number, by which a page knows its colour.
      colour: on a white ground.
      mark: Matplotlib's.
      path: the mark as a path in a square of 12.
    """

    strategy: int
    colour: str
    mark: str
    path: str


def looks(kinds: Iterable[Kind]) -> Mapping[Kind, Look]:
    """Of each kind. There are ten marks; an eleventh source or variant has the first one again."""
    kinds = list(kinds)
    starts = list(dict.fromkeys(kind[1:] for kind in kinds if kind != BASELINE))
    found = {}
    for kind in kinds:
        strategy = STRATEGY_NAMES.index(kind.strategy) % len(COLOURS)
        number = starts.index(kind[1:]) if kind != BASELINE else 0
        mark, path = _MARKS[number % len(_MARKS)]
        found[kind] = Look(strategy, COLOURS[strategy][0], mark, path)
    return found
