"""What a training step costs, without running it: shapes, and operations by XLA's count."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from covid_jax.config import Config
from covid_jax.training.state import initial_state, optimizer
from covid_jax.training.step import TrainStep, make_train_step
from covid_jax.transfer.freezing import mask, split
from covid_jax.transfer.strategies import network_of

Tree = Any


def abstract_params(config: Config) -> Tree:
    """Shapes and dtypes of the run's parameters."""
    image = jax.ShapeDtypeStruct(_image_shape(config), jnp.float32)
    return jax.eval_shape(network_of(config, "lax").init, jax.random.key(0), image)["params"]


def abstract_step(config: Config, patterns: Sequence[str]) -> tuple[TrainStep, tuple[Tree, ...]]:
    """The training step with `patterns` frozen, and the shapes of its arguments.

    They are those of the run's patch and batch. Its convolutions are XLA's own, so that their
    operations can be counted, and so that it can be compiled for a GPU.
    """
    params = abstract_params(config)
    trainable, frozen = split(params, mask(params, patterns))
    network, transform = network_of(config, "lax"), optimizer(config.optimizer)
    step = make_train_step(lambda p, x: network.apply({"params": p}, x), transform, None)
    shape = _image_shape(config)
    batch = {
        "image": jax.ShapeDtypeStruct(shape, jnp.float32),
        "label": jax.ShapeDtypeStruct(shape[:-1], jnp.int32),
        "labelled": jax.ShapeDtypeStruct((shape[0], config.model.num_classes), bool),
    }
    state = jax.eval_shape(lambda t: initial_state(t, transform), trainable)
    rate, key = jax.ShapeDtypeStruct((), jnp.float32), jax.eval_shape(lambda: jax.random.key(0))
    return step, (state, frozen, batch, rate, key)


def lowered_step(config: Config, patterns: Sequence[str]) -> jax.stages.Lowered:
    """The training step with `patterns` frozen, as a program for XLA; computes nothing."""
    step, arguments = abstract_step(config, patterns)
    return step.lower(*arguments)  # type: ignore[attr-defined]


def planned_bytes(compiled: jax.stages.Compiled) -> int:
    """What XLA plans to have at once: arguments, results and temporaries, donated ones once."""
    memory: Any = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )


def step_flops(config: Config, patterns: Sequence[str]) -> float:
    """XLA's count of the operations of a training step; a multiply-add is two of them."""
    cost = lowered_step(config, patterns).cost_analysis()
    return float(cost["flops"])  # type: ignore[index]


def _image_shape(config: Config) -> tuple[int, ...]:
    return (config.data.batch_size, *config.data.patch_size, config.model.in_channels)
