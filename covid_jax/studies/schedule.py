"""Runs the steps of a study, as many at once as asked, and tells where each one stands.

What a step printed is in STUDY/steps/NAME.txt, and in NAME.json where it stands: its job in a
cluster, or how it ended and in what time.
"""

import contextlib
import itertools
import re
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from covid_jax.errors import UserError
from covid_jax.files import is_number, read_json, write_json
from covid_jax.lock import is_held, only_here
from covid_jax.stopping import REQUEUE_STATUS, stop_signals_go_to, tell_stop
from covid_jax.studies.executors import STUDY_STOPS, End, Executor, Job, Order
from covid_jax.studies.grid import Step
from covid_jax.studies.slurm import ask, jobs_left
from covid_jax.training.progress import read_log

_POLL_SECONDS = 0.2
_AGAIN_SECONDS = 60.0  # after a cluster took no job
_TRACEBACK = "Traceback (most recent call last):"


@dataclass(frozen=True)
class State:
    """Where a step stands: done, running, queued, failed, interrupted or to do.

    Of a job in a cluster that does not answer: submitted.

    Attributes:
      seconds: that it took if it is done, or that it is expected to take from here on; None where
        nothing like it was measured yet.
      cause: of a failure.
    """

    word: str
    seconds: float | None
    cause: str = ""


@contextlib.contextmanager
def the_only_study(workdir: Path) -> Iterator[int]:
    """Holds the study's folder, as only_here; what it yields is for workers to inherit.

    They do not inherit the hold of STUDY/steps: where that is free, the study itself is gone.
    """
    left = "what a study that was killed had begun, and which saves and ends,"
    with only_here(workdir / "steps", "another study"), only_here(workdir, left) as lock:
        yield lock


@dataclass(frozen=True)
class _Progress:
    """Where the steps of a study stand while it runs.

    Attributes:
      steps: all of them.
      waiting: those that are to be begun.
      running: those that were, with their jobs, by the slot that each has.
      failed: the causes of failure, by name.
    """

    workdir: Path
    steps: Sequence[Step]
    waiting: list[Step]
    running: dict[int, tuple[Step, Job]]
    failed: dict[str, str]


def run_steps(steps: Sequence[Step], workdir: Path, executor: Executor) -> dict[str, str]:
    """Runs what is not done; returns the causes of failure by name.

    A step that fails does not keep others from running, only those that need it. Jobs of a cluster
    that outlived a study that was killed are waited for.

    Raises:
      UserError: the cluster does not answer or takes no job, and none of the study is at work.
    """
    waiting = [step for step in steps if step.watches or not step.done]
    if done := sum(step.done for step in steps):
        again = [step.name for step in waiting if step.done]
        looks = f"; again looks for raw files that changed: {', '.join(again)}"
        print(f"{done} of {len(steps)} steps were done before{looks * bool(again)}", flush=True)
    for step in steps:
        if step not in waiting and _read_record(workdir, step).get("state", "done") != "done":
            write_json(_record(workdir, step), {"state": "done"})  # while nobody looked
    progress = _Progress(workdir, steps, waiting, {}, {})
    refused = -_AGAIN_SECONDS  # when the cluster took no job
    try:
        _adopt(progress)
        while progress.waiting or progress.running:
            _collect(progress)
            if time.monotonic() - refused >= _AGAIN_SECONDS:
                try:
                    _begin(progress, executor)
                except UserError as error:
                    if not progress.running:
                        raise
                    refused = time.monotonic()
                    print(f"{error}; what is at work goes on, and it is asked again", flush=True)
            time.sleep(_POLL_SECONDS)
    finally:
        _end({step.name: job for step, job in progress.running.values()})
    return progress.failed


def _adopt(progress: _Progress) -> None:
    """Makes those that wait and are jobs of a cluster already run.

    Raises:
      UserError: there may be such jobs, and the cluster does not answer.
    """
    records = {step.name: _read_record(progress.workdir, step) for step in progress.waiting}
    jobs = jobs_left(_submitted(records))
    for step in [step for step in progress.waiting if step.name in jobs]:
        progress.waiting.remove(step)
        progress.running[next(_free_slots(progress))] = step, jobs[step.name]
        print(f"{step.name}: its job {jobs[step.name].number} is there, and waited for", flush=True)


def _collect(progress: _Progress) -> None:
    """Sees which steps have ended, and how."""
    for slot, (step, job) in list(progress.running.items()):
        end = job.poll()
        if end is None:
            continue
        del progress.running[slot]
        if end.status == REQUEUE_STATUS:
            print(f"{step.name}: was asked to stop, starts again", flush=True)
            progress.waiting.insert(0, step)
        elif cause := _finish(step, progress.workdir, end):
            progress.failed[step.name] = cause


