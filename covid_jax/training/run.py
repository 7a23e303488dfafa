"""What a run stands on: its prepared data, its network, the devices that it trains on."""

import dataclasses
from collections.abc import Generator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from covid_jax.config import (
    OUTSIDE,
    Config,
    InferenceConfig,
    LossConfig,
    UNetConfig,
    left_to_plan,
    planned_fields,
    validate,
)
from covid_jax.data.augment import input_size
from covid_jax.data.plan import Plan, load_plan
from covid_jax.data.planner import DETAILS, topology_of, total_strides
from covid_jax.data.preparation import prepare_phantom
from covid_jax.data.sampling import Batch, Sampler, Source, Stream
from covid_jax.data.store import StoredDataset, load_case, load_dataset
from covid_jax.errors import UserError
from covid_jax.label_space import together
from covid_jax.model.conv import form_in
from covid_jax.training.checkpoint import Saved
from covid_jax.training.parallel import local_samples, put_batch, replicate
from covid_jax.training.platform import Platform
from covid_jax.training.pretrained import load_config
from covid_jax.training.program import Program
from covid_jax.training.provenance import start_notes
from covid_jax.training.state import TrainState, initial_state, refreeze, schedule
from covid_jax.transfer.freezing import split
from covid_jax.transfer.strategies import new_and_frozen

Tree = Any

_PHANTOM_CASES = 6


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

    def frozen_parameters(self, epoch: int) -> int:
        """How many parameters are frozen in an epoch."""
        _, frozen = split(self.params, self.held_at(epoch))
        return sum(leaf.size for leaf in jax.tree.leaves(frozen))

    def enter(self, epoch: int, state: TrainState, frozen: Tree) -> tuple[TrainState, Tree]:
        """(state, frozen) at the beginning of an epoch, from which on others may be frozen."""
        if epoch not in self.masks:
            return state, frozen
        refrozen = refreeze(state, frozen, self.masks[epoch], self.program.transform)
        return replicate(refrozen, self.mesh)

    def put(self, batch: Batch) -> dict[str, jax.Array]:
        """A batch of the host on the devices."""
        return put_batch(vars(batch), self.mesh, self.config.data.batch_size)

    def batches(self, start: int, stop: int) -> Generator[Batch]:
        """Of training steps start .. stop - 1, this process's samples."""
        return self.training.batches(start, stop, self.samples, self.config.data.workers)

    def batch_names(self, step: int) -> str:
        """The cases of the batch of a training step, and where they are cut."""
        samples = range(self.config.data.batch_size)
        return ", ".join(str(self.training.draw(step, sample)) for sample in samples)

    @property
    def samples(self) -> range:
        """Those of each batch that this process makes."""
        return local_samples(self.mesh, self.config.data.batch_size)


def make_phantom_data(config: Config, workdir: Path) -> None:
    """Makes and prepares the synthetic dataset `phantom`, where it is missing, for a run of it."""
    if config.data.datasets == ("phantom",):
        prepare_phantom(_prepared_dir(config, workdir), _PHANTOM_CASES, seed=0)


def _prepared_dir(config: Config, workdir: Path) -> Path:
    return Path(config.data.prepared_dir or workdir / "data")


def open_data(config: Config, workdir: Path) -> tuple[Plan, list[StoredDataset]]:
    """The plan and the datasets of a run, from config.data.prepared_dir.

    Of the synthetic dataset `phantom`, if that is empty, from `workdir`/data.
    """
    if not (config.data.prepared_dir or config.data.datasets == ("phantom",)):
        raise UserError("config.data.prepared_dir is empty: give the folder that prepare wrote")
    prepared_dir = _prepared_dir(config, workdir)
    plan = load_plan(prepared_dir / "plan.json")
    return plan, [load_dataset(prepared_dir, name, plan.hash) for name in config.data.datasets]


def planned(config: Config, plan: Plan | None) -> Config:
    """`config` for the plan's channels, with the network, patch and batch that it leaves open.

    They are those of its pre-training, or of the plan where it starts from nothing. Such a run is
    mirrored along no axis that its pre-training was not mirrored along.

    Args:
      plan: the data's; None where no data is named.

    Raises:
      UserError: there are none either, a value of the config does not fit them, or it asks for
        another number of channels.
    """
    if plan:
        config = _of_channels(config, len(plan.normalization))
    before = load_config(config.pretrained) if config.pretrained else None
    if before:
        inference = mirrored_as(config.inference, before.inference)
        config = dataclasses.replace(config, inference=inference)
    left = left_to_plan(config)
    if not left:
        return config
    here = plan.topology if plan else None
    topology = topology_of(before) if before else here
    if topology is None and left == ("loss.batch_dice",):  # a network of the config's own
        loss = dataclasses.replace(config.loss, batch_dice=LossConfig.batch_dice)
        return dataclasses.replace(config, loss=loss)
    if topology is None and plan is None:
        raise UserError(
            f"config.{left[0]} is empty, and nothing says the network: give "
            "config.data.prepared_dir, a folder with plan.json (prepare --planner), or "
            "config.pretrained, a run or an imported network"
        )
    if topology is None:
        raise UserError(
            f"config.{left[0]} is empty, and plan.json plans no network: prepare with --planner, "
            "or give it"
        )
    names = {name.rpartition(".")[2] for name in left}
    if "n_conv_per_stage" in names:
        names |= {"n_blocks_per_stage"}
    if "features_per_stage" in names:
        names |= {name for name, usual in DETAILS.items() if getattr(config.model, name) == usual}
    of_model, of_data, of_loss = (
        {name: getattr(topology, name) for name in names if hasattr(part, name)}
        for part in (config.model, config.data, config.loss)
    )
    model = dataclasses.replace(config.model, **of_model)
    data = dataclasses.replace(config.data, **of_data)
    loss = dataclasses.replace(config.loss, **of_loss)
    full = dataclasses.replace(config, model=model, data=data, loss=loss)
    validate(full)
    factors = total_strides(model.strides)
    if np.any(np.array(data.patch_size) % factors):
        raise UserError(
            f"config.data.patch_size={data.patch_size}: must be multiples of {factors}, by which "
            "the network's strides make it smaller"
        )
    return full


