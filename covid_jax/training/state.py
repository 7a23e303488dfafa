"""The training state, nnU-Net's optimiser, and the learning rate of an epoch."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array

from covid_jax.config import Config, OptimizerConfig
from covid_jax.training.platform import cpu_device
from covid_jax.transfer.freezing import join, split
from covid_jax.transfer.strategies import STRATEGIES

Tree = Any

_NETWORKS = 16  # whose new parameters a process draws without compiling again


class TrainState(flax.struct.PyTreeNode):
    """What a step changes. `trainable` has None where a leaf is frozen."""

    step: Array
    trainable: Tree
    opt_state: optax.OptState


def optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """nnU-Net's SGD up to the learning rate, by which the step multiplies.

    As in torch: the gradient is clipped by its global norm, weight decay is added to it (L2),
    then Nesterov momentum. The learning rate stays outside so that runs which differ in their
    schedule share one compiled step.
    """
    return optax.chain(
        optax.stateless(lambda gradient, _: _clip(gradient, config.clip_norm)),
        optax.add_decayed_weights(config.weight_decay),
        optax.trace(config.momentum, nesterov=True),
    )


def _clip(gradient: Tree, norm: float) -> Tree:
    """Torch's clip_grad_norm_, of which optax's differs in the last digits."""
    scale = jnp.minimum(1, norm / (optax.tree.norm(gradient) + 1e-6))
    return jax.tree.map(lambda leaf: leaf * scale, gradient)


def new_params(network: nn.Module, seed: int, image_shape: tuple[int, ...], fold: int = 0) -> Tree:
    """New parameters of a network for images of a shape (N, D, H, W, C).

    Each fold draws its own by one seed, else a seed's luck would be that of all folds, and their
    mean no better known than one of them. Fold 0 draws by the seed alone.
    """
    with jax.default_device(cpu_device()):
        key = jax.random.key(seed)
        if fold:
            key = jax.random.fold_in(key, fold)
        return _init(network)(key, jnp.zeros(image_shape))["params"]


@functools.lru_cache(maxsize=_NETWORKS)
def _init(network: nn.Module) -> Callable[[Array, Array], Tree]:
    # It runs once, and optimising its random numbers takes ten times as long as running it. A GPU's
    # compiler takes half a minute all the same; so a CPU draws them, wherever they go.
    return jax.jit(network.init, compiler_options={"xla_backend_optimization_level": 0})


@functools.partial(jax.jit, static_argnums=1)  # one program: one for each shape takes seconds
def initial_state(trainable: Tree, transform: optax.GradientTransformation) -> TrainState:
    """The state before the first step. Owns its arrays, so that the step may donate them."""
    own = jax.tree.map(jnp.copy, trainable)
    return TrainState(jnp.zeros((), jnp.int32), own, transform.init(own))


def refreeze(
    state: TrainState, frozen: Tree, held: Tree, transform: optax.GradientTransformation
) -> tuple[TrainState, Tree]:
    """(state, frozen) with the same parameters, of which those that `held` names are frozen.

    A leaf that goes on being trained keeps its momentum; one that begins to be has none.
    """
    trainable, frozen = split(join(state.trainable, frozen), held)
    fresh = initial_state(trainable, transform)
    momentum = jax.tree.map(
        lambda new, old: new if new is None or old is None else old,
        optax.tree.get(fresh.opt_state, "trace"),
        optax.tree.get(state.opt_state, "trace"),
        is_leaf=lambda leaf: leaf is None,
    )
    opt_state = optax.tree.set(fresh.opt_state, trace=momentum)
    return TrainState(state.step, fresh.trainable, opt_state), frozen


def schedule(config: Config) -> tuple[int, int, int]:
    """(first, count, total): this run's epochs, and its place on its poly schedule.

    Pre-training stands at the beginning of one schedule over its own epochs and those of a run
    that goes on from it; `continual` goes on there, all other runs start a schedule of their own.
    """
    joint = config.pretraining_epochs + config.epochs
    if config.pretraining:
        return 0, config.pretraining_epochs, joint
    if STRATEGIES[config.strategy].schedule == "joint":
        return config.pretraining_epochs, config.epochs, joint
    return 0, config.epochs, config.epochs


def epochs_of(config: Config) -> int:
    """How many epochs a run has."""
    _, count, _ = schedule(config)
    return count


def learning_rate(config: Config, epoch: int) -> float:
    """The learning rate of an epoch of the run's schedule. nnU-Net: PolyLRScheduler."""
    _, _, total = schedule(config)
    return config.optimizer.learning_rate * (1 - epoch / total) ** config.optimizer.poly_power
