"""Several processes train one run over the loopback: what each does, and how they end."""

import os
import shutil
import signal

import jax
import numpy as np
import pytest

from covid_jax.stopping import REQUEUE_STATUS
from covid_jax.training.checkpoint import load_params
from covid_jax.training.progress import read_log
from tests.conftest import ROOT, SMALL_NETWORK
from tests.processes import Process, several


def settings(tiny_run, workdir, *more):
    """A run of 3 epochs of 40 steps."""
    return [
        f"--config={ROOT}/configs/tiny.py",
        f"--config.data.prepared_dir={tiny_run / 'data'}",
        f"--workdir={workdir}",
        "--config.epochs=3",
        "--config.steps_per_epoch=40",
        "--config.validation_steps=1",
        "--config.data.augment=False",
        "--config.test=False",
        *SMALL_NETWORK,
        *more,
    ]


def train(folder, count, arguments):
    """Trains in several processes of this machine, to their end."""
    run = several(arguments, folder, count)
    assert [process.wait() for process in run] == [0] * count, told(run)
    return run


def told(run):
    return [process.printed() for process in run]


def equal(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def on_two_devices(folder, arguments):
    """Trains in one process with two virtual devices; returns what it printed."""
    alone = Process(arguments, folder / "alone.txt", devices=2)
    assert alone.wait() == 0, alone.printed()
    return alone.printed()


@pytest.fixture(scope="module")
def straight(tiny_run, tmp_path_factory):
    """A run of one process with two devices along the batch."""
    folder = tmp_path_factory.mktemp("straight")
    on_two_devices(folder, settings(tiny_run, folder / "run", "--config.mesh.data=2"))
    return folder / "run"


def test_two_processes_train_what_one_with_two_devices_does(tiny_run, straight, tmp_path):
    arguments = settings(tiny_run, tmp_path / "run", "--config.mesh.data=2")
    first, second = told(train(tmp_path, 2, arguments))
    assert equal(load_params(tmp_path / "run"), load_params(straight))
    assert "2 x cpu of 2 processes" in first
    assert "epoch" not in second  # one of them tells, and writes
    ours, theirs = (
        [(line["step"], line["loss"], line["validation_loss"]) for line in read_log(folder)]
        for folder in (tmp_path / "run", straight)
    )
    assert ours == theirs
    # Killed between its last checkpoint and its end, it has that left to do, and nothing to save.
    shutil.rmtree(tmp_path / "run" / "model")
    train(tmp_path, 2, arguments)
    assert equal(load_params(tmp_path / "run" / "model"), load_params(straight))


@pytest.mark.slow
def test_four_processes_cut_batch_and_depth(tiny_run, straight, tmp_path):
    mesh = ("--config.mesh.data=2", "--config.mesh.space=2", "--config.epochs=1")
    train(tmp_path, 4, settings(tiny_run, tmp_path / "run", *mesh))
    (ours,), (theirs, *_) = read_log(tmp_path / "run"), read_log(straight)
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-2)  # another schedule of the rate


def test_a_signal_to_one_stops_all_at_one_step_and_one_process_goes_on(
    tiny_run, straight, tmp_path
):
    arguments = settings(tiny_run, tmp_path / "run", "--config.mesh.data=2")
    run = several(arguments, tmp_path, 2)
    run[1].wait_until(lambda: "[Gloo]" in run[1].printed())  # they have met
    run[1].send(signal.SIGTERM)
    assert [process.wait() for process in run] == [REQUEUE_STATUS] * 2, told(run)
    stopped = [text.strip().splitlines()[-1] for text in told(run)]
    assert stopped[0] == stopped[1]
    assert "saved after step" in stopped[0]
    assert "going on from the checkpoint of step" in on_two_devices(tmp_path, arguments)
    assert equal(load_params(tmp_path / "run"), load_params(straight))


@pytest.mark.slow
def test_where_one_dies_the_others_say_so_within_a_minute_and_all_go_on(
    tiny_run, straight, tmp_path
):
    arguments = settings(tiny_run, tmp_path / "run", "--config.mesh.data=2")
    for killed, step in ((1, 40), (0, 80)):
        run = several(arguments, tmp_path, 2)
        run[0].wait_until((tmp_path / "run" / "checkpoints" / str(step)).exists)
        os.kill(run[killed].child(), signal.SIGKILL)
        left = run[1 - killed]
        assert left.wait(60) == REQUEUE_STATUS
        assert "another process of this run has ended" in left.printed().splitlines()[-1]
        run[killed].wait()
    train(tmp_path, 2, arguments)
    assert equal(load_params(tmp_path / "run"), load_params(straight))


def test_a_mesh_that_leaves_a_process_without_work_is_refused(tiny_run, tmp_path):
    run = several(settings(tiny_run, tmp_path / "run"), tmp_path, 2)
    assert [process.wait() for process in run] == [1, 1], told(run)
    assert all("meshes that fit: 1 x 2, 2 x 1" in text for text in told(run))


def test_a_process_that_no_other_joins_is_told_how(tiny_run, tmp_path, process):
    arguments = settings(tiny_run, tmp_path / "run", "--distributed")
    ended = process("covid_jax.train", *arguments)
    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert "--coordinator, --num_processes and --process_id" in last
