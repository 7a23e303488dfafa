"""Masks are judged as they are stored: of any type, values and format, without ignored voxels."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from covid_jax.errors import UserError
from covid_jax.evaluation.folders import check_output, evaluate_folders, what_is_scored
from covid_jax.evaluation.metrics import PAPER, never_predicted, unscored

AFFINE = np.diag([-1.5, -1.5, 3.0, 1.0])


def lesion():
    mask = np.zeros((12, 11, 6), np.uint8)
    mask[3:8, 4:8, 2:5] = 1
    return mask


REFERENCE, PREDICTION = lesion(), np.roll(lesion(), 1, 0)
DSC = 2 * (REFERENCE & PREDICTION).sum() / (REFERENCE.sum() + PREDICTION.sum())


def save(path, voxels, scaled=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(voxels, AFFINE, dtype=voxels.dtype)
    if scaled:
        image.set_data_dtype(scaled)  # nibabel then scales what it writes
    image.to_filename(path)


@pytest.fixture
def folders(tmp_path):
    def write(prediction, reference=REFERENCE, name="c", **keywords):
        save(tmp_path / "p" / f"{name}.nii.gz", prediction, **keywords)
        save(tmp_path / "t" / f"{name}.nii.gz", reference)
        return tmp_path / "p", tmp_path / "t"

    return write


@pytest.mark.parametrize(
    ("voxels", "keywords"),
    [
        (PREDICTION.astype(np.int64), {}),
        (PREDICTION.astype(np.float32) * np.float32(0.999999), {}),
        (PREDICTION.astype(np.float64), {"scaled": np.uint8}),
        (PREDICTION.astype(np.float64), {"scaled": np.int16}),
    ],
    ids=["int64", "almost whole", "scaled uint8", "scaled int16"],
)
def test_a_mask_counts_the_same_however_it_is_stored(folders, voxels, keywords):
    metrics = evaluate_folders(*folders(voxels, **keywords))
    assert metrics["mean"]["dsc"] == pytest.approx(DSC)
    assert metrics["values"] == [1]


def test_the_values_of_the_files_are_the_labels_where_none_are_told(folders):
    metrics = evaluate_folders(*folders(PREDICTION * 255, REFERENCE * 255))
    assert metrics["mean"]["dsc"] == pytest.approx(DSC)
    assert metrics["values"] == [255]
    assert "labels" not in metrics


def test_each_of_several_labels_is_scored_by_its_name_and_the_mean_over_them(folders):
    two = REFERENCE.copy()
    two[0:2, 0:2, 0:2] = 2
    predicted = PREDICTION.copy()
    predicted[0:2, 0:2, 0:2] = 2
    metrics = evaluate_folders(*folders(predicted, two), labels={1: "lesion", 2: "vessel"})
    assert metrics["labels"]["lesion"]["mean"]["dsc"] == pytest.approx(DSC)
    assert metrics["labels"]["vessel"]["mean"]["dsc"] == 1
    assert metrics["cases"]["c"]["dsc"] == metrics["mean"]["dsc"] == pytest.approx((DSC + 1) / 2)
    assert set(PAPER) <= set(metrics["cases"]["c"])


def test_a_label_that_only_other_cases_have_is_an_agreement_and_said(folders):
    folders(PREDICTION, REFERENCE, name="a")
    metrics = evaluate_folders(*folders(PREDICTION * 2, REFERENCE * 2, name="b"))
    assert metrics["labels"]["label 2"]["cases"]["a"]["dsc"] == 1
    assert metrics["empty"]["a"] == "both masks of label 2"


def test_a_label_that_is_not_found_makes_no_mean_over_labels_better(folders):
    """Neither of distances, by having none, nor of volumes, by making up for another's."""
    two = REFERENCE.copy()
    two[0:2, 0:2, 0:2] = 2
    found = two.copy()
    found[0:2, 0:2, 0:2] = 0
    found[8, 4:8, 2:4] = 1  # 8 voxels too many, as 8 are missing
    folders(REFERENCE, REFERENCE, name="without vessels")
    metrics = evaluate_folders(*folders(found, two), labels={1: "lesion", 2: "vessel"})
    lesion, vessel = metrics["labels"].values()
    assert lesion["cases"]["c"]["volume_difference_ml"] == pytest.approx(8 * 1.5 * 1.5 * 3 / 1000)
    assert vessel["cases"]["c"]["volume_difference_ml"] == pytest.approx(-8 * 1.5 * 1.5 * 3 / 1000)
    assert metrics["cases"]["c"]["hd95_mm"] is None
    assert metrics["cases"]["c"]["volume_difference_ml"] is None
    assert metrics["cases"]["without vessels"]["hd95_mm"] == 0  # there were none to find
    assert metrics["count"] == {**dict.fromkeys(PAPER, 2), "hd95_mm": 1} | {
        "volume_difference_ml": 0
    }
    assert never_predicted(vessel)
    assert not never_predicted(lesion)


def test_ignored_voxels_have_no_part_in_any_metric(folders):
    """Those of the reference, whatever the prediction says there."""
    reference = np.where(REFERENCE == 0, 2, REFERENCE)
    everywhere = np.ones_like(REFERENCE)
    metrics = evaluate_folders(*folders(everywhere, reference), ignored=2)
    for name in PAPER:
        assert metrics["mean"][name] == 1
    assert metrics["values"] == [1]


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        (np.where(PREDICTION > 0, 1.0, np.nan), "not whole numbers"),
        (PREDICTION * np.float32(0.5), "not whole numbers"),
        (PREDICTION * 3e9, r"holds 3000000000, more than a label may be \(2147483647\)"),
        (PREDICTION[:-1], "export both on one grid"),
        (PREDICTION * 7, r"holds the value 7; this dataset's labels are 0, 1"),
    ],
)
def test_what_cannot_be_scored_is_named_or_left_out_and_said(folders, prediction, message):
    folders(PREDICTION, name="good")
    places = folders(prediction, name="bad")
    with pytest.raises(UserError, match=rf"bad\.nii\.gz: .*{message}"):
        evaluate_folders(*places, known=(0, 1))
    metrics = evaluate_folders(*places, known=(0, 1), skip_bad=True)
    assert list(metrics["cases"]) == ["good"]
    assert list(metrics["left_out"]) == ["bad"]


