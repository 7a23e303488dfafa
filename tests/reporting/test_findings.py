"""The three sentences on top of a report say what its numbers say, and no more."""

import dataclasses

import numpy as np
import pytest

from covid_jax.config import Config
from covid_jax.reporting.findings import findings
from covid_jax.reporting.runs import Run
from covid_jax.reporting.words import counted, folds_told, p_told, trials_told

SOURCES = ("msd", "structseg", "nsclc", "multi_lesion")


def runs_of(kind, gain, folds=(0,), seeds=(0,), cases=16):
    """Runs of a kind that is better than scratch by `gain` in every case, or not for certain."""
    strategy, source, *variant = kind
    rng = np.random.default_rng(0)
    level = dict(zip(map(str, range(cases)), rng.uniform(0.3, 0.7, cases), strict=True))
    luck = 0.05 * np.resize([1, -1], cases) * np.linspace(1, 2, cases)  # none, of both signs
    found = []
    for fold in folds:
        for seed in seeds:
            config = Config(
                strategy=strategy, source=source, variant="".join(variant), fold=fold, seed=seed
            )
            change = luck if gain == 0 and strategy != "scratch" else gain + 0.001 * rng.random()
            change = np.zeros(cases) if kind == SCRATCH else np.broadcast_to(change, cases)
            scored = {
                case: {"dsc": value + by}
                for (case, value), by in zip(level.items(), change, strict=True)
            }
            found.append(Run(f"{kind}{fold}{seed}", config, scored, [], 1.0, 0.0))
    return found


SCRATCH = ("scratch", "none")


def study(gains, **how):
    return [
        *runs_of(SCRATCH, 0.0, **how),
        *(r for k, g in gains.items() for r in runs_of(k, g, **how)),
    ]


def said(runs, data=("mine",), synthetic=()):
    found = findings(runs, data, synthetic)
    for sentence in (found.what, found.how_much, found.unknown):
        assert sentence[0].isupper()
        assert sentence.endswith(".")
        assert ". " not in sentence
    return found


def test_what_helps_and_what_harms_is_named_with_the_largest_of_both():
    gains = {("body", "msd"): 0.1, ("body", "nsclc"): 0.05, ("continual", "msd"): -0.02}
    found = said(study(gains))
    assert found.what == (
        "Against scratch and by one seed a fold, of 3 rows 2 help (body from msd and nsclc), and 1 "
        "harms (continual from msd)."
    )
    assert found.how_much.startswith("The largest gain in DSC is +0.10")
    assert "on scratch's 0.5" in found.how_much
    assert (
        "p < 0.001 by Holm, ahead in 16 of 16 cases) for body from msd, and the largest loss is "
        in (found.how_much)
    )
    assert "ahead in 0 of 16 cases) for continual from msd" in found.how_much
    assert "differ" not in found.unknown


def test_where_only_harm_is_done_nothing_is_said_to_help():
    found = said(study({("body", "msd"): -0.1}, seeds=(0, 1)))
    assert found.what == "Against scratch, body from msd harms."
    assert found.how_much.startswith("The loss in DSC is -0.")
    assert "gain" not in found.how_much
    assert "Holm" not in found.how_much  # of one row there is nothing to correct


def test_where_nothing_is_beyond_chance_no_row_is_said_to_help():
    found = said(study({("body", "msd"): 0, ("continual", "msd"): 0}))
    assert found.what.startswith("Nothing helps and nothing harms for certain: of 2 rows none")
    assert found.how_much.startswith("The largest difference in DSC is ")
    assert (
        "whether body from msd and continual from msd differ from scratch (the interval holds 0)"
        in (found.unknown)
    )


