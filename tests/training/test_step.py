"""The step: the optimiser's formula, frozen leaves, and one compilation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covid_jax.config import OptimizerConfig, UNetConfig
from covid_jax.data.augment import augment
from covid_jax.label_space import IGNORED
from covid_jax.model.unet import UNet
from covid_jax.training.state import (
    initial_state,
    learning_rate,
    new_params,
    optimizer,
    refreeze,
    schedule,
)
from covid_jax.training.step import make_eval_step, make_train_step, mean_dice, pseudo_dice
from covid_jax.transfer.freezing import join, leaf_paths, mask, split
from covid_jax.transfer.strategies import STRATEGIES, initial_params
from tests.conftest import tiny
from tests.networks import COMPILED_SOON, assert_near

CONFIG = tiny()
MODEL = UNetConfig(
    features_per_stage=(4, 6, 8),
    kernel_sizes=((1, 3, 3),) * 3,
    strides=((1, 1, 1), (1, 2, 2), (1, 2, 2)),
    n_conv_per_stage=(1, 1, 1),
    n_conv_per_stage_decoder=(1, 1),
)
SHAPE = (2, 4, 16, 16)
AUGMENT = functools.partial(augment, patch_size=SHAPE[1:], at_once=False)


def batch(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": jnp.asarray(rng.normal(size=(*SHAPE, 1)), jnp.float32),
        "label": jnp.asarray(rng.integers(0, 2, SHAPE)),
        "labelled": jnp.ones((2, 2), bool),
    }


def run(
    strategy,
    steps,
    dtype=jnp.float32,
    patterns=None,
    model=MODEL,
    augmentation=None,
    options=COMPILED_SOON,
):
    """Parameters before and after some steps; the mask; the compiled step."""
    network = STRATEGIES[strategy].network(model, dtype, "lax")
    params = new_params(network, 0, (*SHAPE, 1))
    if STRATEGIES[strategy].needs_pretraining:
        pretrained = new_params(UNet(model), 1, (*SHAPE, 1))
        params = initial_params(STRATEGIES[strategy], params, pretrained)
    held = mask(params, STRATEGIES[strategy].frozen if patterns is None else patterns)
    trainable, frozen = split(params, held)
    transform = optimizer(CONFIG.optimizer)
    state = initial_state(trainable, transform)
    step = make_train_step(
        lambda p, x: network.apply({"params": p}, x),
        transform,
        augmentation,
        compiler_options=options,
    )
    for index in range(steps):
        state, metrics = step(state, frozen, batch(index), jnp.float32(0.01), jax.random.key(0))
    assert np.isfinite(metrics["loss"])
    return params, join(state.trainable, frozen), held, step, state


RESIDUAL = UNetConfig(
    features_per_stage=(4, 6),
    kernel_sizes=((1, 3, 3),) * 2,
    strides=((1, 1, 1), (1, 2, 2)),
    n_conv_per_stage=(),
    n_blocks_per_stage=(1, 2),
    n_conv_per_stage_decoder=(1,),
)


def unequal(a, b):
    return jax.tree.map(lambda x, y: not np.array_equal(x, y), a, b)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("strategy", ["frozen_encoder", "multi_encoder"])
def test_a_frozen_leaf_is_bit_identical_after_training_and_all_others_move(strategy, dtype):
    assert_all_but_frozen_move(*run(strategy, 4, dtype)[:3])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_trains_a_residual_encoder(strategy):
    run_ = run(strategy, 2, model=RESIDUAL)
    assert_all_but_frozen_move(*run_[:3])


def assert_all_but_frozen_move(before, after, held):
    """That frozen leaves are bit-identical after training."""
    moved = unequal(before, after)
    for path, was_moved, h in zip(
        leaf_paths(held), *map(jax.tree.leaves, (moved, held)), strict=True
    ):
        # A bias that starts at 0 stays there before a norm, and in the head that weighs nothing.
        stays = path.endswith("conv/bias") or path == "heads/stage_1/bias"
        assert was_moved == (not h and not stays), path


PATTERNS = ["encoder", "encoder/stage_[0-1]/**", "decoder/*/up", "**/norm", "!**/bias", "heads"]


@settings(max_examples=4, deadline=None)
@given(
    patterns=st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=3, unique=True),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16]),
)
def test_any_frozen_leaf_is_bit_identical_and_has_no_state(patterns, dtype):
    """Under weight decay, momentum, clipping and low precision."""
    before, after, held, _, state = run("scratch", 2, dtype, patterns)
    for moved, h in zip(*map(jax.tree.leaves, (unequal(before, after), held)), strict=True):
        assert not (h and moved)
    assert len(jax.tree.leaves(state.opt_state)) == sum(not h for h in jax.tree.leaves(held))


def test_the_optimiser_state_holds_trainable_leaves_only():
    _, _, held, _, state = run("frozen_encoder", 1)
    trainable = sum(not h for h in jax.tree.leaves(held))
    assert len(jax.tree.leaves(state.opt_state)) == trainable


def test_the_step_is_compiled_once(caplog):
    with jax.log_compiles():
        run("scratch", 4, augmentation=AUGMENT)
    compiled = [record.message for record in caplog.records if "XLA compilation" in record.message]
    assert sum("train_step" in message for message in compiled) == 1, compiled


def test_an_update_is_torchs_sgd():
    """g += wd p; buf = m buf + g; p -= lr (g + m buf), after clipping the gradient's norm."""
    config = OptimizerConfig(momentum=0.9, weight_decay=0.1, clip_norm=2.0)
    transform = optimizer(config)
    rng = np.random.default_rng(0)
    p = rng.normal(size=5)
    params = {"p": jnp.asarray(p, jnp.float32)}
    state = transform.init(params)
    momentum = np.zeros(5)
    for step in range(4):
        g = rng.normal(size=5) * (5 if step % 2 else 0.1)
        direction, state = transform.update({"p": jnp.asarray(g, jnp.float32)}, state, params)
        params = jax.tree.map(lambda a, b: a - 0.05 * b, params, direction)
        g = g * min(1.0, 2.0 / np.linalg.norm(g)) + 0.1 * p
        momentum = 0.9 * momentum + g
        p = p - 0.05 * (g + 0.9 * momentum)
        assert_near(params["p"], p, 1e-5)


