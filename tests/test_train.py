"""A run from the command line: what it leaves, and that a kill changes nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import nibabel as nib
import numpy as np
import pytest

from covid_jax.lock import only_here
from covid_jax.training.checkpoint import load_params
from covid_jax.training.progress import read_log
from covid_jax.transfer.freezing import leaf_paths
from tests.conftest import ROOT

TINY = f"--config={ROOT}/configs/tiny.py"


def equal(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def test_a_run_leaves_what_the_readme_says(tiny_run):
    names = {path.name for path in tiny_run.iterdir()}
    assert {
        "config.json",
        "plan.json",
        "checkpoints",
        "log.jsonl",
        "progress.png",
        "tensorboard",
        "predictions",
        "metrics.json",
    } <= names
    assert any(path.name.startswith("events.") for path in (tiny_run / "tensorboard").iterdir())


def test_the_log_has_a_line_an_epoch_with_the_pinned_fields(tiny_run):
    log = read_log(tiny_run)
    assert [line["step"] for line in log] == [10, 20]
    assert {"step", "epoch", "loss", "learning_rate", "seconds", "validation_dice"} <= log[0].keys()
    assert log[1]["loss"] < log[0]["loss"]
    assert all(0 <= line["waiting_seconds"] < line["seconds"] for line in log)


def test_metrics_are_of_the_folds_test_cases_on_their_own_grids(tiny_run):
    metrics = json.loads((tiny_run / "metrics.json").read_text())
    masks = sorted((tiny_run / "predictions").iterdir())
    assert sorted(metrics["cases"]) == [path.name.removesuffix(".nii.gz") for path in masks]
    for path in masks:
        name = path.name.replace(".nii.gz", "_0000.nii.gz")
        mask = nib.load(path)
        scan = nib.load(tiny_run / "data" / "raw_phantom" / "imagesTr" / name)
        assert mask.shape == scan.shape
        np.testing.assert_array_equal(mask.affine, scan.affine)


def saves(workdir):
    """The steps of the checkpoints that are there or are being written (orbax: STEP.orbax-...)."""
    return [int(path.name.partition(".")[0]) for path in (workdir / "checkpoints").glob("[0-9]*")]


def kill_at_checkpoint(step, workdir, *arguments):
    """Starts a training and kills it as soon as the checkpoint of `step` is there."""
    kill_when((workdir / "checkpoints" / str(step)).is_dir, 0.0, workdir, *arguments)


def kill_when(reached, delay, workdir, *arguments):
    """Starts a training and kills it `delay` seconds after `reached` says so."""
    process = subprocess.Popen(
        [sys.executable, "-m", "covid_jax.train", f"--workdir={workdir}", *arguments],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not reached():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    time.sleep(delay)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (workdir / "metrics.json").exists()


def test_a_run_whose_data_was_prepared_again_is_refused_unless_told(tiny_run, tmp_path, command):
    data, workdir = tmp_path / "data", tmp_path / "run"
    shutil.copytree(tiny_run, workdir)
    shutil.copytree(tiny_run / "data", data)
    arguments = [TINY, f"--workdir={workdir}", f"--config.data.prepared_dir={data}"]
    facts = next((data / "phantom" / "cases").glob("*/case.json"))
    facts.write_text(facts.read_text().replace('"sha256": "', '"sha256": "0'))
    refused = command("train", *arguments)
    assert refused.returncode == 1
    (line,) = refused.stderr.splitlines()[-1:]
    assert f"data.phantom.{facts.parent.name}" in line
    assert "--accept_changes" in line
    assert command("train", *arguments, "--accept_changes").returncode == 0
    assert command("train", *arguments).returncode == 0  # it is what was accepted


def test_three_kills_at_any_moment_move_no_parameter(tiny_run, tmp_path, command):
    """40 steps, killed three times: at random, and while a checkpoint is being written."""
    arguments = [
        TINY,
        f"--config.data.prepared_dir={tiny_run / 'data'}",
        "--config.epochs=10",
        "--config.steps_per_epoch=4",
        "--config.validation_steps=0",
        "--config.test=False",
    ]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert command("train", f"--workdir={straight}", *arguments).returncode == 0
    rng = np.random.default_rng()  # another moment each time
    for delay in (0.0, *rng.uniform(0, 0.15, 2)):
        done = max(saves(killed), default=0)
        kill_when(lambda done=done: max(saves(killed), default=0) > done, delay, killed, *arguments)
    finished = command("train", f"--workdir={killed}", *arguments)
    assert finished.returncode == 0, finished.stderr
    assert "going on from the checkpoint of step" in finished.stdout
    assert equal(load_params(killed), load_params(straight))
    assert [line["step"] for line in read_log(killed)] == list(range(4, 44, 4))


def test_unfreezing_at_an_epoch_goes_on_exactly_after_a_kill(tiny_run, tmp_path, command):
    """Killed before the deepest stage of the encoder is unfrozen."""
    arguments = [
        TINY,
        f"--config.data.prepared_dir={tiny_run / 'data'}",
        "--config.frozen=encoder",
        "--config.frozen_schedule=((1,'!encoder/stage_2'),(2,'!**/norm'))",
        "--config.epochs=3",
        "--config.steps_per_epoch=3",
        "--config.test=False",
    ]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert command("train", f"--workdir={straight}", *arguments).returncode == 0
    kill_at_checkpoint(3, killed, *arguments)
    before = load_params(killed)["encoder"]
    assert command("train", f"--workdir={killed}", *arguments).returncode == 0
    after = load_params(straight)
    assert equal(load_params(killed), after)
    moved = {
        path
        for path, a, b in zip(
            leaf_paths(before), *map(jax.tree.leaves, (before, after["encoder"])), strict=True
        )
        if not np.array_equal(a, b)
    }
    assert "stage_2/block_0/conv/kernel" in moved
    assert "stage_0/block_0/norm/scale" in moved
    assert "stage_0/block_0/conv/kernel" not in moved


def test_a_finished_run_that_is_started_again_changes_nothing(tiny_run, command):
    before = (tiny_run / "metrics.json").stat().st_mtime_ns
    finished = command("train", TINY, f"--workdir={tiny_run}")
    assert finished.returncode == 0, finished.stderr
    assert "going on from the checkpoint of step 20" in finished.stdout
    assert (tiny_run / "metrics.json").stat().st_mtime_ns == before
    assert len(read_log(tiny_run)) == 2


def test_another_config_for_the_same_folder_is_refused_with_the_difference(tiny_run, refuses):
    line = refuses("train", TINY, f"--workdir={tiny_run}", "--config.optimizer.momentum=0.5")
    assert "optimizer.momentum: 0.5, was 0.99" in line


def test_a_second_training_in_the_same_folder_stops(tmp_path, refuses):
    with only_here(tmp_path / "run", "a test"):
        line = refuses("train", f"--config={ROOT}/configs/tiny.py", f"--workdir={tmp_path / 'run'}")
    assert "another training is at work here" in line


def test_nothing_is_compiled_after_the_first_epoch(tiny_run, tmp_path):
    """Counts XLA's compilations; the second epoch adds none."""
    script = f"""
import dataclasses, jax
from pathlib import Path
from absl import flags
from covid_jax import train
from tests.conftest import tiny
flags.FLAGS(["test"])
counts, compiled = [], 0
def count(name, duration, **_):
    global compiled
    compiled += name == "/jax/core/compile/backend_compile_duration"
jax.monitoring.register_event_duration_secs_listener(count)
epoch = train.Progress.epoch
def logged(self, line):
    counts.append(compiled)
    epoch(self, line)
train.Progress.epoch = logged
config = tiny(epochs=3, test=False)
config.data.prepared_dir = {str(tiny_run / "data")!r}
train.train(config, Path({str(tmp_path / "run")!r}))
print("COUNTS", *counts)
"""
    finished = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    first, second, third = map(int, finished.stdout.split("COUNTS")[1].split())
    assert first > 0
    assert second == third == first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.zap=1"], "no field 'zap'"),
        (["--zap=1"], "Unknown command line flag 'zap'"),
        (["--config.epochs=ten"], "--config.epochs=ten: invalid literal"),
        (["--config.data.patch_size=0,48,48"], "patch_size"),
        (["--config.data.batch_size=0"], "batch_size"),
        (["--config.fold=9"], "folds 0 to 4"),
        (["--config.strategy=body", "--config.source=msd"], "config.pretrained is empty"),
        (["--config.pretrained=nowhere", "--config.strategy=body"], "nowhere"),
        (["--config.mesh.data=2"], "needs 2 devices"),
        (["--config.frozen=encoder/stag_0/**"], "near: encoder/stage_0"),
        (["--config.frozen=**"], "nothing is to train"),
        (["extra"], "unknown argument 'extra'"),
    ],
)
def test_a_mistake_is_one_line(tiny_run, tmp_path, refuses, arguments, message):
    data = f"--config.data.prepared_dir={tiny_run / 'data'}"
    assert message in refuses("train", TINY, f"--workdir={tmp_path}/run", data, *arguments)


def test_a_pretrained_network_of_another_shape_is_refused(tiny_run, tmp_path, refuses):
    line = refuses(
        "train",
        f"{TINY}:body",
        f"--workdir={tmp_path}/run",
        f"--config.data.prepared_dir={tiny_run / 'data'}",
        f"--config.pretrained={tiny_run}",
        "--config.model.features_per_stage=8,16,64",
    )
    assert "(64,) here and (32,) there" in line
    assert not (tmp_path / "run" / "config.json").exists()


def test_explain_prints_what_a_run_would_do_and_leaves_nothing(tmp_path, command):
    finished = command("train", TINY, "--explain", f"--workdir={tmp_path / 'run'}")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("scratch: phantom\n  network")
    assert not (tmp_path / "run").exists()
