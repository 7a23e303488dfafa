"""The list of a network's convolutions, which is what the network is."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings

from benchmarks.harness.golden import BENCHMARK, CASES, RESIDUAL
from covid_jax.model.layers import layers
from covid_jax.model.unet import MultiEncoderUNet, UNet
from covid_jax.transfer.freezing import leaves_by_path
from tests.networks import topologies


def params_of(network):
    image = jax.ShapeDtypeStruct((1, 8, 8, 8, network.config.in_channels), jnp.float32)
    tree = jax.eval_shape(network.init, jax.random.key(0), image)["params"]
    return leaves_by_path(tree)


def assert_lists(network):
    """That every parameter is of one layer, and has its shape."""
    listed = layers(network.config, network.encoders)
    params = params_of(network)
    assert sum(layer.holds(path) for layer in listed for path in params) == len(params)
    for layer in listed:
        channels = sum(one.channels for one in layer.inputs)
        shape = params[f"{layer.path}/kernel"].shape
        assert shape == (*layer.kernel_size, channels, layer.features), layer
        if layer.norm:
            assert params[f"{layer.norm}/scale"].shape == (layer.features,)


@pytest.mark.parametrize("kind", [UNet, MultiEncoderUNet])
@pytest.mark.parametrize("name", CASES)
def test_every_parameter_is_in_the_list(name, kind):
    assert_lists(kind(CASES[name][0]))


@settings(max_examples=6, deadline=None)
@given(topologies())
def test_every_parameter_of_any_topology_is_in_the_list(config):
    assert_lists(UNet(config))


@pytest.mark.parametrize("model", [BENCHMARK, RESIDUAL])
def test_a_layer_comes_after_its_inputs(model):
    seen: set[str] = set()
    for layer in layers(model, ("self_encoder", "adapted_encoder")):
        assert {path for one in layer.inputs for path in one.sources} <= seen
        seen.add(layer.path)


def test_a_sum_has_the_outputs_that_were_added_as_its_sources():
    """Of a block without a projection: those of its input, and its last convolution."""
    listed = {layer.path: layer for layer in layers(RESIDUAL)}
    block = "encoder/stage_1/block_0"
    (below,) = listed["encoder/stage_1/block_1/conv1/conv"].inputs
    assert set(below.sources) == {f"{block}/conv2/conv", f"{block}/skip/conv"}
    (pooled,) = listed["encoder/stage_2/block_1/conv1/conv"].inputs
    assert set(below.sources) < set(pooled.sources)
    assert "encoder/stage_2/block_0/skip/conv" not in listed


def test_without_deep_supervision_there_is_the_full_head_alone():
    model = dataclasses.replace(RESIDUAL, deep_supervision=False)
    assert [layer.path for layer in layers(model) if layer.top == "heads"] == ["heads/stage_0"]
