"""Steps of a study as jobs of a Slurm cluster, which go on where the study itself is gone.

Steps that are ready at the same moment are one array of jobs, STUDY/steps/slurm/ARRAY.sh. A job
has a name, ARRAY_INDEX, that is in the step's record before Slurm hears of it: at whatever moment
a study is killed, its next start finds the jobs that it left.
"""

import contextlib
import re
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from covid_jax.data.processes import without_signals
from covid_jax.errors import UserError, listed
from covid_jax.files import whole_file, write_json
from covid_jax.stopping import REQUEUE_STATUS
from covid_jax.studies.executors import STUDY_STOPS, End, Job, Order

_ASK_SECONDS = 5.0  # the least between two questions, which cost a whole cluster's controller
_ANSWER_SECONDS = 120.0  # Slurm itself gives up after its MessageTimeout, 10 s
_MOST = 1000  # in an array: Slurm's MaxArraySize, where nobody changed it
_QUEUED = {"PENDING", "CONFIGURING", "REQUEUED"}
_ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED"),
    *("NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
}

_SCRIPT = f"""esac
status=0
# Else srun would give the step one core, in Slurm 22.05 and later.
[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
srun --ntasks=1 bash -c 'exec "$@" >>"$0" 2>&1' "$log" "${{command[@]}}" || status=$?
[ "$status" -le 128 ] || echo "error: its process was killed by signal $((status - 128))" >>"$log"
# It was asked to save before its time is over, and goes on from the queue; not for ever.
if [ "$status" -eq {REQUEUE_STATUS} ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt 20 ]; then
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
fi
exit "$status"
"""


@dataclass(frozen=True)
class Told:
    """What Slurm tells of a job.

    Attributes:
      number: that Slurm gave it, ARRAY_INDEX.
      state: in Slurm's words.
      seconds: that it has run.
    """

    number: str
    state: str
    seconds: float

    @property
    def queued(self) -> bool:
        """Whether it has not begun."""
        return self.state in _QUEUED

    @property
    def end(self) -> End | None:
        """How it ended; None where it has not."""
        if self.state not in _ENDED:
            return None
        if self.state in ("COMPLETED", "FAILED"):
            return End(int(self.state == "FAILED"), self.seconds)
        return End(1, self.seconds, f"Slurm ended its job {self.number}: {self.state}")


def ask(names: Collection[str]) -> dict[str, Told]:
    """What Slurm tells of jobs, by name; it knows those that ended for some minutes.

    Raises:
      UserError: it does not answer, or is not here.
    """
    if not names:
        return {}
    arrays = ",".join(sorted({name.rpartition("_")[0] for name in names}))
    options = ["--noheader", "--array", "--states=all", f"--name={arrays}"]
    told = {}
    for line in _slurm("squeue", *options, "--format=%j_%K %F_%K %T %M").splitlines():
        if len(words := line.split()) == 4:  # else a heading, of several clusters
            name, number, state, elapsed = words
            told[name] = Told(number, state, elapsed_seconds(elapsed))
    return {name: told[name] for name in names if name in told}


class SlurmJob:
    """A step that was submitted.

    Attributes:
      name: by which it is asked for.
      number: that Slurm gave it.
    """

    def __init__(self, name: str, number: str, queue: "_Queue", left: bool = False) -> None:
        """`left` by a study that was killed: where nothing came of it, it is to be done again."""
        self.name, self.number = name, number
        self._queue, self._left = queue, left
        queue.add(name)

    @property
    def array(self) -> int:
        """The number of its array; later ones have higher ones."""
        return int(self.number.partition("_")[0])

    def poll(self) -> End | None:
        """How it ended. What Slurm knows nothing of any more is judged by what it made."""
        told = self._queue.told()
        if told is None:
            return None
        again = End(REQUEUE_STATUS, None)
        if self.name not in told:
            end: End | None = again if self._left else End(0, None)
        elif self._left and told[self.name].state == "CANCELLED":
            end = again  # with the study before this one
        else:
            end = told[self.name].end
        if end:
            self._queue.names.discard(self.name)
        return end

    def cancel(self) -> None:
        """Asks it to save and end."""
        subprocess.run(["scancel", self.number], check=False, process_group=0)  # beyond Ctrl-C

    def wait(self) -> None:
        """Not: Slurm gives it the time to save, whoever waits."""


