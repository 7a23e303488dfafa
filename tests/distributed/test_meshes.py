"""One step for any mesh: every strategy is trained alike on 1 and on 8 virtual devices."""

import json
import os
import subprocess
import sys

import pytest

from covid_jax.transfer.strategies import STRATEGIES
from tests.conftest import ROOT, SMALL_NETWORK
from tests.networks import SOON_IN_A_PROCESS

MESHES = ("2 x 1", "1 x 2", "2 x 2", "2 x 4")


def compared(folder, strategy, *arguments):
    """The lines that benchmarks.meshes writes, by mesh."""
    command = [sys.executable, "-m", "benchmarks.meshes", "--config=configs/tiny.py"]
    command += ["--config.data.patch_size=8,16,16", f"--strategies={strategy}"]
    command += [f"--output={folder}", *SMALL_NETWORK, *arguments]
    environment = {**os.environ, "XLA_FLAGS": SOON_IN_A_PROCESS}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    found = json.loads((folder / "meshes.json").read_text())["results"]
    return {line["mesh"]: line for line in found}


@pytest.fixture(
    scope="module",
    params=[
        name if name == "scratch" else pytest.param(name, marks=pytest.mark.slow)
        for name in STRATEGIES
    ],
)
def lines(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("meshes")
    return compared(folder, request.param, "--dtypes=float64", "--config.data.augment=false")


@pytest.mark.parametrize("mesh", MESHES)
def test_ten_steps_on_a_mesh_give_the_parameters_of_one_device(lines, mesh):
    """In float64, where no rounding hides a fault."""
    assert lines[mesh]["difference_of_leaf"] < 1e-10


@pytest.mark.parametrize("mesh", MESHES)
def test_slabs_exchange_halos_and_no_activation_is_gathered(lines, mesh):
    collectives = lines[mesh]["collectives"]
    assert set(collectives) <= {"collective-permute", "all-reduce"}
    assert ("collective-permute" in collectives) == (not mesh.endswith("x 1"))


def test_a_device_holds_less_the_more_the_depth_is_cut(lines):
    one, two, four, eight = (
        lines[mesh]["peak_bytes"] for mesh in ("1 x 1", "1 x 2", "2 x 2", "2 x 4")
    )
    assert two < 0.65 * one
    assert four < 0.65 * two
    assert eight < 0.75 * four  # of it the parameters are more and more, which all devices hold


def test_an_augmented_batch_is_the_same_on_every_mesh(tmp_path):
    """Cut along the depth, it once was not."""
    lines = compared(tmp_path, "scratch", "--meshes=2x2", "--dtypes=float64", "--steps=5")
    assert lines["2 x 2"]["difference_of_leaf"] < 1e-10
