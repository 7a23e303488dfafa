"""A trained network as a function from a prepared case to the masks of its scan."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from covid_jax.config import Config
from covid_jax.data.plan import Plan
from covid_jax.data.preprocess import PreparedCase, restore
from covid_jax.inference.sliding_window import predict_volume
from covid_jax.training.platform import Platform, with_dtype
from covid_jax.transfer.strategies import network_of

Tree = Any
Predictor = Callable[[PreparedCase], np.ndarray]
"""case -> probabilities (K, D, H, W) on the scan's own grid"""


def make_predictor(
    config: Config, plan: Plan, params: Tree, mirror: bool, platform: Platform
) -> Predictor:
    """The predictor of a run; its network is compiled once, for windows of the patch size."""
    scores_of = make_scorer(config, params, mirror, platform)
    of_logits = config.inference.average == "logits"
    return lambda case: restore(scores_of(case.image), case.geometry, plan, of_logits=of_logits)


def make_scorer(
    config: Config, params: Tree, mirror: bool, platform: Platform
) -> Callable[[np.ndarray], np.ndarray]:
    """A normalised volume (D, H, W) -> what the run averages, (D, H, W, K): predict_volume."""
    logits_of = make_network(config, platform)
    apply = functools.partial(logits_of, jax.tree.map(jnp.asarray, params))
    return lambda volume: predict_volume(
        apply,
        volume,
        config.data.patch_size,
        step_size=config.inference.step_size,
        mirror=mirror,
        batch_size=config.inference.batch_size,
        average=config.inference.average,
    )


def make_network(config: Config, platform: Platform) -> Callable[[Tree, Array], Array]:
    """(params, image (N, D, H, W, C)) -> logits (N, D, H, W, K) at full resolution, jitted.

    In the run's dtype; a CPU, which is slow in bfloat16, takes float32 in its place.
    """
    lacks = config.dtype == "bfloat16" and platform.dtype == "float32"
    config = dataclasses.replace(config, dtype="auto") if lacks else config
    network = network_of(with_dtype(config, platform), platform.form)

    @functools.partial(jax.jit, compiler_options=platform.compiler_options)
    def full_resolution(params: Tree, image: Array) -> Array:
        return network.apply({"params": params}, image)[0]

    return full_resolution
