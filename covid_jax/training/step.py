"""The training step and the validation step: pure, jitted, donated.

One step serves every strategy and any number of devices: what is frozen is an argument, and how
arrays are laid out over devices is a property of the arrays.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from covid_jax.label_space import CLASSES, IGNORED, LabelSpace
from covid_jax.model.loss import deep_supervision_loss, merge_unlabelled, regions_of
from covid_jax.training.parallel import Apply, Augment
from covid_jax.training.state import TrainState
from covid_jax.transfer.freezing import join

Tree = Any
Batch = dict[str, Array]
"""image (N, D, H, W, C), label (N, D, H, W) of any integers, labelled (N, K)"""
TrainStep = Callable[[TrainState, Tree, Batch, Array, Array], tuple[TrainState, dict[str, Array]]]
EvalStep = Callable[[Tree, Tree, Batch], dict[str, Array]]


def make_train_step(
    apply: Apply,
    transform: optax.GradientTransformation,
    augment: Augment | None,
    *,
    batch_dice: bool = False,
    marginal: bool = False,
    label_space: LabelSpace = CLASSES,
    compiler_options: Mapping[str, Any] | None = None,
) -> TrainStep:
    """The step (state, frozen, batch, learning_rate, key) -> (state, {"loss", "gradient_norm"}).

    The state's buffers are donated. `key` is folded with the step, so the augmentation of a step
    is a function of (seed, step, sample).
    """

    @functools.partial(jax.jit, donate_argnums=0, compiler_options=compiler_options)
    def train_step(
        state: TrainState, frozen: Tree, batch: Batch, learning_rate: Array, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        image, label = batch["image"], batch["label"]
        if augment is not None:
            keys = jax.random.split(jax.random.fold_in(key, state.step), image.shape[0])
            image, label = augment(keys, image, label)
        label = label.astype(jnp.int32)

        def loss_of(trainable: Tree) -> Array:
            return deep_supervision_loss(
                apply(join(trainable, frozen), image),
                label,
                batch_dice=batch_dice,
                labelled=batch["labelled"] if marginal else None,
                label_space=label_space,
            )

        loss, gradient = jax.value_and_grad(loss_of)(state.trainable)
        direction, opt_state = transform.update(gradient, state.opt_state, state.trainable)
        trainable = jax.tree.map(
            lambda leaf, change: leaf - learning_rate * change, state.trainable, direction
        )
        metrics = {"loss": loss, "gradient_norm": optax.tree.norm(gradient)}
        return TrainState(state.step + 1, trainable, opt_state), metrics

    return train_step


def make_eval_step(
    apply: Apply,
    *,
    batch_dice: bool = False,
    marginal: bool = False,
    label_space: LabelSpace = CLASSES,
    compiler_options: Mapping[str, Any] | None = None,
) -> EvalStep:
    """The step (trainable, frozen, batch) -> {"loss", "overlap" (K - 1,), "volume" (K - 1,)}.

    From overlap (2 tp) and volume (2 tp + fp + fn), summed over batches, comes the Dice of each
    class over all validation patches (nnU-Net's pseudo Dice); of each of K regions where it is
    regions that are segmented.
    """

    @functools.partial(jax.jit, compiler_options=compiler_options)
    def eval_step(trainable: Tree, frozen: Tree, batch: Batch) -> dict[str, Array]:
        label = batch["label"].astype(jnp.int32)
        logits = apply(join(trainable, frozen), batch["image"])
        loss = deep_supervision_loss(
            logits,
            label,
            batch_dice=batch_dice,
            labelled=batch["labelled"] if marginal else None,
            label_space=label_space,
        )
        known = label != IGNORED
        if label_space.regions:
            predicted = (jax.nn.sigmoid(logits[0]) > 0.5) & known[..., None]
            true = regions_of(label, label_space)
        else:
            scores, classes = logits[0], jnp.arange(1, logits[0].shape[-1])
            if marginal:  # what a sample does not label is its background, as in the loss
                scores = merge_unlabelled(jax.nn.log_softmax(scores), batch["labelled"])
            predicted = (scores.argmax(-1)[..., None] == classes) & known[..., None]
            true = label[..., None] == classes
        voxels = tuple(range(predicted.ndim - 1))
        return {
            "loss": loss,
            "overlap": 2 * (predicted & true).sum(voxels),
            "volume": predicted.sum(voxels) + true.sum(voxels),
        }

    return eval_step


def pseudo_dice(found: Sequence[dict[str, np.ndarray]]) -> np.ndarray:
    """The Dice (K - 1,) of each class over all voxels of the batches that eval_step saw.

    Of K regions (K,). NaN of what is in no batch and was found in none. nnU-Net:
    dice_per_class_or_region.
    """
    overlap = np.sum([batch["overlap"] for batch in found], axis=0)
    volume = np.sum([batch["volume"] for batch in found], axis=0)
    return np.where(volume > 0, overlap / np.maximum(volume, 1), np.nan)


def mean_dice(dice: np.ndarray) -> float:
    """The mean over the classes that have a Dice; 0 where none has. nnU-Net: mean_fg_dice."""
    return 0.0 if np.isnan(dice).all() else float(np.nanmean(dice))
