"""Intervals and tests over cases, folds and seeds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from covid_jax.reporting.statistics import Trial, compare, holm, interval, summarise


def one_trial(values):
    return {Trial(0): dict(values)}


def test_a_summary_is_over_all_cases_of_all_folds():
    found = summarise({Trial(0): {"a": 0.0, "b": 0.5}, Trial(1): {"a": 1.0}})
    assert (found.mean, found.count, found.seeds, found.seed_std) == (0.5, 3, 1, None)
    assert found.std == pytest.approx(np.std([0, 1, 0.5]))
    assert found.low <= found.mean <= found.high


def test_seeds_are_a_spread_of_their_own():
    of_seeds = {0: 0.2, 1: 0.4, 2: 0.6}
    values = {Trial(0, seed): {"a": mean - 0.1, "b": mean + 0.1} for seed, mean in of_seeds.items()}
    found = summarise(values)
    assert (found.mean, found.count, found.seeds) == (pytest.approx(0.4), 2, 3)
    assert found.std == pytest.approx(0.1)  # of the means over seeds, 0.3 and 0.5
    assert found.seed_std == pytest.approx(0.2)


def test_the_interval_over_cases_alone_is_that_of_the_t_test():
    values = np.random.default_rng(0).normal(0.6, 0.1, 20)
    found = summarise(one_trial(zip("abcdefghijklmnopqrst", values, strict=True)))
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_folds_of_a_case_are_no_further_evidence():
    cases = {str(i): float(value) for i, value in enumerate(np.random.default_rng(0).random(20))}
    once, often = summarise(one_trial(cases)), summarise({Trial(fold): cases for fold in range(4)})
    assert (often.low, often.high) == pytest.approx((once.low, once.high))


def test_of_one_case_there_is_no_interval():
    found = summarise(one_trial({"a": 0.3}))
    assert found.low == found.mean == found.high == 0.3


def test_a_gain_in_every_case_is_found_and_none_where_there_is_none():
    rng = np.random.default_rng(1)
    cases = {str(i): float(value) for i, value in enumerate(rng.uniform(0.3, 0.7, 16))}
    better = {case: value + 0.1 + 0.001 * int(case) for case, value in cases.items()}
    baseline = one_trial(cases)
    found = compare({"better": (one_trial(better), baseline), "same": (baseline, baseline)})
    assert found["better"].difference == pytest.approx(0.1075)
    assert found["better"].p == pytest.approx(2 / 2**16)  # all signs alike, of 16 pairs
    assert found["better"].p_holm == pytest.approx(2 * found["better"].p)
    assert (found["same"].p, found["same"].difference) == (1, 0)
    assert found["same"].low == found["same"].high == 0


def test_an_interval_ends_where_its_values_do():
    values = one_trial({"a": 0.0, "b": 1.0})
    assert summarise(values).low < 0
    cut = summarise(values, (0.0, 1.0))
    assert (cut.low, cut.mean, cut.high) == (0, 0.5, 1)
    other = one_trial({"a": 0.9, "b": 0.1})
    found = compare({"other": (other, values)}, (0.0, 1.0))["other"]
    assert (found.low, found.high) == (-1, 1)


def test_a_comparison_tells_what_it_is_of():
    baseline = {Trial(0): {"x": 0.2, "y": 0.4, "z": 0.3}, Trial(1): {"x": 0.9}}
    other = {Trial(0): {"x": 0.3, "y": 0.5, "z": 0.1}}
    found = compare({"one": (other, baseline), "two": (other, baseline)})["one"]
    assert found.baseline == pytest.approx(0.3)
    assert (found.ahead, found.count, found.trials) == (2, 3, (Trial(0),))
    assert found.lowest_p == pytest.approx(2 * 2 / 2**3)  # of two rows, by Holm
    assert found.p_holm >= found.lowest_p


def test_only_trials_and_cases_that_both_have_are_compared():
    baseline = {Trial(0, 0): {"x": 0.5}, Trial(1, 0): {"y": 0.5}}
    found = compare(
        {
            "a": ({Trial(0, 0): {"x": 1.0, "y": 0.0}, Trial(0, 1): {"x": 7.0}}, baseline),
            "b": ({Trial(0, 0): {"z": 1.0}, Trial(2, 0): {"x": 1.0}}, baseline),
        }
    )
    assert set(found) == {"a"}
    assert (found["a"].count, found["a"].difference) == (1, 0.5)


TRUTH, GAIN = 0.6, 0.05


def simulated(rng, seeds, spread, gain=0.0):
    """A study of so many seeds a fold; cases have levels of their own, runs others, pairs too.

    Of 20 cases each fold tests 16, as in the paper. Returns what scratch and another have.
    """
    cases = {str(case): TRUTH + rng.normal(0, spread["case"]) for case in range(20)}
    liked = {case: rng.normal(0, spread["liking"]) for case in cases}

    def runs(of_case):
        found = {}
        for fold, of_fold in enumerate(seeds):
            tested = [case for case in cases if int(case) % 5 != fold % 5]
            for seed in range(of_fold):
                level = rng.normal(0, spread["run"])
                drawn = zip(tested, rng.normal(0, spread["both"], len(tested)), strict=True)
                found[Trial(fold, seed)] = {case: of_case[case] + level + x for case, x in drawn}
        return found

    return runs(cases), runs({case: cases[case] + gain + liked[case] for case in cases})


SPREADS = {
    "of cases above all": {"case": 0.15, "run": 0.01, "both": 0.02, "liking": 0.03},
    "of both": {"case": 0.1, "run": 0.04, "both": 0.03, "liking": 0.04},
    "of seeds above all": {"case": 0.05, "run": 0.08, "both": 0.01, "liking": 0.02},
}


def differences(other, scratch):
    return {
        trial: {case: value - scratch[trial][case] for case, value in cases.items()}
        for trial, cases in other.items()
    }


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize(("seeds", "least", "most"), [((3,) * 5, 930, 970), ((3, 1), 920, 1000)])
def test_the_interval_has_the_truth_in_95_of_100_studies(seeds, least, most, spread):
    """1,000 simulated studies: of means, and of differences to scratch.

    Where few runs tell of the seeds, in no fewer and in up to all.
    """
    rng, within = np.random.default_rng(0), np.zeros(2)
    for study in range(1000):
        scratch, other = simulated(rng, seeds, SPREADS[spread], GAIN)
        _, low, high = of_mean = interval(other)
        _, least_gain, most_gain = of_gain = interval(differences(other, scratch))
        within += low <= TRUTH + GAIN <= high, least_gain <= GAIN <= most_gain
        if study % 50 == 0:  # what is reported is these intervals
            mean, gain = summarise(other), compare({"other": (other, scratch)})["other"]
            assert (mean.mean, mean.low, mean.high) == of_mean
            assert (gain.difference, gain.low, gain.high) == of_gain
    assert (within >= least).all()
    assert (within <= most).all()


def test_holms_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_keeps_the_order_and_never_makes_smaller(p_values):
    adjusted = holm(p_values)
    assert all(p <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert all(np.diff(np.array(adjusted)[order]) >= 0)
