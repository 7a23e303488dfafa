"""What a run stands on: its prepared data, and a work directory that belongs to its config."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from covid_jax import __version__
from covid_jax.config import Config, differences, to_dict
from covid_jax.data.augment import input_size
from covid_jax.data.plan import Plan, load_plan, save_plan
from covid_jax.data.preparation import prepare_phantom
from covid_jax.data.sampling import Sampler, Source, Stream
from covid_jax.data.store import StoredDataset, digests, load_case, load_dataset
from covid_jax.data.volume import read_json, write_json
from covid_jax.errors import UserError

_PHANTOM_CASES = 6
_MAY_CHANGE = (
    "data.prepared_dir",
    "data.workers",
    "pretrained",
    "study.",
    "inference.",
    "checkpoint_every",
)
"""Settings that a run may be continued with although they changed: they move no parameter."""


def open_data(config: Config, workdir: Path) -> tuple[Plan, list[StoredDataset]]:
    """The plan and the datasets of a run.

    The synthetic dataset `phantom` is made where it is missing, in `workdir`/data if
    config.data.prepared_dir is empty.
    """
    prepared_dir = Path(config.data.prepared_dir or workdir / "data")
    if config.data.datasets == ("phantom",):
        prepare_phantom(prepared_dir, _PHANTOM_CASES, seed=0)
    elif not config.data.prepared_dir:
        raise UserError("config.data.prepared_dir is empty: give the folder that prepare wrote")
    plan = load_plan(prepared_dir / "plan.json")
    return plan, [load_dataset(prepared_dir, name, plan.hash) for name in config.data.datasets]


def with_num_classes(config: Config, datasets: list[StoredDataset]) -> Config:
    """`config` for background and the classes of all datasets."""
    classes = 1 + sum(len(dataset.labels) for dataset in datasets)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, num_classes=classes))


def title(config: Config, datasets: list[StoredDataset]) -> str:
    """What a run trains on what, with SYNTHETIC where the data is."""
    names = (f"{'SYNTHETIC ' if d.synthetic else ''}{d.name}" for d in datasets)
    what = "pre-training" if config.pretraining else config.strategy
    return f"{what} on {', '.join(names)}, fold {config.fold}"


def samplers(config: Config, datasets: list[StoredDataset]) -> tuple[Sampler, Sampler]:
    """The samplers of the fold's training and test cases.

    Each dataset's labels become classes of their own: multi_lesion has one for each lesion.
    Training patches come with as much around them as augmentation needs.
    """
    patch_size = config.data.patch_size
    cut_size = {
        "training": input_size(patch_size) if config.data.augment else patch_size,
        "validation": patch_size,
    }

    def sampler(stream: Stream) -> Sampler:
        sources, first = [], 1
        for dataset in datasets:
            split = dataset.split(config.fold)
            names = split.train if stream == "training" else split.test
            classes = tuple(range(first, first + len(dataset.labels)))
            sources.append(Source(tuple(load_case(dataset, name) for name in names), classes))
            first += len(dataset.labels)
        return Sampler(
            tuple(sources),
            config.model.num_classes,
            patch_size,
            cut_size[stream],
            config.data.batch_size,
            config.data.foreground_fraction,
            config.seed,
            stream,
        )

    return sampler("training"), sampler("validation")


def provenance(datasets: Sequence[StoredDataset], pretrained: str = "") -> dict[str, Any]:
    """What a run stands on besides its config and plan.

    The program's version, every case and whether it is synthetic; and all that of the pre-training.
    """
    origin: dict[str, Any] = {
        "covid_jax": __version__,
        "data": {data.name: digests(data) for data in datasets},
        "synthetic": sorted(data.name for data in datasets if data.synthetic),
    }
    if pretrained and (before := read_json(Path(pretrained) / "provenance.json")):
        origin["pretrained"] = before
    return origin


def claim_workdir(
    workdir: Path,
    config: Config,
    plan: Plan,
    datasets: Sequence[StoredDataset] = (),
    accept_changes: bool = False,
) -> None:
    """Writes config.json, plan.json and provenance.json, or checks that those there are this run's.

    With `accept_changes` the run's provenance may differ from the one that is there.

    Raises:
      UserError: the work directory belongs to a run with another config, plan or provenance.
    """
    _check_settings(workdir, config, plan)
    origin, path = provenance(datasets, config.pretrained), workdir / "provenance.json"
    if path.is_file() and not accept_changes:
        changed = differences(origin, json.loads(path.read_text()))
        if changed:
            more = f", and {len(changed) - 1} more" if len(changed) > 1 else ""
            raise UserError(
                f"{workdir}: data or program have changed since the run began "
                f"({changed[0]}{more}); use another --workdir, or --accept_changes to go on"
            )
    write_json(path, origin)
    if not (workdir / "config.json").is_file():
        save_plan(workdir / "plan.json", plan)
        write_json(workdir / "config.json", to_dict(config))


def _check_settings(workdir: Path, config: Config, plan: Plan) -> None:
    path = workdir / "config.json"
    if not path.is_file():
        return
    theirs = json.loads(path.read_text())
    changed = [
        line for line in differences(to_dict(config), theirs) if not line.startswith(_MAY_CHANGE)
    ]
    if changed:
        raise UserError(
            f"{workdir} holds a run with another config ({'; '.join(changed)}); "
            "use another --workdir, or delete it to start over"
        )
    if load_plan(workdir / "plan.json").hash != plan.hash:
        raise UserError(f"{workdir} holds a run on data of another plan; use another --workdir")
