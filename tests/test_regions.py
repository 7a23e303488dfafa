"""A dataset of regions, some of it not annotated, from its raw files to its metrics."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from covid_jax.config import load_config_file
from covid_jax.data.check import changes_in
from covid_jax.data.findings import check_dataset
from covid_jax.data.plan import load_plan
from covid_jax.data.preparation import open_dataset
from covid_jax.data.store import StoredDataset, load_case, load_dataset
from covid_jax.errors import UserError
from covid_jax.evaluation.folders import what_is_scored
from covid_jax.label_space import IGNORED, LabelSpace
from covid_jax.nnunet.run_folder import read_run
from covid_jax.training.completion import fitted
from covid_jax.training.pretrained import load_run
from tests.conftest import ROOT, SMALL_NETWORK, tiny

LABELS = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
AFFINE = np.diag([-2.0, -2.0, 3.0, 1.0])
CASES = 3


def write_dataset(folder):
    """Boxes in boxes, brighter the deeper, in noise; the last slices are not annotated."""
    rng = np.random.default_rng(0)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for index in range(CASES):
        label = np.zeros((24, 24, 12), int)
        label[4:18, 4:18, 2:9] = 1
        label[8:14, 8:14, 4:7] = 2
        image = (rng.normal(-800, 50, label.shape) + 400 * label).astype(np.int16)
        label[..., -2:] = 3
        nib.save(nib.Nifti1Image(image, AFFINE), folder / "imagesTr" / f"c{index}_0000.nii.gz")
        nib.save(
            nib.Nifti1Image(label.astype(np.uint8), AFFINE),
            folder / "labelsTr" / f"c{index}.nii.gz",
        )
    description = {
        "channel_names": {"0": "CT"},
        "labels": LABELS,
        "regions_class_order": [1, 2],
        "numTraining": CASES,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, command):
    """A folder with the raw dataset, what was prepared from it, and a run on that."""
    folder = tmp_path_factory.mktemp("regions")
    write_dataset(folder / "raw")
    for name, *arguments in (
        ("prepare", "--dataset=nnunet", f"--raw_dir={folder}/raw", f"--out_dir={folder}/prepared"),
        (
            "train",
            f"--config={ROOT}/configs/tiny.py",
            f"--workdir={folder}/run",
            "--config.data.datasets=('nnunet',)",
            f"--config.data.prepared_dir={folder}/prepared",
            "--config.data.patch_size=(8,16,16)",
            "--config.inference.average=logits",
            "--config.epochs=1",
            "--config.steps_per_epoch=30",
            "--config.data.augment=False",
            *SMALL_NETWORK,
        ),
    ):
        finished = command(name, *arguments)
        assert finished.returncode == 0, finished.stderr
    return folder


def prepared_dataset(folder):
    plan = load_plan(folder / "prepared" / "plan.json")
    return load_dataset(folder / "prepared", "nnunet", plan.hash)


def test_what_is_prepared_is_the_label_map_with_voxels_of_each_region(trained):
    dataset = prepared_dataset(trained)
    space = LabelSpace(("whole", "core"), ((1, 2), (2,)), (1, 2), IGNORED)
    assert dataset.label_space == space
    case = load_case(dataset, "c0")
    assert set(np.unique(case.label)) == {0, 1, 2, IGNORED}
    whole, core = (case.label[tuple(voxels.T)] for voxels in case.foreground)
    assert (set(whole), set(core)) == ({1, 2}, {2})
    assert set(case.label[tuple(case.annotated.T)]) == {0, 1, 2}
    assert what_is_scored(dataset.references) == ({(1, 2): "whole", (2,): "core"}, IGNORED)


def test_what_was_prepared_before_it_was_known_where_to_sample_is_prepared_again(trained, tmp_path):
    shutil.copytree(trained / "prepared", tmp_path, dirs_exist_ok=True)
    facts = tmp_path / "nnunet" / "cases" / "c1" / "case.json"
    known = json.loads(facts.read_text())
    del known["source"]["sampled"]
    facts.write_text(json.dumps(known))
    raw = open_dataset("nnunet", trained / "raw")
    findings = check_dataset(raw, 1)
    assert changes_in(raw, trained / "prepared", findings, 1).missing == ()
    assert changes_in(raw, tmp_path, findings, 1).missing == ("c1",)


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ({"whole": [1, 2], "core": [1]}, "regions [[2]] -> [[1]] changed since 3 cases"),
        ({"whole": 1, "core": 2}, "regions [[1, 2], [2]] -> None changed since 3 cases"),
    ],
)
def test_cases_are_prepared_again_where_labels_of_the_same_names_have_other_values(
    trained, tmp_path, labels, told
):
    """For the voxels that patches lie around are of regions."""
    shutil.copytree(trained / "raw", tmp_path, dirs_exist_ok=True)
    description = json.loads((tmp_path / "dataset.json").read_text())
    description["labels"] |= labels
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    raw = open_dataset("nnunet", tmp_path)
    changes = changes_in(raw, trained / "prepared", check_dataset(raw, 1), 1)
    assert changes.missing == ("c0", "c1", "c2")
    assert any(told in line for line in changes.lines)


def test_a_run_learns_regions_and_scores_each_by_its_name(trained):
    config, _, params = load_run(trained / "run")
    assert config.label_space == prepared_dataset(trained).label_space
    assert config.model.num_classes == 2
    assert params["heads"]["stage_0"]["kernel"].shape[-1] == 2
    metrics = json.loads((trained / "run" / "metrics.json").read_text())
    assert list(metrics["labels"]) == ["whole", "core"]
    assert metrics["labels"]["whole"]["mean"]["dsc"] > 0.5
    (line,) = map(json.loads, (trained / "run" / "log.jsonl").read_text().splitlines()[-1:])
    assert 0 < line["validation_dice"] < 1
    assert "2 regions (whole, core)" in (trained / "run" / "model" / "README.md").read_text()


def test_its_masks_are_the_regions_one_over_the_other(trained, command):
    out, scan = trained / "masks", trained / "raw" / "imagesTr" / "c1_0000.nii.gz"
    finished = command(
        "predict",
        f"--checkpoint={trained}/run/model",
        f"--input={scan}",
        f"--output_dir={out}",
        "--save_probabilities",
    )
    assert finished.returncode == 0, finished.stderr
    whole, core = (nib.load(out / f"c1_probability_{k}.nii.gz").get_fdata() for k in (1, 2))
    assert not np.allclose(whole + core, 1)
    mask = np.asarray(nib.load(out / "c1.nii.gz").dataobj)
    np.testing.assert_array_equal(mask, np.where(core > 0.5, 2, whole > 0.5))
    assert mask.any()
    finished = command(
        "evaluate",
        f"--predictions={out}",
        f"--references={trained}/raw/labelsTr",
        f"--output={trained}/metrics.json",
    )
    assert finished.returncode == 0, finished.stderr
    truth = np.asarray(nib.load(trained / "raw" / "labelsTr" / "c1.nii.gz").dataobj)
    found, here = (mask > 0) & (truth != 3), np.isin(truth, (1, 2))
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["labels"]["whole"]["mean"]["dsc"] == pytest.approx(
        2 * (found & here).sum() / (found.sum() + here.sum())
    )


def test_what_goes_out_to_nnunet_has_the_regions(trained):
    dataset = read_run(trained / "run").dataset
    assert dataset == json.loads((trained / "run" / "dataset.json").read_text())
    assert dataset["labels"] == LABELS
    assert dataset["regions_class_order"] == [1, 2]


def test_the_config_of_a_run_is_one_for_data_with_other_labels(trained):
    config = load_config_file(f"{trained}/run/config.json")
    plan = load_plan(trained / "prepared" / "plan.json")
    other = StoredDataset("other", trained, LabelSpace(("a", "b")), (), synthetic=True)
    assert fitted(config, plan, [other]).model.num_classes == 3
    assert fitted(config, plan, [prepared_dataset(trained)]) == load_run(trained / "run")[0]


def test_regions_are_trained_on_alone_and_are_the_datasets(trained, refuses):
    dataset, plan = prepared_dataset(trained), load_plan(trained / "prepared" / "plan.json")
    other = StoredDataset("other", trained, LabelSpace(("a",)), (), synthetic=True)
    with pytest.raises(UserError, match="nnunet: its labels are regions"):
        fitted(tiny(), plan, [dataset, other])
    line = refuses(
        "train",
        f"--config={ROOT}/configs/tiny.py",
        f"--workdir={trained}/other",
        "--config.label_space.names=a",
    )
    assert "--config.label_space.names: is the datasets' own" in line