def _begin(progress: _Progress, executor: Executor) -> None:
    """Starts what is ready, as far as there is room, and leaves out what needs what failed.

    Raises:
      UserError: a cluster takes none of it, so all of it waits still.
    """
    workdir, waiting, running = progress.workdir, progress.waiting, progress.running
    unfinished = {step.name for step, _ in running.values()} | {step.name for step in waiting}
    ready: list[Order] = []
    places: list[str] = []
    room = executor.room([job for _, job in running.values()])
    slots = _free_slots(progress)
    for step in list(waiting):
        if lost := [name for name in step.needs if name in progress.failed]:
            waiting.remove(step)
            progress.failed[step.name] = f"needs {lost[0]}, which failed"
            print(f"{step.name}: left out, it {progress.failed[step.name]}", flush=True)
        elif len(ready) < room and not unfinished & {*step.needs}:
            waiting.remove(step)
            places.append(f"[{len(progress.steps) - len(waiting)}/{len(progress.steps)}]")
            ready.append(Order(step, _log(workdir, step), _record(workdir, step), next(slots)))
    if not ready:
        return
    try:
        for place, order, job in zip(places, ready, executor.start(ready), strict=True):
            running[order.slot] = order.step, job
            told = f"{place} {order.step.name}\npython -m {shlex.join(order.step.command)}"
            print(f"\n{told}", flush=True)
    except UserError:
        waiting[:0] = [order.step for order in ready if order.slot not in running]
        raise


def _free_slots(progress: _Progress) -> Iterator[int]:
    return (slot for slot in itertools.count() if slot not in progress.running)


def _end(jobs: Mapping[str, Job]) -> None:
    """Asks all to save and end, and then waits for all, however long that takes.

    Another signal meanwhile ends nothing; what is waited for is told once more.
    """

    def tell(*_: object) -> None:
        tell_stop(f"waiting until these have saved: {', '.join(jobs)}")

    if not jobs:
        return
    with stop_signals_go_to(tell, STUDY_STOPS):
        for job in jobs.values():
            job.cancel()
        tell()
        for job in jobs.values():
            job.wait()


def states(steps: Sequence[Step], workdir: Path) -> dict[str, State]:
    """Where each step stands, by name.

    Raises:
      UserError: a record or a log of one is damaged.
    """
    records = {step.name: _read_record(workdir, step) for step in steps}
    logs = {step.name: read_log(step.training.folder) for step in steps if step.training}
    measured = _measured(steps, records, logs)
    jobs = _job_states([step for step in steps if not step.done], records, workdir)
    found = {}
    for step in steps:
        record = records[step.name]
        if step.done:
            found[step.name] = State("done", record.get("seconds"))
            continue
        word, cause = record.get("state", "to do"), record.get("cause", "")
        if step.name in jobs:
            word, cause = jobs[step.name]
        elif word == "running" and not is_held(workdir):
            word = "interrupted"
        seconds = _expected(step, measured, logs.get(step.name, []))
        found[step.name] = State(word, seconds, cause)
    return found


def overview(steps: Sequence[Step], workdir: Path) -> list[str]:
    """A line for each step with its state and seconds, and a last one for what is left."""
    found = states(steps, workdir)
    lines = []
    for step in steps:
        state = found[step.name]
        seconds = "?" if state.seconds is None else f"{state.seconds:.0f}"
        lines.append(f"{state.word:12}{seconds:>8} s  {step.name}  {state.cause}".rstrip())
    left = [state for state in found.values() if state.word != "done"]
    known = sum(state.seconds for state in left if state.seconds is not None)
    unknown = sum(state.seconds is None for state in left)
    rest = []
    if more := len(left) - unknown:
        takes, turns = ("takes", "") if more == 1 else ("take", ", one after another")
        rest.append(f"{more} more {takes} {known:.0f} s{turns}")
    if unknown:
        one = unknown == 1
        others, like = ("1 other takes", "it") if one else (f"{unknown} others take", "them")
        rest.append(f"how long {others} is known once steps like {like} are done")
    if again := [step.name for step in steps if step.watches and step.done]:
        rest.append(f"at each start looks for raw files that changed: {', '.join(again)}")
    lines.append("; ".join([f"{len(steps) - len(left)} of {len(steps)} steps are done", *rest]))
    return lines


@dataclass(frozen=True)
class _Measured:
    """What the steps of a study took so far.

    Attributes:
      whole: seconds of each finished step, by its command.
      paces: seconds of a training step with its share of the validation, by kind of training.
      overheads: seconds of each finished training besides its epochs.
    """

    whole: dict[str, list[float]]
    paces: dict[str, list[float]]
    overheads: list[float]


