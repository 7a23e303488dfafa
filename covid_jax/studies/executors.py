"""Where the steps of a study run: on this machine; studies/slurm.py has those of a cluster."""

import codecs
import contextlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from covid_jax.device import cores, gpus_by_number
from covid_jax.files import write_json
from covid_jax.stopping import STOP_SIGNALS
from covid_jax.studies.grid import Step

STUDY_STOPS = frozenset({*STOP_SIGNALS, signal.SIGHUP})
"""What stops a study: STOP_SIGNALS, and a terminal that was closed."""

_WORKER = "covid_jax.studies.worker"
_GRACE_SECONDS = 10.0  # for a worker without a step to end by itself


@dataclass(frozen=True)
class End:
    """How a step ended.

    Attributes:
      status: the exit status.
      seconds: that it took; None where nobody knows.
      cause: what ended it, where it did not end by itself.
    """

    status: int
    seconds: float | None
    cause: str = ""


class Job(Protocol):
    """A step that was started."""

    def poll(self) -> End | None:
        """How it ended, None while it runs or waits."""

    def cancel(self) -> None:
        """Asks it to end, and does not wait for that."""

    def wait(self) -> None:
        """Waits, after `cancel`, until it has saved and ended."""


@dataclass(frozen=True)
class Order:
    """A step to start.

    Attributes:
      log: the file that gets all it prints.
      record: the file that says where it stands.
      slot: which of the places to run it has, from 0.
    """

    step: Step
    log: Path
    record: Path
    slot: int


class Executor(Protocol):
    """What runs steps."""

    def room(self, running: Collection[Job]) -> int:
        """How many more it takes beside those that run or wait."""

    def start(self, orders: Sequence[Order]) -> Iterable[Job]:
        """Starts steps that are ready at the same moment; hands over each job as it starts."""


@contextlib.contextmanager
def local(jobs: int, fresh: bool = False, lock: Collection[int] = ()) -> Iterator[Executor]:
    """In workers of this machine, one for each of `jobs` steps at once; they end with the block.

    A worker does one step after another, so that what it imported and compiled serves them all;
    one whose step died is followed by another. `fresh` ones do a single step. Of one step at a
    time what it prints is shown as well. Each of several workers has a GPU of its own; more than
    there are GPUs share them, and their memory. Without a GPU each has its share of the cores, on
    which it loses less than if all wanted all of them. Where the study is killed, its workers hold
    `lock` (see lock.py) until their steps have saved.
    """
    executor = _Local(jobs, fresh, lock, gpus_by_number(), cores(), {})
    try:
        yield executor
    finally:
        for worker in executor.workers.values():
            worker.end()


@dataclass(frozen=True)
class _Local:
    jobs: int
    fresh: bool
    lock: Collection[int]
    gpus: Sequence[str]
    cores: Sequence[int]
    workers: "dict[int, _Worker]"

    def room(self, running: Collection[Job]) -> int:
        return self.jobs - len(running)

    def start(self, orders: Sequence[Order]) -> Iterator[Job]:
        for order in orders:
            write_json(order.record, {"state": "running"})
            order.log.write_bytes(b"")
            worker = self.workers.get(order.slot)
            if worker and (self.fresh or not worker.lives):
                del self.workers[order.slot]
                worker.end()
                worker = None
            if worker is None:
                environment = _environment(order.slot, self.jobs, self.gpus)
                share = () if self.gpus else share_of_cores(order.slot, self.jobs, self.cores)
                try:
                    worker = _Worker(environment, share, order.log, self.lock)
                except OSError as error:
                    yield _NoWorker(f"{sys.executable} cannot be started ({error.strerror})")
                    continue
                self.workers[order.slot] = worker
            worker.begin(order)
            yield _InWorker(worker, order.log, shown=self.jobs == 1)


def _environment(slot: int, jobs: int, gpus: Sequence[str]) -> dict[str, str]:
    """Of the worker in a slot."""
    environment = dict(os.environ)
    if jobs > 1 and gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
        sharing = math.ceil(jobs / len(gpus))
        if sharing > 1:  # JAX takes its share at once, unless it is told how much
            environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 / sharing:.3f}")
    return environment


def share_of_cores(slot: int, jobs: int, cores: Sequence[int]) -> Sequence[int]:
    """The cores of the worker in a slot; none where it may have all."""
    if jobs == 1:
        return ()
    if len(cores) < jobs:
        return (cores[slot % len(cores)],)
    return cores[slot * len(cores) // jobs : (slot + 1) * len(cores) // jobs]


class _Worker:
    """A process of studies/worker.py."""

    def __init__(
        self,
        environment: Mapping[str, str],
        cores: Sequence[int],
        log: Path,
        lock: Collection[int],
    ) -> None:
        """On these cores, or any; `log` has what it says where it ends before it takes a step.

        Raises:
          OSError: it cannot be started.
        """
        answers, theirs = os.pipe()  # not their stdout, where anything may print
        self._answers = os.fdopen(answers, "rb")
        try:
            with log.open("ab") as file:
                self._process = subprocess.Popen(
                    [sys.executable, "-u", "-m", _WORKER, str(theirs), *map(str, cores)],
                    stdin=subprocess.PIPE,
                    stdout=file,
                    stderr=file,
                    env=environment,
                    pass_fds=(*lock, theirs),
                    process_group=0,  # Ctrl-C reaches the study alone, which asks each step once
                )
        except OSError:
            self._answers.close()
            raise
        finally:
            os.close(theirs)

    @property
    def lives(self) -> bool:
        """Whether it can be given a step."""
        return self._process.poll() is None

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
        if not (wait or select.select([self._answers], [], [], 0)[0]):
            return None
        if line := self._answers.readline():
            return int(line)
        return self._process.wait()

    def stop(self) -> None:
        """Asks its step to save and end."""
        self._process.terminate()

    def end(self) -> None:
        """Ends it; it has no step."""
        for pipe in (self._process.stdin, self._answers):
            assert pipe
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        try:
            self._process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@dataclass(frozen=True)
class _NoWorker:
    """A step that no worker could be started for."""

    cause: str

    def poll(self) -> End:
        return End(1, None, self.cause)

    def cancel(self) -> None:
        """Nothing: there is no process."""

    def wait(self) -> None:
        """Not: there is no process."""


class _InWorker:
    """A step that a worker does."""

    def __init__(self, worker: _Worker, log: Path, shown: bool) -> None:
        self._worker = worker
        self._began = time.monotonic()
        self._log = log.open("rb") if shown else None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def poll(self) -> End | None:
        status = self._told(wait=False)
        if status is None:
            return None
        return End(status, time.monotonic() - self._began, _killed(-status) if status < 0 else "")

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


def _killed(number: int) -> str:
    memory = ", as the system does where memory is short" if number == signal.SIGKILL else ""
    return f"its process was killed by signal {number} ({signal.strsignal(number)}){memory}"
