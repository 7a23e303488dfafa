"""The figure on top of a report has every row where its numbers are."""

import dataclasses

import pytest

from covid_jax.reporting.forest import forest
from covid_jax.reporting.kinds import Kind
from covid_jax.reporting.paper import NOTHING, whole_paper
from tests.reporting.test_findings import SOURCES, runs_of, study


def test_marks_stand_where_the_axis_says():
    drawn = forest(study({("body", "msd"): 0.1, ("continual", "nsclc"): -0.2}), NOTHING)
    at = {text: place for place, text in drawn.ticks}
    assert at["0"] == drawn.zero
    per_percent = (at["+0.10"] - at["0"]) / 0.1
    for row in drawn.rows:
        for place, value in ((row.low, row.found.low), (row.middle, row.found.difference)):
            assert place == pytest.approx(drawn.zero + value * per_percent, abs=0.02)
        assert 0 <= row.low <= row.middle <= row.high <= 100
        assert row.paper is None


@pytest.mark.parametrize("variants", [1, 6])
def test_every_row_is_drawn_strategies_by_colour_and_sources_by_mark(variants):
    kinds = [("body", source, f"v{k}") for source in SOURCES for k in range(variants)]
    kinds.append(("continual", "msd", "v0"))
    drawn = forest(study(dict.fromkeys(kinds, 0.1)), NOTHING)
    assert [row.kind for row in drawn.rows] == [Kind(*kind) for kind in kinds]
    looks = {row.kind: row.look for row in drawn.rows}
    assert len({look.colour for kind, look in looks.items() if kind.strategy == "body"}) == 1
    first, last = drawn.rows[0].look, drawn.rows[-1].look
    assert first.colour != last.colour
    assert first.path == last.path
    if variants == 1:
        assert len({row.look.path for row in drawn.rows}) == len(SOURCES)


def test_rows_over_other_folds_stand_apart():
    runs = study({("body", "msd"): 0.1}, folds=(0, 1)) + runs_of(("body", "nsclc"), 0.1)
    sections = forest(runs, NOTHING).sections
    assert [(told, [row.kind.source for row in rows]) for told, rows in sections] == [
        ("folds 0 and 1", ["msd"]),
        ("fold 0", ["nsclc"]),
    ]


def test_a_row_of_cases_that_were_trained_on_is_pale():
    runs = study({("body", "msd"): 0.1})
    assert forest(runs, NOTHING).rows[0].certain
    runs[1] = dataclasses.replace(runs[1], seen=("3",))
    assert not forest(runs, NOTHING).rows[0].certain


def test_what_is_beyond_chance_is_told_from_what_is_not():
    drawn = forest(study({("body", "msd"): 0.1, ("continual", "msd"): 0}), NOTHING)
    assert [row.certain for row in drawn.rows] == [True, False]


def test_the_papers_difference_is_over_the_same_folds():
    one = forest(study({("body", "msd"): 0.1}), whole_paper()).rows[0]
    assert one.paper_difference == pytest.approx(0.679 - 0.681)
    every = forest(study({("body", "msd"): 0.1}, folds=range(5)), whole_paper()).rows[0]
    assert every.paper_difference == pytest.approx(0.688 - 0.673)
    variant = forest(study({("body", "msd", "mine"): 0.1}), whole_paper()).rows[0]
    assert variant.paper_difference is None


def test_without_anything_to_compare_there_is_no_figure():
    assert forest(runs_of(("body", "msd"), 0.1), NOTHING) is None


def test_rows_without_any_spread_are_drawn_too():
    runs = [*runs_of(("scratch", "none"), 0.0), *runs_of(("scratch", "none", "again"), 0.0)]
    assert forest(runs, NOTHING).rows[0].middle == pytest.approx(50, abs=50)
