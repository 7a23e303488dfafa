"""The steps of a study: which command makes what, and what each one needs."""

import dataclasses
import itertools
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from covid_jax.config import (
    LAYOUTS,
    PAPER_DATASETS,
    Config,
    layout_of,
    left_to_plan,
    run_name,
    to_dict,
)
from covid_jax.data.planner import PLANNERS
from covid_jax.data.planning import known_plan
from covid_jax.data.scans import base_of_channel, scans_in
from covid_jax.errors import UserError, listed
from covid_jax.files import write_json
from covid_jax.training.completion import mirrored_as, planned
from covid_jax.training.pretrained import check_pretrained, load_config
from covid_jax.training.state import epochs_of


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
    """One command of the study; it is done when all of `results` are there.

    Attributes:
      results: what it leaves, each a file or a folder that is whole or absent.
      made_from: where that is newer than the results, they are of what was there before it.
      needs: names of the steps that come before it.
      watches: it reads files that may have changed since, and sees for itself what is to be done;
        so it is done at every start.
      training: of a step that trains.
    """

    name: str
    command: tuple[str, ...]
    results: tuple[Path, ...]
    needs: tuple[str, ...] = ()
    training: Training | None = None
    watches: bool = False
    made_from: Path | None = None

    @property
    def made(self) -> bool:
        """Whether its results are there."""
        return all(result.exists() for result in self.results)

    @property
    def done(self) -> bool:
        """Whether its results are there, of what they are made from."""
        if self.made_from is None or not self.made_from.exists() or not self.made:
            return self.made
        changed = self.made_from.stat().st_mtime
        return all(result.stat().st_mtime >= changed for result in self.results)


def plan_steps(config: Config, run_of: Callable[[str], Config], workdir: Path) -> list[Step]:
    """The steps of the study in `workdir`, in an order in which each finds what it needs.

    Every run of every fold is made by each seed; a pre-training is made once, by the config's own.
    A run that has `pretrained` starts from that network, and nothing is pre-trained for it.

    Args:
      run_of: the config of a run by its name, as in config.study.runs.

    Raises:
      UserError: two runs are the same, or one is not tested or cannot start from its network; a
        dataset is named that there is none of, or that no run uses; two scans have one name.
    """
    runs = {name: run_of(name) for name in config.study.runs}
    _refuse_what_is_no_row(config, runs)
    _refuse_scans_of_one_name(config.study.scans)
    networks = _networks(runs)
    sources = dict.fromkeys(run.source for run in runs.values() if run.source != "none")
    pretrainings = {s: run_of(f"pretraining-{s}") for s in sources if s not in networks}
    for run in runs.values():
        if run.source in pretrainings:
            check_pretrained(run, pretrainings[run.source])
    if networks:  # beside them the others are mirrored as they were
        as_theirs = load_config(next(iter(networks.values()))).inference
        for of in (runs, pretrainings):
            for name, run in of.items():
                inference = mirrored_as(run.inference, as_theirs)
                of[name] = dataclasses.replace(run, inference=inference)
    target, sources_of = config.data.datasets, {s: p.data.datasets for s, p in pretrainings.items()}
    _check_names(config, target, sources_of)
    # The target's training cases make the plan, so it comes first.
    planning = _planning(config, [*runs.values(), *pretrainings.values()], networks, workdir)
    datasets = dict.fromkeys([*target, *itertools.chain.from_iterable(sources_of.values())])
    first, *others = (_prepare(config, name, workdir) for name in datasets)
    return [
        dataclasses.replace(first, command=(*first.command, *planning)),
        *(dataclasses.replace(step, needs=(first.name,)) for step in others),
        *_pretraining_steps(pretrainings, workdir),
        *_grid_steps(config, runs, pretrainings, networks, workdir),
    ]


def _pretraining_steps(pretrainings: Mapping[str, Config], workdir: Path) -> Iterator[Step]:
    for source, run in pretrainings.items():
        needs = [f"prepare-{dataset}" for dataset in run.data.datasets]
        folder = workdir / "pretraining" / source
        yield _train(f"pretraining-{source}", run, folder, needs, workdir, pretrained="")


def _grid_steps(
    config: Config,
    runs: Mapping[str, Config],
    pretrainings: Collection[str],
    networks: Mapping[str, str],
    workdir: Path,
) -> Iterator[Step]:
    """Every run of every fold by each seed, and its masks of config.study.scans.

    Whole grids by one seed after another, so that a study that is stopped has even rows.
    """
    for seed, fold, run in itertools.product(
        config.study.seeds or (config.seed,), config.study.folds, runs.values()
    ):
        name = run_name(dataclasses.replace(run, fold=fold))
        name += "" if seed == config.seed else f"-seed{seed}"
        needs, pretrained = [f"prepare-{dataset}" for dataset in config.data.datasets], ""
        if run.source in pretrainings:
            needs.append(f"pretraining-{run.source}")
            pretrained = str(workdir / "pretraining" / run.source)
        elif run.source in networks:
            pretrained = networks[run.source]
        folder, more = workdir / "runs" / name, {"fold": fold, "pretrained": pretrained}
        if config.study.seeds:
            more["seed"] = seed
        yield _train(name, run, folder, needs, workdir, **more)
        for scan in config.study.scans:
            yield _predict(scan, folder, workdir / "scans" / name)


