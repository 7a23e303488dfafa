"""Trainings in processes of their own, which begin with all that one imports.

They are forked from a process that has imported it once, as importing takes longer than many a
training of a test. tests/test_command.py and others start `python -m` itself.
"""

import contextlib
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from covid_jax import train
from covid_jax.command import as_process
from tests.conftest import ROOT, of_devices

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["covid_jax.train", "matplotlib.figure"])


class Process:
    """`python -m covid_jax.train ARGUMENTS` from the root, which writes to a file.

    It sees so many virtual devices.
    """

    def __init__(self, arguments: Sequence[str], output: Path, devices: int = 1) -> None:
        self.output = output
        output.write_text("")
        there = of_devices(devices)
        self._process: ForkServerProcess = _SERVER.Process(
            target=_run, args=(list(arguments), output, there)
        )
        self._process.start()
        self.pid: int = self._process.pid

    def printed(self) -> str:
        """What it wrote so far, to stdout and to stderr."""
        return self.output.read_text()

    def status(self) -> int | None:
        """What it ended with, -N for signal N; None while it runs."""
        return self._process.exitcode

    def wait(self, seconds: float = 240) -> int:
        """Until it ends; returns what it ended with."""
        self._process.join(seconds)
        status = self.status()
        assert status is not None, self.printed()
        return status

    def wait_until(self, reached, seconds: float = 120) -> None:
        """While it runs."""
        deadline = time.monotonic() + seconds
        while not reached():
            assert time.monotonic() < deadline, self.printed()
            assert self.status() is None, self.printed()
            time.sleep(0.005)

    def send(self, number: int) -> None:
        """Sends it a signal, where it has not ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def child(self) -> int:
        """Of one of several processes, that which trains while it waits; itself before that."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return int(children[0]) if children else self.pid


def several(arguments: Sequence[str], folder: Path, count: int, devices: int = 1) -> list[Process]:
    """The processes of a training by several, each with so many devices."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"--coordinator=localhost:{free.getsockname()[1]}"
    return [
        Process(
            [*arguments, coordinator, f"--num_processes={count}", f"--process_id={index}"],
            folder / f"process{index}.txt",
            devices,
        )
        for index in range(count)
    ]


def _run(arguments: list[str], output: Path, environment: dict[str, str]) -> None:
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    with output.open("w") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.argv = ["covid_jax.train", *arguments]
    as_process(train.main)
