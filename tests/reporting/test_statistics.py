"""Intervals and tests over cases."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covid_jax.reporting.statistics import compare, holm, summarise


def test_a_summary_is_over_all_fold_cases():
    found = summarise({"a": [0.0, 1.0], "b": [0.5]})
    assert (found.mean, found.count) == (0.5, 3)
    assert found.std == pytest.approx(np.std([0, 1, 0.5]))
    assert found.low <= found.mean <= found.high


def test_the_interval_of_normal_values_is_that_of_the_t_test_nearly():
    values = np.random.default_rng(0).normal(0.6, 0.1, 200)
    found = summarise({str(i): [value] for i, value in enumerate(values)})
    half = 1.96 * values.std() / np.sqrt(200)
    assert found.low == pytest.approx(values.mean() - half, abs=0.002)
    assert found.high == pytest.approx(values.mean() + half, abs=0.002)


def test_folds_of_a_case_are_no_further_evidence():
    values = {str(i): [float(value)] for i, value in enumerate(np.random.default_rng(0).random(20))}
    repeated = {case: of_case * 4 for case, of_case in values.items()}
    once, often = summarise(values), summarise(repeated)
    assert (often.low, often.high) == pytest.approx((once.low, once.high))


def test_a_gain_in_every_case_is_found_and_none_where_there_is_none():
    rng = np.random.default_rng(1)
    baseline = {str(i): [float(value)] for i, value in enumerate(rng.uniform(0.3, 0.7, 16))}
    better = {case: [value[0] + 0.1 + 0.001 * int(case)] for case, value in baseline.items()}
    found = compare({"better": (better, baseline), "same": (baseline, baseline)})
    assert found["better"].difference == pytest.approx(0.1075)
    assert found["better"].p == pytest.approx(2 / 2**16)  # all signs alike, of 16 pairs
    assert found["better"].p_holm == pytest.approx(2 * found["better"].p)
    assert (found["same"].p, found["same"].difference) == (1, 0)
    assert found["same"].low == found["same"].high == 0


def test_only_cases_that_both_have_are_compared():
    baseline = {"x": [0.5]}
    found = compare({"a": ({"x": [1.0], "y": [0.0]}, baseline), "b": ({"z": [1.0]}, baseline)})
    assert set(found) == {"a"}
    assert found["a"].count == 1


def test_holms_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_keeps_the_order_and_never_makes_smaller(p_values):
    adjusted = holm(p_values)
    assert all(p <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert all(np.diff(np.array(adjusted)[order]) >= 0)
