"""A trained network as a function from a prepared case to the masks of its scan."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy import special

from covid_jax.config import Config
from covid_jax.data.plan import Plan
from covid_jax.data.preprocess import PreparedCase, restore
from covid_jax.errors import UserError
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


def make_ensemble(
    runs: Sequence[tuple[Config, Plan, Tree]], mirror: bool | None, platform: Platform
) -> Predictor:
    """The predictor of the mean of runs of one plan: of (config, plan, params) each.

    What the runs average is averaged over them too, before it is resampled: logits, as nnU-Net v2
    over its folds, or probabilities; where they differ in that, probabilities.

    Args:
      mirror: over the views that are mirrored; None: of the runs that say so.
    """
    kinds = {config.inference.average for config, _, _ in runs}
    of_logits = kinds == {"logits"}

    def scorer(config: Config, params: Tree) -> Callable[[np.ndarray], np.ndarray]:
        mirrors = config.inference.mirror if mirror is None else mirror
        scores_of = make_scorer(config, params, mirrors, platform)
        if config.inference.average == "logits" and not of_logits:
            return lambda volume: special.softmax(scores_of(volume), axis=-1)
        return scores_of

    scorers = [scorer(config, params) for config, _, params in runs]

    def predict(case: PreparedCase) -> np.ndarray:
        total = functools.reduce(np.add, (scores_of(case.image) for scores_of in scorers))
        return restore(total / len(runs), case.geometry, runs[0][1], of_logits=of_logits)

    return predict


def make_scorer(
    config: Config, params: Tree, mirror: bool, platform: Platform
) -> Callable[[np.ndarray], np.ndarray]:
    """A normalised volume (D, H, W) -> what the run averages, (D, H, W, K): predict_volume.

    Raises:
      UserError: `mirror` of a network that is not to be mirrored along any axis.
    """
    if mirror and not config.inference.mirror_axes:
        raise UserError(
            "this network was trained without mirroring (config.inference.mirror_axes is empty), "
            "so its mirrored views predict nothing; predict without --mirror"
        )
    logits_of = make_network(config, platform)
    apply = functools.partial(logits_of, jax.tree.map(jnp.asarray, params))
    return lambda volume: predict_volume(
        apply,
        volume,
        config.data.patch_size,
        step_size=config.inference.step_size,
        mirror_axes=config.inference.mirror_axes if mirror else (),
        batch_size=config.inference.batch_size,
        average=config.inference.average,
        sums=config.inference.sums,
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
