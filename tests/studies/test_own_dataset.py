"""A study on one's own nnU-Net datasets, by the commands of docs/study.md as they stand."""

import importlib
import json
import re
import shlex

import nibabel as nib
import numpy as np
import pytest

from covid_jax.data.plan import load_plan
from covid_jax.training.pretrained import load_config
from tests.conftest import ROOT, SMALL_NETWORK

FEW = (
    "--config.study.folds=(1,)",
    "--config.study.runs=scratch,body-lesions",
    "--config.epochs=1",
    "--config.pretraining_epochs=1",
    "--config.steps_per_epoch=2",
    "--config.validation_steps=1",
    "--config.data.augment=False",
    *SMALL_NETWORK,
)
CHAPTER = (
    (ROOT / "docs" / "study.md").read_text().split("\n## Your own dataset")[1].split("\n## ")[0]
)
CONFIG, FROM_RAW, SEVERAL, FROM_NETWORK = re.findall(
    r"```(?:python)?\n(.*?)```", CHAPTER, re.DOTALL
)


def write_mr(folder, seed, labels):
    """A raw dataset of MR, T1 and FLAIR: five cases of noise with a box of each label."""
    rng = np.random.default_rng(seed)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for case in range(5):
        mask = np.zeros((18, 18, 10), np.uint8)
        for value in range(1, labels + 1):
            x, y, z = rng.integers(1, (12, 12, 5))
            mask[x : x + 5, y : y + 5, z : z + 4] = value
        noise = [rng.normal(100, 10, mask.shape) + 40 * (mask > channel) for channel in (0, 1)]
        images = {f"imagesTr/c{case}_{channel:04}": noise[channel] for channel in (0, 1)}
        for name, voxels in {**images, f"labelsTr/c{case}": mask}.items():
            whole = nib.Nifti1Image(voxels.astype(np.float32), np.diag([-1.0, -1.0, 1.5, 1.0]))
            whole.to_filename(folder / f"{name}.nii.gz")
    description = {
        "channel_names": {"0": "T1", "1": "FLAIR"},
        "labels": {"background": 0, **{f"part {value}": value for value in range(1, labels + 1)}},
        "file_ending": ".nii.gz",
        "numTraining": 5,
    }
    (folder / "dataset.json").write_text(json.dumps(description))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder in which the commands find mine.py, raw, MODEL and configs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "MODEL").symlink_to(ROOT / "tests" / "files" / "nnunet_version_1")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "mine.py").write_text(CONFIG)
    write_mr(tmp_path / "raw" / "Dataset101_Mine", 0, labels=2)
    write_mr(tmp_path / "raw" / "Dataset102_Lesions", 1, labels=1)
    return tmp_path


def do(block, *few):
    """Does the commands of a block, the studies with a `few` more arguments."""
    for line in block.replace("\\\n", " ").strip().splitlines():
        python, m, module, *arguments = shlex.split(line)
        assert (python, m) == ("python", "-m")
        more = few if any(argument.startswith("--config=") for argument in arguments) else ()
        assert importlib.import_module(module).main([*arguments, *more]) == 0


def test_the_config_is_short():
    assert len(CONFIG.strip().splitlines()) <= 10


def test_the_documented_commands_go_from_two_raw_folders_to_the_report(place, capfd):
    do(FROM_RAW, *FEW)
    assert "body, lesions" in capfd.readouterr().out
    study = place / "runs" / "mine"
    assert (study / "report" / "index.html").is_file()
    results = json.loads((study / "report" / "results.json").read_text())
    assert len(results["runs"]) == 2
    planned = load_plan(study / "prepared" / "plan.json").topology
    before = load_config(study / "pretraining" / "lesions")
    assert before.label_space.names == ("part 1",)
    for name in ("scratch-none-fold1", "body-lesions-fold1"):
        run = load_config(study / "runs" / name)
        assert run.label_space.names == ("part 1", "part 2")
        assert run.data.patch_size == before.data.patch_size == planned.patch_size
        assert (study / "runs" / name / "metrics.json").is_file()


def test_the_documented_commands_start_from_a_network_that_is_there(place, capfd):
    do(FROM_NETWORK, "--config.first_conv=repeat", "--list")
    told = capfd.readouterr().out
    steps = [line.split()[-1] for line in told.splitlines() if line.startswith("to do")]
    assert steps[:3] == ["prepare-mine", "scratch-none-fold0", "body-imported-fold0"]
    assert not any(step.startswith("pretraining") for step in steps)


def test_the_documented_lines_make_several_datasets_one_source(place, capfd):
    write_mr(place / "raw" / "Dataset103_Cysts", 2, labels=1)
    config = CONFIG.replace("    return named_run(config, name)\n", SEVERAL)
    config = config.replace('Lesions")', 'Lesions"), ("cysts", "raw/Dataset103_Cysts")')
    runs = '"scratch", "body-lesions", "frozen_encoder-lesions"'
    (place / "mine.py").write_text(config.replace(runs, '"scratch", "body-ours"'))
    do(FROM_RAW.splitlines()[0], "--config.study.folds=0,")
    told = capfd.readouterr().out
    assert [line.split()[-1] for line in told.splitlines() if line.startswith("to do")] == [
        *("prepare-mine", "prepare-lesions", "prepare-cysts", "pretraining-ours"),
        *("scratch-none-fold0", "body-ours-fold0"),
    ]
