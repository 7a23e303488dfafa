"""What version 0.1.0 left on disk is opened, gone on with and reported by this one."""

import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

from covid_jax.config import load_config_file
from covid_jax.data.plan import load_plan
from covid_jax.data.store import load_case, load_dataset
from covid_jax.data.volume import read_volume
from covid_jax.studies.folder import claim_study
from covid_jax.training.checkpoint import Checkpoints, load_params
from covid_jax.training.pretrained import load_config, load_pretrained, load_run
from tests.conftest import ROOT

RUN = "study/runs/scratch-none-fold0"


@pytest.fixture
def left(tmp_path, monkeypatch):
    """The folder in which the study was made; every path in it is relative to it."""
    shutil.unpack_archive(ROOT / "tests" / "files" / "version_1" / "study.tar.xz", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(name, *arguments):
    finished = subprocess.run(
        [sys.executable, "-m", f"covid_jax.{name}", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def same(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def test_its_runs_and_the_folder_to_share_are_loaded(left):
    config, plan, params = load_run(RUN)
    assert config.model.features_per_stage == (2, 4)
    assert plan.training_cases == ("CASE_1", "CASE_2")
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 402
    assert same(params, load_run(f"{RUN}/model")[2])
    pretrained = load_pretrained(load_config("study/runs/body-msd-fold0"))
    assert same(pretrained, load_params("study/pretraining/msd"))


def test_its_network_predicts_what_it_predicted(left):
    run("predict", f"--checkpoint={RUN}/model", "--input=scan.nii.gz", "--output_dir=masks")
    ours, theirs = (
        read_volume(f"{folder}/scan.nii.gz").voxels
        for folder in ("masks", "study/scans/scratch-none-fold0")
    )
    assert theirs.any()
    assert np.mean(ours != theirs) < 0.001


def test_its_prepared_cases_are_read(left):
    dataset = load_dataset("study/prepared", "nnunet", load_plan(left / RUN / "plan.json").hash)
    assert dataset.labels == ("infection",)
    for name in ("CASE_0", "CASE_1", "CASE_2"):
        case = load_case(dataset, name)
        assert case.image.shape == (*case.label.shape, 1) == (12, 20, 24, 1)
        assert len(case.foreground[0]) == (case.label == 1).sum() > 0


def test_its_training_goes_on_from_a_checkpoint_of_then(left):
    before = load_params(RUN)
    shutil.rmtree(f"{RUN}/checkpoints/400")
    (left / RUN / "metrics.json").unlink()
    printed = run(
        "train",
        "--config=config.py:scratch",
        "--config.data.prepared_dir=study/prepared",
        f"--workdir={RUN}",
        "--accept_changes",  # of the program's version
    )
    assert "test cases: dsc" in printed
    with Checkpoints(left / RUN) as checkpoints:
        assert checkpoints.newest().step == 400
    apart = optax.tree.norm(jax.tree.map(np.subtract, load_params(RUN), before))
    assert apart < 0.01 * optax.tree.norm(before)


def test_its_study_is_done_and_is_reported_without_its_raw_data(left):
    claim_study(left / "study", load_config_file("config.py"))
    *steps, _ = run("study", "--config=config.py", "--workdir=study", "--list").splitlines()[1:]
    assert [line.split()[0] for line in steps] == ["done"] * 7
    shutil.rmtree("raw")
    run("study", "--workdir=study", "--report_only")
    assert "Not in this report" not in (left / "study" / "report" / "index.html").read_text()
    table = json.loads((left / "study" / "report" / "results.json").read_text())["table_3"]
    (row,) = (row for row in table if row["strategy"] == "scratch")
    metrics = json.loads((left / RUN / "metrics.json").read_text())
    assert row["dsc_mean"] == pytest.approx(metrics["mean"]["dsc"])
