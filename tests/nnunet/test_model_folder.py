"""nnU-Net's model folders as runs: what is read from plans, and what is refused."""

import json
import pickle
import shutil

import jax
import nibabel as nib
import numpy as np
import pytest

from benchmarks.harness.golden import NETWORKS, random_image
from covid_jax.data.phantom import write_raw_dataset
from covid_jax.data.plan import Resampling
from covid_jax.errors import UserError
from covid_jax.model.unet import UNet
from covid_jax.nnunet.model_folder import (
    checkpoints_in,
    plain_dataset,
    read_model,
    write_model,
)
from covid_jax.nnunet.pickles import load_pickle
from tests.conftest import ROOT
from tests.networks import TINY_PATCH, TINY_VERSION_1, relative_error, sampled

VERSION_1 = ROOT / "tests" / "files" / "nnunet_version_1"
GOLDEN = json.loads(NETWORKS.read_text())


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(VERSION_1, tmp_path / "model")
    return tmp_path / "model"


def change_plans(folder, change):
    """Changes the plans in both of the files that hold them."""
    for path in (folder / "plans.pkl", folder / "fold_0" / "model_final_checkpoint.model.pkl"):
        content = pickle.loads(path.read_bytes())
        change(content.get("plans", content))
        path.write_bytes(pickle.dumps(content))


def test_a_model_of_version_1_gives_the_logits_that_it_gave_there():
    model = read_model(VERSION_1 / "fold_0")
    assert model.config.model == TINY_VERSION_1
    image = random_image(TINY_VERSION_1, TINY_PATCH)
    ours = jax.jit(UNet(model.config.model).apply)({"params": model.params}, image)
    for head, theirs in zip(ours, GOLDEN["version 1 file"], strict=True):
        assert relative_error(sampled(head), np.array(theirs)) < 1e-4


def test_the_plan_of_version_1_becomes_ours():
    model = read_model(VERSION_1 / "fold_0" / "model_final_checkpoint.model")
    assert model.plan.spacing_mm == (5.0, 1.5, 1.5)
    assert (model.plan.normalization[0].lower, model.plan.normalization[0].upper) == (-950, 200)
    assert (model.plan.normalization[0].mean, model.plan.normalization[0].std) == (-400, 250)
    assert model.plan.file_axes
    assert model.config.data.patch_size == TINY_PATCH
    assert model.config.loss.batch_dice
    assert (model.config.inference.average, model.config.inference.mirror) == (
        "probabilities",
        True,
    )


def test_the_plans_above_the_fold_serve_where_those_beside_the_checkpoint_are_missing(folder):
    expected = read_model(folder)
    (folder / "fold_0" / "model_final_checkpoint.model.pkl").unlink()
    assert read_model(folder).plan == expected.plan
    shutil.move(folder / "plans.pkl", folder.parent / "elsewhere.pkl")
    with pytest.raises(UserError, match="--plans"):
        read_model(folder)
    assert read_model(folder, folder.parent / "elsewhere.pkl").plan == expected.plan


def test_plans_that_are_named_and_not_there_are_not_replaced_by_others(folder):
    with pytest.raises(UserError, match=r"nowhere\.pkl: no such file"):
        read_model(folder, folder / "nowhere.pkl")


def test_plans_of_another_kind_are_one_line(folder):
    (folder / "list.pkl").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(UserError, match=r"list\.pkl: nnU-Net did not write this"):
        read_model(folder, folder / "list.pkl")


def test_the_folds_of_a_model_are_those_that_nnunet_predicts_with(folder):
    """Numbered ones before that of all, final checkpoints before the best."""
    for fold in ("fold_1", "fold_all"):
        shutil.copytree(folder / "fold_0", folder / fold)
    assert list(checkpoints_in(folder)) == ["fold_0", "fold_1"]
    with pytest.raises(UserError, match="several checkpoints"):
        read_model(folder)
    for fold in ("fold_0", "fold_1"):
        final = folder / fold / "model_final_checkpoint.model"
        final.rename(final.with_name("model_best.model"))
    assert list(checkpoints_in(folder)) == ["fold_all"]
    shutil.rmtree(folder / "fold_all")
    assert [path.name for path in checkpoints_in(folder).values()] == ["model_best.model"] * 2
    with pytest.raises(UserError, match="holds no checkpoint"):
        checkpoints_in(folder.parent)


@pytest.fixture(scope="module")
def scan(thorax, tmp_path_factory):
    """A corner of the thorax."""
    path = tmp_path_factory.mktemp("scan") / "corner.nii.gz"
    nib.load(thorax).slicer[:30, :30, :30].to_filename(path)
    return path


def test_every_fold_of_a_model_becomes_a_run_and_predict_averages_them(
    folder, tmp_path, scan, command
):
    shutil.copytree(folder / "fold_0", folder / "fold_1")
    finished = command("import_nnunet", f"--checkpoint={folder}", f"--out_dir={tmp_path}/runs")
    assert finished.returncode == 0, finished.stderr
    runs = f"{tmp_path}/runs/fold_0,{tmp_path}/runs/fold_1"
    assert f"predict --checkpoint={runs}" in finished.stdout
    assert "8 views" in finished.stdout
    finished = command(
        "predict", f"--checkpoint={runs}", f"--input={scan}", f"--output_dir={tmp_path}/masks"
    )
    assert finished.returncode == 0, finished.stderr


