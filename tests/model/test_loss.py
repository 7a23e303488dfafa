"""The loss: numbers worked out by hand, and its invariants."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covid_jax.model.loss import (
    deep_supervision_loss,
    dice_cross_entropy,
    downsample_labels,
    head_weights,
)


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(2, 4, 6, 6, 3)), jnp.float32)
    return logits, jnp.asarray(rng.integers(0, 3, (2, 4, 6, 6)))


def by_hand(logits, labels, batch_dice=False):
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    target = np.eye(logits.shape[-1])[labels]
    cross_entropy = -np.log((p * target).sum(-1)).mean()
    axes = (0, 1, 2, 3) if batch_dice else (1, 2, 3)
    overlap, volume = (p * target).sum(axes), (p + target).sum(axes)
    dice = (2 * overlap + 1e-5) / (volume + 1e-5)
    return cross_entropy - dice[..., 1:].mean()


@pytest.mark.parametrize("batch_dice", [False, True])
def test_it_is_cross_entropy_minus_the_mean_dice_of_the_foreground(case, batch_dice):
    ours = dice_cross_entropy(*case, batch_dice=batch_dice)
    assert ours == pytest.approx(by_hand(*map(np.asarray, case), batch_dice), rel=1e-5)


def test_a_certain_and_right_prediction_has_loss_minus_one(case):
    _, labels = case
    assert dice_cross_entropy(100.0 * jax.nn.one_hot(labels, 3), labels) == pytest.approx(-1)


def test_heads_weigh_half_of_the_one_above_and_the_last_nothing():
    assert head_weights(5) == pytest.approx((8 / 15, 4 / 15, 2 / 15, 1 / 15, 0))
    assert head_weights(1) == (1,)


def test_the_lowest_head_has_no_part_in_the_loss(case):
    logits, labels = case
    low = jnp.zeros((2, 2, 3, 3, 3))
    assert deep_supervision_loss((logits, low), labels) == dice_cross_entropy(logits, labels)


def test_labels_are_downsampled_to_the_nearest_voxel():
    labels = jnp.arange(8)[None, :, None, None]
    assert downsample_labels(labels, (4, 1, 1)).ravel().tolist() == [1, 3, 5, 7]
    assert downsample_labels(labels, (8, 1, 1)).ravel().tolist() == list(range(8))


def test_marginal_with_all_classes_labelled_is_the_plain_loss(case):
    labelled = jnp.ones((2, 3), bool)
    assert dice_cross_entropy(*case, labelled=labelled) == pytest.approx(
        float(dice_cross_entropy(*case)), rel=1e-5
    )


def test_marginal_does_not_punish_a_class_that_is_not_labelled(case):
    """Probability moved from background to an unlabelled class changes nothing."""
    logits, labels = case
    labels = jnp.where(labels == 2, 0, labels)
    labelled = jnp.asarray([[True, True, False]] * 2)
    p = jax.nn.softmax(logits)
    moved = jnp.stack([p[..., 0] / 2, p[..., 1], p[..., 2] + p[..., 0] / 2], -1)
    before = dice_cross_entropy(logits, labels, labelled=labelled)
    after = dice_cross_entropy(jnp.log(moved), labels, labelled=labelled)
    assert after == pytest.approx(float(before), rel=1e-4)
    gradient = jax.grad(lambda x: dice_cross_entropy(x, labels, labelled=labelled))(logits)
    assert np.isfinite(gradient).all()


def test_an_empty_class_counts_as_found_when_nothing_is_predicted():
    labels = jnp.zeros((1, 2, 2, 2), int)
    certain = jnp.asarray([100.0, 0.0]) * jnp.ones((1, 2, 2, 2, 2))
    assert dice_cross_entropy(certain, labels) == pytest.approx(-1, abs=1e-4)
