"""One step for any mesh: every strategy is trained alike on 1 and on 8 virtual devices."""

import json
import subprocess
import sys

import pytest

from covid_jax.transfer.strategies import STRATEGIES
from tests.conftest import ROOT, SMALL_NETWORK

MESHES = ("2 x 1", "1 x 2", "2 x 2", "2 x 4")


def compared(folder, *arguments):
    """The lines that benchmarks.meshes writes."""
    command = [sys.executable, "-m", "benchmarks.meshes", "--config=configs/tiny.py"]
    command += ["--config.data.patch_size=8,16,16", f"--output={folder}"]
    subprocess.run([*command, *SMALL_NETWORK, *arguments], cwd=ROOT, check=True)
    return json.loads((folder / "meshes.json").read_text())["results"]


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    found = compared(
        tmp_path_factory.mktemp("meshes"), "--dtypes=float32", "--config.data.augment=false"
    )
    return {(line["strategy"], line["mesh"]): line for line in found}


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ten_steps_on_a_mesh_give_the_parameters_of_one_device(lines, strategy, mesh):
    assert lines[strategy, mesh]["difference_of_leaf"] < 1e-5


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_slabs_exchange_halos_and_no_activation_is_gathered(lines, strategy, mesh):
    collectives = lines[strategy, mesh]["collectives"]
    assert set(collectives) <= {"collective-permute", "all-reduce"}
    assert ("collective-permute" in collectives) == (not mesh.endswith("x 1"))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_device_holds_less_the_more_the_depth_is_cut(lines, strategy):
    one, two, four, eight = (
        lines[strategy, mesh]["peak_bytes"] for mesh in ("1 x 1", "1 x 2", "2 x 2", "2 x 4")
    )
    assert two < 0.65 * one
    assert four < 0.65 * two
    assert eight < 0.75 * four  # of it the parameters are more and more, which all devices hold


def test_an_augmented_batch_is_the_same_on_every_mesh(tmp_path):
    """In float64, where no rounding hides a fault: cut along the depth, it once was not."""
    *_, last = compared(
        tmp_path, "--strategies=scratch", "--meshes=2x2", "--dtypes=float64", "--steps=5"
    )
    assert last["mesh"] == "2 x 2"
    assert last["difference_of_leaf"] < 1e-12