def _train(
    name: str, run: Config, folder: Path, needs: Sequence[str], workdir: Path, **more: Any
) -> Step:
    """Of a run with `more` of its own fields, on what is prepared in the study."""
    data = dataclasses.replace(run.data, prepared_dir=str(workdir / "prepared"))
    run = dataclasses.replace(run, data=data, **more)
    training = Training(folder, run, workdir / "configs" / f"{name}.json")
    command = ("covid_jax.train", f"--config={training.file}", f"--workdir={folder}")
    # Of a pre-training others need the parameters alone; of a run model/ is made at the end.
    last = (f"checkpoints/{training.steps}",) if run.pretraining else ("metrics.json", "model")
    results = tuple(folder / result for result in last)
    return Step(name, command, results, tuple(needs), training)


def _refuse_what_is_no_row(config: Config, runs: Mapping[str, Config]) -> None:
    own = any(layout_of(dataset) == "nnunet" for dataset in config.data.datasets)
    first: dict[str, str] = {}
    for name, run in runs.items():
        if run.pretraining:
            raise UserError(
                f"config.study.runs: {name} is no row of a study; leave it out, the runs that "
                "start from a source have it pre-trained first"
            )
        if not run.test:
            raise UserError(
                f"config.test=False: {name} would have no scores, of which a study is made; "
                "leave it out"
            )
        if own and run.source == "multi_lesion" and run.source not in name:
            raise UserError(
                f"config.study.runs: {name} names no source, for which the paper's three stand; "
                f"call it {name}-NAME, of a dataset of config.study.raw.own or config.pretrained"
            )
        if (other := first.setdefault(run_name(run), name)) != name:
            raise UserError(
                f"config.study.runs: {other} and {name} are the same run; leave one out, or set "
                "what differs apart by config.variant"
            )


def _networks(runs: Mapping[str, Config]) -> dict[str, str]:
    """The folder of each source that is a network from elsewhere: a run, shared or imported.

    Raises:
      UserError: two sources are one, a folder is no network, or a run cannot start from it.
    """
    networks: dict[str, str] = {}
    for name, run in runs.items():
        if run.source == "none" or not run.pretrained:
            continue
        if networks.setdefault(run.source, run.pretrained) != run.pretrained:
            raise UserError(
                f"{name}: starts from {run.pretrained}, and others of the source {run.source} from "
                f"{networks[run.source]}; call it otherwise"
            )
        check_pretrained(planned(run, None), load_config(run.pretrained))
    if len(set(networks.values())) < len(networks):
        names, folder = listed(networks), next(iter(networks.values()))
        raise UserError(
            f"config.pretrained={folder}: is what the sources {names} are alike; give each run its "
            "own in the config file, where get_config knows the run's name"
        )
    return networks


def _check_names(
    config: Config, target: Collection[str], sources: Mapping[str, Collection[str]]
) -> None:
    """Raises a UserError for a dataset that there is none of, or that is not to be used."""
    folders = config.study.raw.folders
    wanted = {"config.data.datasets": target}
    wanted |= {f"config.study.runs: pre-training on {s}": names for s, names in sources.items()}
    given = [name for name, folder in folders.items() if folder]
    for place, names in wanted.items():
        if strange := [name for name in names if name not in folders]:
            name = strange[0]
            setting = f"raw.{name}=FOLDER" if name in LAYOUTS else f"raw.own=(('{name}','FOLDER'),)"
            network = ""
            if names is not target:
                network = (
                    ", or a network that is there as config.pretrained; where it is several "
                    f"datasets, get_config('pretraining-{name}') has them as data.datasets"
                )
            raise UserError(
                f"{place}: no raw data is known of {', '.join(strange)}, but of "
                f"{', '.join(given or folders)}; give config.study.{setting}{network}"
            )
    for source, names in sources.items():
        if both := {*names} & {*target}:
            raise UserError(
                f"config.study.runs: pre-training on {source} would see {listed(both)}, on which "
                "the runs are tested; pre-train on other cases"
            )
    used = {*target, *itertools.chain.from_iterable(sources.values()), *PAPER_DATASETS}
    if unused := [name for name, folder in folders.items() if folder and name not in used]:
        raise UserError(
            f"config.study.raw: {', '.join(unused)} is neither the target (config.data.datasets) "
            "nor a source of config.study.runs; leave it out, or choose among runs by --only"
        )


