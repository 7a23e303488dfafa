"""A trained network as a function from a prepared case to the masks of its scan."""

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
from covid_jax.model.conv import compiler_options
from covid_jax.transfer.strategies import network_of

Tree = Any
Predictor = Callable[[PreparedCase], np.ndarray]
"""case -> probabilities (K, D, H, W) on the scan's own grid"""


def make_predictor(config: Config, plan: Plan, params: Tree, mirror: bool) -> Predictor:
    """The predictor of a run; its network is compiled once, for windows of the patch size."""
    scores_of = make_scorer(config, params, mirror)
    of_logits = config.inference.average == "logits"
    return lambda case: restore(scores_of(case.image), case.geometry, plan, of_logits=of_logits)


def make_scorer(config: Config, params: Tree, mirror: bool) -> Callable[[np.ndarray], np.ndarray]:
    """A normalised volume (D, H, W) -> what the run averages, (D, H, W, K): predict_volume."""
    network = network_of(config)

    @functools.partial(jax.jit, compiler_options=compiler_options())
    def full_resolution(params: Tree, image: Array) -> Array:
        return network.apply({"params": params}, image)[0]

    apply = functools.partial(full_resolution, jax.tree.map(jnp.asarray, params))
    return lambda volume: predict_volume(
        apply,
        volume,
        config.data.patch_size,
        step_size=config.inference.step_size,
        mirror=mirror,
        batch_size=config.inference.batch_size,
        average=config.inference.average,
    )
