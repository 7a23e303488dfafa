"""What is tried on a run's training cases before its test."""

import dataclasses

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from covid_jax.config import InferenceConfig, UNetConfig
from covid_jax.data.geometry import from_spacing
from covid_jax.data.phantom import write_raw_dataset
from covid_jax.data.plan import load_plan, save_plan
from covid_jax.data.preparation import prepare_dataset
from covid_jax.data.store import load_dataset
from covid_jax.data.volume import write_volume
from covid_jax.evaluation.scoring import choose, keep_others, score_run
from covid_jax.inference.masks import Origin, origin_of, write_mask
from covid_jax.inference.postprocess import Postprocessing
from covid_jax.training.platform import platform_of, with_dtype
from covid_jax.training.state import new_params
from covid_jax.transfer.strategies import network_of
from tests.conftest import tiny


def probabilities(lesion):
    return np.stack([1 - lesion, lesion])


def test_what_scores_best_on_the_given_cases_is_chosen_and_the_plainest_of_equals():
    truth = np.zeros((6, 6, 6), np.uint8)
    truth[1:4, 1:4, 1:4] = 1
    timid = probabilities(truth * 0.35)
    assert choose([(timid, truth)]) == Postprocessing(threshold=0.2)
    stray = truth * 0.9
    stray[5, 5, 5] = 0.9
    assert choose([(probabilities(stray), truth)]) == Postprocessing(largest_only=True)
    assert choose([(probabilities(truth * 0.9), truth)]) == Postprocessing()


def test_settings_are_chosen_by_references_on_the_grid_of_the_probabilities(tmp_path):
    """The plan sees the files' axes, and each case's file has other ones."""
    write_raw_dataset("phantom", tmp_path / "raw", 4, seed=0)
    prepare_dataset("phantom", tmp_path / "raw", tmp_path / "out")
    plan = dataclasses.replace(load_plan(tmp_path / "out" / "plan.json"), file_axes=True)
    save_plan(tmp_path / "out" / "plan.json", plan)
    prepare_dataset("phantom", tmp_path / "raw", tmp_path / "out")
    dataset = load_dataset(tmp_path / "out", "phantom", plan.hash)
    config = tiny(inference=InferenceConfig(choose=True))
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, patch_size=(16, 16, 16)),
        model=UNetConfig(
            features_per_stage=(2, 2),
            kernel_sizes=((1, 1, 1),) * 2,
            strides=((1, 1, 1), (2, 2, 2)),
            n_conv_per_stage=(1, 1),
            n_conv_per_stage_decoder=(1,),
        ),
    )
    platform = platform_of("cpu")
    network = network_of(with_dtype(config, platform), platform.form)
    params = new_params(network, 0, (1, 16, 16, 16, 1))
    metrics = score_run(config, plan, dataset, params, tmp_path / "run", platform)
    assert set(metrics["cases"]) == set(dataset.split(0).test)
    assert (tmp_path / "run" / "postprocessing.json").is_file()
    masks = [tmp_path / "run" / "predictions" / f"{name}.nii.gz" for name in metrics["cases"]]
    assert all(origin_of(mask) for mask in masks)
    # Somebody corrects one, and has the test done again.
    correct(masks[0])
    corrected = masks[0].read_bytes()
    assert score_run(config, plan, dataset, params, tmp_path / "run", platform) == metrics
    assert (tmp_path / "run" / "predictions_kept" / masks[0].name).read_bytes() == corrected
    assert all(origin_of(mask) for mask in masks)


def correct(path):
    image = nib.load(path)
    voxels = 1 - np.asarray(image.dataobj)
    nib.Nifti1Image(voxels, image.affine, image.header).to_filename(path)


def test_masks_that_somebody_made_or_corrected_are_kept(tmp_path, capsys):
    """Whether they never had a mark, or lost it, or are in another format; over no other file."""
    folder, kept = tmp_path / "predictions", tmp_path / "predictions_kept"
    mask = from_spacing(np.eye(3, dtype=np.uint8)[None], (1, 1, 1))
    write_mask(folder / "ours.nii.gz", mask, Origin("a", "b"))
    keep_others(folder, kept)
    assert not kept.exists()
    assert capsys.readouterr().out == ""
    write_mask(folder / "corrected.nii.gz", mask, Origin("a", "b"))
    correct(folder / "corrected.nii.gz")
    write_volume(folder / "before marks.nii.gz", mask)
    sitk.WriteImage(sitk.GetImageFromArray(mask.voxels), folder / "ours.mhd")
    (folder / "damaged.nii").write_bytes(b"")
    (folder / "link.nii.gz").symlink_to("ours.nii.gz")
    theirs = {path.name for path in folder.iterdir()} - {"ours.nii.gz", "link.nii.gz"}
    assert "ours.raw" in theirs
    keep_others(folder, kept)
    assert {path.name for path in kept.iterdir()} == theirs
    assert {path.name for path in folder.iterdir()} == {"ours.nii.gz", "link.nii.gz"}
    (line,) = capsys.readouterr().out.splitlines()
    assert f"kept in {kept}: before marks.nii.gz, corrected.nii.gz, damaged.nii" in line
    first = (kept / "corrected.nii.gz").read_bytes()
    write_volume(folder / "corrected.nii.gz", mask)
    keep_others(folder, kept)
    assert (kept / "corrected.nii.gz").read_bytes() == first
    assert (tmp_path / "predictions_kept_2" / "corrected.nii.gz").is_file()
