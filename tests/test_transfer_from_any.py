"""Any nnU-Net model is fine-tuned on any dataset by the three commands of docs/transfer.md."""

import importlib
import json
import shlex

import nibabel as nib
import numpy as np
import pytest

from covid_jax.data.phantom import write_raw_dataset
from covid_jax.data.preparation import prepare_dataset
from covid_jax.errors import UserError
from covid_jax.training.checkpoint import load_params
from covid_jax.training.pretrained import load_config
from covid_jax.transfer.freezing import leaves_by_path
from tests.conftest import ROOT, SMALL_NETWORK

FEW = (
    "--config.epochs=1",
    "--config.steps_per_epoch=2",
    "--config.validation_steps=1",
    "--config.test=False",
    "--config.data.augment=False",
)


def documented_commands():
    """What the first code block of the chapter says, as lists of arguments."""
    chapter = (ROOT / "docs" / "transfer.md").read_text().split("## Fine-tune any nnU-Net model")[1]
    block = chapter.split("```")[1].replace("\\\n", " ")
    return [shlex.split(line) for line in block.strip().splitlines()]


@pytest.fixture
def place(tmp_path):
    """A folder in which the commands find MODEL, Dataset100_Mine and configs.

    The model is one of nnU-Net v1, whose network has no biases in its heads: no plan could tell.
    """
    (tmp_path / "MODEL").symlink_to(ROOT / "tests" / "files" / "nnunet_version_1")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    write_raw_dataset("phantom", tmp_path / "Dataset100_Mine", 3, seed=0)
    return tmp_path


def test_the_documented_commands_fine_tune_a_model_on_data_prepared_by_its_plan(
    place, monkeypatch, capfd
):
    monkeypatch.chdir(place)
    for python, m, module, *arguments in documented_commands():
        assert (python, m) == ("python", "-m")
        few = FEW if module == "covid_jax.train" else ()
        assert importlib.import_module(module).main([*arguments, *few]) == 0
    imported, workdir = place / "runs" / "imported", place / "runs" / "mine"
    assert "another plan" not in capfd.readouterr().out
    before, after = load_config(imported), load_config(workdir)
    assert after.model.features_per_stage == before.model.features_per_stage
    assert not after.model.head_bias
    assert after.data.patch_size == before.data.patch_size
    theirs, ours = leaves_by_path(load_params(imported)), leaves_by_path(load_params(workdir))
    encoder = [path for path in ours if path.startswith("encoder/")]
    assert all(np.array_equal(ours[path], theirs[path]) for path in encoder)
    assert any(not np.array_equal(ours[p], theirs[p]) for p in ours if p.startswith("decoder/"))


def write_boxes(folder, seed, channels=("CT",)):
    """Three cases of noise with a bright box of a size of the dataset's own."""
    rng = np.random.default_rng(seed)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for index in range(3):
        label = np.zeros((16, 16, 10), np.uint8)
        label[4 : 8 + seed, 4:9, 3:7] = 1
        image = np.where(label, -400, rng.normal(-800, 50, label.shape)).astype(np.int16)
        images = {f"imagesTr/c{index}_{k:04}": image for k in range(len(channels))}
        for name, voxels in {**images, f"labelsTr/c{index}": label}.items():
            whole = nib.Nifti1Image(voxels, np.diag([-2.0, -2.0, 3.0, 1.0]))
            whole.to_filename(folder / f"{name}.nii.gz")
    description = {
        "channel_names": {str(k): channel for k, channel in enumerate(channels)},
        "labels": {"background": 0, "lesion": 1},
        "file_ending": ".nii.gz",
        "numTraining": 3,
    }
    (folder / "dataset.json").write_text(json.dumps(description))


def test_several_own_datasets_are_one_source(tmp_path, command):
    prepared, before, after = tmp_path / "prepared", tmp_path / "before", tmp_path / "after"
    for seed, name in enumerate(("a", "b", "mine")):
        write_boxes(tmp_path / name, seed)
        prepare_dataset("nnunet", tmp_path / name, prepared, called=name)
    for run, *arguments in (
        (
            "pretraining-ours",
            f"--workdir={before}",
            *("--config.data.datasets=a,b", "--config.pretraining_epochs=1", *SMALL_NETWORK),
            *("--config.data.patch_size=(4,8,8)", "--config.data.batch_size=4"),
        ),
        (
            "body-ours",
            f"--workdir={after}",
            *(f"--config.pretrained={before}", "--config.data.datasets=mine"),
        ),
    ):
        finished = command(
            "train",
            f"--config={ROOT}/configs/nnunet.py:{run}",
            f"--config.data.prepared_dir={prepared}",
            *FEW,
            *arguments,
        )
        assert finished.returncode == 0, finished.stderr
    config = load_config(before)
    assert config.data.datasets == ("a", "b")
    assert config.label_space.names == ("lesion (a)", "lesion (b)")
    assert load_config(after).model.features_per_stage == config.model.features_per_stage
    origin = json.loads((after / "provenance.json").read_text())
    assert list(origin["data"]) == ["mine"]
    assert list(origin["pretrained"]["trained_on"]) == ["a", "b"]


@pytest.mark.parametrize("channels", [("CT", "MR"), ("MR",)])
def test_datasets_of_other_channels_do_not_lie_side_by_side(tmp_path, channels):
    write_boxes(tmp_path / "a", 0)
    write_boxes(tmp_path / "b", 1, channels)
    prepare_dataset("nnunet", tmp_path / "a", tmp_path / "out", called="a")
    with pytest.raises(UserError, match=r"/b: its channels \(.*MR\) want .*; give another --out"):
        prepare_dataset("nnunet", tmp_path / "b", tmp_path / "out", called="b")
    assert not (tmp_path / "out" / "b" / "dataset.json").exists()


def test_a_folder_of_several_imported_folds_is_refused_with_their_names(tmp_path):
    for fold in ("fold_0", "fold_1"):
        (tmp_path / fold).mkdir()
        (tmp_path / fold / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"but holds runs; give one of .*fold_0, .*fold_1"):
        load_config(tmp_path)