def _measured(
    steps: Sequence[Step],
    records: dict[str, dict[str, Any]],
    logs: dict[str, list[dict[str, Any]]],
) -> _Measured:
    found = _Measured({}, {}, [])
    for step in steps:
        seconds = records[step.name].get("seconds") if step.done else None
        if seconds is not None:
            found.whole.setdefault(step.command[0], []).append(seconds)
        if step.training and len(log := logs[step.name]) > 1:
            epochs = [line["seconds"] + line.get("validation_seconds", 0) for line in log]
            pace = median(epochs[1:]) / (log[1]["step"] - log[0]["step"])  # the first compiles
            found.paces.setdefault(step.training.kind, []).append(pace)
            if seconds is not None:
                found.overheads.append(max(0.0, seconds - sum(epochs)))
    return found


def _expected(step: Step, measured: _Measured, log: list[dict[str, Any]]) -> float | None:
    """The seconds that are left of a step, from those of steps like it."""
    if step.training is None:
        like = measured.whole.get(step.command[0])
        return median(like) if like else None
    others = [pace for paces in measured.paces.values() for pace in paces]
    paces = measured.paces.get(step.training.kind, others)
    if not paces:
        return None
    left = step.training.steps - (log[-1]["step"] if log else 0)
    return left * median(paces) + (median(measured.overheads) if measured.overheads else 0.0)


def _finish(step: Step, workdir: Path, end: End) -> str:
    """Records how a step ended; returns the cause if it failed."""
    if end.status or not step.made:
        cause = end.cause or _last_words(_log(workdir, step))
        cause = cause or f"it ended with status {end.status}, without a word"
        print(f"{step.name} failed: {cause}", flush=True)
        write_json(_record(workdir, step), {"state": "failed", "cause": cause})
        return cause
    if end.seconds is None:
        print(f"{step.name}: done", flush=True)
        write_json(_record(workdir, step), {"state": "done"})
    else:
        print(f"{step.name}: done in {end.seconds:.0f} s", flush=True)
        write_json(_record(workdir, step), {"state": "done", "seconds": round(end.seconds, 1)})
    return ""


def _last_words(log: Path) -> str:
    """What a command ended with: its error, or its last line that is no progress bar.

    Of a traceback the first line of what was raised, which notes and frames of others may follow.
    """
    if not log.is_file():
        return ""
    lines = [
        line for line in log.read_text(errors="replace").replace("\r", "\n").split("\n") if line
    ]
    if errors := [line for line in lines if line.startswith("error: ")]:
        return errors[-1].removeprefix("error: ")
    if _TRACEBACK in lines:
        last = len(lines) - lines[::-1].index(_TRACEBACK)
        # Not the source, nor the marks below it, which need not be indented.
        lines = [line for line in lines[last:] if re.match(r"[A-Za-z_]", line)][:1] or lines
    return lines[-1] if lines else ""


def _submitted(records: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The names of the jobs that nobody has seen ending, by step."""
    return {
        name: record["job"]
        for name, record in records.items()
        if record.get("state") == "running" and record.get("job")
    }


def _job_states(
    steps: Sequence[Step], records: Mapping[str, Mapping[str, Any]], workdir: Path
) -> dict[str, tuple[str, str]]:
    """Where the steps stand that are jobs of a cluster, and the cause or the job's number."""
    jobs = _submitted({step.name: records[step.name] for step in steps})
    try:
        told = ask(jobs.values())
    except UserError as error:
        return dict.fromkeys(jobs, ("submitted", f"where it stands is not known: {error}"))
    found = {}
    for step in steps:
        if step.name not in jobs:
            continue
        job = told.get(jobs[step.name])
        if job is None or job.state == "CANCELLED":
            found[step.name] = "interrupted", ""
        elif job.end:
            found[step.name] = "failed", job.end.cause or _last_words(_log(workdir, step))
        else:
            found[step.name] = "queued" if job.queued else "running", f"job {job.number}"
    return found


def _read_record(workdir: Path, step: Step) -> dict[str, Any]:
    """What is known of how a step ended; nothing where there is no record."""
    path = _record(workdir, step)
    record = read_json(path)
    words = (record.get(key, "") for key in ("state", "cause", "job"))
    if not (all(isinstance(word, str) for word in words) and is_number(record.get("seconds", 0))):
        raise UserError(f"{path}: damaged; it is no record of a step. Delete it")
    return record


def _record(workdir: Path, step: Step) -> Path:
    return workdir / "steps" / f"{step.name}.json"


def _log(workdir: Path, step: Step) -> Path:
    return workdir / "steps" / f"{step.name}.txt"
