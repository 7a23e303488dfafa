"""The drawing of a network shows what the run would do."""

import dataclasses

import pytest

from covid_jax.config import STRATEGY_NAMES
from covid_jax.reporting.network import Part, draw_networks, parts_of
from tests.conftest import tiny


def test_frozen_encoder_is_copied_and_frozen_its_decoder_only_copied():
    parts = parts_of(tiny("frozen_encoder"))
    assert set(parts["encoder"].values()) == {Part(copied=1, frozen=1)}
    assert set(parts["decoder"].values()) == {Part(copied=1, frozen=0)}
    assert set(parts["heads"].values()) == {Part(copied=0, frozen=0)}
    assert [len(parts[top]) for top in ("encoder", "decoder", "heads")] == [3, 2, 2]


def test_what_is_frozen_in_part_is_shown_in_part():
    parts = parts_of(tiny(frozen=("encoder/stage_1/block_0/norm",)))
    assert parts["encoder"][0].frozen == 0
    assert parts["encoder"][1].frozen == pytest.approx(0.5)


def test_a_stem_is_drawn_at_the_full_resolution():
    model = dataclasses.replace(tiny().model, n_conv_per_stage=(), n_blocks_per_stage=(1, 2, 1))
    parts = parts_of(tiny(model=model, frozen=("encoder/stem",)))
    assert list(parts["encoder"]) == [0, 1, 2]
    assert [part.frozen for part in parts["encoder"].values()] == [pytest.approx(1 / 3), 0, 0]


def test_a_drawing_has_a_panel_for_each_network():
    figure = draw_networks([tiny(name) for name in STRATEGY_NAMES], STRATEGY_NAMES)
    assert [axes.get_title() for axes in figure.axes] == list(STRATEGY_NAMES)
    written = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert "goes on with the joint schedule" in written[STRATEGY_NAMES.index("continual")]
    assert "adapted" in written[STRATEGY_NAMES.index("multi_encoder")]
