"""What a run stands on: its prepared data, and a work directory that belongs to its config."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from covid_jax import __version__
from covid_jax.config import Config, differences, from_dict, to_dict
from covid_jax.data.augment import input_size
from covid_jax.data.plan import Plan, load_plan, save_plan
from covid_jax.data.preparation import prepare_phantom
from covid_jax.data.sampling import Batch, Sampler, Source, Stream
from covid_jax.data.store import StoredDataset, digests, load_case, load_dataset
from covid_jax.device import cores, nvidia_driver
from covid_jax.errors import UserError
from covid_jax.files import read_json, write_json
from covid_jax.model.conv import form_in
from covid_jax.training.checkpoint import Saved
from covid_jax.training.parallel import local_samples, put_batch, replicate
from covid_jax.training.platform import Platform
from covid_jax.training.program import Program
from covid_jax.training.state import TrainState, initial_state, refreeze, schedule
from covid_jax.transfer.freezing import split

Tree = Any
_PHANTOM_CASES = 6
_MAY_CHANGE = (
    "data.prepared_dir",
    "data.workers",
    "pretrained",
    "study.",
    "inference.",
    "checkpoint_every",
    "mesh.",
)
"""Settings that a run may be continued with although they changed: they move no parameter, or, the
mesh, by no more than the rounding of its sums."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What training works with.

    Attributes:
      config: with the number of classes that the datasets have, and the platform's dtype.
      training, validation: where batches come from.
      mesh, platform: the devices, and what was chosen for them.
      params: before the first step.
      masks: of what is frozen, by the epoch from which each holds.
    """

    config: Config
    plan: Plan
    datasets: list[StoredDataset]
    training: Sampler
    validation: Sampler
    mesh: Mesh
    platform: Platform
    program: Program
    params: Tree
    masks: dict[int, Tree]

    def begin(self, saved: Saved | None) -> tuple[TrainState, Tree]:
        """(state, frozen) on the devices, as saved or before the first step.

        Raises:
          UserError: the checkpoint is of another network.
        """
        last = max(saved.step - 1, 0) // self.config.steps_per_epoch if saved else 0
        held = self.held_at(last)
        trainable, frozen = split(self.params, held)
        state = initial_state(trainable, self.program.transform)
        if saved:
            state, frozen = saved.state(state, held)
        return replicate((state, frozen), self.mesh)

    def held_at(self, epoch: int) -> Tree:
        """The mask of what is frozen in an epoch."""
        return self.masks[max(since for since in self.masks if since <= epoch)]

    def enter(self, epoch: int, state: TrainState, frozen: Tree) -> tuple[TrainState, Tree]:
        """(state, frozen) at the beginning of an epoch, from which on others may be frozen."""
        if epoch not in self.masks:
            return state, frozen
        refrozen = refreeze(state, frozen, self.masks[epoch], self.program.transform)
        return replicate(refrozen, self.mesh)

    def put(self, batch: Batch) -> dict[str, jax.Array]:
        """A batch of the host on the devices."""
        return put_batch(vars(batch), self.mesh, self.config.data.batch_size)

    def batch_names(self, step: int) -> str:
        """The cases of the batch of a training step, and where they are cut."""
        samples = range(self.config.data.batch_size)
        return ", ".join(str(self.training.draw(step, sample)) for sample in samples)

    @property
    def samples(self) -> range:
        """Those of each batch that this process makes."""
        return local_samples(self.mesh, self.config.data.batch_size)


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


def announcement(run: Run, start: int) -> str:
    """What is trained on what, from which step on."""
    held = run.held_at(start // run.config.steps_per_epoch)
    sizes = [leaf.size for leaf in jax.tree.leaves(run.params)]
    frozen = sum(size for size, h in zip(sizes, jax.tree.leaves(held), strict=True) if h)
    _, epochs, _ = schedule(run.config)
    several = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    going_on = f"\ngoing on from the checkpoint of step {start}" if start else ""
    return (
        f"{title(run.config, run.datasets)}: {epochs} epochs of {run.config.steps_per_epoch} "
        f"steps, {sum(sizes):,} parameters, {frozen:,} of them frozen, {jax.device_count()} x "
        f"{jax.devices()[0].device_kind}{several}, in {run.config.dtype}, convolutions: "
        f"{form_in(run.config.dtype, run.platform.form)}{going_on}"
    )


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
            # Nothing is selected by validation patches, so they may be the test cases'.
            names = split.train if stream == "training" else split.validation or split.test
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


def device_here() -> dict[str, Any]:
    """What the rounding of a run depends on besides its program."""
    device = jax.devices()[0]
    here = {"kind": device.device_kind, "driver": nvidia_driver(), "jax": jax.__version__}
    # A CPU's sums are cut by its cores.
    return here | ({"cores": cores()} if device.platform == "cpu" else {})


def note_device(workdir: Path) -> None:
    """Adds this device to those that the run was trained on, in provenance.json."""
    path, here = workdir / "provenance.json", device_here()
    origin = read_json(path)
    if origin["devices"][-1:] != [here]:
        write_json(path, origin | {"devices": [*origin["devices"], here]})


def claim_workdir(
    workdir: Path,
    config: Config,
    plan: Plan,
    datasets: Sequence[StoredDataset] = (),
    accept_changes: bool = False,
) -> None:
    """Writes config.json, plan.json and provenance.json, or checks that those there are this run's.

    With `accept_changes` the run's provenance may differ from the one that is there. The device
    may, but for config.deterministic: another one rounds otherwise.

    Raises:
      UserError: the work directory belongs to a run with another config, plan or provenance.
    """
    check_settings(workdir, config, plan)
    origin, path = provenance(datasets, config.pretrained), workdir / "provenance.json"
    known = read_json(path)
    devices = known.get("devices", [])
    if known and not accept_changes:
        changed = differences(_without_devices(origin), _without_devices(known))
        what = "data or program"
        if not changed and config.deterministic and devices:
            changed, what = differences(device_here(), devices[-1]), "the device"
        if changed:
            more = f", and {len(changed) - 1} more" if len(changed) > 1 else ""
            raise UserError(
                f"{workdir}: {what} changed since the run began ({changed[0]}{more}); "
                "use another --workdir, or --accept_changes to go on"
            )
    if known != (origin := origin | {"devices": devices}):
        write_json(path, origin)
    if not (workdir / "config.json").is_file():
        save_plan(workdir / "plan.json", plan)
        write_json(workdir / "config.json", to_dict(config))


def _without_devices(origin: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _without_devices(value) if name == "pretrained" else value
        for name, value in origin.items()
        if name != "devices"
    }


def as_begun(config: Config, workdir: Path) -> Config:
    """`config` with the dtype of the run in `workdir`, where it says "auto" and there is one.

    So a run that began on a GPU goes on as it began, wherever that is.
    """
    begun = read_json(workdir / "config.json").get("dtype", "auto")
    return dataclasses.replace(config, dtype=begun) if config.dtype == "auto" else config


def check_settings(workdir: Path, config: Config, plan: Plan) -> None:
    """Raises a UserError where `workdir` belongs to a run with another config or plan."""
    path = workdir / "config.json"
    if not path.is_file():
        return
    theirs = to_dict(from_dict(json.loads(path.read_text())))  # a setting that came later is there
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
