"""A trained network as a function from a prepared case to the masks of its scan."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from covid_jax.config import Config
from covid_jax.data.plan import Plan
from covid_jax.data.preprocess import (
    Piece,
    PreparedCase,
    probabilities_of,
    restore_planes,
)
from covid_jax.errors import UserError
from covid_jax.inference.sliding_window import predict_slabs
from covid_jax.model.unet import UNet
from covid_jax.training.platform import Platform, with_dtype
from covid_jax.transfer.strategies import network_of

Tree = Any
Scorer = Callable[[np.ndarray], Iterator[np.ndarray]]
"""image (D, H, W, C) on the plan's grid -> slabs along D of (D, H, W, K), as predict_slabs"""
Predictor = Callable[[PreparedCase], Iterator[Piece]]
"""case -> probabilities on the scan's own grid, in pieces along D (restore_planes)"""

_NETWORKS = 16  # that a process keeps compiled
_SLAB = 8  # planes of several runs that are averaged at once


def make_predictor(
    config: Config, plan: Plan, params: Tree, mirror: bool, platform: Platform
) -> Predictor:
    """The predictor of a run; its network is compiled once, for windows of the patch size."""
    return make_ensemble([(config, plan, params)], mirror, platform)


def make_ensemble(
    runs: Sequence[tuple[Config, Plan, Tree]], mirror: bool | None, platform: Platform
) -> Predictor:
    """The predictor of the mean of runs of one plan and label space: (config, plan, params) each.

    What the runs average is averaged over them too, before it is resampled: logits, as nnU-Net v2
    over its folds, or probabilities; where they differ in that, probabilities.

    Args:
      mirror: over the views that are mirrored; None: of the runs that say so.
    """
    plan, space = runs[0][1], runs[0][0].label_space
    of_logits = {config.inference.average for config, _, _ in runs} == {"logits"}

    def scorer(config: Config, params: Tree) -> Scorer:
        mirrors = config.inference.mirror if mirror is None else mirror
        scores_of = make_scorer(config, params, mirrors, platform)
        if config.inference.average == "logits" and not of_logits:
            return lambda volume: (probabilities_of(slab, space, -1) for slab in scores_of(volume))
        return scores_of

    scorers = [scorer(config, params) for config, _, params in runs]

    def predict(case: PreparedCase) -> Iterator[Piece]:
        slabs = scorers[0](case.image)
        if len(scorers) > 1:  # of other patches, so that their slabs are others
            together = zip(*(_evenly(scores_of(case.image)) for scores_of in scorers), strict=True)
            slabs = (functools.reduce(np.add, each) / len(each) for each in together)
        return restore_planes(slabs, case.geometry, plan, of_logits=of_logits, label_space=space)

    return predict


def _evenly(slabs: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The same planes in slabs of the same size."""
    held: np.ndarray | None = None
    for slab in slabs:
        held = slab if held is None else np.concatenate([held, slab])
        while len(held) > _SLAB:
            yield held[:_SLAB]
            held = held[_SLAB:]
    if held is not None:
        yield held


def make_scorer(config: Config, params: Tree, mirror: bool, platform: Platform) -> Scorer:
    """A normalised volume (D, H, W, C) -> what the run averages, in slabs: predict_slabs.

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
    return lambda volume: predict_slabs(
        apply,
        volume,
        config.data.patch_size,
        step_size=config.inference.step_size,
        mirror_axes=config.inference.mirror_axes if mirror else (),
        batch_size=config.inference.batch_size,
        average=config.inference.average,
        activation=config.label_space.activation,
        sums=config.inference.sums,
    )


def make_network(config: Config, platform: Platform) -> Callable[[Tree, Array], Array]:
    """(params, image (N, D, H, W, C)) -> logits (N, D, H, W, K) at full resolution, jitted.

    In the run's dtype; a CPU, which is slow in bfloat16, takes float32 in its place.
    """
    lacks = config.dtype == "bfloat16" and platform.dtype == "float32"
    config = dataclasses.replace(config, dtype="auto") if lacks else config
    return _full_resolution(network_of(with_dtype(config, platform), platform.form), platform)


@functools.lru_cache(maxsize=_NETWORKS)
def _full_resolution(network: UNet, platform: Platform) -> Callable[[Tree, Array], Array]:
    @functools.partial(jax.jit, compiler_options=platform.compiler_options)
    def full_resolution(params: Tree, image: Array) -> Array:
        return network.apply({"params": params}, image)[0]

    return full_resolution
