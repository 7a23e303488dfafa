"""Loss, gradients and whole optimiser steps beside PyTorch's nnU-Net, on the same data."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.harness.golden import random_image
from covid_jax.config import Config, OptimizerConfig, UNetConfig
from covid_jax.label_space import IGNORED
from covid_jax.model.loss import deep_supervision_loss
from covid_jax.model.nnunet_weights import to_params
from covid_jax.model.unet import UNet
from covid_jax.training.state import initial_state, learning_rate, optimizer
from covid_jax.training.step import make_train_step
from covid_jax.transfer.freezing import leaf_paths
from tests.conftest import installed
from tests.networks import COMPILED_SOON, relative_error

torch = installed("torch", extra="peers")

from benchmarks.peers import torch_nnunet as peer  # noqa: E402
from tests.parity import golden  # noqa: E402

MODEL = UNetConfig(
    num_classes=3,
    features_per_stage=(6, 10, 12),
    kernel_sizes=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
    n_conv_per_stage=(2, 1, 2),
    n_conv_per_stage_decoder=(2, 1),
)
RESIDUAL = dataclasses.replace(MODEL, n_conv_per_stage=(), n_blocks_per_stage=(1, 2, 1))
PATCH = (8, 16, 16)
STEPS = 5
TOLERANCE = {"float32": 1e-4, "float64": 1e-9}


def labels_of(kind, seed=0):
    """(2, D, H, W): every class; one that is nowhere; only background; some voxels ignored."""
    labels = np.random.default_rng(seed).integers(0, 3, (2, *PATCH))
    if kind == "an empty class":
        labels[labels == 2] = 0
    elif kind == "empty":
        labels[:] = 0
    elif kind == "ignored":
        labels[:, :3] = IGNORED
    elif kind == "all ignored":
        labels[:] = IGNORED
    return labels


def to_torch(labels):
    """nnU-Net's ignore label is the number after the last class."""
    return torch.from_numpy(np.where(labels == IGNORED, 3, labels))


PRECISIONS = pytest.mark.parametrize("precision", TOLERANCE, indirect=True)


@pytest.fixture
def precision(request):
    with jax.enable_x64(request.param == "float64"), golden.dice_sums_in(request.param):
        yield request.param


@PRECISIONS
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize(
    "kind", ["all classes", "an empty class", "empty", "ignored", "all ignored"]
)
def test_the_loss_and_its_gradient_to_every_head(kind, batch_dice, precision):
    rng = np.random.default_rng(1)
    sizes = [(8, 16, 16), (8, 8, 8), (4, 4, 4)]
    heads = [rng.normal(size=(2, *size, 3)).astype(precision) for size in sizes]
    labels = labels_of(kind)
    ignore = 3 if "ignored" in kind else None
    theirs = [peer.channels_first(head).requires_grad_() for head in heads]
    value = peer.loss(3, batch_dice, ignore)(theirs, to_torch(labels))
    value.backward()
    loss = jax.value_and_grad(functools.partial(deep_supervision_loss, batch_dice=batch_dice))
    ours, gradients = jax.jit(loss, compiler_options=COMPILED_SOON)(
        [jnp.asarray(head) for head in heads], jnp.asarray(labels)
    )
    of_one = max(1, abs(value.item()))  # cross-entropy and Dice are each about 1
    assert abs(float(ours) - value.item()) < TOLERANCE[precision] * of_one
    for gradient, head in zip(gradients[:2], theirs[:2], strict=True):
        their_gradient = peer.channels_last(head.grad)
        scale = max(np.abs(their_gradient).max(), 1e-8)
        assert np.abs(np.asarray(gradient) - their_gradient).max() < TOLERANCE[precision] * scale
    assert not np.asarray(gradients[2]).any()
    assert theirs[2].grad is None


def setting(model, precision, clip_norm, batch_dice):
    config = Config(
        epochs=STEPS,  # of one step each, so that the schedule moves at every step
        model=model,
        optimizer=OptimizerConfig(clip_norm=clip_norm),
    )
    net = peer.network(model)
    golden.load_random_weights(net)
    net = net.to(getattr(torch, precision))
    loss = peer.loss(2, batch_dice)
    images = [random_image(model, PATCH, seed).astype(precision) for seed in range(STEPS)]
    labels = [labels_of("all classes", seed) for seed in range(STEPS)]
    return config, net, loss, images, labels


