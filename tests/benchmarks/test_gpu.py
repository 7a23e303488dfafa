"""The benchmark of the GPU, run dry on a CPU as on a bare machine."""

import json
import os
import subprocess
import sys

from tests.conftest import ROOT

BARE = """
import sys
from importlib.machinery import PathFinder
MISSING = {
    "SimpleITK", "batchgenerators", "batchgeneratorsv2", "dynamic_network_architectures", "grain",
    "highdicom", "ml_collections", "nibabel", "nnunetv2", "pydicom", "pytest", "skimage",
    "tensorboard",
}
class Bare:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name in MISSING else PathFinder.find_spec(name, path, target)
sys.meta_path = [Bare if finder is PathFinder else finder for finder in sys.meta_path]
"""
"""As sitecustomize.py it hides from Python what a bare machine lacks."""


def run_bare(folder, *arguments):
    (folder / "sitecustomize.py").write_text(BARE)
    script = f"{ROOT}/launch/gpu_benchmark.sh"
    finished = subprocess.run(
        ["bash", script, f"--output={folder}/out", "--dry_run", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(folder)},
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_it_runs_with_what_a_bare_machine_has(tmp_path):
    short = ("--rounds=2", "--seconds=0.05", "--only=correctness|strategies in bfloat16")
    told = run_bare(tmp_path, *short)
    written = {path.name.partition("_cpu")[0] for path in (tmp_path / "out").glob("*.json")}
    assert written == {"correctness", "epoch_time_bfloat16"}
    assert "PyTorch's nnU-Net is not timed" in told
    (file,) = (tmp_path / "out").glob("correctness_cpu*.json")
    losses = {line["dtype"]: line for line in json.loads(file.read_text())["results"]}
    assert losses["float32"]["worst"] < 1e-4  # on a GPU TF32 is given more
    assert losses["bfloat16"]["worst"] < 5e-2
    (file,) = (tmp_path / "out").glob("epoch_time_bfloat16_cpu*.json")
    lines = json.loads(file.read_text())["results"]
    assert [line["strategy"] for line in lines] == ["scratch", "frozen_encoder", "multi_encoder"]
    assert {line["dtype"] for line in lines} == {"bfloat16"}


def test_what_no_time_is_left_for_is_named(tmp_path):
    told = run_bare(tmp_path, "--budget=0").splitlines()
    assert all(line.startswith("left out") for line in told)
    assert len(told) == 9
    assert not (tmp_path / "out").exists()
