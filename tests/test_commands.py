"""prepare, predict and evaluate as a user runs them, on real scans and with mistakes."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

import covid_jax
from covid_jax.data.volume import read_volume
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, command, covid19_raw):
    folder = tmp_path_factory.mktemp("prepared")
    finished = command(
        "prepare", "--dataset=covid19", f"--raw_dir={covid19_raw}", f"--out_dir={folder}"
    )
    assert finished.returncode == 0, finished.stderr
    assert "20 cases of covid19 are prepared" in finished.stdout
    assert "8-bit grey mapped to -1250 ... 250 HU" in finished.stderr + finished.stdout
    return folder


def test_the_plan_comes_from_the_training_cases_of_the_fold(prepared):
    plan = json.loads((prepared / "plan.json").read_text())
    assert plan["training_cases"] == [
        "coronacases_007",
        "coronacases_008",
        "radiopaedia_36_86526_0",
        "radiopaedia_4_85506_1",
    ]


def test_predict_keeps_grid_and_affine_of_a_real_scan(tiny_run, thorax, tmp_path, command):
    finished = command(
        "predict",
        f"--checkpoint={tiny_run}",
        f"--input={thorax}",
        f"--output_dir={tmp_path}",
        "--save_probabilities",
    )
    assert finished.returncode == 0, finished.stderr
    mask, scan = nib.load(tmp_path / "thorax_crop_1p5mm.nii.gz"), nib.load(thorax)
    assert mask.shape == scan.shape
    np.testing.assert_array_equal(mask.affine, scan.affine)
    assert mask.get_data_dtype() == np.uint8
    probability = nib.load(tmp_path / "thorax_crop_1p5mm_probability_1.nii.gz")
    agrees = (np.asarray(probability.dataobj) > 0.5) == np.asarray(mask.dataobj)
    assert agrees.mean() > 0.999
    in_memory = covid_jax.segment(covid_jax.open_ensemble([tiny_run]), covid_jax.read_scan(thorax))
    covid_jax.write_volume(tmp_path / "again.nii.gz", in_memory)
    again = nib.load(tmp_path / "again.nii.gz")
    np.testing.assert_array_equal(again.affine, mask.affine)
    np.testing.assert_array_equal(np.asarray(again.dataobj), np.asarray(mask.dataobj))


def test_a_scan_of_other_channels_than_the_run_has_is_refused_in_memory(tiny_run, thorax):
    scan = covid_jax.read_scan(thorax)
    with pytest.raises(covid_jax.UserError, match="the scan has 2 channels, and the runs 1"):
        covid_jax.segment(covid_jax.open_ensemble([tiny_run]), [scan, scan])


def test_predict_averages_several_runs(tiny_run, thorax, tmp_path, command, refuses):
    other = tmp_path / "other"
    shutil.copytree(tiny_run, other)
    masks = {}
    for name, checkpoint in (("one", tiny_run), ("two", f"{tiny_run},{other}")):
        arguments = (f"--checkpoint={checkpoint}", f"--input={thorax}")
        finished = command("predict", *arguments, f"--output_dir={tmp_path / name}")
        assert finished.returncode == 0, finished.stderr
        masks[name] = nib.load(tmp_path / name / thorax.name).get_fdata()
    np.testing.assert_array_equal(masks["one"], masks["two"])  # of equals the mean is the same
    config = json.loads((other / "config.json").read_text())
    config["label_space"]["names"] = ["kidney"]
    (other / "config.json").write_text(json.dumps(config))
    line = refuses("predict", *arguments, f"--output_dir={tmp_path / 'refused'}")
    assert f"{other}: segments kidney, and {tiny_run} infection; only runs of the same" in line
    plan = json.loads((other / "plan.json").read_text())
    plan["normalization"][0]["mean"] += 1
    (other / "plan.json").write_text(json.dumps(plan))
    line = refuses("predict", *arguments, f"--output_dir={tmp_path / 'refused'}")
    assert "another plan" in line


def test_predict_reads_a_dicom_series_and_evaluate_scores_a_mask(
    tiny_run, lidc_series, tmp_path, command
):
    finished = command(
        "predict",
        f"--checkpoint={tiny_run}",
        f"--input={lidc_series}",
        f"--output_dir={tmp_path / 'masks'}",
    )
    assert finished.returncode == 0, finished.stderr
    mask = read_volume(tmp_path / "masks" / "LIDC-IDRI-0001.nii.gz")
    scan = read_volume(lidc_series)
    assert mask.voxels.shape == scan.voxels.shape
    np.testing.assert_allclose(mask.affine, scan.affine, atol=1e-4)
    shutil.copytree(tmp_path / "masks", tmp_path / "same")
    finished = command(
        "evaluate",
        f"--predictions={tmp_path / 'same'}",
        f"--references={tmp_path / 'masks'}",
        f"--output={tmp_path / 'metrics.json'}",
    )
    assert finished.returncode == 0, finished.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["mean"]["dsc"] == 1
    assert metrics["tolerance_mm"] == 3.0
    shutil.copy(tmp_path / "masks" / "LIDC-IDRI-0001.nii.gz", tmp_path / "masks" / "other.nii.gz")
    (tmp_path / "part").mkdir()
    shutil.copy(tmp_path / "masks" / "other.nii.gz", tmp_path / "part")
    finished = command(
        "evaluate",
        f"--predictions={tmp_path / 'part'}",
        f"--references={tmp_path / 'masks'}",
        f"--output={tmp_path / 'metrics.json'}",
    )
    assert "references without a prediction, not counted: LIDC-IDRI-0001" in finished.stdout


@pytest.fixture
def raw(covid19_raw, tmp_path):
    folder = tmp_path / "raw"
    shutil.copytree(covid19_raw, folder)
    return folder


def damaged(raw, how):
    image = raw / "COVID-19-CT-Seg_20cases" / "coronacases_007.nii.gz"
    label = raw / "Infection_Mask" / "coronacases_007.nii.gz"
    if how == "truncated":
        image.write_bytes(image.read_bytes()[:5000])
        return image
    if how == "shape":
        nib.Nifti1Image(np.zeros((3, 3, 3), np.uint8), np.eye(4)).to_filename(label)
        return label
    if how == "4d":
        nib.Nifti1Image(np.zeros((3, 3, 3, 2), np.uint8), np.eye(4)).to_filename(image)
        return image
    if how == "value":
        mask = nib.load(label)
        voxels = np.asarray(mask.dataobj).copy()
        voxels[0, 0, 0] = 9
        nib.Nifti1Image(voxels, mask.affine).to_filename(label)
        return label
    label.unlink()
    return label


@pytest.mark.parametrize("how", ["truncated", "shape", "4d", "value", "no label"])
def test_a_damaged_case_stops_prepare_with_its_name_and_no_dataset(raw, tmp_path, refuses, how):
    file = damaged(raw, how)
    out = tmp_path / "out"
    line = refuses("prepare", "--dataset=covid19", f"--raw_dir={raw}", f"--out_dir={out}")
    assert str(file) in line
    assert not (out / "covid19" / "dataset.json").exists()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("prepare", ["--dataset=covid19", "--raw_dir=nowhere", "--out_dir=x"], "nowhere"),
        ("prepare", ["--dataset=covid19", "--out_dir=x"], "--raw_dir is missing"),
        ("predict", ["--checkpoint=nowhere", "--input=LICENSE", "--output_dir=x"], "nowhere"),
        ("predict", ["--checkpoint=x", "--input=nowhere", "--output_dir=x"], "nowhere"),
        (
            "prepare",
            ["--dataset=nnunet", "--synthetic", "--raw_dir=x", "--out_dir=x"],
            "no synthetic cases of it",
        ),
        (
            "prepare",
            ["--dataset=nnunet", "--raw_dir=x", "--out_dir=x", "--num_cases=3", "--seed=0"],
            "--num_cases and --seed: of synthetic cases; give --synthetic too",
        ),
        (
            "prepare",
            ["--dataset=covid19", "--raw_dir=x", "--synthetic", "--check_only"],
            "--check_only writes nothing, and so no synthetic cases",
        ),
        ("evaluate", ["--predictions=nowhere", "--references=x", "--output=x"], "nowhere"),
        (
            "prepare",
            ["--dataset=nnunet", "--raw_dir=x", "--out_dir=x", "--gpu_memory_gb=24"],
            "--gpu_memory_gb tells --planner what to plan",
        ),
        (
            "prepare",
            ["--dataset=nnunet", "--raw_dir=x", "--out_dir=x", "--planner=default", "--plans=x"],
            "--planner and --plans: a plan comes from one of them",
        ),
        (
            "evaluate",
            ["--predictions=x", "--references=x", "--output=x", "--tolerance_mm=nan"],
            "--tolerance_mm=nan: give a number of mm",
        ),
        ("prepare", ["--dataset=zap"], "--dataset=zap: value should be one of"),
        ("study", ["--config", f"{ROOT}/configs/tiny.py", "--workdir=x"], "equals sign"),
        ("study", ["--config=nowhere.py", "--workdir=x"], "nowhere.py"),
        ("study", [f"--config={ROOT}/configs/tiny.py"], "--workdir is missing"),
    ],
)
def test_a_mistake_is_one_line(refuses, name, arguments, message):
    assert message in refuses(name, *arguments)


@pytest.mark.parametrize("name", ["prepare", "train", "predict", "evaluate", "study"])
def test_help_tells_what_a_command_does_and_shows_one(command, name):
    text = command(name, "--help").stdout
    assert f"python -m covid_jax.{name} --" in text
    assert len(text.splitlines()) > 8