def test_masks_meet_references_of_other_formats_and_of_nnunets_names(folders, tmp_path):
    places = folders(PREDICTION)
    shutil.move(tmp_path / "p" / "c.nii.gz", tmp_path / "p" / "c_0000.NII.GZ")
    assert evaluate_folders(*places)["mean"]["dsc"] == pytest.approx(DSC)


def test_masks_meet_references_that_have_nnunets_names(folders, tmp_path):
    places = folders(PREDICTION)
    shutil.move(tmp_path / "t" / "c.nii.gz", tmp_path / "t" / "c_0000.nii.gz")
    assert evaluate_folders(*places)["mean"]["dsc"] == pytest.approx(DSC)


@pytest.mark.parametrize("linked", ["folder", "file"])
def test_references_are_not_judged_by_themselves(folders, tmp_path, linked):
    _, references = folders(PREDICTION)
    predictions = tmp_path / "link"
    if linked == "folder":
        predictions.symlink_to(references)
    else:
        predictions.mkdir()
        (predictions / "c.nii.gz").symlink_to(references / "c.nii.gz")
    for same in (references, predictions):
        with pytest.raises(UserError, match="c there are the very files of the references in"):
            evaluate_folders(same, references)


@pytest.mark.parametrize("labels", [None, {1: "lesion"}, {1: "lesion", 2: "vessel"}])
def test_a_case_of_which_every_voxel_is_ignored_has_no_scores(folders, labels):
    folders(PREDICTION, np.full_like(REFERENCE, 9), name="ignored")
    metrics = evaluate_folders(*folders(PREDICTION), labels=labels, ignored=9)
    assert unscored(metrics) == ["ignored"]
    assert set(metrics["cases"]["ignored"].values()) == {None}
    assert metrics["count"]["dsc"] == 1
    assert metrics["mean"]["dsc"] == metrics["cases"]["c"]["dsc"]
    assert "ignored" not in metrics["empty"]
    alone = evaluate_folders(*folders(PREDICTION), labels=labels, ignored=9, cases=["ignored"])
    assert (alone["mean"], alone["count"]["dsc"]) == ({}, 0)


def test_what_a_mean_does_not_say_is_said_beside_it(folders, command, tmp_path):
    two = REFERENCE.copy()
    two[0:2, 0:2, 0:2] = 2
    folders(PREDICTION, np.full_like(REFERENCE, 9), name="ignored")
    predictions, references = folders(PREDICTION, two)
    places = f"--predictions={predictions}", f"--references={references}"
    said = command(
        "evaluate", *places, f"--output={tmp_path / 'new.json'}", "--ignore_label=9"
    ).stdout
    assert "c: prediction of label 2 empty; by convention its scores are 1 where both" in said
    assert "ignored: has no scores, every voxel of its reference is ignored" in said
    assert "label 2, in no mask though in a reference: dsc 0.000 ± 0.000 (of 1 cases)" in said
    assert "over labels there is no volume_difference_ml, nor hd95_mm of a case where" in said


def test_probabilities_beside_masks_are_no_cases(folders, tmp_path):
    places = folders(PREDICTION)
    save(tmp_path / "p" / "c_probability_1.nii.gz", PREDICTION * np.float32(0.7))
    assert list(evaluate_folders(*places)["cases"]) == ["c"]


def test_dataset_json_names_the_labels_and_the_ignored_value(tmp_path):
    (tmp_path / "labelsTr").mkdir()
    labels = {"background": 0, "lesion": 1, "ignore": 2}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    assert what_is_scored(tmp_path / "labelsTr") == ({1: "lesion"}, 2)
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": ["a", "b"]}))  # a prepared one
    assert what_is_scored(tmp_path / "labelsTr") == ({1: "a", 2: "b"}, 255)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(UserError, match=r"dataset\.json: damaged"):
        what_is_scored(tmp_path / "labelsTr")
    labels = {"background": 0, "lesion": [1, 2], "ignore": [4, 5]}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    with pytest.raises(UserError, match="its label to ignore is a region; nnU-Net wants one value"):
        what_is_scored(tmp_path / "labelsTr")


def test_metrics_are_written_over_metrics_and_over_nothing_else(tmp_path):
    check_output(tmp_path / "new.json")
    for text in ("no json", '{"labels": {}}'):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(UserError, match=r"other\.json: is there, and no metrics"):
            check_output(tmp_path / "other.json")
    (tmp_path / "metrics.json").write_text('{"tolerance_mm": 3.0}')
    check_output(tmp_path / "metrics.json")


@pytest.mark.parametrize("mark", ["runs/a/config.json", "study.json"])
def test_metrics_are_not_written_in_the_place_of_a_runs_own(tmp_path, mark):
    """Nor where a run of a study will have its own, by which the study knows that it is done."""
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "runs" / "a")
    (tmp_path / mark).write_text("{}")
    own = tmp_path / "runs" / "a" / "metrics.json"
    for _ in range(2):
        for path in (own, tmp_path / "link" / "metrics.json"):
            with pytest.raises(UserError, match=r"metrics\.json: lies in the folder of a run"):
                check_output(path)
        own.write_text('{"tolerance_mm": 3.0}')
