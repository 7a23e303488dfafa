"""The benchmark of the GPU: its budget, and its parts run dry on a CPU as on a bare machine."""

import json
import os
import subprocess
import sys
import time

import pytest

from benchmarks.gpu import Task, drive
from benchmarks.harness.gpu_parts import FULL, PARTS, Sheet
from covid_jax.errors import UserError
from tests.conftest import ROOT, installed
from tests.networks import SOON_IN_A_PROCESS

LIBRARIES = [
    "SimpleITK",
    "array_record",
    "grain",
    "highdicom",
    "ml_collections",
    "nibabel",
    "pydicom",
    "pytest",
    "skimage",
    "tensorboard",
]
PEERS = [
    "acvl_utils",
    "batchgenerators",
    "batchgeneratorsv2",
    "blosc2",
    "dynamic_network_architectures",
    "nnunetv2",
    "torch",
]
BARE = """
import sys
from importlib.machinery import PathFinder
MISSING = {missing}
class Bare:
    @staticmethod
    def find_spec(name, path=None, target=None):
        hidden = name.partition(".")[0] in MISSING
        return None if hidden else PathFinder.find_spec(name, path, target)
sys.meta_path = [Bare if finder is PathFinder else finder for finder in sys.meta_path]
"""
"""As sitecustomize.py it hides from Python what a bare machine lacks."""


