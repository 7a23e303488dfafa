"""The networks: topology, parameter paths, sizes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covid_jax.config import UNetConfig
from covid_jax.model.unet import MultiEncoderUNet, ResidualBlock, UNet, average_pool
from covid_jax.training.state import new_params
from covid_jax.transfer.freezing import leaf_paths
from tests.conftest import FORMS
from tests.networks import COMPILED_SOON, assert_near

SMALL = UNetConfig(
    in_channels=2,
    num_classes=3,
    features_per_stage=(4, 6, 8),
    kernel_sizes=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
    n_conv_per_stage=(2, 1, 3),
    n_conv_per_stage_decoder=(1, 2),
)

RESIDUAL = dataclasses.replace(SMALL, n_conv_per_stage=(), n_blocks_per_stage=(1, 2, 1))
NETWORKS = pytest.mark.parametrize("model", [SMALL, RESIDUAL], ids=["plain", "residual"])


def params_of(network, model):
    """The first parameters, which do not depend on the image's size: one program draws them."""
    return new_params(network(model), 0, (1, 4, 8, 8, model.in_channels))


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


def test_paths_of_a_residual_encoder_name_the_places_in_its_blocks():
    params = shapes_of(UNet(RESIDUAL), (4, 8, 8), 2)
    paths = leaf_paths(params)
    assert "encoder/stem/norm/scale" in paths
    assert "encoder/stage_1/block_1/conv2/conv/kernel" in paths
    assert "encoder/stage_1/block_0/skip/norm/bias" in paths
    assert "decoder/stage_0/block_0/conv/bias" in paths
    # Features do not change in the first stage, nor in a block that is not the first.
    assert not any("skip" in path for path in paths if "stage_0" in path or "block_1" in path)
    # nnU-Net's projection has no bias.
    assert set(params["encoder"]["stage_1"]["block_0"]["skip"]["conv"]) == {"kernel"}


def test_a_residual_block_starts_as_its_input():
    block = ResidualBlock(RESIDUAL, 3, (3, 3, 3), (1, 1, 1), jnp.float32, "lax")
    x = jax.random.normal(jax.random.key(1), (1, 4, 4, 4, 3))
    variables = jax.jit(block.init)(jax.random.key(0), x)
    found = jax.jit(block.apply)(variables, x)
    np.testing.assert_array_equal(found, jnp.where(x > 0, x, 0.01 * x))


def test_pooling_averages_the_voxels_that_are_there():
    x = jnp.arange(5.0).reshape(1, 5, 1, 1, 1) + jnp.arange(3.0).reshape(1, 1, 1, 3, 1)
    pooled = average_pool(x, (2, 1, 2))
    np.testing.assert_allclose(pooled[0, :, 0, :, 0], [[1, 2.5], [3, 4.5], [4.5, 6]])
    assert average_pool(x, (1, 1, 1)) is x


def test_two_encoders_have_subtrees_of_their_own():
    params = shapes_of(MultiEncoderUNet(SMALL), (4, 8, 8), 2)
    assert set(params) == {"self_encoder", "adapted_encoder", "decoder", "heads"}
    assert jax.tree.structure(params["self_encoder"]) == jax.tree.structure(
        shapes_of(UNet(SMALL), (4, 8, 8), 2)["encoder"]
    )


@NETWORKS
@pytest.mark.parametrize("network", [UNet, MultiEncoderUNet])
@pytest.mark.parametrize("size", [(4, 8, 8), (5, 9, 11), (1, 4, 4)])
def test_logits_have_the_size_of_each_stage_even_where_sizes_are_odd(network, size, model):
    image = jax.ShapeDtypeStruct((2, *size, 2), jnp.float32)
    (full, half), _ = jax.eval_shape(
        network(model, form="lax").init_with_output, jax.random.key(0), image
    )
    assert full.shape == (2, *size, 3)
    assert half.shape == (2, size[0], -(-size[1] // 2), -(-size[2] // 2), 3)


def test_without_deep_supervision_there_is_one_head():
    config = dataclasses.replace(SMALL, deep_supervision=False)
    image, network = jnp.ones((1, 4, 8, 8, 2)), UNet(config, form="lax")
    logits, variables = jax.eval_shape(network.init_with_output, jax.random.key(0), image)
    assert len(logits) == 1
    assert set(variables["params"]["heads"]) == {"stage_0"}


def test_version_1_has_no_bias_in_heads_and_upsampling():
    params = shapes_of(UNet(dataclasses.replace(SMALL, head_bias=False)), (4, 8, 8), 2)
    assert set(params["heads"]["stage_0"]) == {"kernel"}
    assert set(params["decoder"]["stage_0"]["up"]) == {"kernel"}
    assert set(params["encoder"]["stage_0"]["block_0"]["conv"]) == {"kernel", "bias"}


@functools.cache
def logits_of(model, form):
    image = jax.random.normal(jax.random.key(1), (1, 6, 12, 12, 2))
    apply = jax.jit(UNet(model, form=form).apply, compiler_options=COMPILED_SOON)
    return apply({"params": params_of(UNet, model)}, image)


@NETWORKS
@pytest.mark.parametrize("form", FORMS[1:])
def test_the_form_of_the_convolutions_does_not_change_the_numbers(form, model):
    for a, b in zip(logits_of(model, form), logits_of(model, "lax"), strict=True):
        assert_near(a, b, 1e-4)  # as beside PyTorch's


@NETWORKS
def test_parameters_and_logits_are_float32_in_bfloat16_too(model):
    image = jnp.ones((1, 4, 8, 8, 2))
    network = UNet(model, jnp.dtype("bfloat16"), "lax")
    params = new_params(network, 0, image.shape)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    logits = jax.jit(network.apply, compiler_options=COMPILED_SOON)({"params": params}, image)
    assert all(each.dtype == jnp.float32 for each in logits)


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


@pytest.mark.parametrize(
    ("network", "model"), [(UNet, SMALL), (MultiEncoderUNet, SMALL), (UNet, RESIDUAL)]
)
def test_rematerialisation_adds_a_forward_pass_and_changes_no_number(network, model):
    image = np.random.default_rng(1).normal(size=(1, 8, 32, 32, 2))
    params = jax.tree.map(lambda leaf: np.asarray(leaf, float), params_of(network, model))

    def lowered(remat):
        def loss(params):
            wide = network(model, jnp.dtype("float64"), "lax", remat=remat)
            return sum((head**2).mean() for head in wide.apply({"params": params}, image))

        return jax.jit(jax.grad(loss)).lower(params)

    with jax.enable_x64(True):
        plain, again = lowered(remat=False), lowered(remat=True)
        gradients = [jax.tree.leaves(one.compile(COMPILED_SOON)(params)) for one in (plain, again)]
        for a, b in zip(*gradients, strict=True):
            assert_near(a, b, 1e-10)
    # Of three passes one is done twice, but for the heads and what no gradient needs.
    work = again.cost_analysis()["flops"] / plain.cost_analysis()["flops"]
    assert 1.2 < work < 1.4
