"""What other programs' files say: of the kind that is wanted, or refused by its key."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covid_jax.errors import UserError
from covid_jax.values import flag, mapping, maybe, number, read, several, text, whole

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=4,
)


@given(value=ANYTHING)
@pytest.mark.parametrize("kind", [number, whole, flag, text, mapping, several(whole), maybe(flag)])
def test_a_value_is_taken_as_it_is_or_refused(kind, value):
    with contextlib.suppress(UserError):
        taken = read({"key": value}, "key", kind)
        assert taken == (tuple(value) if isinstance(value, list) else value)
        assert isinstance(taken, bool) == isinstance(value, bool)


def test_numbers_of_numpy_are_numbers():
    said = {"n": np.int64(3), "x": np.float32(0.5), "on": np.True_, "all": np.array([1, 2])}
    assert read(said, "n", whole) == 3
    assert read(said, "x", number) == 0.5
    assert read(said, "on", flag) is True
    assert read(said, "all", several(whole)) == (1, 2)


@pytest.mark.parametrize(
    ("said", "kind", "message"),
    [
        ({}, flag, "its key is missing; add it: true or false"),
        ({"key": [1, 2]}, several(whole, 3), r"its key is \[1, 2\]; wanted: a list of 3"),
        ({"key": [1, 2.5]}, several(whole), "wanted: of each in it a whole number"),
        ({"key": [[1], [2, "x"]]}, several(several(whole)), "wanted: of each in it a whole number"),
        ({"key": 10**400}, number, "wanted: a number"),
        ({"key": "1"}, maybe(whole), "is '1'; wanted: a whole number, or null"),
    ],
)
def test_the_message_says_what_is_wanted(said, kind, message):
    with pytest.raises(UserError, match=message):
        read(said, "key", kind)


def test_a_key_that_is_left_out_has_its_default():
    assert read({}, "key", whole, 7) == 7
    assert read({"key": None}, "key", maybe(whole), 7) is None
