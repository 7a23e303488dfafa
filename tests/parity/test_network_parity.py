"""Our network beside PyTorch's nnU-Net: the same weights give the same logits at every head."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.harness.golden import CASES, random_image
from covid_jax.model import nnunet_weights
from covid_jax.model.nnunet_weights import to_params, to_state_dict
from covid_jax.model.unet import MultiEncoderUNet, UNet
from covid_jax.training.state import new_params
from tests.conftest import FORMS, installed
from tests.networks import relative_error, topologies

torch = installed("torch", extra="peers")
from benchmarks.peers import torch_nnunet as peer  # noqa: E402
from tests.parity import golden  # noqa: E402

TOLERANCE = 1e-4


def randomised(config, seed=0):
    net = peer.network(config)
    golden.load_random_weights(net, seed)
    return net


def errors(config, patch, net, forward=None, form=None):
    """The relative error of each head's logits."""
    image = random_image(config, patch)
    with torch.no_grad():
        theirs = (forward or type(net).__call__)(net, peer.channels_first(image))
    params = to_params(net.state_dict(), config)
    ours = jax.jit(UNet(config, form=form).apply)({"params": params}, image)
    return [relative_error(a, peer.channels_last(b)) for a, b in zip(ours, theirs, strict=True)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["uneven", "residual"])
def test_logits_of_every_head_are_those_of_nnunets_network(name, form):
    config, patch = CASES[name]
    found = errors(config, patch, randomised(config), form=form)
    assert len(found) == len(config.features_per_stage) - 1
    assert max(found) < TOLERANCE, found


def multi_encoder_params(net, config, image):
    """Our tree with the weights of the peer's two-encoder network."""
    shapes = jax.eval_shape(MultiEncoderUNet(config, form="lax").init, jax.random.key(0), image)
    weights = {name: value.numpy() for name, value in net.state_dict().items()}
    params = {}
    for path in flatten_dict(shapes["params"], sep="/"):
        top, _, below = path.partition("/")
        part = "encoder" if top.endswith("encoder") else top
        name = nnunet_weights._v2_names(f"{part}/{below}", config)[0]
        # Its encoders and its decoder's layers lie at the top.
        name = name.replace("encoder.", f"{top}.", 1).removeprefix("decoder.")
        params[path] = nnunet_weights._from_torch(path, weights[name])
    return unflatten_dict(params, sep="/")


@pytest.mark.parametrize("name", ["uneven", "residual"])
def test_two_encoders_are_those_of_the_peers_twin(name):
    config, patch = CASES[name]
    net = peer.MultiEncoder(config)
    image = random_image(config, patch)
    with torch.no_grad():
        theirs = net(peer.channels_first(image))
    params = multi_encoder_params(net, config, image)
    ours = jax.jit(MultiEncoderUNet(config).apply)({"params": params}, image)
    for a, b in zip(ours, theirs, strict=True):
        assert relative_error(a, peer.channels_last(b)) < TOLERANCE


def test_a_patch_that_the_strides_do_not_divide_is_cropped():
    config, patch = CASES["odd patch"]
    assert max(errors(config, patch, randomised(config), peer.forward_cropped)) < TOLERANCE


@settings(max_examples=8, deadline=None)
@given(topologies(), st.integers(0, 2**31))
def test_logits_agree_for_any_topology(config, seed):
    patch = tuple(4 * math.prod(s) for s in zip(*config.strides, strict=True))
    assert max(errors(config, patch, randomised(config, seed), form="lax")) < TOLERANCE


@pytest.mark.parametrize("name", ["benchmark", "isotropic", "uneven", "residual"])
def test_a_state_dict_goes_there_and_back_bit_for_bit(name):
    config, _ = CASES[name]
    given_ = {k: v.numpy() for k, v in randomised(config).state_dict().items()}
    back = to_state_dict(to_params(given_, config), config)
    assert back.keys() == given_.keys()
    assert all(np.array_equal(back[k], given_[k]) for k in given_)


@pytest.mark.parametrize("name", ["uneven", "residual"])
def test_new_weights_are_drawn_from_the_same_distribution(name):
    """Mean and deviation of every kernel, in a network wide enough to tell."""
    config = dataclasses.replace(CASES[name][0], features_per_stage=(32, 48, 64, 64))
    image = (1, *CASES[name][1], config.in_channels)
    ours = to_state_dict(new_params(UNet(config, form="lax"), 0, image), config)
    for name, theirs in peer.network(config).state_dict().items():
        if theirs.ndim == 5:
            error = 5 / math.sqrt(2 * theirs.numel())  # five standard errors of a deviation
            assert ours[name].std() == pytest.approx(float(theirs.std()), rel=2 * error), name
            assert abs(ours[name].mean()) < 5 * ours[name].std() / math.sqrt(theirs.numel())
        else:
            assert np.array_equal(ours[name], theirs), name


def test_the_stored_golden_values_are_what_the_peer_gives():
    stored = json.loads(golden.NETWORKS.read_text())
    for name in CASES.keys() - {"version 1"}:
        live = golden.values(peer.network(CASES[name][0]), name)
        assert {k: list(v) for k, v in live["weights"].items()} == stored[name]["weights"]
        for a, b in zip(live["logits"], stored[name]["logits"], strict=True):
            assert relative_error(a, b) < 1e-10  # both in float64
