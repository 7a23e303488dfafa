"""The benchmark of the step leaves the file that others read, and refuses what it does not know."""

import json
from types import SimpleNamespace

import pytest

from benchmarks.harness.measure import Candidate, whole_epoch
from covid_jax.training.platform import platform_of
from tests.conftest import ROOT, SMALL_NETWORK, tiny

TINY = f"--config={ROOT}/configs/tiny.py"


def test_every_figure_is_there_for_every_strategy(tmp_path, command):
    finished = command(
        "benchmarks.epoch_time",
        TINY,
        "--strategies=scratch,frozen_encoder",
        f"--output={tmp_path}",
        "--seconds=0.05",
        "--rounds=2",
        "--config.data.augment=False",
        "--config.steps_per_epoch=10",
        "--config.validation_steps=4",
    )
    assert finished.returncode == 0, finished.stderr
    content = json.loads((tmp_path / "epoch_time.json").read_text())
    assert {"device", "versions", "command", "results", "paper"} <= content.keys()
    assert str(ROOT) not in json.dumps(content["versions"])
    full, frozen = content["results"]
    assert (full["framework"], full["strategy"]) == ("jax", "scratch")
    assert full["patch_size"] == [8, 24, 24]
    assert full["seconds_per_epoch"] == pytest.approx(
        10 * full["seconds_per_step"] + 4 * full["seconds_per_validation_step"]
    )
    assert 0 < frozen["tflop_per_step"] < full["tflop_per_step"]
    assert full["peak_bytes"] > frozen["peak_bytes"] > 0
    assert full["compile_seconds"] > 0
    assert content["paper"]["scratch"] == 206
    assert "scratch" in finished.stdout
    assert "206" in finished.stdout


def test_a_whole_epoch_is_every_step_of_it():
    done = []
    steps = SimpleNamespace(
        train=lambda: done.append("train"), validate=lambda: done.append("validate")
    )
    config = tiny(steps_per_epoch=5, validation_steps=2)
    assert whole_epoch(Candidate(config, platform_of("cpu"), steps, 1.0, 1.0)) > 0
    assert done == ["train"] * 5 + ["validate"] * 2


@pytest.mark.slow
def test_an_epoch_is_measured_whole_and_with_the_input_pipeline_where_asked(tmp_path, command):
    finished = command(
        "benchmarks.epoch_time",
        TINY,
        "--strategies=scratch",
        f"--output={tmp_path}",
        "--seconds=0.05",
        "--rounds=2",
        "--config.steps_per_epoch=5",
        "--config.validation_steps=2",
        "--config.data.patch_size=4,16,16",
        "--full",
        "--real",
        *SMALL_NETWORK,
    )
    assert finished.returncode == 0, finished.stderr
    lines = json.loads((tmp_path / "epoch_time.json").read_text())["results"]
    assert [line["data"] for line in lines] == ["dummy", "dummy", "real"]
    assert {line["epoch"] for line in lines} == {"measured whole"}
    assert all(line["seconds_per_epoch"] > 0 for line in lines)  # of all steps: the test below
    assert "with the input pipeline" in finished.stdout


def test_a_strategy_that_is_not_there_is_one_line(tmp_path, refuses):
    line = refuses("benchmarks.epoch_time", TINY, "--strategies=zap", f"--output={tmp_path}")
    assert "no strategy zap" in line
