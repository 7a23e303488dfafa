"""The network of a run and its steps, put together for its devices: here, and nowhere else."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import optax
from jax.sharding import Mesh

from covid_jax.config import Config, DataConfig, InferenceConfig
from covid_jax.data.augment import augment
from covid_jax.training.parallel import Augment, cut_along, where_it_lies
from covid_jax.training.platform import Platform
from covid_jax.training.state import optimizer
from covid_jax.training.step import EvalStep, TrainStep, make_eval_step, make_train_step
from covid_jax.transfer.strategies import network_of

_PROGRAMS = 16  # that a process keeps; a study has about one for each strategy and source


@dataclasses.dataclass(frozen=True)
class Program:
    """What is traced and compiled for a run.

    Attributes:
      network: without the devices, as it is initialised.
      augment: of a batch on the devices; None where patches are trained on as they are.
    """

    network: nn.Module
    transform: optax.GradientTransformation
    augment: Augment | None
    train_step: TrainStep
    eval_step: EvalStep


def make_program(
    config: Config,
    mesh: Mesh,
    platform: Platform,
    marginal: bool = False,
    masked: tuple[int, ...] = (),
) -> Program:
    """One function for every strategy, any number of devices, and any platform.

    Runs of one process that differ in nothing that is compiled have one Program, and so compile
    once: folds, seeds and schedules of a network.

    Args:
      config: its dtype is not "auto" any more (platform.with_dtype).
      mesh: of the devices.
      platform: the choices for them, or others.
      masked: the channels that are 0 outside of a scan's non-zero region (plan.masked_channels).
      marginal: whether the classes that a case's dataset does not label merge into its background.
    """
    compiled = Config(
        strategy=config.strategy,
        dtype=config.dtype,
        remat=config.remat,
        model=config.model,
        label_space=config.label_space,
        optimizer=config.optimizer,
        loss=config.loss,
        data=DataConfig(patch_size=config.data.patch_size, augment=config.data.augment),
        inference=InferenceConfig(mirror_axes=config.inference.mirror_axes),
    )
    return _program(compiled, mesh, platform, marginal, masked)


@functools.lru_cache(maxsize=_PROGRAMS)
def _program(
    config: Config, mesh: Mesh, platform: Platform, marginal: bool, masked: tuple[int, ...]
) -> Program:
    """Of a config that says what is compiled, and has the defaults elsewhere."""
    network = network_of(config, platform.form)
    transform = optimizer(config.optimizer)
    apply = cut_along(network, mesh)
    augmentation = functools.partial(
        augment,
        patch_size=config.data.patch_size,
        at_once=platform.at_once,
        mirror_axes=config.inference.mirror_axes,
        masked=masked,
    )
    augmented = where_it_lies(augmentation, mesh) if config.data.augment else None
    options = platform.compiler_options
    loss: dict[str, Any] = {
        "batch_dice": config.loss.batch_dice,
        "marginal": marginal,
        "label_space": config.label_space,
    }
    return Program(
        network=network,
        transform=transform,
        augment=augmented,
        train_step=make_train_step(apply, transform, augmented, compiler_options=options, **loss),
        eval_step=make_eval_step(apply, compiler_options=options, **loss),
    )
