"""What a training step costs, without running it: shapes, and operations by XLA's count."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from covid_jax.config import Config
from covid_jax.data.augment import input_size
from covid_jax.errors import UserError
from covid_jax.training.platform import Platform, cpu_device, with_dtype
from covid_jax.training.program import Program, make_program
from covid_jax.training.state import initial_state
from covid_jax.transfer.freezing import mask, split
from covid_jax.transfer.strategies import network_of

Tree = Any

_COUNTED = Platform("cpu", "lax", at_once=False, dtype="float32", compiler_options={})
"""Convolutions as the paper has them: other forms do more operations for the same result."""


def abstract_params(config: Config) -> Tree:
    """Shapes and dtypes of the run's parameters."""
    network = network_of(dataclasses.replace(config, dtype="float32"), "lax")
    image = jax.ShapeDtypeStruct(
        (1, *config.data.patch_size, config.model.in_channels), jnp.float32
    )
    return jax.eval_shape(network.init, jax.random.key(0), image)["params"]


def abstract_arguments(
    config: Config, program: Program, patterns: Sequence[str]
) -> tuple[Any, ...]:
    """The shapes of what the training step of `program` is given, with `patterns` frozen."""
    params = abstract_params(config)
    trainable, frozen = split(params, mask(params, patterns))
    state = jax.eval_shape(lambda t: initial_state(t, program.transform), trainable)
    rate, key = jax.ShapeDtypeStruct((), jnp.float32), jax.eval_shape(lambda: jax.random.key(0))
    return state, frozen, abstract_batch(config), rate, key


def abstract_batch(config: Config, cut: bool = True) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a batch, as large as augmentation needs it where it is `cut` for training."""
    patch_size, batch_size = config.data.patch_size, config.data.batch_size
    size = input_size(patch_size) if cut and config.data.augment else patch_size
    shape = (batch_size, *size)
    return {
        "image": jax.ShapeDtypeStruct((*shape, config.model.in_channels), jnp.float32),
        "label": jax.ShapeDtypeStruct(shape, jnp.uint8),
        "labelled": jax.ShapeDtypeStruct((batch_size, config.model.num_classes), bool),
    }


def lowered_step(config: Config, patterns: Sequence[str]) -> jax.stages.Lowered:
    """The training step with `patterns` frozen, without augmentation; computes nothing.

    For the CPU, whatever else is here: JAX counts the operations of no other platform's programs.

    Raises:
      UserError: JAX_PLATFORMS leaves out the CPU.
    """
    cpu = cpu_device()
    if cpu is None:
        raise UserError(
            "JAX_PLATFORMS leaves out the CPU, where operations are counted: append ,cpu to it"
        )
    plain = dataclasses.replace(config, data=dataclasses.replace(config.data, augment=False))
    plain = with_dtype(plain, _COUNTED)
    program = make_program(plain, Mesh(np.array([[cpu]]), ("data", "space")), _COUNTED)
    arguments = abstract_arguments(plain, program, patterns)
    return program.train_step.lower(*arguments)  # type: ignore[attr-defined]


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