def gradients(patterns):
    """What the optimiser holds after one step; nothing of frozen leaves."""
    state = run("scratch", 1, patterns=patterns, options=None)[4]
    return optax.tree.get(state.opt_state, "trace")


@functools.cache
def full_gradients():
    return gradients(())


@pytest.mark.parametrize("patterns", [("encoder",), ("**/norm", "decoder/stage_0"), ("**/conv",)])
def test_gradients_of_trainable_leaves_are_those_of_full_training(patterns):
    # Weight decay is the same; the norm stays below the clip in both.
    full, part = (
        dict(jax.tree.leaves_with_path(tree)) for tree in (full_gradients(), gradients(patterns))
    )
    assert 0 < len(part) < len(full)
    for path, leaf in part.items():
        assert_near(leaf, full[path], 1e-4)


def test_refreezing_moves_no_parameter_and_keeps_the_momentum_of_what_goes_on():
    before, _, held, step, state = run("scratch", 2, patterns=("encoder",))
    _, frozen = split(before, held)
    whole = jax.device_get(join(state.trainable, frozen))
    momentum = jax.device_get(optax.tree.get(state.opt_state, "trace"))
    transform = optimizer(CONFIG.optimizer)
    now_held = mask(held, ("encoder/stage_0", "heads"))
    after, rest = refreeze(state, frozen, now_held, transform)
    assert not any(jax.tree.leaves(unequal(join(after.trainable, rest), whole)))
    assert after.step == state.step
    trace = optax.tree.get(after.opt_state, "trace")
    assert not any(jax.tree.leaves(unequal(trace["decoder"], momentum["decoder"])))
    assert not any(leaf.any() for leaf in jax.tree.leaves(trace["encoder"]))
    assert len(jax.tree.leaves(trace["encoder"])) == 8  # of two stages
    assert not jax.tree.leaves(trace["heads"])
    step(after, rest, batch(2), jnp.float32(0.01), jax.random.key(0))


def test_the_schedule_is_poly_over_the_runs_own_epochs():
    config = tiny("body", epochs=10)
    assert schedule(config) == (0, 10, 10)
    assert learning_rate(config, 0) == 0.01
    assert learning_rate(config, 5) == pytest.approx(0.01 * 0.5**0.9)


def test_continual_goes_on_where_pretraining_stands_on_their_joint_schedule():
    before = tiny("pretraining-msd", epochs=10, pretraining_epochs=30)
    after = tiny("continual-msd", epochs=10, pretraining_epochs=30)
    assert schedule(before) == (0, 30, 40)
    assert schedule(after) == (30, 10, 40)
    last, first = learning_rate(before, 29), learning_rate(after, 30)
    assert first == pytest.approx(0.01 * (1 - 30 / 40) ** 0.9)
    assert first < last < learning_rate(before, 28)


