"""Every figure says what of its data is synthetic, within its edges."""

import pytest

from covid_jax.config import Config
from covid_jax.reporting.figures import dice_against_seconds, dice_of_cases, learning_curves
from covid_jax.reporting.runs import Run

NOTE = "20 real cases, reduced | SYNTHETIC data: " + ", ".join(["structseg_gtv"] * 8)


def runs_of(*, kinds):
    log = [{"epoch": 0, "step": 5, "loss": 1.0, "validation_dice": 0.5}]
    scored = {"a": {"dsc": 0.0}, "b": {"dsc": 0.1}}
    return [
        Run(
            f"body-{n}",
            Config(strategy="body", source=f"a-long-name-{n}"),
            scored,
            log,
            12.0 + n,
            3.0,
        )
        for n in range(kinds)
    ]


@pytest.mark.parametrize("draw", [learning_curves, dice_of_cases, dice_against_seconds])
def test_a_figure_of_many_rows_is_no_wider_than_a_phone_shows(draw):
    figure = draw(runs_of(kinds=14), NOTE)
    assert figure.get_figwidth() <= 6
    figure.draw_without_rendering()
    for legend in figure.legends:
        box = legend.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= min(axes.get_window_extent().y0 for axes in figure.axes)


def test_the_axis_of_a_score_ends_where_scores_do():
    (axes,) = dice_against_seconds(runs_of(kinds=2), NOTE).axes
    assert axes.get_ylim()[0] >= -0.05
    assert axes.get_ylim()[1] <= 1.05


@pytest.mark.parametrize("draw", [learning_curves, dice_of_cases, dice_against_seconds])
def test_a_long_note_is_wrapped_and_not_cut(draw):
    log = [{"epoch": 0, "step": 5, "loss": 1.0}]
    scored = {"a": {"dsc": 0.5}, "b": {"dsc": 0.6}}
    figure = draw([Run("scratch-none-fold0", Config(), scored, log, 12.0, 3.0)], NOTE)
    title = figure.get_suptitle()
    assert title == NOTE
    (shown,) = (text for text in figure.texts if text.get_text() == title)
    figure.draw_without_rendering()
    box = shown.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
    assert min(axes.get_window_extent().y1 for axes in figure.axes) < box.y0
