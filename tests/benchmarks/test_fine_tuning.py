"""The runs of fine_tuning, and what its table says of their scores."""

import pytest

from benchmarks.fine_tuning import run_of
from benchmarks.tables import fine_tuning_table
from covid_jax.config import load_config_file, validate
from covid_jax.transfer.strategies import STRATEGIES
from tests.conftest import ROOT


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_but_scratch_starts_from_the_network_that_is_given(strategy):
    config = load_config_file(f"{ROOT}/configs/nnunet.py")
    config.pretrained = "runs/imported"
    run = run_of(config, strategy)
    validate(run)
    assert run.strategy == strategy
    assert run.pretrained == ("" if strategy == "scratch" else "runs/imported")


def test_the_table_counts_the_cases_in_which_a_strategy_is_ahead_of_scratch():
    lines = [
        {"strategy": "scratch", "dsc": 0.5, "cases": {"a": 0.4, "b": 0.6}},
        {"strategy": "body", "dsc": 0.6, "cases": {"a": 0.7, "b": 0.5}},
    ]
    assert fine_tuning_table(lines).splitlines()[-1].split() == [
        "body",
        "0.600",
        "+0.100",
        "1",
        "of",
        "2",
    ]
