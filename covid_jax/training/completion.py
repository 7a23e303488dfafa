"""A config completed: by its data's plan and labels, and by the network that it starts from."""

import dataclasses

import numpy as np

from covid_jax.config import (
    Config,
    InferenceConfig,
    LossConfig,
    UNetConfig,
    left_to_plan,
    planned_fields,
    validate,
)
from covid_jax.data.plan import Plan
from covid_jax.data.planner import DETAILS, topology_of, total_strides
from covid_jax.data.store import StoredDataset
from covid_jax.errors import UserError
from covid_jax.label_space import together
from covid_jax.training.pretrained import load_config


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