def run_bare(folder, missing, *arguments, script="gpu_benchmark"):
    (folder / "sitecustomize.py").write_text(BARE.format(missing=missing))
    environment = {
        "PYTHON": sys.executable,
        "PYTHONPATH": str(folder),
        "XLA_FLAGS": SOON_IN_A_PROCESS,
    }
    finished = subprocess.run(
        ["bash", f"{ROOT}/launch/{script}.sh", f"--output={folder}/out", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    return finished.returncode, finished.stdout, finished.stderr


def lines_of(folder, name):
    """The lines of a result file, by their part."""
    content = json.loads((folder / "out" / f"{name}_gpu.json").read_text())
    assert content["dry_run"]
    assert str(ROOT) not in json.dumps(content)
    found = {}
    for line in content["results"]:
        found.setdefault(line["part"], []).append(line)
    return found, content["complete"]


@pytest.mark.slow
def test_it_runs_with_what_a_bare_machine_has(tmp_path):
    arguments = ("--dry_run", "--only=correctness|epoch")
    status, told, errors = run_bare(tmp_path, LIBRARIES + PEERS, *arguments)
    assert status == 0, errors
    assert "the epoch with the input pipeline is left out: not installed here: grain" in told
    found, complete = lines_of(tmp_path, "correctness")
    losses = {line["dtype"]: line for line in found["correctness"]}
    assert losses["float32"]["worst"] < 1e-4  # on a GPU TF32 is given more
    assert losses["bfloat16"]["worst"] < 5e-2
    assert complete == ["correctness"]
    found, complete = lines_of(tmp_path, "real_epoch")
    assert [line["data"] for line in found["epoch"]] == ["dummy"]
    assert not complete  # so that it is measured where grain is
    assert {path.name for path in tmp_path.iterdir()} >= {"out", "out.cache"}


@pytest.mark.slow
def test_pytorchs_nnunet_is_reached_without_the_libraries_that_read_scans(tmp_path):
    installed("nnunetv2", extra="peers")
    arguments = ("--dry_run", "--only=float32|loading|prediction|residual")
    status, told, errors = run_bare(tmp_path, LIBRARIES, *arguments)
    assert status == 0, errors
    assert "our sampler is left out: not installed here: grain, array_record" in told
    found, complete = lines_of(tmp_path, "epoch_time")
    assert [line["framework"] for line in found["float32"]] == ["jax", "torch", "torch"]
    assert all(line["seconds_per_validation_step"] > 0 for line in found["float32"])
    of_residual = found["residual M beside PyTorch"]
    assert [line["framework"] for line in of_residual] == ["jax", *["torch"] * 4]
    assert {line["network"].partition(" of")[0] for line in of_residual} == {"residual encoder"}
    assert complete == ["float32", "residual M beside PyTorch"]
    found, _ = lines_of(tmp_path, "real_epoch")
    (loader,) = found["loading"]
    assert (loader["cases"], loader["samples_per_second"] > 0) == ("SYNTHETIC", True)
    found, complete = lines_of(tmp_path, "inference")
    assert [(line["framework"], line["mirror"]) for line in found["prediction"]] == [
        ("jax", False),
        ("torch", False),
        ("jax", True),
        ("torch", True),
    ]
    assert all(line["voxels_unlike_ours"] < 0.05 for line in found["prediction"])
    assert complete == ["prediction"]


def task(folder, name, seconds, script):
    """A part that writes its name down when it is begun, and when it is complete."""
    begun, done = f"echo {name} >> {folder}/begun", f"touch {folder}/{name}"
    command = ("sh", "-c", f"{begun}; {script} && {done}")
    return Task(name, seconds, command, (folder / name).is_file)


def test_parts_end_within_their_limits_and_the_budget_whatever_they_do(tmp_path):
    late = f"(sleep 2; touch {tmp_path}/late) & sleep 60"
    tasks = [
        task(tmp_path, "short", 5, "true"),
        task(tmp_path, "failing", 5, "exit 3"),
        task(tmp_path, "hanging", 1, late),
        task(tmp_path, "after", 5, "true"),
        task(tmp_path, "at_the_end", 4, "sleep 60"),
        task(tmp_path, "too_late", 5, "true"),
    ]
    begin = time.monotonic()
    undone = drive(tasks, seconds=5)
    assert time.monotonic() - begin < 6
    assert undone == {
        "failing": "failed, exit status 3",
        "hanging": "killed after 1 s",
        "at_the_end": "killed after 2 s",
        "too_late": "too little time was left",
    }
    begun = ["short", "failing", "hanging", "after", "at_the_end"]
    assert (tmp_path / "begun").read_text().split() == begun
    assert not (tmp_path / "late").exists()  # what a part has started is killed with it


def test_a_second_start_skips_what_is_complete(tmp_path, capsys):
    tasks = [task(tmp_path, name, 5, "true") for name in ("one", "two")]
    drive(tasks[:1], seconds=10)
    assert drive(tasks, seconds=10) == {}
    assert (tmp_path / "begun").read_text().split() == ["one", "two"]
    assert "--- one: complete already" in capsys.readouterr().out


def test_what_no_time_is_left_for_is_named(tmp_path):
    status, told, errors = run_bare(tmp_path, [], "--budget=0", "--only=correctness|freezing")
    assert status == 1
    assert "--- correctness: left out" in told
    (line,) = errors.splitlines()
    assert line.startswith("error: not measured: correctness (too little time was left); freezing")
    assert not (tmp_path / "out").exists()


def test_a_part_writes_beside_the_others_of_its_file(tmp_path):
    first, second = (Sheet(tmp_path / "times.json", part, True) for part in ("first", "second"))
    first.save([{"seconds": 1}])
    assert not first.is_complete()
    first.save([{"seconds": 1}, {"seconds": 2}], complete=True, paper={"scratch": 206})
    second.save([{"seconds": 3}])
    assert first.is_complete()
    assert not second.is_complete()
    content = json.loads((tmp_path / "times.json").read_text())
    assert [(line["part"], line["seconds"]) for line in content["results"]] == [
        ("first", 1),
        ("first", 2),
        ("second", 3),
    ]
    assert content["paper"] == {"scratch": 206}
    assert [path.name for path in tmp_path.iterdir()] == ["times.json"]


def test_results_of_a_dry_run_or_of_another_device_are_not_gone_on_with(tmp_path):
    dry, real = (Sheet(tmp_path / "times.json", "part", choice) for choice in (True, False))
    dry.save([])
    with pytest.raises(UserError, match="of a dry run; give another --output"):
        real.is_complete()
    text = dry.path.read_text()
    dry.path.write_text(text.replace('"device": "', '"device": "another '))
    with pytest.raises(UserError, match="measured on another"):
        dry.save([])


def test_there_are_few_files_and_the_whole_begins_with_what_matters_most():
    assert len({part.file for part in PARTS}) + 1 <= 8  # and the program of the kernels
    assert [part.name for part in PARTS[:2]] == ["correctness", "strategies"]
    assert len({part.name for part in PARTS}) == len(PARTS)
    assert not FULL.dry_run


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only=nothing like it"], 'no such part; there are "correctness", "strategies"'),
        (["--only=("], "no regular expression"),
        (["--output="], "--output is missing"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, refuses, arguments, said):
    assert said in refuses("benchmarks.gpu", f"--output={tmp_path}", *arguments)


def test_a_study_that_runs_out_of_time_brings_back_what_was_done(tmp_path):
    phantoms = ("--config.data.datasets=phantom", "--config.study.runs=scratch")
    status, _, said = run_bare(
        tmp_path, {"SimpleITK"}, "--budget=61", *phantoms, script="gpu_study"
    )
    assert status == 124, said
    assert "the same command goes on" in (tmp_path / "out" / "study.txt").read_text()
    assert (tmp_path / "out" / "runs.tar.gz").is_file()