@pytest.mark.parametrize(
    ("model", "precision"),
    # Float64 tells each fault; what float32 adds, rounding, the plain network tells.
    [(MODEL, "float32"), (MODEL, "float64"), (RESIDUAL, "float64")],
    ids=["plain, float32", "plain, float64", "residual, float64"],
    indirect=["precision"],
)
def test_every_gradient_is_torchs(model, precision):
    _, net, loss, images, labels = setting(model, precision, 12.0, False)
    loss(net(peer.channels_first(images[0])), torch.from_numpy(labels[0])).backward()
    network = UNet(model, jnp.dtype(precision))
    params = jax.tree.map(jnp.asarray, to_params(values_of(net), model))
    gradient = jax.jit(
        jax.grad(
            lambda p: deep_supervision_loss(
                network.apply({"params": p}, images[0]), jnp.asarray(labels[0])
            )
        ),
        compiler_options=COMPILED_SOON,
    )(params)
    theirs = to_params(
        {
            name: (torch.zeros_like(w) if w.grad is None else w.grad).numpy()
            for name, w in net.state_dict(keep_vars=True).items()
        },
        model,
    )
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(theirs))
    for path, a, b in zip(
        leaf_paths(gradient), jax.tree.leaves(gradient), jax.tree.leaves(theirs), strict=True
    ):
        if path.endswith("conv/bias"):
            # The norm takes it out again: exactly nothing here, rounding noise there.
            assert not np.asarray(a).any()
            assert np.abs(b).max() < TOLERANCE[precision] * largest, path
        elif np.abs(b).max() == 0:
            assert not np.asarray(a).any(), path  # the head that weighs nothing
        else:
            # In float32 the sign of one value before a ReLU may differ, by a hundredth of a sum.
            limit = {"float32": 2e-2, "float64": 1e-9}[precision]
            assert relative_error(a, b) < limit, path


def values_of(net):
    return {name: weight.detach().numpy() for name, weight in net.state_dict().items()}


@pytest.mark.parametrize(
    ("model", "precision", "clip_norm", "batch_dice"),
    [
        (MODEL, "float32", 0.1, True),
        (MODEL, "float64", 12.0, False),
        (MODEL, "float64", 0.1, True),
        (RESIDUAL, "float64", 0.1, True),
    ],
    ids=["float32, clipped", "float64", "float64, clipped", "residual, float64, clipped"],
    indirect=["precision"],
)
def test_parameters_after_five_steps_are_torchs(model, precision, clip_norm, batch_dice):
    """Nesterov momentum, L2 weight decay, clipped gradients, poly schedule."""
    config, net, loss, images, labels = setting(model, precision, clip_norm, batch_dice)
    start = jax.tree.map(np.array, to_params(values_of(net), model))
    sgd = peer.optimizer(net, config.optimizer)
    for step in range(STEPS):
        for group in sgd.param_groups:  # nnU-Net: PolyLRScheduler
            group["lr"] = config.optimizer.learning_rate * (1 - step / STEPS) ** 0.9
        image, target = peer.channels_first(images[step]), torch.from_numpy(labels[step])
        peer.train_step(net, sgd, loss, image, target, clip_norm)

    network = UNet(model, jnp.dtype(precision))
    transform = optimizer(config.optimizer)
    state = initial_state(start, transform)
    train_step = make_train_step(
        lambda p, x: network.apply({"params": p}, x),
        transform,
        None,
        batch_dice=batch_dice,
        compiler_options=COMPILED_SOON,
    )
    nothing = jax.tree.map(lambda _: None, start)
    norms = []
    for step in range(STEPS):
        batch = {
            "image": jnp.asarray(images[step]),
            "label": jnp.asarray(labels[step]),
            "labelled": jnp.ones((2, 3), bool),
        }
        rate = jnp.asarray(learning_rate(config, step), precision)
        state, metrics = train_step(state, nothing, batch, rate, jax.random.key(0))
        norms.append(float(metrics["gradient_norm"]))
    ours = jax.device_get(state.trainable)
    assert min(norms) > 0.1  # so that the smaller clip cuts at every step
    theirs = to_params(values_of(net), model)
    for path, a, b, before in zip(
        leaf_paths(ours), *map(jax.tree.leaves, (ours, theirs, start)), strict=True
    ):
        # Torch's SGD passes over the head that weighs nothing; here its weights decay.
        idle = path.startswith("heads/stage_1")
        assert relative_error(a, b) < (1e-4 if idle else TOLERANCE[precision]), path
        assert not np.array_equal(a, before), path
