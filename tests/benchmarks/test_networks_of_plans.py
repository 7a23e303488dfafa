"""Benchmarks measure the network of any plan: several channels, regions, residual encoders."""

import dataclasses
import json
import math

import numpy as np
import pytest

from benchmarks.gpu import chosen, task_of
from benchmarks.harness.environment import network, of_plan
from benchmarks.harness.gpu_parts import DRY, Sheet, prediction, synthetic_cases
from benchmarks.harness.steps import dummy_batch, ours, sampler_of, theirs
from covid_jax.config import load_config_file, to_dict
from covid_jax.data.normalization import Normalization, ct
from covid_jax.data.plan import Plan, load_plan, save_plan
from covid_jax.data.planner import Topology
from covid_jax.errors import UserError
from covid_jax.label_space import LabelSpace
from covid_jax.training.platform import platform_of, with_dtype
from tests.conftest import ROOT, installed, tiny

NNUNET = f"{ROOT}/configs/nnunet.py"
TOPOLOGY = Topology(
    patch_size=(8, 16, 16),
    batch_size=2,
    features_per_stage=(4, 8),
    strides=((1, 1, 1), (2, 2, 2)),
    kernel_sizes=((1, 3, 3), (3, 3, 3)),
    n_conv_per_stage_decoder=(1,),
    n_blocks_per_stage=(1, 2),
    batch_dice=True,
)
REGIONS = LabelSpace(("whole", "core"), ((1, 2), (2,)), (1, 2))


@pytest.fixture
def folder(tmp_path):
    """A folder with the plan.json of a residual encoder of two channels, alone."""
    channels = (ct(-1000.0, 1000.0, 0.0, 1.0), Normalization("ZScoreNormalization"))
    plan = Plan((1.0, 1.0, 1.0), channels, (16, 32, 32), ("case",), topology=TOPOLOGY)
    save_plan(tmp_path / "plan.json", plan)
    return tmp_path


def at(folder, name="scratch", **changes):
    config = load_config_file(f"{NNUNET}:{name}")
    config.data.prepared_dir = str(folder) if folder else ""
    return dataclasses.replace(config, **changes)


def test_a_plan_json_alone_says_network_patch_batch_and_channels(folder):
    found = of_plan(at(folder))
    assert (found.data.patch_size, found.data.batch_size) == ((8, 16, 16), 2)
    assert (found.model.n_blocks_per_stage, found.model.in_channels) == ((1, 2), 2)
    assert found.loss.batch_dice
    assert network(found) == "residual encoder of 1 2 blocks, 4 8 features, 2 channels, 2 classes"


def test_classes_are_those_of_the_prepared_data(folder):
    (folder / "nnunet").mkdir()  # begun, and not complete
    with pytest.raises(UserError, match="no such file; run python -m"):
        of_plan(at(folder))
    description = {
        "labels": REGIONS.names,
        "regions": REGIONS.regions,
        "regions_class_order": REGIONS.regions_class_order,
        "splits": [],
        "synthetic": True,
        "plan": load_plan(folder / "plan.json").hash,
    }
    (folder / "nnunet" / "dataset.json").write_text(json.dumps(description))
    found = of_plan(at(folder))
    assert (found.model.num_classes, found.label_space) == (2, REGIONS)


def test_a_run_says_the_network_and_the_classes_where_no_folder_does(folder):
    before = dataclasses.replace(of_plan(at(folder)), label_space=REGIONS)
    (folder / "config.json").write_text(json.dumps(to_dict(before)))
    found = of_plan(at("", "body-mine", pretrained=str(folder)))
    assert (found.model, found.label_space) == (before.model, REGIONS)
    assert network(found).endswith("2 channels, 2 regions (whole, core)")


def test_a_network_that_nothing_says_is_one_line(tmp_path, refuses):
    line = refuses("benchmarks.epoch_time", f"--config={NNUNET}", f"--output={tmp_path}")
    assert "nothing says the network: give config.data.prepared_dir, a folder with plan" in line


def test_a_config_that_says_all_needs_no_plan():
    assert of_plan(tiny()) == tiny()


@pytest.fixture
def regions(folder):
    """The residual encoder with regions on this machine."""
    platform = platform_of("cpu")
    config = of_plan(at(folder))
    config = dataclasses.replace(config, label_space=REGIONS)
    config.model.num_classes = REGIONS.heads
    return with_dtype(config, platform), platform


def test_ours_and_pytorchs_take_steps_of_regions_and_several_channels(regions):
    installed("nnunetv2", extra="peers")
    installed("torch", extra="peers").manual_seed(0)
    assert dummy_batch(regions[0])["image"].shape == (2, 8, 16, 16, 2)
    own = float(ours(*regions).train()["loss"])
    (peer,) = theirs(*regions, layouts=["contiguous"])
    # Of other first weights: Dice of about a half of the voxels, and of chance.
    assert abs(own - peer.train()) < 0.5  # losses of about 1
    assert math.isfinite(peer.validate())


def test_the_parts_of_the_gpu_take_another_network(regions, tmp_path):
    installed("nnunetv2", extra="peers")
    scale = dataclasses.replace(DRY, config=regions[0], rounds=1)
    sheet = Sheet(tmp_path / "inference.json", "prediction", True, ("--config=FILE",))
    prediction(sheet, scale)
    content = json.loads(sheet.path.read_text())
    assert content["command"].endswith("--output=DIR --config=FILE --dry_run")
    assert {line["framework"] for line in content["results"]} == {"jax", "torch"}
    assert all(line["voxels_unlike_ours"] < 0.05 for line in content["results"])
    with pytest.raises(UserError, match="of other flags"):
        Sheet(sheet.path, "prediction", True).is_complete()
    cases = synthetic_cases(tmp_path / "cases", scale)
    batch = sampler_of(regions[0], cases, "training").batch(0)
    assert batch.image.shape[-1] == 2
    assert np.isin(batch.label, (0, 1)).all()


def test_a_part_in_a_process_of_its_own_is_given_the_config(tmp_path):
    given = [f"--config={NNUNET}", "--config.data.prepared_dir=DIR"]
    part = chosen("scratch", of_any=True)[0]
    assert task_of(part, tmp_path, True, given).command[-3:] == ("--dry_run", *given)
    own = {"paper's patch", "residual M beside PyTorch"}
    assert own == {part.name for part in chosen("", False)} - {
        part.name for part in chosen("", True)
    }