class _Queue:
    """What Slurm tells of some jobs, asked for all at once and not too often."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self._told: dict[str, Told] | None = None
        self._asked = -_ASK_SECONDS

    def add(self, name: str) -> None:
        """Another job, of which what was told before says nothing."""
        self.names.add(name)
        self._told, self._asked = None, -_ASK_SECONDS

    def told(self) -> dict[str, Told] | None:
        """By name; None where there was no answer since the last job came."""
        if time.monotonic() - self._asked >= _ASK_SECONDS:
            with contextlib.suppress(UserError):  # a controller that starts again is asked again
                self._told = ask(self.names)
            self._asked = time.monotonic()
        return self._told


def jobs_left(names: Mapping[str, str]) -> dict[str, SlurmJob]:
    """The jobs of a study that is gone that still run or wait, by step; `names` are theirs.

    Raises:
      UserError: Slurm does not answer.
    """
    try:
        queue, told = _Queue(), ask(names.values())
    except UserError as error:
        raise UserError(
            f"{listed(names)} may be at work as jobs of Slurm, which cannot be asked: {error}; "
            "start the study where it can, or delete their records, steps/NAME.json"
        ) from error
    return {
        step: SlurmJob(name, told[name].number, queue, left=True)
        for step, name in names.items()
        if name in told and not told[name].end
    }


class Slurm:
    """Steps as jobs of Slurm, `jobs` at once; `parameters` are sbatch's, such as partition.

    All that is ready is one array as soon as one of its jobs has a place, and Slurm keeps to the
    places that it has, which are more as the jobs of earlier arrays end.
    """

    def __init__(
        self, parameters: Mapping[str, str], jobs: int, lock: Collection[int] = ()
    ) -> None:
        """A submission that outlives the study holds `lock` (see lock.py) until Slurm has it."""
        self._options = [f"--{name.replace('_', '-')}={text}" for name, text in parameters.items()]
        self._jobs, self._lock = jobs, lock
        self._queue = _Queue()
        self._places: dict[int, int] = {}  # of an array
        self._free = jobs

    def room(self, running: Collection[Job]) -> int:
        """All, where there is a place."""
        arrays = [job.array for job in running if isinstance(job, SlurmJob)]
        self._free = self._jobs - len(arrays)
        if arrays:
            # Those before it have a place for each job: it was not submitted before they had.
            last = max(arrays)
            unfinished = arrays.count(last)
            places = max(1, self._jobs - (len(arrays) - unfinished))
            before = self._places.get(last, 0)
            if places != before and unfinished > min(places, before):
                command = ["scontrol", "update", f"JobId={last}", f"ArrayTaskThrottle={places}"]
                subprocess.run(command, check=False, capture_output=True)
                self._places[last] = places
        return _MOST if self._free > 0 else 0

    def start(self, orders: Sequence[Order]) -> Sequence[Job]:
        """Submits them as one array.

        Raises:
          UserError: Slurm refuses it, or is not here.
        """
        array = f"covid_jax-{secrets.token_hex(4)}"
        names = [f"{array}_{index}" for index in range(len(orders))]
        script = orders[0].log.resolve().parent / "slurm" / f"{array}.sh"
        lines = ["#!/bin/bash", 'case "$SLURM_ARRAY_TASK_ID" in']
        for index, order in enumerate(orders):
            command = shlex.join([sys.executable, "-u", "-m", *order.step.command])
            lines.append(f"{index}) log={shlex.quote(str(order.log.resolve()))}")
            lines.append(f"   command=({command}) ;;")
        with whole_file(script) as partial:
            partial.write_text("\n".join([*lines, _SCRIPT]))
        for name, order in zip(names, orders, strict=True):
            order.log.write_bytes(b"")  # a job that Slurm starts again adds to it
            write_json(order.record, {"state": "running", "job": name})
        try:
            with without_signals(STUDY_STOPS):  # so that its answer is waited for
                number = _slurm(
                    "sbatch",
                    "--parsable",
                    "--requeue",
                    "--open-mode=append",
                    "--signal=USR1@90",
                    *self._options,
                    f"--job-name={array}",
                    f"--array=0-{len(orders) - 1}%{self._free}",
                    f"--output={str(script.parent).replace('%', '%%')}/%x_%a.txt",
                    str(script),
                    lock=self._lock,
                )
        except UserError:
            told = {}
            with contextlib.suppress(UserError):
                told = ask(names)  # it may have taken them, and its answer not have come
            if not told:
                script.unlink()
                raise
            number = next(iter(told.values())).number.partition("_")[0]
        except BaseException:  # the study is stopped: what Slurm may have taken is nobody's
            subprocess.run(["scancel", f"--name={array}"], check=False, process_group=0)
            raise
        number = number.strip().partition(";")[0]  # and of several clusters, which
        self._places[int(number)] = self._free
        return [
            SlurmJob(name, f"{number}_{index}", self._queue) for index, name in enumerate(names)
        ]


def _slurm(*command: str, lock: Collection[int] = ()) -> str:
    """What a command of Slurm prints."""
    try:
        finished = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            pass_fds=tuple(lock),
            timeout=_ANSWER_SECONDS,
        )
    except FileNotFoundError as error:
        raise UserError(f"there is no {command[0]} here, so no Slurm") from error
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{command[0]}: no answer in {_ANSWER_SECONDS:.0f} s") from error
    if finished.returncode:
        raise UserError(f"{command[0]}: {' '.join(finished.stderr.split())}")
    return finished.stdout


def elapsed_seconds(elapsed: str) -> float:
    """Of Slurm's DAYS-HOURS:MINUTES:SECONDS, where what is 0 may lack in front.

    0 of what is no time: Slurm says INVALID where this machine's clock is behind its own.
    """
    if not re.fullmatch(r"(\d+-)?[\d:]*\d", elapsed):
        return 0.0
    days, _, rest = elapsed.rpartition("-")
    seconds = 86400.0 * int(days or 0)
    for power, part in enumerate(reversed(rest.split(":"))):
        seconds += 60**power * int(part)
    return seconds
