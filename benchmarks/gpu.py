r"""What a GPU is asked for when one is at hand for 14 minutes, on a bare machine without network.

    bash launch/gpu_benchmark.sh --output=DIR [--budget=840] [--only=REGEX] [--dry_run] \
        [--config=configs/nnunet.py --config.data.prepared_dir=FOLDER]

The parts stand in harness/gpu_parts.py, in the order of their value. Each runs in a process of
its own, which is killed at its own limit, or where the budget ends: a part that fails or hangs
costs itself alone, and is named at the end. Every figure is written as soon as it is there, into
few files, in which the parts that are complete are named; these are skipped when the same command
is started again. Compiled programs are kept beside DIR, in DIR.cache, or where
JAX_COMPILATION_CACHE_DIR says. With --dry_run all of it runs on small patches and a thin network
with a GPU's choices, to see that it works: on a CPU too. With --config, as benchmarks.epoch_time
has it, all is measured of that network, but for the parts that are of the benchmark's own alone; it
needs ml_collections and grain.
"""

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from absl import flags

from benchmarks.harness.environment import of_plan
from benchmarks.harness.gpu_parts import PARTS, Part, Sheet
from benchmarks.peers.stand_ins import missing, stand_in_for_missing
from covid_jax.command import as_process, require, run_command
from covid_jax.config import check_config_arguments, config_from_flag, define_config_flag
from covid_jax.device import announce_device, announce_device_of_children
from covid_jax.errors import UserError
from covid_jax.stopping import StoppedError, stop_signals_go_to, stopped_by

_FLAGS = flags.FlagValues()
_HAS_CONFIG = not missing("ml_collections", "grain")  # which a bare machine may lack
if _HAS_CONFIG:
    define_config_flag(_FLAGS)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the result files.", _FLAGS)
_BUDGET = flags.DEFINE_float(
    "budget",
    840.0,
    "Seconds for all of it, start and compiling included",
    lower_bound=0,
    flag_values=_FLAGS,
)
_ONLY = flags.DEFINE_string(
    "only", "", "Regular expression of the parts to do, by their names.", _FLAGS
)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Small patches and a thin network.", _FLAGS)
_PART = flags.DEFINE_string(
    "part", None, "The one part to do in this process, without a limit.", _FLAGS
)
_BEGUN = flags.DEFINE_float(
    "begun",
    None,
    "When the budget began, in seconds since 1970.",
    lower_bound=0,
    flag_values=_FLAGS,
)

RESERVE = 2.0
"""Seconds of the budget in which nothing is measured: for the end of a process that is killed."""


@dataclasses.dataclass(frozen=True)
class Task:
    """A part as the driver sees it.

    Attributes:
      seconds: that it may take.
      command: of its process.
      is_complete: whether it is done, from an earlier start.
    """

    name: str
    seconds: float
    command: tuple[str, ...]
    is_complete: Callable[[], bool]


def drive(
    tasks: Sequence[Task], seconds: float, environment: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Runs the tasks one after another, within `seconds` in all.

    A task is not begun with less than a quarter of its time.

    Returns:
      of each task that did not end well, what became of it
    """
    begin, undone = time.monotonic(), dict[str, str]()
    for task in tasks:
        spent = time.monotonic() - begin
        limit = min(task.seconds, seconds - RESERVE - spent)
        if task.is_complete():
            print(f"--- {task.name}: complete already", flush=True)
        elif limit < task.seconds / 4:
            told = f"left out, {spent:.0f} of {seconds:.0f} s are spent and a quarter of its "
            told += f"{task.seconds:.0f} s would be the least"
            print(f"--- {task.name}: {told}", flush=True)
            undone[task.name] = "too little time was left"
        else:
            print(f"--- {task.name}: at most {limit:.0f} s, after {spent:.0f} s", flush=True)
            status = run_within(task.command, limit, environment)
            if status is None:
                undone[task.name] = f"killed after {limit:.0f} s"
            elif status:
                undone[task.name] = f"failed, exit status {status}"
    print(f"--- {time.monotonic() - begin:.0f} of {seconds:.0f} s are spent", flush=True)
    return undone


def run_within(
    command: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None
) -> int | None:
    """The exit status of a command; None where it was killed, since it took longer."""
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        # What it started has to go as well, however it ended.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        # A process may hang in the GPU's driver, out of reach of any signal; the next goes on.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(RESERVE / 2)


def task_of(part: Part, folder: Path, dry_run: bool, config: Sequence[str]) -> Task:
    """The task that measures a part in a process of its own, with the flags of --config."""
    sheet = Sheet(folder / part.file, part.name, dry_run, tuple(config))
    own = (f"--part={part.name}", f"--output={folder}", *("--dry_run",) * dry_run)
    command = (sys.executable, "-m", "benchmarks.gpu", *own, *config)
    seconds = part.seconds * (3 if dry_run else 1)  # a CPU that others use as well takes longer
    return Task(part.name, seconds, command, sheet.is_complete)


def chosen(pattern: str, of_any: bool) -> list[Part]:
    """The parts whose names have a match of `pattern`, in their order; or those of any network.

    Raises:
      UserError: it is no regular expression, or none matches.
    """
    try:
        found = [part for part in PARTS if re.search(pattern, part.name) and part.of_any >= of_any]
    except re.error as error:
        raise UserError(f"--only={pattern}: no regular expression ({error})") from error
    if not found:
        raise UserError(f"--only={pattern}: no such part; there are {_listed(PARTS)}")
    return found


def _listed(parts: Sequence[Part]) -> str:
    return ", ".join(json.dumps(part.name) for part in parts)


def _stop(number: int, _: object) -> None:
    raise StoppedError(stopped_by(number))


def work() -> None:
    """Measures what the budget allows."""
    require(_OUTPUT)
    folder, dry_run = Path(_OUTPUT.value), _DRY_RUN.value
    given = [argument for argument in sys.argv[1:] if argument.startswith("--config")]
    if given and _HAS_CONFIG:
        stand_in_for_missing()  # it reads no scan
        config = of_plan(config_from_flag(_FLAGS))
    else:
        config = None
    if _PART.value:
        (part,) = (part for part in PARTS if part.name == _PART.value)
        announce_device()
        part.run(Sheet(folder / part.file, part.name, dry_run, tuple(given)), config)
        return
    parts = chosen(_ONLY.value, of_any=config is not None)
    seconds = _BUDGET.value
    announce_device_of_children()
    if _BEGUN.value is not None:
        seconds -= time.time() - _BEGUN.value
    cache = folder.absolute().with_name(f"{folder.absolute().name}.cache")
    with (
        tempfile.TemporaryDirectory() as scratch,  # a process that is killed cleans up nothing
        stop_signals_go_to(_stop),
    ):
        environment = {
            "JAX_COMPILATION_CACHE_DIR": str(cache / "xla"),
            "TORCHINDUCTOR_CACHE_DIR": str(cache / "torch"),
            **os.environ,
            "TMPDIR": scratch,
        }
        tasks = [task_of(part, folder, dry_run, given) for part in parts]
        undone = drive(tasks, seconds, environment)
    if undone:
        told = "; ".join(f"{name} ({why})" for name, why in undone.items())
        raise UserError(f"not measured: {told}; the same command goes on with them")


def main(arguments: Sequence[str]) -> int:
    """This command; returns its exit status."""
    return run_command(work, _FLAGS, __doc__, arguments, check_config_arguments)


if __name__ == "__main__":
    as_process(main)