def test_a_row_that_is_lost_by_correction_is_not_certain():
    kinds = [("body", source, str(k)) for source in SOURCES for k in range(6)]
    gains = dict.fromkeys(kinds, 0) | {("body", "msd", "one"): 0.1}
    runs = study(gains, cases=10)
    weak = next(run for run in runs if run.kind.variant == "one")
    for case in ("0", "1"):  # so p is 0.02, and corrected for 25 rows 0.5
        weak.cases[case] = {"dsc": weak.cases[case]["dsc"] - 0.11 + 0.001 * int(case)}
    found = said(runs)
    assert found.what.startswith("Nothing helps and nothing harms for certain: of 25 rows")
    assert (
        "whether body from msd (one) differs from scratch (p is 0.05 or more after correction for "
        "25 rows)"
    ) in found.unknown
    assert "24 rows differ from scratch" in found.unknown


def test_25_rows_are_counted_where_they_are_too_many_to_name():
    kinds = [(s, f, str(k)) for s in ("body", "continual") for f in SOURCES for k in range(3)]
    found = said(study(dict.fromkeys(kinds, 0.1) | {("body", "msd", "worse"): -0.1}))
    assert "of 25 rows 24 help, and 1 harms (body from msd (worse))" in found.what


def test_variants_of_scratch_and_of_a_source_are_told_apart():
    gains = {
        ("scratch", "none", "longer"): 0.1,
        ("body", "msd"): 0.1,
        ("body", "msd", "thawed"): 0.1,
    }
    found = said(study(gains))
    assert "(scratch (longer) and body from msd (plain and thawed))" in found.what


def test_one_run_alone_is_compared_with_nothing():
    found = said(runs_of(SCRATCH, 0.0))
    assert found.what == "Nothing can be said of what helps: scratch alone is there."
    assert found.how_much.startswith("The mean DSC is that of scratch, 0.")
    assert found.how_much.endswith(", over fold 0.")


def test_without_scratch_nothing_is_said_to_help():
    runs = runs_of(("body", "msd"), 0.1) + runs_of(("continual", "msd"), 0.2)
    found = said(runs)
    assert "no run of scratch is there to compare body from msd and continual from msd with" in (
        found.what
    )
    assert found.how_much.startswith("The highest mean DSC is that of continual from msd, 0.")


def test_runs_of_other_folds_than_scratchs_are_not_compared():
    found = said(runs_of(SCRATCH, 0.0, folds=(0,)) + runs_of(("body", "msd"), 0.1, folds=(1,)))
    assert "no other run is there in a fold and by a seed that scratch has" in found.what


def test_one_seed_and_one_fold_are_not_known_and_of_more_nothing_is_said():
    gains = {("body", "msd"): 0.1}
    one = said(study(gains)).unknown
    assert "how far another seed would move a row (one seed a fold does not tell)" in one
    assert "there is one fold" in one
    more = said(study(gains, folds=(0, 1), seeds=(0, 1, 2))).unknown
    assert more == "It is not known how it is in scans unlike the 16 test cases here."


@pytest.mark.parametrize(
    ("synthetic", "told"),
    [
        (("msd_lung",), "what pre-training on real data would do, as it was on SYNTHETIC msd_lung"),
        (("mine",), "anything of real scans, as mine is SYNTHETIC"),
    ],
)
def test_what_synthetic_data_cannot_say_is_told(synthetic, told):
    assert told in said(study({("body", "msd"): 0.1}), synthetic=synthetic).unknown


@pytest.mark.parametrize(
    ("rows", "cases", "told"),
    [
        ([("body", "msd")], 4, "of 4, p cannot fall below 0.12."),
        ([("body", "msd"), ("body", "nsclc")], 6, "of 6, p cannot fall below 0.062 for 2 rows."),
    ],
)
def test_so_few_cases_that_no_p_can_be_small_are_told(rows, cases, told):
    found = said(study(dict.fromkeys(rows, 0.1), cases=cases))
    assert found.what == f"There are too few test cases to tell what helps: {told}"
    assert f"ahead in {cases} of {cases} cases" in found.how_much
    assert "what more test cases would show" in found.unknown
    assert "p is" not in found.unknown


