"""The steps of a study: which command makes what, and what each one needs."""

import dataclasses
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from covid_jax.config import (
    SOURCES,
    Config,
    differences,
    read_config,
    run_name,
    to_dict,
)
from covid_jax.data.datasets import published_splits
from covid_jax.data.plan import load_plan
from covid_jax.data.scans import scans_in
from covid_jax.data.store import load_dataset
from covid_jax.errors import UserError
from covid_jax.files import refuse_inside, write_json
from covid_jax.training.state import epochs_of

_MAY_GROW = ("study.folds", "study.runs", "study.seeds", "study.scans", "study.title", "study.note")
_MAY_CHANGE = (*_MAY_GROW, "data.workers", "mesh.")
"""Settings that a study may be continued with although they changed: they change no run."""

_PUBLISHED = ("covid19", *SOURCES["multi_lesion"])
"""Datasets whose folds are known before their files are."""


@dataclass(frozen=True)
class Training:
    """What a step that trains will do: the run of a config, in a folder.

    Attributes:
      file: where the config is written, which the command reads.
    """

    folder: Path
    config: Config
    file: Path

    @property
    def kind(self) -> str:
        """What trainings that take equally long have in common."""
        return "pretraining" if self.config.pretraining else self.config.strategy

    @property
    def steps(self) -> int:
        """Training steps of the run."""
        return epochs_of(self.config) * self.config.steps_per_epoch


@dataclass(frozen=True)
class Step:
    """One command of the study; it is done when the file `result` is there.

    Attributes:
      needs: names of the steps that come before it.
      watches: it reads files that may have changed since, and sees for itself what is to be done;
        so it is done at every start.
      training: of a step that trains.
    """

    name: str
    command: tuple[str, ...]
    result: Path
    needs: tuple[str, ...] = ()
    training: Training | None = None
    watches: bool = False

    @property
    def done(self) -> bool:
        """Whether its result is there."""
        return self.result.exists()


def plan_steps(config: Config, run_of: Callable[[str], Config], workdir: Path) -> list[Step]:
    """The steps of the study in `workdir`, in an order in which each finds what it needs.

    Every run of every fold is made by each seed; a pre-training is made once, by the config's own.

    Args:
      run_of: the config of a run by its name, as in config.study.runs.
    """

    def train(name: str, run: Config, folder: Path, needs: Sequence[str], **more: Any) -> Step:
        data = dataclasses.replace(run.data, prepared_dir=str(workdir / "prepared"))
        run = dataclasses.replace(run, data=data, **more)
        training = Training(folder, run, workdir / "configs" / f"{name}.json")
        command = ("covid_jax.train", f"--config={training.file}", f"--workdir={folder}")
        last = f"checkpoints/{training.steps}"
        result = folder / (last if run.pretraining else "metrics.json")
        return Step(name, command, result, tuple(needs), training)

    runs = {name: run_of(name) for name in config.study.runs}
    sources = list(dict.fromkeys(run.source for run in runs.values() if run.source != "none"))
    if strange := [source for source in sources if source not in SOURCES]:
        raise UserError(
            f"config.study.runs: a study pre-trains on {', '.join(list(SOURCES)[1:])}, and not on "
            f"{', '.join(strange)}; train such a run by itself"
        )
    target = config.data.datasets
    datasets = dict.fromkeys([*target, *(name for s in sources for name in SOURCES[s])])
    # The target's training cases make the plan, so it comes first.
    preparations = [_prepare(config, name, workdir) for name in datasets]
    first, *others = preparations
    steps = [first, *(dataclasses.replace(step, needs=(first.name,)) for step in others)]
    for source in sources:
        name = f"pretraining-{source}"
        needs = [f"prepare-{dataset}" for dataset in SOURCES[source]]
        steps.append(train(name, run_of(name), workdir / "pretraining" / source, needs))
    # Whole grids by one seed after another, so that a study that is stopped has even rows.
    for seed, fold, run in itertools.product(
        config.study.seeds or (config.seed,), config.study.folds, runs.values()
    ):
        name = run_name(dataclasses.replace(run, fold=fold))
        name += "" if seed == config.seed else f"-seed{seed}"
        needs, pretrained = [f"prepare-{dataset}" for dataset in target], ""
        if run.source != "none":
            needs.append(f"pretraining-{run.source}")
            pretrained = str(workdir / "pretraining" / run.source)
        folder, more = workdir / "runs" / name, {"fold": fold, "pretrained": pretrained}
        if config.study.seeds:
            more["seed"] = seed
        steps.append(train(name, run, folder, needs, **more))
        for scan in config.study.scans:
            steps.append(_predict(scan, folder, workdir / "scans" / name))
    return steps