def mirrored_as(inference: InferenceConfig, before: InferenceConfig) -> InferenceConfig:
    """Settings that mirror along no axis that a pre-training by those `before` did not.

    Left and right are not alike for a network that never saw them exchanged.
    """
    axes = tuple(axis for axis in inference.mirror_axes if axis in before.mirror_axes)
    mirror = inference.mirror and bool(axes)
    return dataclasses.replace(inference, mirror=mirror, mirror_axes=axes)


def _of_channels(config: Config, channels: int) -> Config:
    """`config` for data of so many channels."""
    asked = config.model.in_channels
    if asked not in (channels, UNetConfig.in_channels):
        raise UserError(f"config.model.in_channels={asked}: the data has {channels}; leave it out")
    model = dataclasses.replace(config.model, in_channels=channels)
    return dataclasses.replace(config, model=model)


def network_notes(config: Config) -> list[str]:
    """Lines on whose the network, patch and batch are, where `config` leaves some to a plan."""
    left = left_to_plan(config)
    if not left:
        return []
    own = [name for name in planned_fields(config) if name not in left]
    taken = [*left, "inference.mirror_axes"] if config.pretrained else left
    lines = [f"by {config.pretrained or 'plan.json'}: {', '.join(taken)}"]
    return lines + ([f"by the config: {', '.join(own)}"] if own else [])


def fitted(config: Config, plan: Plan, datasets: list[StoredDataset]) -> Config:
    """`config` as planned, for what all datasets' labels are.

    Raises:
      UserError: it asks for another number of them, or of several datasets one has regions; as
        planned.
    """
    config = planned(config, plan)
    space = together({dataset.name: dataset.label_space for dataset in datasets})
    classes, asked = space.heads, config.model.num_classes
    if asked not in (classes, UNetConfig.num_classes):
        what = "regions" if space.regions else "background included"
        raise UserError(
            f"config.model.num_classes={asked}: the data has {classes}, {what}; leave it out"
        )
    model = dataclasses.replace(config.model, num_classes=classes)
    return dataclasses.replace(config, model=model, label_space=space)


def title(config: Config, datasets: list[StoredDataset]) -> str:
    """What a run trains on what, with SYNTHETIC where the data is."""
    names = (f"{'SYNTHETIC ' if d.synthetic else ''}{d.name}" for d in datasets)
    what = "pre-training" if config.pretraining else config.strategy
    return f"{what} on {', '.join(names)}, fold {config.fold}"


def announcement(run: Run, start: int) -> str:
    """What is trained on what, from which step on."""
    size = sum(leaf.size for leaf in jax.tree.leaves(run.params))
    frozen = run.frozen_parameters(start // run.config.steps_per_epoch)
    _, epochs, _ = schedule(run.config)
    several = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    going_on = f"\ngoing on from the checkpoint of step {start}" if start else ""
    return (
        f"{title(run.config, run.datasets)}: {epochs} epochs of {run.config.steps_per_epoch} "
        f"steps, {size:,} parameters, {frozen:,} of them frozen, {jax.device_count()} x "
        f"{jax.devices()[0].device_kind}{several}, in {run.config.dtype}, convolutions: "
        f"{form_in(run.config.dtype, run.platform.form)}{going_on}"
        + "".join(f"\n{note}" for note in start_notes(run.config, run.plan, run.datasets))
        + "".join(f"\n{note}" for note in new_and_frozen(run.config, run.masks[0]))
    )


def unfreezing(run: Run, epoch: int) -> str:
    """What an epoch of config.frozen_schedule changes."""
    patterns = " ".join(pattern for since, pattern in run.config.frozen_schedule if since == epoch)
    return (
        f"from epoch {epoch}: {patterns}; {run.frozen_parameters(epoch):,} parameters are frozen, "
        f"{run.frozen_parameters(epoch - 1):,} before"
    )


def samplers(
    config: Config, datasets: list[StoredDataset], masked: tuple[int, ...] = ()
) -> tuple[Sampler, Sampler]:
    """The samplers of training and of validation: of the fold's training and of its test cases.

    Each dataset's labels become classes of their own: multi_lesion has one for each lesion. Those
    of which regions are made stay what they are.
    Training patches come with as much around them as augmentation needs, and where there are
    `masked` channels, with what is OUTSIDE.
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
            # Validated by the test cases: by these patches best/ alone is selected, and what is
            # tested is the last epoch (nnU-Net: checkpoint_final).
            names = split.train if stream == "training" else split.test
            count = 0 if dataset.label_space.regions else len(dataset.labels)
            classes = tuple(range(first, first + count))
            sources.append(Source(tuple(load_case(dataset, name) for name in names), classes))
            first += count
        return Sampler(
            tuple(sources),
            config.model.num_classes,
            patch_size,
            cut_size[stream],
            config.data.batch_size,
            config.data.foreground_fraction,
            config.seed,
            stream,
            OUTSIDE if masked and config.data.augment and stream == "training" else 0,
        )

    return sampler("training"), sampler("validation")
