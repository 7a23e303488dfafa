"""Where the steps of a study run: on this machine, or as jobs of a Slurm cluster."""

import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Protocol

from covid_jax.errors import UserError
from covid_jax.studies.grid import Step


class Job(Protocol):
    """A step that was started."""

    def poll(self) -> int | None:
        """Its exit status, None while it runs or waits."""

    def cancel(self) -> None:
        """Ends it."""


Start = Callable[[Step, Path, int], Job]
"""Starts a step that writes all it prints into a file, in one of the places to run."""


def local(jobs: int) -> Start:
    """As processes of this machine; of one at a time what it prints is shown as well.

    Each of several gets a GPU of its own, as far as there are GPUs.
    """
    gpus = _gpus()

    def start(step: Step, log: Path, slot: int) -> Job:
        environment = dict(os.environ)
        if jobs > 1 and gpus:
            environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
        return _Process(step, log, environment, shown=jobs == 1)

    return start


class _Process:
    def __init__(self, step: Step, log: Path, environment: Mapping[str, str], shown: bool) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-u", "-m", *step.command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        assert self._process.stdout
        self._reader = threading.Thread(target=_copy, args=(self._process.stdout, log, shown))
        self._reader.start()

    def poll(self) -> int | None:
        if self._process.poll() is not None:
            self._reader.join()  # all that it printed is in the file
        return self._process.returncode

    def cancel(self) -> None:
        self._process.terminate()
        self._process.wait()


def _copy(source: IO[bytes], log: Path, shown: bool) -> None:
    with log.open("wb") as file:
        while piece := os.read(source.fileno(), 65536):
            file.write(piece)
            file.flush()
            if shown:
                sys.stdout.write(piece.decode(errors="replace"))
                sys.stdout.flush()


def _gpus() -> list[str]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    count = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    return [str(number) for number in range(count)]


def slurm(parameters: Mapping[str, str | int]) -> Start:
    """As jobs of Slurm, through submitit; `parameters` are sbatch's, such as partition and time.

    Raises:
      UserError: submitit is not installed, or there is no sbatch.
    """
    try:
        import submitit
    except ImportError as error:
        raise UserError("--executor=slurm needs submitit: pip install submitit") from error

    def start(step: Step, log: Path, slot: int) -> Job:
        del slot
        try:
            executor = submitit.SlurmExecutor(log.parent / "slurm")
        except RuntimeError as error:
            raise UserError(f"--executor=slurm: {error}") from error
        executor.update_parameters(job_name=step.name, **parameters)
        command = shlex.join([sys.executable, "-u", "-m", *step.command])
        run = submitit.helpers.CommandFunction(
            ["bash", "-c", f"{command} > {shlex.quote(str(log.resolve()))} 2>&1"], verbose=False
        )
        return _SlurmJob(executor.submit(run))

    return start


class _SlurmJob:
    def __init__(self, job: object) -> None:
        self._job = job

    def poll(self) -> int | None:
        if not self._job.done():  # type: ignore[attr-defined]
            return None
        return 0 if self._job.exception() is None else 1  # type: ignore[attr-defined]

    def cancel(self) -> None:
        self._job.cancel()  # type: ignore[attr-defined]
