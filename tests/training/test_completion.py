"""What a config leaves open is the data's, and that of the network which it starts from."""

import dataclasses
import json

import pytest

from covid_jax.config import InferenceConfig, LossConfig, load_config_file
from covid_jax.data.normalization import ct
from covid_jax.data.plan import Plan, load_plan, save_plan
from covid_jax.data.planner import Topology, topology_of
from covid_jax.data.store import StoredDataset
from covid_jax.errors import UserError
from covid_jax.label_space import LabelSpace
from covid_jax.training.completion import fitted, network_notes, planned
from covid_jax.training.workdir import claim_workdir
from tests.conftest import ROOT, tiny

PLAN = Plan((2.0, 1.0, 1.0), (ct(-900.0, 300.0, -400.0, 350.0),), (40, 60, 60), ())


def test_other_classes_and_channels_than_the_datas_are_refused(tmp_path):
    data = [StoredDataset("one", tmp_path, LabelSpace(("a", "b")), (), True)]
    assert fitted(tiny(), PLAN, data).model.num_classes == 3
    several = dataclasses.replace(PLAN, normalization=PLAN.normalization * 2)
    assert fitted(tiny(), several, data).model.in_channels == 2
    for name, value, held in (("num_classes", 5, 3), ("in_channels", 4, 2)):
        asked = tiny(model=dataclasses.replace(tiny().model, **{name: value}))
        with pytest.raises(UserError, match=rf"{name}={value}: the data has {held}"):
            fitted(asked, several, data)


def test_what_a_config_leaves_empty_is_the_plans_and_what_it_has_wins(tmp_path):
    data = [StoredDataset("one", tmp_path, LabelSpace(("a",)), (), True)]
    topology = Topology(
        patch_size=(8, 16, 24),
        batch_size=5,
        features_per_stage=(4, 8),
        strides=((1, 1, 1), (1, 2, 2)),
        kernel_sizes=((1, 3, 3), (3, 3, 3)),
        n_conv_per_stage_decoder=(1,),
        n_blocks_per_stage=(1, 2),
        batch_dice=True,
    )
    config = load_config_file(f"{ROOT}/configs/nnunet.py")
    with pytest.raises(UserError, match=r"plan\.json plans no network: prepare with --planner"):
        fitted(config, PLAN, data)
    plan = dataclasses.replace(PLAN, topology=topology)
    found = fitted(config, plan, data)
    assert found.model.n_blocks_per_stage == (1, 2)
    assert found.model.n_conv_per_stage == ()
    assert (found.data.patch_size, found.data.batch_size) == ((8, 16, 24), 5)
    assert found.loss.batch_dice
    wins = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=2))
    assert fitted(wins, plan, data).data.batch_size == 2
    assert fitted(wins, plan, data).data.patch_size == (8, 16, 24)
    odd = dataclasses.replace(config.data, patch_size=(8, 15, 24))
    none = dataclasses.replace(config.data, batch_size=-1)
    for wrong, told in (
        (odd, r"multiples of \(1, 2, 2"),
        (none, r"batch_size=-1: must be greater"),
    ):
        with pytest.raises(UserError, match=told):
            fitted(dataclasses.replace(config, data=wrong), plan, data)
    apart = dataclasses.replace(config, loss=LossConfig(batch_dice=False))
    assert not fitted(apart, plan, data).loss.batch_dice
    three = dataclasses.replace(config.model, features_per_stage=(4, 8, 16))
    with pytest.raises(UserError, match=r"config\.model\.\w+=.*must have 3"):
        fitted(dataclasses.replace(config, model=three), plan, data)
    assert fitted(tiny(), plan, data).model.features_per_stage == tiny().model.features_per_stage


def test_whose_a_network_is_is_told_where_a_plan_has_a_part_in_it():
    config = load_config_file(f"{ROOT}/configs/nnunet.py")
    wins = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=2))
    by_plan, by_config = network_notes(wins)
    assert by_plan.startswith("by plan.json: model.features_per_stage, ")
    assert by_config == "by the config: data.batch_size"
    started = dataclasses.replace(config, pretrained="runs/imported")
    (by_pretraining,) = network_notes(started)
    assert by_pretraining.startswith("by runs/imported: ")
    assert network_notes(tiny()) == []
    with pytest.raises(UserError, match=r"nothing says the network: give config\.data\."):
        planned(config, None)


def test_what_a_config_leaves_empty_is_its_pretrainings_network(tmp_path):
    """With its biases and norms, which no plan has; channels and classes are the data's."""
    of_version_1 = dataclasses.replace(
        tiny().model, head_bias=False, negative_slope=0.2, num_classes=25, in_channels=3
    )
    claim_workdir(tmp_path, tiny(model=of_version_1), PLAN)
    data = [StoredDataset("one", tmp_path, LabelSpace(("a",)), (), True)]
    config = load_config_file(f"{ROOT}/configs/nnunet.py:body-mine")
    config = dataclasses.replace(config, pretrained=str(tmp_path))
    found = fitted(config, PLAN, data)
    assert found.model == dataclasses.replace(of_version_1, num_classes=2, in_channels=1)
    assert found.data.patch_size == tiny().data.patch_size
    own = dataclasses.replace(config.model, strides=((1, 1, 1),) * 3, negative_slope=0.5)
    model = fitted(dataclasses.replace(config, model=own), PLAN, data).model
    assert (model.strides, model.negative_slope) == (own.strides, 0.5)
    assert model.kernel_sizes == of_version_1.kernel_sizes


def test_a_plan_has_what_its_network_has_otherwise_than_those_that_are_planned(tmp_path):
    """So a run that starts from nothing has the network of the plan that was taken over."""
    model = dataclasses.replace(tiny().model, head_bias=False, negative_slope=0.2)
    plan = dataclasses.replace(PLAN, topology=topology_of(tiny(model=model)))
    save_plan(tmp_path / "plan.json", plan)
    assert load_plan(tmp_path / "plan.json") == plan
    config = load_config_file(f"{ROOT}/configs/nnunet.py")
    assert planned(config, plan).model == model
    usual = dataclasses.replace(PLAN, topology=topology_of(tiny()))
    save_plan(tmp_path / "plan.json", usual)
    assert (
        not {"head_bias", "negative_slope"}
        & json.loads((tmp_path / "plan.json").read_text()).keys()
    )


@pytest.mark.parametrize(
    ("before", "asked", "axes"),
    [((), (0, 1, 2), ()), ((0, 1), (0, 1, 2), (0, 1)), ((0, 1, 2), (2,), (2,))],
)
def test_fine_tuning_mirrors_along_no_axis_that_its_pretraining_did_not(
    tmp_path, before, asked, axes
):
    """As TotalSegmentator's, whose left and right organs have labels of their own."""
    claim_workdir(tmp_path, tiny(inference=InferenceConfig(mirror_axes=before)), PLAN)
    config = load_config_file(f"{ROOT}/configs/nnunet.py:body-mine")
    inference = dataclasses.replace(config.inference, mirror_axes=asked)
    config = dataclasses.replace(config, pretrained=str(tmp_path), inference=inference)
    found = planned(config, PLAN).inference
    assert (found.mirror_axes, found.mirror) == (axes, bool(axes))
