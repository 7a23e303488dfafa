"""nnU-Net's weights in our network: stored values of its own networks, and what is refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from benchmarks.harness.golden import (
    CASES,
    NETWORKS,
    UNEVEN,
    VERSION_1,
    random_image,
    stored_weights,
)
from covid_jax.errors import UserError
from covid_jax.model.nnunet_weights import to_params, to_state_dict
from covid_jax.model.unet import UNet
from tests.networks import relative_error, sampled

GOLDEN = json.loads(NETWORKS.read_text())


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_that_nnunets_own_network_gave(name):
    config, patch = CASES[name]
    params = to_params(stored_weights(name), config)
    ours = jax.jit(UNet(config).apply)({"params": params}, random_image(config, patch))
    assert len(ours) == len(GOLDEN[name]["logits"])
    for head, theirs in zip(ours, GOLDEN[name]["logits"], strict=True):
        assert relative_error(sampled(head), np.array(theirs)) < 1e-4


def test_every_missing_and_every_unknown_name_is_listed():
    weights = stored_weights("uneven")
    for name in ("encoder.stages.0.0.convs.0.conv.weight", "decoder.seg_layers.2.bias"):
        weights[name + ".old"] = weights.pop(name)
    with pytest.raises(UserError) as error:
        to_params(weights, UNEVEN)
    message = str(error.value)
    missing, unknown = message.split("not known:")
    assert "encoder.stages.0.0.convs.0.conv.weight" in missing
    assert "decoder.seg_layers.2.bias" in missing
    assert "encoder.stages.0.0.convs.0.conv.weight.old" in unknown
    assert "decoder.seg_layers.2.bias.old" in unknown


def test_a_shape_that_differs_names_the_path_and_both_shapes():
    wider = dataclasses.replace(UNEVEN, features_per_stage=(5, *UNEVEN.features_per_stage[1:]))
    with pytest.raises(
        UserError, match=r"stage_0/block_0/.* is \(5,\) in the config and \(6,\) there"
    ):
        to_params(stored_weights("uneven"), wider)


def test_weights_of_other_labels_say_so():
    config = dataclasses.replace(UNEVEN, num_classes=3)
    with pytest.raises(UserError, match=r"weights are of 4 classes .* and the labels of 3"):
        to_params(stored_weights("uneven"), config)


def test_two_names_of_one_weight_must_agree():
    state_dict = to_state_dict(to_params(stored_weights("uneven"), UNEVEN), UNEVEN)
    name = "decoder.encoder.stages.0.0.convs.0.conv.weight"
    state_dict[name] = state_dict[name] + 1
    with pytest.raises(UserError, match="different values"):
        to_params(state_dict, UNEVEN)


def test_names_from_compiled_and_distributed_training_are_read():
    weights = {
        f"module._orig_mod.{name}": value for name, value in stored_weights("uneven").items()
    }
    to_params(weights, UNEVEN)


def test_version_1_without_its_decoders_kernels_becomes_version_2_with_biases_of_zero():
    plain = dataclasses.replace(UNEVEN, head_bias=False)
    params = to_params(stored_weights("uneven"), UNEVEN)
    for part in (*params["heads"].values(), *(s["up"] for s in params["decoder"].values())):
        del part["bias"]
    state_dict = to_state_dict(params, plain)
    assert not state_dict["decoder.seg_layers.0.bias"].any()
    assert state_dict["decoder.transpconvs.1.bias"].shape == (10,)


def test_a_network_that_version_2_does_not_have_is_refused():
    params = to_params(stored_weights("version 1"), VERSION_1)
    with pytest.raises(UserError, match="kernel_sizes_decoder"):
        to_state_dict(params, VERSION_1)
    params = to_params(stored_weights("uneven"), UNEVEN)
    with pytest.raises(UserError, match="self_encoder"):
        to_state_dict({**params, "self_encoder": params["encoder"]}, UNEVEN)
