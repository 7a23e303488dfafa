"""The networks: topology, parameter paths, sizes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covid_jax.config import UNetConfig
from covid_jax.model.unet import MultiEncoderUNet, UNet
from covid_jax.training.state import new_params
from covid_jax.transfer.freezing import leaf_paths
from tests.conftest import FORMS

SMALL = UNetConfig(
    in_channels=2,
    num_classes=3,
    features_per_stage=(4, 6, 8),
    kernel_sizes=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
    n_conv_per_stage=(2, 1, 3),
    n_conv_per_stage_decoder=(1, 2),
)


def shapes_of(network, size, channels=1):
    image = jnp.zeros((1, *size, channels))
    return jax.eval_shape(lambda: network.init(jax.random.key(0), image))["params"]


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_the_benchmarks_network_has_its_number_of_parameters():
    params = shapes_of(UNet(UNetConfig()), (56, 160, 192))
    assert count(params["encoder"]) / 1e6 == pytest.approx(14.0, abs=0.05)
    assert count(params["decoder"]) / 1e6 == pytest.approx(16.7, abs=0.05)
    double = shapes_of(MultiEncoderUNet(UNetConfig()), (56, 160, 192))
    assert count(double["decoder"]) / 1e6 == pytest.approx(22.2, abs=0.5)


def test_paths_name_part_stage_and_block():
    paths = leaf_paths(shapes_of(UNet(SMALL), (4, 8, 8), 2))
    assert "encoder/stage_2/block_2/conv/kernel" in paths
    assert "encoder/stage_0/block_0/norm/scale" in paths
    assert "decoder/stage_1/up/kernel" in paths
    assert "decoder/stage_0/block_0/conv/bias" in paths
    assert "heads/stage_0/kernel" in paths
    assert {path.split("/")[0] for path in paths} == {"encoder", "decoder", "heads"}


def test_two_encoders_have_subtrees_of_their_own():
    params = shapes_of(MultiEncoderUNet(SMALL), (4, 8, 8), 2)
    assert set(params) == {"self_encoder", "adapted_encoder", "decoder", "heads"}
    assert jax.tree.structure(params["self_encoder"]) == jax.tree.structure(
        shapes_of(UNet(SMALL), (4, 8, 8), 2)["encoder"]
    )


@pytest.mark.parametrize("network", [UNet, MultiEncoderUNet])
@pytest.mark.parametrize("size", [(4, 8, 8), (5, 9, 11), (1, 4, 4)])
def test_logits_have_the_size_of_each_stage_even_where_sizes_are_odd(network, size):
    image = jnp.ones((2, *size, 2))
    params = {"params": new_params(network(SMALL, form="lax"), 0, image.shape)}
    full, half = network(SMALL, form="lax").apply(params, image)
    assert full.shape == (2, *size, 3)
    assert half.shape == (2, size[0], -(-size[1] // 2), -(-size[2] // 2), 3)


def test_without_deep_supervision_there_is_one_head():
    config = dataclasses.replace(SMALL, deep_supervision=False)
    image = jnp.ones((1, 4, 8, 8, 2))
    variables = {"params": new_params(UNet(config, form="lax"), 0, image.shape)}
    assert len(UNet(config, form="lax").apply(variables, image)) == 1
    assert set(variables["params"]["heads"]) == {"stage_0"}


def test_version_1_has_no_bias_in_heads_and_upsampling():
    params = shapes_of(UNet(dataclasses.replace(SMALL, head_bias=False)), (4, 8, 8), 2)
    assert set(params["heads"]["stage_0"]) == {"kernel"}
    assert set(params["decoder"]["stage_0"]["up"]) == {"kernel"}
    assert set(params["encoder"]["stage_0"]["block_0"]["conv"]) == {"kernel", "bias"}


@pytest.mark.parametrize("form", FORMS[1:])
def test_the_form_of_the_convolutions_does_not_change_the_numbers(form):
    image = jax.random.normal(jax.random.key(1), (1, 6, 12, 12, 2))
    variables = {"params": new_params(UNet(SMALL), 0, image.shape)}
    ours = jax.jit(UNet(SMALL, form=form).apply)(variables, image)
    theirs = jax.jit(UNet(SMALL, form="lax").apply)(variables, image)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_parameters_and_logits_are_float32_in_bfloat16_too():
    image = jnp.ones((1, 4, 8, 8, 2))
    network = UNet(SMALL, jnp.dtype("bfloat16"), "lax")
    variables = {"params": new_params(network, 0, image.shape)}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert all(logits.dtype == jnp.float32 for logits in network.apply(variables, image))


def test_kernels_start_he_normal_for_the_leaky_slope():
    config = dataclasses.replace(SMALL, features_per_stage=(4, 6, 32))
    params = new_params(UNet(config, form="lax"), 0, (1, 4, 8, 8, 2))
    block = params["encoder"]["stage_2"]["block_1"]["conv"]
    assert block["kernel"].std() == pytest.approx((2 / (1 + 0.01**2) / (27 * 32)) ** 0.5, rel=0.02)
    assert not block["bias"].any()
    # torch counts the fan in of a transposed convolution over its output features.
    up = params["decoder"]["stage_1"]["up"]["kernel"]
    assert up.shape == (2, 2, 2, 32, 6)
    assert up.std() == pytest.approx((2 / (1 + 0.01**2) / (8 * 6)) ** 0.5, rel=0.1)


@pytest.mark.parametrize("network", [UNet, MultiEncoderUNet])
def test_rematerialisation_adds_a_forward_pass_and_changes_no_number(network):
    image = jax.random.normal(jax.random.key(1), (1, 8, 32, 32, 2))
    params = new_params(network(SMALL), 0, image.shape)

    def lowered(remat):
        def loss(params):
            heads = network(SMALL, form="lax", remat=remat).apply({"params": params}, image)
            return sum((head**2).mean() for head in heads)

        return jax.jit(jax.grad(loss)).lower(params)

    plain, again = lowered(remat=False), lowered(remat=True)
    gradients = [jax.tree.leaves(one.compile()(params)) for one in (plain, again)]
    for a, b in zip(*gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    # Of three passes one is done twice, but for the heads and what no gradient needs.
    work = again.cost_analysis()["flops"] / plain.cost_analysis()["flops"]
    assert 1.2 < work < 1.4
