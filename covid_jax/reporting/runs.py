"""The runs of a study, read from its folders; and what of the folders cannot be read."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from covid_jax.config import STRATEGY_NAMES, Config, differences, run_name, to_dict
from covid_jax.data.store import folds_of
from covid_jax.errors import UserError, listed
from covid_jax.evaluation.folders import load_metrics
from covid_jax.evaluation.metrics import BOTH_EMPTY, NO_REFERENCE, unscored
from covid_jax.files import read_json
from covid_jax.lock import is_held
from covid_jax.reporting.cases import label_space_of, labels_of
from covid_jax.reporting.kinds import Kind
from covid_jax.reporting.statistics import Trial
from covid_jax.reporting.words import counted, seen_told
from covid_jax.training.pretrained import load_config
from covid_jax.training.progress import read_log
from covid_jax.training.provenance import load_provenance

_OF_A_TRIAL = (
    *("fold: ", "seed: ", "pretrained: ", "data.prepared_dir: ", "data.workers: "),
    *("mesh.", "study."),
)
"""Settings in which the runs of one kind may differ."""

_NONE_THERE = (BOTH_EMPTY, NO_REFERENCE)


@dataclass(frozen=True)
class Run:
    """A finished run of a study.

    Attributes:
      name: of its folder.
      cases: the metrics of each test case.
      log: the lines of its log.jsonl.
      epoch_seconds: the median over epochs of training alone, without the first, which compiles.
      validation_seconds: the same of the validation steps.
      labels: where there are several, each one's metrics of each test case, by its name; those in
        `cases` are the means over them.
      without: of each label, the cases whose reference has none of it.
      seen: the test cases that its network, or one that it started from, was trained on.
      machine: what it was trained on, in words; empty where nobody knows.
      program: the version of covid_jax that began it; empty where nobody knows.
    """

    name: str
    config: Config
    cases: dict[str, dict[str, float | None]]
    log: list[dict[str, Any]]
    epoch_seconds: float
    validation_seconds: float
    labels: dict[str, dict[str, dict[str, float | None]]] = field(default_factory=dict)
    without: dict[str, frozenset[str]] = field(default_factory=dict)
    seen: tuple[str, ...] = ()
    machine: str = ""
    program: str = ""

    @property
    def fold(self) -> int:
        """By which its cases were split."""
        return self.config.fold

    @property
    def trial(self) -> Trial:
        """Which run of its kind it is."""
        return Trial(self.config.fold, self.config.seed)

    @property
    def kind(self) -> Kind:
        """The row of the tables that it belongs to."""
        return Kind(self.config.strategy, self.config.source, self.config.variant)

    def values(self, metric: str) -> dict[str, float]:
        """A metric of every test case that has it."""
        found = {name: case.get(metric) for name, case in self.cases.items()}
        return {name: value for name, value in found.items() if value is not None}


def read_runs(study: Path) -> tuple[list[Run], list[str]]:
    """The finished runs of a study by kind (Kind.place), fold and name.

    Returns:
      them, and a line for each folder in STUDY/runs that is none (unfinished, damaged or foreign),
      and for each step that failed or did not end.
    """
    runs, problems, ends = [], [], unended_steps(study)
    cases_now = functools.cache(functools.partial(_cases_now, study))
    for folder in sorted((study / "runs").glob("*")):
        if folder.is_dir():
            try:
                run, origin = _read_run(folder, ends.pop(folder.name, "")), load_provenance(folder)
                runs.append(run)
                if any("earlier_lengths" in o for o in (origin, origin.get("pretrained", {}))):
                    problems.append(
                        f"runs/{folder.name}: it, or its pre-training, went on to other epochs "
                        "than it began with; it is not as long as the others"
                    )
                if run.seen:
                    problems.append(
                        f"runs/{folder.name}: {seen_told(run.seen)} of fold {run.fold} "
                        f"({listed(run.seen)}), itself or what it started from; scores of them are "
                        "no test"
                    )
                problems += _changed_since(study, run, origin, cases_now)
            except UserError as error:
                problems.append(str(error))
    place = lambda run: (run.kind.place, run.fold, run.config.seed, run.name)  # noqa: E731
    others = [f"{name}: {how} (steps/{name}.txt)" for name, how in ends.items()]
    runs, twice = _each_once(sorted(runs, key=place))
    return runs, problems + others + twice + _unlike(runs) + uneven_seeds(runs)


def _each_once(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """The first run of each kind by fold and seed, and a line on each further one.

    One whose folder has the name that a study gives it comes first.
    """
    once: dict[tuple[Kind, Trial], Run] = {}
    for run in sorted(runs, key=lambda run: not run.name.startswith(run_name(run.config))):
        once.setdefault((run.kind, run.trial), run)
    lines = [
        f"runs/{run.name}: is the same run as runs/{first.name}, which counts"
        for run in runs
        if (first := once[run.kind, run.trial]) is not run
    ]
    return [run for run in runs if once[run.kind, run.trial] is run], lines


def _unlike(runs: Sequence[Run]) -> list[str]:
    """A line on each run that has other settings than the first of its kind."""
    first: dict[Kind, Run] = {}
    lines = []
    for run in runs:
        beside = first.setdefault(run.kind, run)
        mine, theirs = to_dict(run.config), to_dict(beside.config)
        changed = differences(mine, theirs, besides=_OF_A_TRIAL)
        programs = (beside.program, run.program)
        if all(programs) and len({*programs}) > 1:
            changed.append(f"covid_jax {run.program}, was {beside.program}")
        if changed:
            lines.append(
                f"runs/{run.name}: has other settings than runs/{beside.name}, in one row with it "
                f"({'; '.join(changed)})"
            )
    return lines


def unended_steps(study: Path) -> dict[str, str]:
    """Of each step that failed or did not end, how it stands."""
    found, working = {}, is_held(study)
    for path in sorted((study / "steps").glob("*.json")):
        try:
            record = read_json(path)
        except UserError as error:
            found[path.stem] = str(error)
            continue
        if record.get("state") == "failed":
            found[path.stem] = f"failed: {record.get('cause')}"
        elif record.get("state") == "running":
            job = f"its job {record['job']} was not seen ending" if "job" in record else ""
            found[path.stem] = job or ("is at work" if working else "was interrupted")
    return found


def uneven_seeds(runs: Sequence[Run]) -> list[str]:
    """A line for each kind of run that lacks seeds which another one has in the same fold."""
    seeds: dict[int, set[int]] = {}
    for run in runs:
        seeds.setdefault(run.fold, set()).add(run.config.seed)
    lines = []
    for kind in kinds_of(runs):
        mine = {(run.fold, run.config.seed) for run in runs if run.kind == kind}
        folds = sorted({fold for fold, _ in mine})
        every = [(fold, seed) for fold in folds for seed in sorted(seeds[fold])]
        if lacks := [f"{seed} of fold {fold}" for fold, seed in every if (fold, seed) not in mine]:
            lines.append(
                f"{kind.label}: has no run by seed {', '.join(lacks)}, as others have; kinds of "
                "run are compared by the seeds that both have"
            )
    return lines


CasesNow = Callable[[str], dict[str, Any]]
"""name of a dataset -> the digest of each of its prepared cases"""


def _cases_now(study: Path, name: str) -> dict[str, Any]:
    cases = (study / "prepared" / name / "cases").glob("*/case.json")
    return {path.parent.name: read_json(path).get("sha256") for path in cases}


def _changed_since(study: Path, run: Run, origin: dict[str, Any], cases_now: CasesNow) -> list[str]:
    """A line for each dataset of which the study now has other cases than the run was made from.

    Or than its pre-training was, where that is of this study; and a line where its fold has other
    test cases now. A study whose data is gone can be reported all the same.
    """
    lines = []
    for what in _changed_datasets(origin, cases_now):
        lines.append(
            f"runs/{run.name}: trained or tested on {what}; delete the folder of the run to make "
            "it again"
        )
    if Path(run.config.pretrained).parts[-2:] == ("pretraining", run.config.source):
        for what in _changed_datasets(origin.get("pretrained", {}), cases_now):
            lines.append(
                f"runs/{run.name}: its pre-training saw {what}; delete pretraining/"
                f"{run.config.source} and the folder of the run to make both again"
            )
    folds = folds_of(study / "prepared" / run.config.data.datasets[0])
    tested = set(folds[run.fold].test) if run.fold < len(folds) else set(run.cases)
    if other := tested ^ run.cases.keys():
        lines.append(
            f"runs/{run.name}: was tested on other cases than fold {run.fold} has now "
            f"({listed(other)}); delete the folder of the run to make it again"
        )
    return lines


def _changed_datasets(origin: dict[str, Any], cases_now: CasesNow) -> list[str]:
    """Datasets with the cases that have changed or gone since a run was made of them."""
    found = []
    for name, theirs in origin.get("data", {}).items():
        ours = cases_now(name)
        changed = [case for case in theirs if ours.get(case) != theirs[case]]
        if ours and changed:
            found.append(f"{name} as it was before it changed ({listed(changed)})")
    return found


def kinds_of(runs: Sequence[Run]) -> list[Kind]:
    """The kinds that are there, each once, in the order of the runs."""
    return list(dict.fromkeys(run.kind for run in runs))


def _read_run(folder: Path, end: str) -> Run:
    """The run in a folder; `end` says how its step stands if it did not end well."""
    name = f"runs/{folder.name}"
    if not (folder / "config.json").is_file():
        raise UserError(f"{name}: {end or 'no config.json, not a run'}")
    config = load_config(folder)
    if config.strategy not in STRATEGY_NAMES:
        raise UserError(f"{name}: no strategy is called {config.strategy!r}")
    log = read_log(folder)
    if not (folder / "metrics.json").is_file():
        done = log[-1]["step"] if log else 0
        total = config.epochs * config.steps_per_epoch
        so_far = f"not finished, step {done} of {total} is the last logged"
        raise UserError("; ".join(filter(None, [f"{name}: {so_far}", end])))
    metrics = load_metrics(folder / "metrics.json")
    if not log:
        raise UserError(f"{name}: no epoch in its log.jsonl")
    if len(unscored(metrics)) == len(metrics["cases"]):
        raise UserError(f"{name}: no test case has a score, every voxel of them is ignored")
    timed, origin = log[1:] or log, load_provenance(folder)
    of_label = metrics.get("labels") or dict.fromkeys(labels_of(label_space_of(config)), metrics)
    return Run(
        name=folder.name,
        config=config,
        cases=metrics["cases"],
        log=log,
        epoch_seconds=median(line["seconds"] for line in timed),
        validation_seconds=median(line.get("validation_seconds", 0.0) for line in timed),
        labels={name: of["cases"] for name, of in metrics.get("labels", {}).items()},
        without={
            name: frozenset(c for c, which in of["empty"].items() if which in _NONE_THERE)
            for name, of in of_label.items()
        },
        seen=tuple(case for case in origin.get("seen_before", ()) if case in metrics["cases"]),
        program=str(origin.get("covid_jax", "")),
        machine=" then ".join(dict.fromkeys(map(_machine, origin.get("devices", ())))),
    )


def _machine(device: Mapping[str, Any]) -> str:
    """As "cpu with 2 cores", "NVIDIA H100 of which it had 0.45"."""
    cores, fraction = device.get("cores"), device.get("memory_fraction")
    with_cores = f" with {counted(cores, 'core')}" if isinstance(cores, int) else ""
    return f"{device.get('kind')}{with_cores}" + (
        f" of which it had {fraction}" if fraction else ""
    )
