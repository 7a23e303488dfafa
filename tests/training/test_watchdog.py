"""The watchdog: a step that hangs is told while it hangs, and no other."""

import time

import pytest

from covid_jax.training import watchdog
from covid_jax.training.watchdog import Watchdog


@pytest.fixture(autouse=True)
def no_shortest(monkeypatch):
    monkeypatch.setattr(watchdog, "_SHORTEST", 0.5)


def test_a_step_of_ten_times_the_median_is_told_once_while_it_runs(capsys):
    with Watchdog() as watch:
        for step in range(8):
            watch.begin(step)
            time.sleep(0.01)
        watch.begin(8)
        time.sleep(2.5)
        told = capsys.readouterr().out
    assert told.count("\n") == 1
    assert told.startswith("step 8 has been running for")


def test_the_first_steps_which_compile_and_what_lies_between_epochs_are_not_told(capsys):
    with Watchdog() as watch:
        watch.begin(0)
        time.sleep(1.2)
        for step in range(1, 8):
            watch.begin(step)
            time.sleep(0.01)
        watch.begin(None)
        time.sleep(1.2)
    assert capsys.readouterr().out == ""
