"""Metrics: against surface-distance, by hand, and at the edges."""

import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from covid_jax.data.geometry import from_spacing
from covid_jax.data.volume import read_volume, write_volume
from covid_jax.errors import UserError
from covid_jax.evaluation.folders import evaluate_folders, save_metrics
from covid_jax.evaluation.metrics import segmentation_metrics
from covid_jax.label_space import IGNORED

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from surface_distance import metrics as peer

SPACING = st.tuples(*[st.floats(0.4, 6)] * 3)


def blobs(rng, shape):
    return ndimage.gaussian_filter(rng.normal(size=shape), rng.uniform(0.3, 2)) > 0.05


@given(
    seed=st.integers(0, 10_000),
    shape=st.tuples(*[st.integers(2, 24)] * 3),
    spacing=SPACING,
    tolerance=st.floats(0.2, 8),
)
@settings(max_examples=80, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_nsd_and_hausdorff_are_those_of_surface_distance(seed, shape, spacing, tolerance):
    rng = np.random.default_rng(seed)
    a, b = blobs(rng, shape), blobs(rng, shape)
    if not (a.any() and b.any()):
        return
    theirs = peer.compute_surface_distances(a, b, spacing)
    nsd = peer.compute_surface_dice_at_tolerance(theirs, tolerance)
    ours = segmentation_metrics(a, b, spacing, tolerance)
    assert ours["nsd"] == pytest.approx(nsd, abs=1e-9)
    assert ours["hd95_mm"] == pytest.approx(peer.compute_robust_hausdorff(theirs, 95), abs=1e-9)


def test_counts_by_hand():
    prediction = np.zeros((4, 4, 4), bool)
    reference = prediction.copy()
    prediction[0, 0, :3] = True  # 3 predicted, 2 of them right, of 4
    reference[0, 0, 1:] = reference[1, 0, 0] = True
    metrics = segmentation_metrics(prediction, reference, (1, 1, 1))
    assert metrics["dsc"] == pytest.approx(4 / 7)
    assert metrics["f1"] == pytest.approx(4 / 7)
    assert metrics["sensitivity"] == pytest.approx(2 / 4)
    assert metrics["accuracy"] == pytest.approx(61 / 64)
    assert metrics["volume_difference_ml"] == pytest.approx(-1 / 1000)


def test_a_shift_within_the_tolerance_costs_no_nsd():
    reference = np.zeros((12, 12, 12), bool)
    reference[3:8, 3:8, 3:8] = True
    shifted = np.roll(reference, 1, 2)
    assert segmentation_metrics(shifted, reference, (1, 1, 2.0), 2.5)["nsd"] == 1
    assert segmentation_metrics(shifted, reference, (1, 1, 2.0), 1.5)["nsd"] < 1


@pytest.mark.parametrize(
    ("prediction", "reference", "value"), [(0, 0, 1.0), (1, 0, 0.0), (0, 1, 0.0), (1, 1, 1.0)]
)
def test_empty_masks_follow_the_convention(prediction, reference, value):
    a, b = np.full((3, 3, 3), bool(prediction)), np.full((3, 3, 3), bool(reference))
    metrics = segmentation_metrics(a, b, (1, 1, 1))
    assert {metrics[name] for name in ("dsc", "nsd", "sensitivity", "f1")} == {value}
    assert metrics["accuracy"] == (prediction == reference)
    assert metrics["hd95_mm"] == (0.0 if prediction and reference else None)


def test_an_empty_mask_is_flagged_and_has_no_part_in_the_mean_distance(folders):
    nothing = from_spacing(np.zeros((6, 8, 8), np.uint8), (4, 1, 1))
    write_volume(folders / "predictions" / "b.nii.gz", nothing)
    metrics = evaluate_folders(folders / "predictions", folders / "references", processes=2)
    assert metrics["empty"] == {"b": "prediction"}
    assert metrics["mean"]["hd95_mm"] == metrics["cases"]["a"]["hd95_mm"]
    assert metrics["mean"]["dsc"] == metrics["cases"]["a"]["dsc"] / 2


def test_masks_of_different_shapes_are_an_error():
    with pytest.raises(ValueError, match="shapes differ"):
        segmentation_metrics(np.zeros((2, 2, 2)), np.zeros((2, 2, 3)), (1, 1, 1))


@pytest.fixture
def folders(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        for folder in ("predictions", "references"):
            mask = blobs(rng, (6, 8, 8)).astype(np.uint8)
            write_volume(tmp_path / folder / f"{name}.nii.gz", from_spacing(mask, (4, 1, 1)))
    return tmp_path


def test_a_folder_is_scored_case_by_case_with_mean_and_deviation(folders):
    metrics = evaluate_folders(folders / "predictions", folders / "references")
    values = [case["dsc"] for case in metrics["cases"].values()]
    assert len(values) == 2
    assert metrics["mean"]["dsc"] == pytest.approx(np.mean(values))
    assert metrics["std"]["dsc"] == pytest.approx(np.std(values))
    save_metrics(folders / "metrics.json", metrics)
    assert json.loads((folders / "metrics.json").read_text()) == metrics


def test_ignored_voxels_of_a_reference_have_no_part_in_the_score(folders):
    before = evaluate_folders(folders / "predictions", folders / "references")["cases"]["a"]
    reference = read_volume(folders / "references" / "a.nii.gz")
    prediction = read_volume(folders / "predictions" / "a.nii.gz")
    nobodys = (reference.voxels == 0) & (prediction.voxels == 1)
    assert nobodys.any()
    reference.voxels[nobodys] = IGNORED
    write_volume(folders / "references" / "a.nii.gz", reference)
    after = evaluate_folders(folders / "predictions", folders / "references", ignored=IGNORED)[
        "cases"
    ]["a"]
    assert after["dsc"] > before["dsc"]
    assert after["sensitivity"] == before["sensitivity"]


def test_a_prediction_without_reference_is_named(folders):
    (folders / "references" / "b.nii.gz").unlink()
    with pytest.raises(UserError, match="no reference for b"):
        evaluate_folders(folders / "predictions", folders / "references")


def test_a_prediction_on_another_grid_is_named(folders):
    other = from_spacing(np.zeros((6, 8, 8), np.uint8), (4, 1, 2))
    write_volume(folders / "predictions" / "b.nii.gz", other)
    with pytest.raises(
        UserError, match=r"predictions/b\.nii\.gz: lies elsewhere than .*references/b"
    ):
        evaluate_folders(folders / "predictions", folders / "references")
