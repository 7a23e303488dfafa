"""The data of a study: where it lies, and what is known of it before anything is prepared."""

from collections.abc import Sequence
from pathlib import Path

from covid_jax.config import PAPER_DATASETS, Config, layout_of
from covid_jax.data.changes import image_digest
from covid_jax.data.datasets import read_dataset
from covid_jax.data.normalization import scheme_of
from covid_jax.data.plan import load_plan
from covid_jax.data.raw import cross_validation, published_splits
from covid_jax.data.store import StoredDataset, digests, load_dataset
from covid_jax.errors import UserError
from covid_jax.files import refuse_inside
from covid_jax.label_space import CLASSES
from covid_jax.studies.grid import Step
from covid_jax.training.pretrained import load_config
from covid_jax.training.provenance import scans_before, seen_warning
from covid_jax.transfer.strategies import other_channels_error


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
            if not run.pretraining:
                _refuse_other_folds(known[name], config.study.folds)
            known[name].split(run.fold)
            _refuse_other_channels(step.name, known[name], first)
        pretrained_here = any(name.startswith("pretraining-") for name in step.needs)
        if run.pretrained and not pretrained_here and first.channels and not run.first_conv:
            there, here = load_config(run.pretrained).model.in_channels, len(first.channels)
            if there != here:
                raise other_channels_error(run.pretrained, there, first.name, here)


def seen_notes(workdir: Path, config: Config, steps: Sequence[Step]) -> list[str]:
    """Lines on the networks that were trained on scans that the runs from them are tested on.

    By the digests of the scans, in training/provenance.py, as far as these are known: of a network
    that is there, and of a pre-training of this study that has begun.
    """
    runs = [step.training.config for step in steps if step.training]
    starting = {run.pretrained: run for run in runs if run.pretrained}
    before = {network: scans_before(run) for network, run in starting.items()}
    tested = dict.fromkeys((run.pretrained, run.fold) for run in runs if before.get(run.pretrained))
    if not tested:
        return []
    target = _dataset(config.data.datasets[0], config, workdir)
    known, notes = _scans(target, config, workdir), []
    for network, fold in tested:
        cases = target.split(fold).test
        if seen := [case for case in cases if known.get(case) in before[network]]:
            notes.append(seen_warning(network, seen, fold))
    return notes


def _scans(dataset: StoredDataset, config: Config, workdir: Path) -> dict[str, str]:
    """The digest of the scan of each case that there is, prepared or raw."""
    if _is_prepared(dataset.name, workdir):
        return {case: of.scan for case, of in digests(dataset).items()}
    if not (raw_dir := config.study.raw.folders[dataset.name]):
        return {}
    raw = read_dataset(layout_of(dataset.name), raw_dir)
    return {case.name: image_digest(case) for case in raw.cases}


def _refuse_other_folds(dataset: StoredDataset, folds: Sequence[int]) -> None:
    count = len(dataset.splits)
    if count > 1 and max(folds) >= count:
        here = ",".join(map(str, range(count)))
        raise UserError(
            f"config.study.folds={folds}: {dataset.name} has the folds 0 to {count - 1}; give "
            f"--config.study.folds={here}"
        )


def _refuse_other_channels(step: str, dataset: StoredDataset, first: StoredDataset) -> None:
    if not (dataset.channels and first.channels):  # prepared before they were kept
        return
    if [*map(scheme_of, dataset.channels)] != [*map(scheme_of, first.channels)]:
        ours, theirs = (", ".join(d.channels) for d in (dataset, first))
        raise UserError(
            f"{step}: the channels of {dataset.name} ({ours}) are not those of {first.name} "
            f"({theirs}), by whose plan all is prepared; pre-train on {dataset.name} apart, and "
            "give that run as config.pretrained, with config.first_conv"
        )


def _dataset(name: str, config: Config, workdir: Path) -> StoredDataset:
    """What is known of a dataset: prepared, or else as its raw folder or the synthetic one is."""
    prepared, raw_dir = workdir / "prepared", config.study.raw.folders[name]
    if _is_prepared(name, workdir):
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


def _is_prepared(dataset: str, workdir: Path) -> bool:
    return (workdir / "prepared" / dataset / "dataset.json").is_file()
