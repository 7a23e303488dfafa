"""Patterns, and the laws of split and join."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covid_jax.errors import UserError
from covid_jax.transfer.freezing import join, leaf_paths, mask, split


def tree():
    block = {"conv": {"kernel": 1.0, "bias": 2.0}, "norm": {"scale": 3.0}}
    stages = {f"stage_{i}": {"block_0": block, "block_1": block} for i in range(4)}
    return {"encoder": stages, "decoder": stages, "heads": {"kernel": 4.0}}


def frozen(*patterns):
    held = mask(tree(), patterns)
    return {path for path, h in zip(leaf_paths(tree()), jax.tree.leaves(held), strict=True) if h}


PATTERNS = st.lists(
    st.sampled_from(
        ["encoder", "encoder/*", "encoder/stage_[0-2]/**", "**/norm", "!**/norm/*", "heads", "**"]
    )
)


@given(PATTERNS)
def test_join_undoes_split(patterns):
    trainable, held = split(tree(), mask(tree(), patterns))
    assert join(trainable, held) == tree()


@given(PATTERNS)
def test_every_leaf_is_in_exactly_one_half(patterns):
    trainable, held = split(tree(), mask(tree(), patterns))
    total = len(jax.tree.leaves(trainable)) + len(jax.tree.leaves(held))
    assert total == len(jax.tree.leaves(tree()))


def test_a_node_stands_for_all_below_it():
    assert frozen("encoder") == frozen("encoder/**") == frozen("encoder/*")
    assert all(path.startswith("encoder/") for path in frozen("encoder"))
    assert len(frozen("encoder")) == 24


def test_characters_in_brackets_choose_stages():
    assert {path.split("/")[1] for path in frozen("encoder/stage_[0-2]/**")} == {
        "stage_0",
        "stage_1",
        "stage_2",
    }


def test_an_exclamation_mark_takes_out_again():
    assert not any("/norm/" in path for path in frozen("encoder", "!**/norm/*"))
    assert len(frozen("encoder", "!**/norm/*")) == 16
    assert frozen("!heads", "heads") == {"heads/kernel"}


def test_a_star_stays_within_one_name():
    assert frozen("*/kernel") == {"heads/kernel"}
    assert len(frozen("**/kernel")) == 17


def test_a_pattern_that_matches_nothing_shows_near_paths():
    with pytest.raises(UserError, match=r"'encoder/stage_9'.*near: .*encoder/stage_"):
        mask(tree(), ["encoder/stage_9"])


def test_a_dot_is_no_wildcard():
    with pytest.raises(UserError, match="matches no parameter"):
        mask(tree(), ["head."])


def test_nothing_is_frozen_without_patterns():
    assert frozen() == set()
    np.testing.assert_equal(split(tree(), mask(tree(), []))[0], tree())
