"""Runs a whole study: prepares, pre-trains, trains every run of the grid, and reports.

    python -m covid_jax.study --config=configs/quickstart.py --workdir=runs/quickstart

The grid is config.study: the names of its runs, its folds and seeds, and the raw folders of its
datasets, one's own among them (docs/study.md). Every run is a folder and the command that made it,
which is printed; starting the study again goes on with what is missing, a run that fails is named
with its cause and the rest goes on. report/index.html is a function of the folders. --list tells
what is done, what runs, what failed, and the seconds that the rest will take.

STUDY/raw/         synthetic raw data, for each dataset that config.study.raw has no folder for
STUDY/prepared/    all datasets, prepared by one plan
STUDY/pretraining/SOURCE/   STUDY/runs/STRATEGY-SOURCE-foldK/   STUDY/scans/   STUDY/report/
STUDY/configs/     the config of each run      STUDY/steps/   what each step printed, how it ended
"""

import contextlib
import functools
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from absl import flags

from covid_jax.command import as_process, require, run_command
from covid_jax.config import (
    check_config_arguments,
    config_from_flag,
    define_config_flag,
    run_from_flag,
)
from covid_jax.device import announce_device_of_children
from covid_jax.errors import UserError
from covid_jax.reporting.page import terminal_summary, write_report
from covid_jax.stopping import ONE_WISH_SECONDS, StoppedError, stop_signals_go_to, stopped_by
from covid_jax.studies.data import check_data, check_places, seen_notes
from covid_jax.studies.executors import STUDY_STOPS, local
from covid_jax.studies.folder import check_runs, check_study, claim_study, other_runs
from covid_jax.studies.grid import only, plan_steps, refuse_left_out, synthetic_data, write_configs
from covid_jax.studies.schedule import overview, run_steps, the_only_study
from covid_jax.studies.slurm import Slurm

_FLAGS = flags.FlagValues()
define_config_flag(_FLAGS)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the study.", _FLAGS)
_REPORT_ONLY = flags.DEFINE_bool("report_only", False, "Draw the report of what is there.", _FLAGS)
_LIST = flags.DEFINE_bool(
    "list", False, "Show the steps and where each stands; do nothing.", _FLAGS
)
_ONLY = flags.DEFINE_string(
    "only", "", "Do only the steps whose name this expression finds.", _FLAGS
)
_EXECUTOR = flags.DEFINE_enum(
    "executor", "local", ["local", "slurm"], "Where the steps run.", _FLAGS
)
_JOBS = flags.DEFINE_integer("jobs", 1, "Steps at once.", lower_bound=1, flag_values=_FLAGS)
_FRESH = flags.DEFINE_bool("fresh", False, "Run each step in a new process.", _FLAGS)
_SLURM = flags.DEFINE_list(
    "slurm", [], "sbatch's options, such as partition=gpu,gpus_per_node=1.", _FLAGS
)


def work() -> None:
    """Runs the study that the flags say."""
    require(_WORKDIR)
    workdir = Path(_WORKDIR.value)
    if _REPORT_ONLY.value:
        if _LIST.value or _ONLY.value:
            raise UserError(
                "--report_only draws the whole report and does no more: leave out "
                f"{'--list' if _LIST.value else '--only'}"
            )
        print(f"{write_report(workdir)}\n{terminal_summary(workdir)}")
        return
    slurm = _EXECUTOR.value == "slurm"
    other, given = ("--fresh", _FRESH.value) if slurm else ("--slurm", _SLURM.value)
    if given:
        raise UserError(f"{other} has no meaning with --executor={_EXECUTOR.value}")
    config = config_from_flag(_FLAGS)
    announce_device_of_children()
    every = plan_steps(config, functools.partial(run_from_flag, _FLAGS), workdir)
    steps = only(every, _ONLY.value)
    check_places(workdir, config)
    check_study(workdir, config)
    check_runs(every)
    check_data(workdir, config, every)
    notes = [synthetic_data(config, every), other_runs(workdir, every)]
    for note in (*notes, *seen_notes(workdir, config, every)):
        if note:
            print(note)
    if _LIST.value:
        print("\n".join(overview(steps, workdir)))
        return
    refuse_left_out(steps, every)
    options = _slurm_options(_SLURM.value)
    with the_only_study(workdir) as lock, stopped_by_signals(workdir):
        claim_study(workdir, config, every)
        write_configs(every)
        if slurm:
            failed = run_steps(steps, workdir, Slurm(options, _JOBS.value, [lock]))
        else:
            # XLA reads the choices of kernels that a deterministic run keeps once a process.
            fresh = _FRESH.value or config.deterministic
            with local(_JOBS.value, fresh, [lock]) as executor:
                failed = run_steps(steps, workdir, executor)
        if any((workdir / "runs").glob("*/metrics.json")):
            report = write_report(workdir)
            print(f"\n{terminal_summary(workdir)}\nreport: {report}")
        elif not failed:
            print("no run is finished yet, so there is no report")
    if failed:
        causes = "; ".join(f"{name}: {cause}" for name, cause in failed.items())
        raise UserError(f"{len(failed)} of {len(steps)} steps failed: {causes}")


@contextlib.contextmanager
def stopped_by_signals(workdir: Path) -> Iterator[None]:
    """Within, a signal stops the steps, which save, and then the study.

    Several at once, as a system sends that goes down, are one.
    """
    raised = -ONE_WISH_SECONDS

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal raised
        if time.monotonic() - raised > ONE_WISH_SECONDS:
            raised = time.monotonic()
            raise StoppedError(f"{workdir}: {stopped_by(number)}")

    ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
    with stop_signals_go_to(stop, STUDY_STOPS - ignored):  # under nohup it outlives its terminal
        yield


def _slurm_options(options: Sequence[str]) -> dict[str, str]:
    parts = [option.partition("=") for option in options]
    for name, equals, value in parts:
        if not (name and equals):
            raise UserError(f"--slurm={name}{equals}{value}: options are written NAME=VALUE")
        if name.startswith("cluster"):
            raise UserError(
                f"--slurm={name}={value}: a study asks one cluster for its jobs, the one it is on; "
                "start it on that cluster"
            )
    return {name: value for name, _, value in parts}


def main(arguments: Sequence[str]) -> int:
    """This command; returns its exit status."""
    return run_command(work, _FLAGS, __doc__, arguments, check_config_arguments)


if __name__ == "__main__":
    as_process(main)