def test_a_plan_is_of_one_fold_and_how_its_network_was_mirrored_is_told(
    folder, tmp_path, command, refuses
):
    write_raw_dataset("phantom", tmp_path / "raw", 2, seed=0)
    shutil.copytree(folder / "fold_0", folder / "fold_1")
    assert command("import_nnunet", f"--checkpoint={folder}", f"--out_dir={tmp_path}/runs").stdout
    check = ("prepare", "--dataset=nnunet", f"--raw_dir={tmp_path}/raw", "--check_only")
    line = refuses(*check, f"--plan_from={tmp_path}/runs")
    assert f"holds runs; give one of {tmp_path}/runs/fold_0, {tmp_path}/runs/fold_1" in line
    config = json.loads((tmp_path / "runs" / "fold_0" / "config.json").read_text())
    config["inference"] |= {"mirror": False, "mirror_axes": []}
    (tmp_path / "runs" / "fold_0" / "config.json").write_text(json.dumps(config))
    told = command(*check, f"--plan_from={tmp_path}/runs/fold_0").stdout
    assert "was trained mirrored along no axis" in told
    assert "by --config.inference.mirror_axes='()' --config.inference.mirror=False" in told
    assert "channels: CT (CTNormalization)" in told


def test_the_trainer_of_version_1_tells_whether_it_mirrored(folder):
    path = folder / "fold_0" / "model_final_checkpoint.model.pkl"
    facts = pickle.loads(path.read_bytes())
    for trainer, axes in (("nnUNetTrainerV2", (0, 1, 2)), ("nnUNetTrainerV2_noMirroring", ())):
        path.write_bytes(pickle.dumps(facts | {"name": trainer}))
        inference = read_model(folder).config.inference
        assert (inference.mirror, inference.mirror_axes) == (bool(axes), axes)
    path.write_bytes(pickle.dumps(facts | {"name": "nnUNetTrainerV2_ReLU"}))
    with pytest.raises(UserError, match="trainer is nnUNetTrainerV2_ReLU"):
        read_model(folder)


def test_version_1_resamples_first_and_may_transpose_and_say_how_scores_are_resampled(folder):
    assert read_model(folder).plan.resample_first
    exported = {"interpolation_order": 3, "interpolation_order_z": 1, "force_separate_z": False}
    change_plans(folder, lambda p: p.update(transpose_forward=[2, 0, 1]))
    change_plans(folder, lambda p: p.update(segmentation_export_params=exported))
    plan = read_model(folder).plan
    assert plan.transpose == (2, 0, 1)
    assert plan.score_resampling == Resampling(3, 1, separate=False)


ORDER_9 = {"interpolation_order": 9, "interpolation_order_z": 1, "force_separate_z": False}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda plans: plans.update(segmentation_export_params=ORDER_9),
            "its plan .* 0 to 5",
        ),
        (lambda plans: plans.update(transpose_forward=[2, 0, 0]), "transpose axes"),
        (lambda plans: plans.update(normalization_schemes={0: "nonCT"}), "only models of CT"),
        (lambda plans: plans.update(use_mask_for_norm={0: True}), "use_mask_for_norm"),
        (lambda plans: plans.update(preprocessor_name="Mine"), "prepared by Mine"),
        (lambda plans: plans.update(regions_class_order=[1]), "regions"),
        (lambda plans: plans.pop("base_num_features"), "base_num_features"),
        (lambda plans: plans.update(base_num_features=3), r"is \(3,\) in the config and \(2,\)"),
        (lambda plans: plans.update(conv_per_stage=3), r"missing: conv_blocks_cont.* and \d+ more"),
    ],
)
def test_plans_that_do_not_fit_are_refused_with_the_reason(folder, change, message):
    change_plans(folder, change)
    with pytest.raises(UserError, match=message):
        read_model(folder)


def test_a_file_without_weights_is_refused(tmp_path):
    plans = load_pickle(VERSION_1 / "plans.pkl")
    assert plans["num_classes"] == 1
    with pytest.raises(UserError, match="damaged, or not what torch"):
        read_model(VERSION_1 / "plans.pkl")


def test_import_writes_a_run_that_predict_accepts(tmp_path, scan, command):
    run = tmp_path / "run"
    finished = command("import_nnunet", f"--checkpoint={VERSION_1}", f"--out_dir={run}")
    assert finished.returncode == 0, finished.stderr
    assert "3 stages, 2 classes" in finished.stdout
    finished = command(
        "predict", f"--checkpoint={run}", f"--input={scan}", f"--output_dir={tmp_path}/masks"
    )
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "masks" / scan.name).is_file()


def test_a_hostile_checkpoint_leaves_no_run_and_is_not_executed(tmp_path, refuses):
    marker = tmp_path / "executed"
    (tmp_path / "model.model").write_bytes(b"cos\nsystem\n(Vtouch %b\ntR." % str(marker).encode())
    line = refuses(
        "import_nnunet", f"--checkpoint={tmp_path}/model.model", f"--out_dir={tmp_path}/run"
    )
    assert "refused" in line
    assert not marker.exists()
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path, refuses):
    (tmp_path / "mine.txt").write_text("mine")
    assert "is there already" in refuses(
        "import_nnunet", f"--checkpoint={VERSION_1}", f"--out_dir={tmp_path}"
    )


def test_a_version_1_network_is_not_exported_as_another_one(tmp_path):
    model = read_model(VERSION_1)
    with pytest.raises(UserError, match=r"kernel_sizes_decoder|needs PyTorch"):
        write_model(tmp_path / "model", model)
    assert not (tmp_path / "model").exists()


def test_a_dataset_without_names_has_a_label_for_each_class():
    assert plain_dataset(2)["labels"] == {"background": 0, "lesion": 1}
    assert plain_dataset(3)["labels"] == {"background": 0, "lesion_1": 1, "lesion_2": 2}
