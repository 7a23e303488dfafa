"""Runs a whole study: prepares, pre-trains, trains every run of the grid, and reports.

    python -m covid_jax.study --config=configs/quickstart.py --workdir=runs/quickstart

The grid is config.study: the names of its runs, and its folds. Every run is a folder and
the command that made it, which is printed; starting the study again goes on with what is missing,
a run that fails is named and the rest goes on. report/index.html is a function of the folders.

STUDY/raw/         synthetic raw data, for each dataset that config.study.raw has no folder for
STUDY/prepared/    all datasets, prepared by one plan
STUDY/pretraining/SOURCE/   STUDY/runs/STRATEGY-SOURCE-foldK/   STUDY/scans/   STUDY/report/
"""

import dataclasses
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from absl import flags

from covid_jax.config import (
    SOURCES,
    Config,
    check_config_arguments,
    config_from_flag,
    define_config_flag,
    named_run,
    run_name,
    to_dict,
)
from covid_jax.data.volume import scans_in, write_json
from covid_jax.errors import UserError, run_command
from covid_jax.reporting.page import terminal_summary, write_report

_CONFIG = define_config_flag()
flags.declare_key_flag("config")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the study.")
_REPORT_ONLY = flags.DEFINE_bool("report_only", False, "Draw the report of what is there.")
_LIST = flags.DEFINE_bool("list", False, "Show the steps and which are done; do nothing.")
_ONLY = flags.DEFINE_string("only", "", "Do only the steps whose name this expression finds.")


@dataclass(frozen=True)
class Step:
    """One command of the study; it is done when the file `result` is there."""

    name: str
    command: tuple[str, ...]
    result: Path

    @property
    def done(self) -> bool:
        """Whether its result is there."""
        return self.result.exists()


def plan_steps(
    config: Config, config_file: str, overrides: Sequence[str], workdir: Path
) -> list[Step]:
    """The steps of the study in `workdir`, in an order in which each finds what it needs."""
    prepared = workdir / "prepared"

    def train(name: str, argument: str, folder: Path, result: str, *extra: str) -> Step:
        command = (
            "covid_jax.train",
            f"--config={config_file}:{argument}",
            *overrides,
            *extra,
            f"--config.data.prepared_dir={prepared}",
            f"--workdir={folder}",
        )
        return Step(name, command, folder / result)

    runs = [named_run(config, name) for name in config.study.runs]
    sources = list(dict.fromkeys(run.source for run in runs if run.source != "none"))
    steps = [_prepare(config, dataset, workdir) for dataset in _datasets(config, sources)]
    for source in sources:
        total = config.pretraining_epochs * config.steps_per_epoch
        folder = workdir / "pretraining" / source
        steps.append(
            train(f"pretraining-{source}", f"pretraining-{source}", folder, f"checkpoints/{total}")
        )
    for fold in config.study.folds:
        for argument, run in zip(config.study.runs, runs, strict=True):
            name = run_name(dataclasses.replace(run, fold=fold))
            extra = [f"--config.fold={fold}"]
            if run.source != "none":
                extra.append(f"--config.pretrained={workdir / 'pretraining' / run.source}")
            folder = workdir / "runs" / name
            steps.append(train(name, argument, folder, "metrics.json", *extra))
            for scan in config.study.scans:
                steps.append(_predict(scan, folder, workdir / "scans" / name))
    return steps


def run_study(config: Config, steps: Sequence[Step], workdir: Path) -> list[str]:
    """Runs the steps that are not done; returns the names of those that failed."""
    write_json(workdir / "study.json", to_dict(config))
    failed = []
    for number, step in enumerate(steps, start=1):
        print(f"\n[{number}/{len(steps)}] {step.name}", flush=True)
        if step.done:
            print("done before", flush=True)
            continue
        command = [sys.executable, "-m", *step.command]
        print("python " + shlex.join(command[1:]), flush=True)
        if subprocess.run(command, check=False).returncode:
            failed.append(step.name)
            print(f"{step.name} failed; its cause is printed above", flush=True)
    return failed


def _predict(scan: str, run: Path, output_dir: Path) -> Step:
    (name,) = scans_in(Path(scan))
    command = (
        "covid_jax.predict",
        f"--checkpoint={run}",
        f"--input={scan}",
        f"--output_dir={output_dir}",
    )
    return Step(f"{run.name}-on-{name}", command, output_dir / f"{name}.nii.gz")


def _prepare(config: Config, dataset: str, workdir: Path) -> Step:
    raw_dir = getattr(config.study.raw, dataset)
    command = [
        "covid_jax.prepare",
        f"--dataset={dataset}",
        f"--raw_dir={raw_dir or workdir / 'raw' / dataset}",
        f"--out_dir={workdir / 'prepared'}",
        f"--plan_fold={config.study.folds[0]}",
    ]
    if not raw_dir:
        command += ["--synthetic", f"--num_cases={config.study.raw.phantom_cases}"]
    result = workdir / "prepared" / dataset / "dataset.json"
    return Step(f"prepare-{dataset}", tuple(command), result)


def _datasets(config: Config, sources: Sequence[str]) -> list[str]:
    """The target, whose training cases make the plan, and then what the sources need."""
    needed = [*config.data.datasets, *(name for source in sources for name in SOURCES[source])]
    return list(dict.fromkeys(needed))


def main() -> None:
    """Runs the study that the flags say."""
    if not _WORKDIR.value:
        raise UserError("--workdir is missing (see --help)")
    config, workdir = config_from_flag(_CONFIG), Path(_WORKDIR.value)
    config_file = next(a for a in sys.argv if a.lstrip("-").startswith("config=")).partition("=")[2]
    overrides = [a for a in sys.argv if a.lstrip("-").startswith("config.")]
    steps = plan_steps(config, config_file, overrides, workdir)
    steps = [step for step in steps if re.search(_ONLY.value, step.name)]
    if _LIST.value:
        for step in steps:
            print(f"{'done' if step.done else 'to do':6} {step.name}")
        return
    failed = [] if _REPORT_ONLY.value else run_study(config, steps, workdir)
    report = write_report(workdir)
    print(f"\n{terminal_summary(workdir)}\nreport: {report}")
    if failed:
        raise UserError(f"{len(failed)} of {len(steps)} steps failed: {', '.join(failed)}")


if __name__ == "__main__":
    run_command(main, __doc__, check_config_arguments)
