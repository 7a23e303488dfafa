"""Where the steps of a study run: on this machine, or as jobs of a Slurm cluster."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from covid_jax.errors import UserError
from covid_jax.studies.grid import Step


class Job(Protocol):
    """A step that was started."""

    def poll(self) -> int | None:
        """Its exit status, None while it runs or waits."""

    def cancel(self) -> None:
        """Asks it to end, and does not wait for that."""

    def wait(self) -> None:
        """Waits, after `cancel`, until it has saved and ended."""


@dataclass(frozen=True)
class Order:
    """A step to start.

    Attributes:
      log: the file that gets all it prints.
      slot: which of the places to run it has, from 0.
    """

    step: Step
    log: Path
    slot: int


Start = Callable[[Sequence[Order]], Iterable[Job]]
"""Starts steps that are ready at the same moment; each job is handed over as it starts."""


def local(jobs: int) -> Start:
    """As processes of this machine; of one at a time what it prints is shown as well.

    Each of several gets a GPU of its own, as far as there are GPUs.
    """
    gpus = _gpus()

    def start(orders: Sequence[Order]) -> Iterator[Job]:
        for order in orders:
            environment = dict(os.environ)
            if jobs > 1 and gpus:
                environment["CUDA_VISIBLE_DEVICES"] = gpus[order.slot % len(gpus)]
            yield _Process(order.step, order.log, environment, shown=jobs == 1)

    return start


class _Process:
    def __init__(self, step: Step, log: Path, environment: Mapping[str, str], shown: bool) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-u", "-m", *step.command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            process_group=0,  # Ctrl-C reaches the study alone, which asks each step once
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

    def wait(self) -> None:
        self._process.wait()
        self._reader.join()


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
    """As jobs of Slurm, through submitit; steps that start together are one array of jobs.

    `parameters` are sbatch's, such as partition and time.

    Raises:
      UserError: submitit is not installed, or there is no sbatch.
    """
    try:
        import submitit
    except ImportError as error:
        raise UserError("--executor=slurm needs submitit: pip install submitit") from error

    def start(orders: Sequence[Order]) -> Sequence[Job]:
        try:
            executor = submitit.SlurmExecutor(orders[0].log.parent / "slurm")
        except RuntimeError as error:
            raise UserError(f"--executor=slurm: {error}") from error
        executor.update_parameters(job_name="covid_jax", **parameters)
        commands = [[sys.executable, "-u", "-m", *order.step.command] for order in orders]
        logs = [str(order.log.resolve()) for order in orders]
        for order in orders:  # a job that Slurm starts again adds to what it printed before
            order.log.unlink(missing_ok=True)
        try:
            jobs = executor.map_array(_InSlurm(), commands, logs)
        except submitit.core.utils.FailedJobError as error:
            raise UserError(f"--executor=slurm: {str(error).strip().splitlines()[-1]}") from error
        return [_SlurmJob(job) for job in jobs]

    return start


class _InSlurm:
    """What a job of Slurm does: a command, whose exit status is its result."""

    def __call__(self, command: list[str], log: str) -> int:
        with open(log, "ab") as file:
            return subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, check=False
            ).returncode

    def checkpoint(self, command: list[str], log: str) -> Any:
        """Where Slurm takes the job's place: the same again, which goes on (submitit's name)."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, command, log)


class _SlurmJob:
    def __init__(self, job: Any) -> None:
        self._job = job

    def poll(self) -> int | None:
        if not self._job.done():
            return None
        # A job that Slurm ended has no result.
        return 1 if self._job.exception() else self._job.result()

    def cancel(self) -> None:
        self._job.cancel()

    def wait(self) -> None:
        """Not: Slurm gives it the time to save, whoever waits."""
