"""The data of a study: where it lies, and what is known of it before anything is prepared."""

from collections.abc import Sequence
from pathlib import Path

from covid_jax.config import PAPER_DATASETS, Config, layout_of
from covid_jax.data.datasets import cross_validation, published_splits, read_dataset
from covid_jax.data.normalization import scheme_of
from covid_jax.data.plan import load_plan
from covid_jax.data.store import StoredDataset, load_dataset
from covid_jax.errors import UserError
from covid_jax.files import refuse_inside
from covid_jax.label_space import CLASSES
from covid_jax.studies.grid import Step
from covid_jax.training.checkpoint import load_config


def check_places(workdir: Path, config: Config) -> None:
    """Raises a UserError where the study's folder and a raw one would lie in each other."""
    made = ("configs", "prepared", "pretraining", "runs", "scans", "report", "steps")
    for dataset, raw_dir in config.study.raw.folders.items():
        if raw_dir:
            refuse_inside(workdir, Path(raw_dir), "--workdir")
            for name in made:
                refuse_inside(Path(raw_dir), workdir / name, f"config.study.raw.{dataset}")


def check_data(workdir: Path, config: Config, steps: Sequence[Step]) -> None:
    """Raises a UserError where what the datasets are known to be is not what the steps want.

    That is a fold that one does not have, channels that are normalised otherwise than the target's,
    or a network from elsewhere that sees another number of them. A dataset is known when it has
    been prepared, and before that by its raw folder.
    """
    known = {name: _dataset(name, config, workdir) for name in config.data.datasets}
    first = known[config.data.datasets[0]]
    for step in steps:
        if not step.training:
            continue
        run = step.training.config
        for name in run.data.datasets:
            if name not in known:
                known[name] = _dataset(name, config, workdir)
            known[name].split(run.fold)
            _refuse_other_channels(known[name], first)
        pretrained_here = any(name.startswith("pretraining-") for name in step.needs)
        if run.pretrained and not pretrained_here and first.channels and not run.first_conv:
            there, here = load_config(run.pretrained).model.in_channels, len(first.channels)
            if there != here:
                raise UserError(
                    f"{run.pretrained}: sees {there} channels, and {first.name} has {here}: say "
                    "what becomes of the first convolution, --config.first_conv=repeat, mean or new"
                )


def _refuse_other_channels(dataset: StoredDataset, first: StoredDataset) -> None:
    if not (dataset.channels and first.channels):  # prepared before they were kept
        return
    if [*map(scheme_of, dataset.channels)] != [*map(scheme_of, first.channels)]:
        ours, theirs = (", ".join(d.channels) for d in (dataset, first))
        raise UserError(
            f"config.study: the channels of {dataset.name} ({ours}) are not those of {first.name} "
            f"({theirs}), by whose plan all is prepared; pre-train on {dataset.name} apart, and "
            "give that run as config.pretrained, with config.first_conv"
        )


def _dataset(name: str, config: Config, workdir: Path) -> StoredDataset:
    """What is known of a dataset: prepared, or else as its raw folder or the synthetic one is."""
    prepared, raw_dir = workdir / "prepared", config.study.raw.folders[name]
    if (prepared / name / "dataset.json").is_file():
        return load_dataset(prepared, name, load_plan(prepared / "plan.json").hash)
    if raw_dir:
        raw = read_dataset(layout_of(name), raw_dir)
        space, splits, channels = raw.label_space, raw.splits, raw.channels
        return StoredDataset(name, raw.folder, space, splits, raw.synthetic, channels=channels)
    splits = (
        published_splits(name)
        if name in PAPER_DATASETS
        else cross_validation([str(case) for case in range(config.study.raw.phantom_cases)])
    )
    return StoredDataset(name, Path(), CLASSES, splits, True, channels=("CT",))