def _planning(
    config: Config, trained: Sequence[Config], networks: Mapping[str, str], workdir: Path
) -> list[str]:
    """The arguments by which the target's preparation makes a plan with a network.

    That is the network of the first source that is one already, or where a run leaves its own to
    the plan, a planner's, once.
    """
    planner, memory = config.study.planner, config.study.gpu_memory_gb
    if planner and planner not in PLANNERS:
        raise UserError(f"config.study.planner={planner}: there are {', '.join(PLANNERS)}")
    left = any({*left_to_plan(run)} - {"loss.batch_dice"} for run in trained)
    if (planner or memory) and (networks or not left):
        whose = f"of {next(iter(networks.values()))}" if networks else "the config's own"
        raise UserError(
            "config.study.planner and gpu_memory_gb: nothing is left to plan, the network is "
            f"{whose}; leave them out"
        )
    if networks:
        return [f"--plan_from={next(iter(networks.values()))}"]
    plan = known_plan(workdir / "prepared")
    if not left or (plan and plan.topology):
        return []
    return [
        f"--planner={planner or 'default'}",
        *([f"--gpu_memory_gb={memory:g}"] if memory else []),
    ]


def write_configs(steps: Sequence[Step]) -> None:
    """Writes the config of every step that trains, where its command reads it."""
    for step in steps:
        if step.training:
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


def refuse_left_out(steps: Sequence[Step], every: Sequence[Step]) -> None:
    """Raises a UserError where one of `steps` needs another of the study that is not done."""
    chosen = {step.name for step in steps}
    missing = {step.name for step in every if not step.done} - chosen
    for step in steps:
        if lost := [name for name in step.needs if name in missing]:
            raise UserError(
                f"--only: {step.name} needs {listed(lost)}, which it leaves out and nothing has "
                "done; let it find that too"
            )


def synthetic_data(config: Config, steps: Sequence[Step]) -> str:
    """A line on the datasets of a study that are made for it; "" without such."""
    named = [name for name, folder in config.study.raw.folders.items() if not folder]
    made = [name for name in named if any(step.name == f"prepare-{name}" for step in steps)]
    if not made:
        return ""
    return (
        f"note: {listed(made)}: SYNTHETIC, as config.study.raw has no folder of "
        f"{'it' if len(made) == 1 else 'them'}"
    )


def scan_name(scan: str) -> str:
    """The name of the one scan at the place that config.study.scans names.

    Of several channels: a folder that holds NAME_0000, NAME_0001 and so on, and no more.

    Raises:
      UserError: there is none, or several.
    """
    names = list(scans_in(Path(scan)).paths)
    of_channels = {base_of_channel(name) for name in names}
    if len(names) > 1 and len(of_channels) == 1 and all(of_channels):
        return of_channels.pop()
    if len(names) > 1:
        raise UserError(
            f"config.study.scans: {scan} holds {len(names)} scans ({names[0]}, {names[1]}, ...); "
            "name each of them (of several channels: a folder of its own)"
        )
    return names[0]


def _refuse_scans_of_one_name(scans: Sequence[str]) -> None:
    first: dict[str, str] = {}
    for scan in scans:
        name = scan_name(scan)
        if (other := first.setdefault(name, scan)) != scan:
            raise UserError(
                f"config.study.scans: {other} and {scan} are both called {name}, as their masks "
                "would be; give one of them another name"
            )


def _predict(scan: str, run: Path, output_dir: Path) -> Step:
    name = scan_name(scan)
    command = (
        "covid_jax.predict",
        f'--checkpoint="{run}"' if "," in str(run) else f"--checkpoint={run}",
        f"--input={scan}",
        f"--output_dir={output_dir}",
    )
    mask, metrics = output_dir / f"{name}.nii.gz", run / "metrics.json"
    return Step(f"{run.name}-on-{name}", command, (mask,), (run.name,), made_from=metrics)


def _prepare(config: Config, dataset: str, workdir: Path) -> Step:
    raw_dir = config.study.raw.folders[dataset]
    command = [
        "covid_jax.prepare",
        f"--dataset={layout_of(dataset)}",
        *([] if dataset in LAYOUTS else [f"--name={dataset}"]),
        f"--raw_dir={raw_dir or workdir / 'raw' / dataset}",
        f"--out_dir={workdir / 'prepared'}",
        f"--plan_fold={config.study.folds[0]}",
    ]
    if not raw_dir:
        command += ["--synthetic", f"--num_cases={config.study.raw.phantom_cases}"]
        if lesion := dict(config.study.raw.phantom_lesions).get(dataset):
            command.append(f"--lesion={lesion}")
    result = workdir / "prepared" / dataset / "dataset.json"
    return Step(f"prepare-{dataset}", tuple(command), (result,), watches=bool(raw_dir))
