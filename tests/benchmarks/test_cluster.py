"""The simulation of the paper's grid: what must hold whatever the assumed figures are."""

import pytest

from benchmarks.harness.cluster import MESHES, grid_hours, seconds, step_of
from benchmarks.harness.gpu_times import measured
from covid_jax.config import PAPER_RUNS, MeshConfig

EPOCH = dict.fromkeys(("scratch", "continual", "body", "frozen_encoder", "multi_encoder"), 36.0)


def test_on_one_device_the_grid_takes_the_sum_of_its_runs():
    runs = 4 + 5 * len(PAPER_RUNS)
    assert grid_hours(EPOCH, 1000, 1) == pytest.approx(10 * runs)


def test_with_a_device_for_each_run_it_takes_a_pretraining_and_a_run():
    assert grid_hours(EPOCH, 1000, 100) == pytest.approx(20)


def test_more_devices_shorten_a_step_and_spend_more_of_it_on_links():
    step = step_of("scratch")
    found = [seconds(step, MeshConfig(*mesh)) for mesh in MESHES]
    shares = [talk / whole for whole, talk in found]
    assert [whole for whole, _ in found] == sorted((whole for whole, _ in found), reverse=True)
    assert shares == sorted(shares)
    assert shares[0] == 0


def test_a_frozen_encoder_has_less_to_do_and_to_sum():
    full, frozen = step_of("scratch"), step_of("frozen_encoder")
    assert frozen.seconds < full.seconds
    assert frozen.gradient < full.gradient


def test_on_one_device_a_step_takes_what_was_measured():
    for strategy in EPOCH:
        step = step_of(strategy)
        assert seconds(step, MeshConfig()) == (measured(strategy)["seconds_per_step"], 0)
        assert 0.2 < step.validation < 0.35
