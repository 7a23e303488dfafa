"""nnU-Net's loss: soft Dice + cross-entropy of classes or of regions, at every head."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from covid_jax.label_space import CLASSES, IGNORED, LabelSpace, lies_in

_SMOOTH = 1e-5


def deep_supervision_loss(
    logits: Sequence[Array],
    labels: Array,
    *,
    batch_dice: bool = False,
    labelled: Array | None = None,
    label_space: LabelSpace = CLASSES,
) -> Array:
    """The weighted sum over heads of soft Dice loss + cross-entropy.

    Head i, counted from full resolution, weighs 1 / 2^i; the last of several weighs 0; weights
    sum to 1 (nnU-Net: DeepSupervisionWrapper). Labels are downsampled to a head by nearest
    neighbour.

    Args:
      logits: of each head, (N, D, H, W, K), full resolution first.
      labels: (N, D, H, W), integers in 0..K-1 or IGNORED, at full resolution; of regions any.
      batch_dice: sum over the batch before the ratio, instead of a ratio for each sample.
      labelled: (N, K), whether a sample's dataset labels a class; the classes that it does not
        label merge into its background (the marginal loss). None: all are labelled. Classes alone
        have it.
      label_space: what the K channels are.

    Returns:
      a scalar; with Dice of 1 and certain predictions it is -1
    """
    weights = head_weights(len(logits))
    total = jnp.zeros((), logits[0].dtype)
    for head, weight in zip(logits, weights, strict=True):
        if weight > 0:
            target = downsample_labels(labels, head.shape[1:4])
            total += weight * (
                dice_binary_cross_entropy(head, target, label_space, batch_dice)
                if label_space.regions
                else dice_cross_entropy(head, target, batch_dice, labelled)
            )
    return total


def head_weights(heads: int) -> tuple[float, ...]:
    """1 / 2^i for head i, 0 for the last of several, normalised to sum to 1."""
    weights = 0.5 ** np.arange(heads)
    if heads > 1:
        weights[-1] = 0
    return tuple((weights / weights.sum()).tolist())


def downsample_labels(labels: Array, size: Sequence[int]) -> Array:
    """Labels (N, D, H, W) at `size`, by nearest neighbour (torch's "nearest-exact")."""
    for axis, (old, new) in enumerate(zip(labels.shape[1:], size, strict=True), start=1):
        if old != new:
            labels = jnp.take(labels, (2 * np.arange(new) + 1) * old // (2 * new), axis=axis)
    return labels


def dice_cross_entropy(
    logits: Array, labels: Array, batch_dice: bool = False, labelled: Array | None = None
) -> Array:
    """Cross-entropy minus the mean soft Dice of the foreground classes.

    Soft Dice of a class is (2 sum(p y) + s) / (sum p + sum y + s) with s = 1e-5, over the voxels
    of a sample (or of the batch), averaged over samples and foreground classes. IGNORED voxels
    enter neither (nnU-Net: DC_and_CE_loss with MemoryEfficientSoftDiceLoss and ignore_label).

    Args:
      logits: (N, D, H, W, K).
      labels: (N, D, H, W).
      batch_dice, labelled: as in deep_supervision_loss.
    """
    classes = logits.shape[-1]
    log_p = jax.nn.log_softmax(logits)
    counted = jnp.ones((), logits.dtype)
    if labelled is not None:
        log_p = merge_unlabelled(log_p, labelled)
        counted = labelled[:, 1:].astype(logits.dtype)
    p = jnp.exp(log_p)
    target = jax.nn.one_hot(labels, classes, dtype=logits.dtype)
    known = labels != IGNORED
    log_likelihood = (target * jnp.where(target > 0, log_p, 0)).sum()
    cross_entropy = -log_likelihood / jnp.maximum(known.sum(), 1)

    space = (1, 2, 3)
    overlap = (p * target).sum(space)[:, 1:] * counted  # (N, K - 1)
    volume = (jnp.where(known[..., None], p, 0) + target).sum(space)[:, 1:] * counted
    if batch_dice:
        overlap, volume = overlap.sum(0, keepdims=True), volume.sum(0, keepdims=True)
        counted = jnp.max(jnp.broadcast_to(counted, labels.shape[:1] + overlap.shape[1:]), 0)
    dice = (2 * overlap + _SMOOTH) / (volume + _SMOOTH)
    counted = jnp.broadcast_to(counted, dice.shape)
    return cross_entropy - (dice * counted).sum() / counted.sum()


def dice_binary_cross_entropy(
    logits: Array, labels: Array, label_space: LabelSpace, batch_dice: bool = False
) -> Array:
    """Binary cross-entropy minus the mean soft Dice of all regions.

    Cross-entropy is the mean over voxels and regions. As in nnU-Net (DC_and_BCE_loss with
    MemoryEfficientSoftDiceLoss), it is the sum over regions of the mean over known voxels where the
    dataset has a label to ignore. Soft Dice as in dice_cross_entropy.

    Args:
      logits: (N, D, H, W, R).
      labels: (N, D, H, W), from which the regions are made (ConvertSegmentationToRegionsTransform).
      batch_dice: as in deep_supervision_loss.
    """
    target = regions_of(labels, label_space).astype(logits.dtype)
    known = (labels != IGNORED)[..., None].astype(logits.dtype)
    p = jax.nn.sigmoid(logits)
    log_likelihood = target * jax.nn.log_sigmoid(logits) + (1 - target) * jax.nn.log_sigmoid(
        -logits
    )
    has_ignored = label_space.ignored is not None
    count = jnp.maximum(known.sum(), 1) if has_ignored else logits.size
    cross_entropy = -(log_likelihood * known).sum() / count

    space = (0, 1, 2, 3) if batch_dice else (1, 2, 3)
    overlap, volume = (p * target).sum(space), ((p + target) * known).sum(space)
    return cross_entropy - ((2 * overlap + _SMOOTH) / (volume + _SMOOTH)).mean()


def regions_of(labels: Array, label_space: LabelSpace) -> Array:
    """Labels (...) -> (..., R) bool: which regions a voxel lies in; IGNORED ones in none."""
    return jnp.stack([lies_in(labels, region) for region in label_space.regions], axis=-1)


def merge_unlabelled(log_p: Array, labelled: Array) -> Array:
    """Adds the probability of the classes a sample does not label to its background."""
    known = labelled.at[:, 0].set(True)[:, None, None, None, :]
    background = jax.nn.logsumexp(log_p, axis=-1, where=~known.at[..., 0].set(False))
    merged = jnp.where(known, log_p, -jnp.inf)
    return merged.at[..., 0].set(background)
