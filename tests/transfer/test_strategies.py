"""The five strategies: what each takes over, and what it freezes."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from covid_jax.config import STRATEGY_NAMES, Config
from covid_jax.errors import UserError
from covid_jax.model.unet import UNet
from covid_jax.training.state import new_params as new_params_of
from covid_jax.transfer.freezing import mask
from covid_jax.transfer.strategies import (
    STRATEGIES,
    frozen_patterns,
    initial_params,
    origins,
)
from tests.conftest import tiny
from tests.networks import assert_near

MODEL = tiny().model
IMAGE = (1, 4, 8, 8, 1)


@functools.cache
def new_params(name, features=MODEL.features_per_stage):
    model = dataclasses.replace(MODEL, features_per_stage=features)
    return new_params_of(STRATEGIES[name].network(model, form="lax"), 0, IMAGE)


@pytest.fixture(scope="module")
def pretrained():
    model = dataclasses.replace(MODEL, num_classes=4)
    return new_params_of(UNet(model, form="lax"), 9, IMAGE)


def same(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def test_there_are_the_papers_five():
    assert tuple(STRATEGIES) == STRATEGY_NAMES


def test_scratch_takes_nothing(pretrained):
    new = new_params("scratch")
    assert initial_params(STRATEGIES["scratch"], new, None) is new
    with pytest.raises(UserError, match=r"config\.pretrained is given, and .* starts from nothing"):
        initial_params(STRATEGIES["scratch"], new, pretrained)


@pytest.mark.parametrize("name", ["continual", "body", "frozen_encoder"])
def test_encoder_and_decoder_are_copied_and_heads_are_new(name, pretrained):
    new = new_params(name)
    params = initial_params(STRATEGIES[name], new, pretrained)
    assert same(params["encoder"], pretrained["encoder"])
    assert same(params["decoder"], pretrained["decoder"])
    assert same(params["heads"], new["heads"])


def test_both_encoders_of_multi_encoder_start_from_the_pretrained_one(pretrained):
    new = new_params("multi_encoder")
    params = initial_params(STRATEGIES["multi_encoder"], new, pretrained)
    assert same(params["self_encoder"], pretrained["encoder"])
    assert same(params["adapted_encoder"], pretrained["encoder"])
    assert same(params["decoder"], new["decoder"])


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("scratch", None),
        ("continual", None),
        ("body", None),
        ("frozen_encoder", "encoder"),
        ("multi_encoder", "adapted_encoder"),
    ],
)
def test_what_is_frozen_is_one_encoder_or_nothing(name, part):
    held = mask(new_params(name), STRATEGIES[name].frozen)
    for top, subtree in held.items():
        assert set(jax.tree.leaves(subtree)) == {top == part}


def test_a_missing_pretrained_run_is_one_line():
    with pytest.raises(UserError, match=r"config\.pretrained is empty"):
        initial_params(STRATEGIES["body"], new_params("body"), None)


def test_another_network_is_refused_with_path_and_both_shapes():
    message = r"decoder/stage_1/up/kernel is \(2, 2, 2, 16, 8\) here and \(2, 2, 2, 64, 8\) there"
    with pytest.raises(UserError, match=message):
        initial_params(STRATEGIES["body"], new_params("body"), new_params("scratch", (4, 8, 64)))


@pytest.fixture(scope="module")
def of_two_channels():
    model = dataclasses.replace(MODEL, in_channels=2)
    return {
        name: new_params_of(STRATEGIES[name].network(model, form="lax"), 0, (*IMAGE[:-1], 2))
        for name in ("body", "multi_encoder")
    }


FIRST = "stage_0", "block_0", "conv", "kernel"


def first(encoder):
    return functools.reduce(dict.__getitem__, FIRST, encoder)


@pytest.mark.parametrize("how", ["repeat", "mean", "new"])
@pytest.mark.parametrize("name", ["body", "multi_encoder"])
def test_a_first_convolution_is_taken_from_other_channels_as_told(
    pretrained, of_two_channels, name, how
):
    new = of_two_channels[name]
    with pytest.raises(UserError, match=r"sees 1 channels, and the data has 2: .*first_conv="):
        initial_params(STRATEGIES[name], new, pretrained)
    params = initial_params(STRATEGIES[name], new, pretrained, how)
    for top in STRATEGIES[name].initial.keys() - {"decoder"}:
        theirs = first(pretrained["encoder"])
        expected = np.repeat(theirs / 2, 2, axis=-2)
        expected = first(new[next(iter(STRATEGIES[name].initial))]) if how == "new" else expected
        np.testing.assert_allclose(first(params[top]), expected, rtol=1e-6)
        rest = flatten_dict(params[top]).keys() - {FIRST}
        assert all(
            np.array_equal(flatten_dict(params[top])[k], flatten_dict(pretrained["encoder"])[k])
            for k in rest
        )
    with pytest.raises(UserError, match=rf"first_conv={how}: .* sees as many channels"):
        initial_params(STRATEGIES["body"], new_params("body"), pretrained, how)


def test_fewer_channels_take_the_mean_or_the_first_of_more(of_two_channels):
    more, new = of_two_channels["body"], new_params("body")
    kernel = np.asarray(first(more["encoder"]))
    mean, repeated = kernel.sum(-2, keepdims=True), 2 * kernel[..., :1, :]
    for how, expected in (("mean", mean), ("repeat", repeated)):
        found = initial_params(STRATEGIES["body"], new, more, how)
        assert_near(first(found["encoder"]), expected, 1e-6)


def without(tree, path):
    """The tree less the leaf at `path`."""
    leaves = flatten_dict(tree, sep="/")
    del leaves[path]
    return unflatten_dict(leaves, sep="/")


def test_no_leaf_may_be_missing_or_left_over(pretrained):
    """Nothing is taken over in part, and nothing falls back to new values in silence."""
    path = "encoder/stage_1/block_0/norm/scale"
    new = new_params("body")
    with pytest.raises(UserError, match=rf"{path} is \(8,\) here and missing there"):
        initial_params(STRATEGIES["body"], new, without(pretrained, path))
    with pytest.raises(UserError, match=rf"{path} is missing here and \(8,\) there"):
        initial_params(STRATEGIES["body"], without(new, path), pretrained)


def test_every_leaf_has_an_origin_or_is_new():
    found = origins(STRATEGIES["multi_encoder"], new_params("multi_encoder"))
    assert found["adapted_encoder/stage_0/block_0/conv/kernel"] == (
        "encoder/stage_0/block_0/conv/kernel"
    )
    assert found["self_encoder/stage_2/block_0/norm/bias"] == "encoder/stage_2/block_0/norm/bias"
    new = {path.split("/")[0] for path, origin in found.items() if origin is None}
    assert new == {"decoder", "heads"}


def test_a_schedule_of_freezing_is_by_its_epochs_in_whatever_order_it_is_written():
    config = Config(frozen_schedule=((10, "!encoder"), (0, "encoder")))
    assert frozen_patterns(config) == {0: ("encoder",), 10: ("encoder", "!encoder")}
