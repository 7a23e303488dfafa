"""Where the steps of a study run: on this machine, or as jobs of a Slurm cluster."""

import codecs
import contextlib
import json
import math
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from covid_jax.errors import UserError
from covid_jax.studies.grid import Step

_GRACE_SECONDS = 10.0  # for a worker without a step to end by itself


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


@contextlib.contextmanager
def local(jobs: int, fresh: bool = False) -> Iterator[Start]:
    """In workers of this machine, one for each of `jobs` steps at once; they end with the block.

    A worker does one step after another, so that what it imported and compiled serves them all;
    one whose step died is followed by another. `fresh` ones do a single step. Of one step at a
    time what it prints is shown as well. Each of several workers has a GPU of its own; more than
    there are GPUs share them, and their memory.
    """
    gpus, workers = _gpus(), dict[int, _Worker]()

    def start(orders: Sequence[Order]) -> Iterator[Job]:
        for order in orders:
            order.log.write_bytes(b"")
            worker = workers.get(order.slot)
            if worker and (fresh or not worker.lives):
                worker.end()
                worker = None
            if worker is None:
                environment = _environment(order.slot, jobs, gpus)
                workers[order.slot] = worker = _Worker(environment, order.log)
            worker.begin(order)
            yield _InWorker(worker, order.log, shown=jobs == 1)

    try:
        yield start
    finally:
        for worker in workers.values():
            worker.end()


def _environment(slot: int, jobs: int, gpus: Sequence[str]) -> dict[str, str]:
    """Of the worker in a slot."""
    environment = dict(os.environ)
    if jobs > 1 and gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
        sharing = math.ceil(jobs / len(gpus))
        if sharing > 1:  # JAX takes its share at once, unless it is told how much
            environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 / sharing:.3f}")
    return environment


class _Worker:
    """A process of studies/worker.py, and whether it can be given a step."""

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        """With a log for what it says where it cannot start."""
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-u", "-m", "covid_jax.studies.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=environment,
                process_group=0,  # Ctrl-C reaches the study alone, which asks each step once
            )
        self.lives = True

    def begin(self, order: Order) -> None:
        """Gives it a step."""
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # it could not start, as its status tells
            self._process.stdin.write(
                f"{json.dumps([order.step.command, str(order.log)])}\n".encode()
            )
            self._process.stdin.flush()

    def answer(self, wait: bool) -> int | None:
        """The exit status of its step; None while that is not known and not to be waited for."""
        answers = self._process.stdout
        assert answers
        if not (wait or select.select([answers], [], [], 0)[0]):
            return None
        if line := answers.readline():
            return int(line)
        self.lives = False
        return self._process.wait()

    def stop(self) -> None:
        """Asks its step to save and end."""
        self._process.terminate()

    def end(self) -> None:
        """Ends it; it has no step."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        try:
            self._process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class _InWorker:
    """A step that a worker does."""

    def __init__(self, worker: _Worker, log: Path, shown: bool) -> None:
        self._worker = worker
        self._log = log.open("rb") if shown else None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def poll(self) -> int | None:
        return self._told(wait=False)

    def cancel(self) -> None:
        self._worker.stop()

    def wait(self) -> None:
        self._told(wait=True)

    def _told(self, wait: bool) -> int | None:
        status = self._worker.answer(wait)
        if self._log:
            sys.stdout.write(self._decoder.decode(self._log.read()))
            sys.stdout.flush()
            if status is not None:
                self._log.close()
        return status


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