def write_configs(steps: Sequence[Step]) -> None:
    """Writes the config of every step that trains, where its command reads it."""
    for step in steps:
        if step.training:
            step.training.file.parent.mkdir(parents=True, exist_ok=True)
            write_json(step.training.file, to_dict(step.training.config))


def only(steps: Sequence[Step], expression: str) -> list[Step]:
    """The steps whose name the regular expression finds.

    Raises:
      UserError: it is none, or finds no step.
    """
    try:
        found = [step for step in steps if re.search(expression, step.name)]
    except re.error as error:
        raise UserError(f"--only={expression}: no regular expression ({error})") from error
    if not found:
        names = ", ".join(step.name for step in steps)
        raise UserError(f"--only={expression}: finds none of the steps, which are {names}")
    return found


def check_places(workdir: Path, config: Config) -> None:
    """Raises a UserError where the study's folder and a raw one would lie in each other."""
    made = ("configs", "prepared", "pretraining", "runs", "scans", "report", "steps")
    for field in dataclasses.fields(config.study.raw):
        raw_dir = getattr(config.study.raw, field.name)
        if isinstance(raw_dir, str) and raw_dir:
            refuse_inside(workdir, Path(raw_dir), "--workdir")
            for name in made:
                refuse_inside(Path(raw_dir), workdir / name, f"config.study.raw.{field.name}")


def check_folds(workdir: Path, config: Config) -> None:
    """Raises a UserError where the target is known not to have a fold of the study.

    It is known when it has been prepared, and before that of datasets with published folds.
    """
    prepared = workdir / "prepared"
    for name in config.data.datasets:
        if (prepared / name / "dataset.json").is_file():
            dataset = load_dataset(prepared, name, load_plan(prepared / "plan.json").hash)
            for fold in config.study.folds:
                dataset.split(fold)
        elif name in _PUBLISHED:
            last = len(published_splits(name)) - 1
            for fold in config.study.folds:
                if fold > last > 0:  # a dataset with one split has it in every fold
                    raise UserError(f"config.fold={fold}: {name} has folds 0 to {last}")


def claim_study(workdir: Path, config: Config) -> None:
    """Writes study.json, or checks that the one that is there is of this study.

    Raises:
      UserError: it differs in what its runs depend on, or cannot be read.
    """
    path = workdir / "study.json"
    if path.is_file():
        theirs = to_dict(load_study(workdir))  # a setting that came later is there
        changed = [
            line
            for line in differences(to_dict(config), theirs)
            if not line.startswith(_MAY_CHANGE)
        ]
        if changed:
            raise UserError(
                f"{workdir} holds a study with another config ({'; '.join(changed)}); "
                "use another --workdir, or delete it to start over"
            )
    write_json(path, to_dict(config))


def load_study(workdir: Path) -> Config:
    """The config of the study in `workdir`; settings that came later have their defaults.

    Raises:
      UserError: the folder is no study, or study.json is damaged or of a newer version.
    """
    path = workdir / "study.json"
    if not path.is_file():
        raise UserError(f"{workdir}: not the folder of a study, it has no study.json")
    return read_config(path)


def scan_name(scan: str) -> str:
    """The name of the one scan at the place that config.study.scans names.

    Raises:
      UserError: there is none, or several.
    """
    names = list(scans_in(Path(scan)).paths)
    if len(names) > 1:
        raise UserError(
            f"config.study.scans: {scan} holds {len(names)} scans ({names[0]}, {names[1]}, ...); "
            "name each of them"
        )
    return names[0]


def _predict(scan: str, run: Path, output_dir: Path) -> Step:
    name = scan_name(scan)
    command = (
        "covid_jax.predict",
        f"--checkpoint={run}",
        f"--input={scan}",
        f"--output_dir={output_dir}",
    )
    return Step(f"{run.name}-on-{name}", command, output_dir / f"{name}.nii.gz", (run.name,))


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
        if lesion := dict(config.study.raw.phantom_lesions).get(dataset):
            command.append(f"--lesion={lesion}")
    result = workdir / "prepared" / dataset / "dataset.json"
    return Step(f"prepare-{dataset}", tuple(command), result, watches=bool(raw_dir))