def test_ignored_voxels_have_no_part_in_the_pseudo_dice():
    logits = lambda p, x: (jnp.concatenate([x, -x], -1),)  # noqa: E731
    all_known = batch()
    half = {**all_known, "label": all_known["label"].at[:, :2].set(IGNORED)}
    rest = {name: a if a.ndim == 2 else a[:, 2:] for name, a in all_known.items()}
    found = [make_eval_step(logits)({}, {}, b) for b in (half, rest)]
    assert pseudo_dice([found[0]]) == pseudo_dice([found[1]])
    assert found[0]["loss"] == pytest.approx(float(found[1]["loss"]), rel=1e-5)


def test_what_a_sample_does_not_label_is_its_background_in_the_pseudo_dice():
    """As in the marginal loss, which does not punish where the other class is found."""
    label = jnp.array([[[[0, 0, 1, 1]]]])
    p = jnp.array([[0.1, 0.2, 0.7], [0.2, 0.3, 0.5], [0.1, 0.6, 0.3], [0.3, 0.3, 0.4]])
    some = {
        "image": jnp.log(p).reshape(1, 1, 1, 4, 3),
        "label": label,
        "labelled": jnp.array([[True, True, False]]),  # of the first dataset's class alone
    }
    for marginal, overlap, volume in ((False, [2, 0], [3, 3]), (True, [2, 0], [3, 0])):
        found = make_eval_step(lambda p, x: (x,), marginal=marginal)({}, {}, some)
        assert (found["overlap"].tolist(), found["volume"].tolist()) == (overlap, volume)


def test_a_class_that_is_in_no_batch_has_no_part_in_the_pseudo_dice():
    """nnU-Net: np.nanmean in on_validation_epoch_end."""
    of = lambda *values: np.array(values)  # noqa: E731
    for overlap, volume, expected in (
        (of(2, 0), of(4, 0), 0.5),
        (of(2, 0), of(4, 3), 0.25),
        (of(0), of(0), 0.0),
    ):
        dice = pseudo_dice([{"overlap": overlap, "volume": volume}])
        assert np.isnan(dice).tolist() == (volume == 0).tolist()
        assert mean_dice(dice) == expected


def test_pseudo_dice_is_the_dice_over_all_voxels_of_all_batches():
    logits = lambda p, x: (jnp.concatenate([x, -x], -1),)  # noqa: E731
    eval_step = make_eval_step(logits)
    batches = [batch(seed) for seed in range(3)]
    found = [jax.device_get(eval_step({}, {}, b)) for b in batches]
    predicted = np.concatenate([np.asarray(b["image"][..., 0] < 0) for b in batches])
    true = np.concatenate([np.asarray(b["label"] == 1) for b in batches])
    expected = 2 * (predicted & true).sum() / (predicted.sum() + true.sum())
    assert pseudo_dice(found) == pytest.approx(expected)


@functools.cache
def curve(dtype, steps=20):
    """Losses of some steps on a task that can be learned: the bright voxels."""
    network = UNet(MODEL, jnp.dtype(dtype), "lax")
    params = new_params(network, 0, (*SHAPE, 1))
    transform = optimizer(CONFIG.optimizer)
    state = initial_state(params, transform)
    step = make_train_step(
        lambda p, x: network.apply({"params": p}, x),
        transform,
        None,
        compiler_options=COMPILED_SOON,
    )
    nothing = jax.tree.map(lambda _: None, params)
    losses = []
    for index in range(steps):
        some = batch(index)
        some["label"] = (some["image"][..., 0] > 0.5).astype(int)
        state, metrics = step(state, nothing, some, jnp.float32(0.01), jax.random.key(0))
        losses.append(float(metrics["loss"]))
    logits = network.apply({"params": params}, batch()["image"])
    return losses, logits, state.trainable


def test_bfloat16_stays_near_float32_in_logits_and_in_twenty_steps():
    """bfloat16 keeps 8 bits: one part in 256 a rounding. Parameters and loss stay float32."""
    exact, logits, _ = curve("float32")
    rough, rough_logits, params = curve("bfloat16")
    for head, rough_head in zip(logits, rough_logits, strict=True):
        assert rough_head.dtype == jnp.float32
        difference = jnp.abs(head - rough_head)
        assert 0 < difference.max() < 0.05 * jnp.abs(head).max()
        assert difference.mean() < 0.01 * jnp.abs(head).max()
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert_near(rough, exact, 0.1)
    assert max(exact[-1] - exact[0], rough[-1] - rough[0]) < -0.2  # both learn
