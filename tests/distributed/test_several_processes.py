"""Several processes train one run over the loopback: what each does, and how they end."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from covid_jax.errors import REQUEUE_STATUS
from covid_jax.training.checkpoint import load_params
from covid_jax.training.progress import read_log
from tests.conftest import ROOT, SMALL_NETWORK, of_devices


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


class Processes:
    """A training by several processes of this machine; of each, what it prints goes to a file."""

    def __init__(self, folder, count, arguments):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        self.files = [folder / f"process{index}.txt" for index in range(count)]
        self.started = []
        for index, file in enumerate(self.files):
            by_hand = [
                f"--coordinator=localhost:{port}",
                f"--num_processes={count}",
                f"--process_id={index}",
            ]
            self.started.append(
                subprocess.Popen(
                    [sys.executable, "-m", "covid_jax.train", *arguments, *by_hand],
                    stdout=file.open("w"),
                    stderr=subprocess.STDOUT,
                    cwd=ROOT,
                )
            )

    def wait(self):
        """The exit statuses."""
        return [process.wait(timeout=240) for process in self.started]

    def wait_for(self, path):
        """Until a file is there."""
        deadline = time.monotonic() + 120
        while not path.exists():
            assert time.monotonic() < deadline
            assert all(process.poll() is None for process in self.started), self.printed()
            time.sleep(0.01)

    def kill(self, index):
        """Kills a process (the child that trains; its parent only waits for it)."""
        parent = self.started[index].pid
        (child,) = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        os.kill(int(child), signal.SIGKILL)

    def printed(self):
        """What each printed."""
        return [file.read_text() for file in self.files]


def equal(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def two_devices(arguments):
    """Trains in one process with two virtual devices; returns the process."""
    return subprocess.run(
        [sys.executable, "-m", "covid_jax.train", *arguments],
        env=of_devices(2),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def straight(tiny_run, tmp_path_factory):
    """A run of one process with two devices along the batch."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    finished = two_devices(settings(tiny_run, workdir, "--config.mesh.data=2"))
    assert finished.returncode == 0, finished.stderr
    return workdir


def test_two_processes_train_what_one_with_two_devices_does(tiny_run, straight, tmp_path):
    run = Processes(tmp_path, 2, settings(tiny_run, tmp_path / "run", "--config.mesh.data=2"))
    assert run.wait() == [0, 0], run.printed()
    assert equal(load_params(tmp_path / "run"), load_params(straight))
    first, second = run.printed()
    assert "2 x cpu of 2 processes" in first
    assert "epoch" not in second  # one of them tells, and writes
    ours, theirs = (
        [(line["step"], line["loss"], line["validation_loss"]) for line in read_log(folder)]
        for folder in (tmp_path / "run", straight)
    )
    assert ours == theirs
    # Killed between its last checkpoint and its end, it has that left to do, and nothing to save.
    shutil.rmtree(tmp_path / "run" / "model")
    run = Processes(tmp_path, 2, settings(tiny_run, tmp_path / "run", "--config.mesh.data=2"))
    assert run.wait() == [0, 0], run.printed()
    assert equal(load_params(tmp_path / "run" / "model"), load_params(straight))


def test_four_processes_cut_batch_and_depth(tiny_run, straight, tmp_path):
    mesh = ("--config.mesh.data=2", "--config.mesh.space=2", "--config.epochs=1")
    run = Processes(tmp_path, 4, settings(tiny_run, tmp_path / "run", *mesh))
    assert run.wait() == [0, 0, 0, 0], run.printed()
    (ours,), (theirs, *_) = read_log(tmp_path / "run"), read_log(straight)
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-2)  # another schedule of the rate


def test_a_signal_to_one_stops_all_at_one_step_and_one_process_goes_on(
    tiny_run, straight, tmp_path
):
    arguments = settings(tiny_run, tmp_path / "run", "--config.mesh.data=2")
    run = Processes(tmp_path, 2, arguments)
    while "[Gloo]" not in run.printed()[1]:  # they have met, and train in some seconds
        time.sleep(0.01)
    run.started[1].send_signal(signal.SIGTERM)
    assert run.wait() == [REQUEUE_STATUS, REQUEUE_STATUS], run.printed()
    stopped = [text.strip().splitlines()[-1] for text in run.printed()]
    assert stopped[0] == stopped[1]
    assert "saved after step" in stopped[0]
    finished = two_devices(arguments)
    assert finished.returncode == 0, finished.stderr
    assert "going on from the checkpoint of step" in finished.stdout
    assert equal(load_params(tmp_path / "run"), load_params(straight))


def test_where_one_dies_the_others_say_so_within_a_minute_and_all_go_on(
    tiny_run, straight, tmp_path
):
    arguments = settings(tiny_run, tmp_path / "run", "--config.mesh.data=2")
    for killed, step in ((1, 40), (0, 80)):
        run = Processes(tmp_path, 2, arguments)
        run.wait_for(tmp_path / "run" / "checkpoints" / str(step))
        run.kill(killed)
        assert run.started[1 - killed].wait(timeout=60) == REQUEUE_STATUS
        assert "another process of this run has ended" in run.printed()[1 - killed].splitlines()[-1]
        run.wait()
    again = Processes(tmp_path, 2, arguments)
    assert again.wait() == [0, 0], again.printed()
    assert equal(load_params(tmp_path / "run"), load_params(straight))


def test_a_mesh_that_leaves_a_process_without_work_is_refused(tiny_run, tmp_path):
    run = Processes(tmp_path, 2, settings(tiny_run, tmp_path / "run"))
    assert run.wait() == [1, 1], run.printed()
    assert all("meshes that fit: 1 x 2, 2 x 1" in text for text in run.printed())


def test_a_process_that_no_other_joins_is_told_how(tiny_run, tmp_path, process):
    arguments = settings(tiny_run, tmp_path / "run", "--distributed")
    ended = process("covid_jax.train", *arguments)
    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert "--coordinator, --num_processes and --process_id" in last