def test_a_difference_stands_beside_what_scratch_has_in_the_same_runs():
    scratch = runs_of(SCRATCH, 0.0, folds=(0, 1))
    for case, scores in scratch[1].cases.items():  # another fold, that body does not have
        scratch[1].cases[case] = {"dsc": scores["dsc"] / 10}
    mean = np.mean([scores["dsc"] for scores in scratch[0].cases.values()])
    found = said([*scratch, *runs_of(("body", "msd"), 0.1)])
    assert f"on scratch's {mean:.3f} (" in found.how_much


def test_rows_over_other_folds_and_seeds_say_over_which():
    runs = study({("body", "msd"): 0.05}, folds=(0, 1)) + runs_of(("body", "nsclc"), 0.1)
    assert said(runs).how_much.endswith("for body from nsclc over fold 0.")
    runs = study({("body", "msd"): 0.05}, seeds=(0, 1)) + runs_of(("body", "nsclc"), 0.1)
    assert said(runs).how_much.endswith("for body from nsclc over fold 0, seed 0.")
    assert "over" not in said(study({("body", "msd"): 0.05}, folds=(0, 1))).how_much


def test_seeds_are_those_of_what_is_compared():
    runs = study({("body", "msd"): 0.1}, seeds=(0, 1)) + runs_of(("body", "nsclc"), 0.1)
    told = said(runs).unknown
    assert "another seed would move body from nsclc (one seed a fold does not tell)" in told
    assert "another seed would move body from msd (two seeds a fold tell little)" in told
    alone = runs_of(SCRATCH, 0.0, seeds=(0, 1)) + runs_of(("body", "msd"), 0.1)
    assert "move a row (one seed a fold does not tell)" in said(alone).unknown


def seeing(runs, *cases):
    return [dataclasses.replace(run, seen=cases) for run in runs]


def test_a_row_that_was_tested_on_cases_it_was_trained_on_is_not_said_to_help():
    leaked = seeing(runs_of(("body", "net"), 0.2), "3", "5")
    alone = said([*runs_of(SCRATCH, 0.0), *leaked])
    assert alone.what == (
        "Nothing can be said of what helps: networks of body from net or of scratch were trained "
        "on 2 test cases (3, 5)."
    )
    assert "16 cases, networks trained on 2 test cases) for body from net" in alone.how_much
    beside = said([*study({("body", "msd"): 0.1}), *leaked])
    assert beside.what == "Against scratch and by one seed a fold, body from msd helps."
    assert beside.how_much.endswith("for body from msd.")
    assert (
        "how body from net would do on new cases (networks were trained on 2 test cases: 3, 5)"
        in (beside.unknown)
    )


def test_of_one_case_no_interval_is_told():
    found = said(study({("body", "msd"): 0.1}, cases=1))
    assert "of one case, so without an interval" in found.how_much
    assert "95 %" not in found.how_much


@pytest.mark.parametrize(
    ("p", "text"),
    [(1.0, "1"), (0.16, "0.16"), (0.04985, "0.0498"), (0.05, "0.05"), (0.0009, "< 0.001")],
)
def test_p_is_never_told_to_be_what_it_is_below(p, text):
    assert p_told(p) == text


def test_one_is_no_plural_and_folds_are_told_in_words():
    assert [counted(n, "case") for n in (0, 1, 2)] == ["0 cases", "1 case", "2 cases"]
    assert [folds_told(f) for f in ((3,), (0, 2), (4, 0, 1, 2, 3), (0, 1, 4))] == [
        "fold 3",
        "folds 0 and 2",
        "folds 0 to 4",
        "folds 0, 1 and 4",
    ]


@pytest.mark.parametrize(
    ("trials", "told"),
    [
        ([(0, 0), (0, 1)], "fold 0, seeds 0 and 1"),
        ([(0, 0), (1, 0)], "folds 0 and 1, seed 0"),
        ([(0, 0), (0, 1), (0, 2), (1, 0)], "fold 0, seeds 0 to 2; fold 1, seed 0"),
    ],
)
def test_folds_and_seeds_are_told_in_words(trials, told):
    assert trials_told(trials, seeds=True) == told
    assert "seed" not in trials_told(trials, seeds=False)
