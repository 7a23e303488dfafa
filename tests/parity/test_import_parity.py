"""Imported networks beside nnU-Net v2's own predictor, from file to file: a setting at a time.

Random weights, whose masks change with every setting; at most a thousandth of the foreground may
differ.
"""

import json

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt
from scipy import ndimage

from covid_jax.data.preprocess import as_volume, prepare_case, read_scan
from covid_jax.data.volume import write_volume
from covid_jax.inference.postprocess import Postprocessing, mask_of
from covid_jax.inference.scan import make_ensemble
from covid_jax.label_space import label_space
from covid_jax.nnunet.model_folder import checkpoints_in, plain_dataset, read_model
from covid_jax.training.platform import platform_of
from tests.conftest import ROOT, installed

torch = installed("torch", extra="peers")
import benchmarks.peers.torch_predictor  # noqa: E402, F401, I001  (what nnU-Net asks for)
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor  # noqa: E402
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans  # noqa: E402

OWN_SPACING, OTHER_SPACING, SLICES_APART = [3.0, 1.5, 1.5], [2.0, 1.2, 1.3], [6.0, 1.6, 1.4]
PLAIN = plain_dataset(3)
REGIONS = {
    **PLAIN,
    "labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4},
    "regions_class_order": [1, 2, 3],
}
SHAPE = (24, 22, 18)
"""Of a scan in the axes of an LPS file."""


def plans_of(spacing_mm, change=lambda plans, configuration: None):
    """A planner's plans, with a tiny network, at `spacing_mm` (slices first)."""
    plans = json.loads((ROOT / "tests" / "files" / "nnunet_plans.json").read_text())
    configuration = plans["configurations"]["3d_fullres"]
    configuration |= {"patch_size": [8, 16, 16], "spacing": spacing_mm}
    configuration["architecture"]["arch_kwargs"] |= {
        "n_stages": 2,
        "features_per_stage": [4, 8],
        "kernel_sizes": [[1, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [2, 2, 2]],
        "n_conv_per_stage": [1, 1],
        "n_conv_per_stage_decoder": [1],
    }
    change(plans, configuration)
    return plans


def write_folder(
    folder,
    plans,
    mirror_axes=None,
    folds=("0",),
    names=("checkpoint_final.pth",),
    trained="0",
    dataset=PLAIN,
):
    """A model folder of nnU-Net, each fold with random weights of its own."""
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    arguments = (
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
    )
    for number, fold in enumerate(folds):
        torch.manual_seed(number)
        network = get_network_from_plans(
            *arguments, 1, label_space(dataset).heads, deep_supervision=True
        )
        with torch.no_grad():
            for weight in network.parameters():
                if weight.ndim > 1:
                    weight.normal_(0, 1.5 / weight[0].numel() ** 0.5)
            for name, weight in network.named_parameters():
                if name.endswith("conv2.norm.weight"):  # of residual blocks, which start as nothing
                    weight.normal_(1, 0.3)
        checkpoint = {
            "network_weights": network.state_dict(),
            "trainer_name": "nnUNetTrainer",
            "init_args": {"plans": plans, "configuration": "3d_fullres", "dataset_json": dataset},
            "inference_allowed_mirroring_axes": mirror_axes,
        }
        (folder / f"fold_{fold}").mkdir(parents=True)
        for name in names:
            torch.save(checkpoint, folder / f"fold_{fold}" / name)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))


def write_scan(path, axes="LPS", tilt=0.0):
    """A scan whose file's axes point to `axes`, tilted by degrees about the patient's x."""
    noise = np.random.default_rng(0).normal(size=SHAPE)
    voxels = np.clip(ndimage.gaussian_filter(noise, 1.5) * 6000 - 300, -1000, 900)
    affine = np.diag([-1.5, -1.5, 3.0, 1.0])
    cos, sin = np.cos(np.radians(tilt)), np.sin(np.radians(tilt))
    turn = np.eye(4)
    turn[1:3, 1:3] = [[cos, -sin], [sin, cos]]
    affine = turn @ affine
    affine[:3, 3] = 100, 120, -300
    image = nib.Nifti1Image(np.rint(voxels).astype(np.int16), affine)
    ornt = nib.orientations.ornt_transform(axcodes2ornt("LPS"), axcodes2ornt(tuple(axes)))
    image = image.as_reoriented(ornt)
    image.set_qform(image.affine, 1)
    image.set_sform(image.affine, 1)
    nib.save(image, path)
    return path


def their_mask(folder, scan, folds=(0,), checkpoint="checkpoint_final.pth"):
    """What nnU-Net's predictor writes for the file of a scan."""
    predictor = nnUNetPredictor(
        perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
    )
    predictor.initialize_from_trained_model_folder(str(folder), folds, checkpoint)
    target = scan.with_name("theirs")
    predictor.predict_from_files_sequential([[str(scan)]], [str(target)], overwrite=True)
    return np.asarray(nib.load(f"{target}.nii.gz").dataobj)


def our_mask(folder, scan):
    """What predict writes with the imported folds."""
    models = [read_model(path) for path in checkpoints_in(folder).values()]
    runs = [(model.config, model.plan, model.params) for model in models]
    case = prepare_case(read_scan(scan), None, runs[0][1])
    pieces = make_ensemble(runs, None, platform_of("cpu"))(case)
    space = runs[0][0].label_space
    mask = mask_of(pieces, case.geometry.shape, Postprocessing(), space)
    target = scan.with_name("ours.nii.gz")
    write_volume(target, as_volume(mask, case.geometry))
    return np.asarray(nib.load(target).dataobj)


def share_that_differs(ours, theirs):
    assert len(np.unique(theirs)) > 1
    return (ours != theirs).sum() / ((ours > 0) | (theirs > 0)).sum()


def resampled(of, **arguments):
    return lambda plans, configuration: configuration[f"resampling_fn_{of}_kwargs"].update(
        arguments
    )


def by_torch(plans, configuration):
    for of in ("data", "seg", "probabilities"):
        configuration[f"resampling_fn_{of}"] = "resample_torch_fornnunet"
        configuration[f"resampling_fn_{of}_kwargs"] = {"is_seg": of == "seg"}


def by_torch_in_3d(plans, configuration):
    by_torch(plans, configuration)
    for of in ("data", "probabilities"):
        configuration[f"resampling_fn_{of}_kwargs"]["force_separate_z"] = False


def network(**arguments):
    return lambda plans, configuration: configuration["architecture"]["arch_kwargs"].update(
        arguments
    )


def reader(name):
    return lambda plans, configuration: plans.update(image_reader_writer=name)


def transposed(forward, backward, reader="SimpleITKIO"):
    return lambda plans, configuration: plans.update(
        transpose_forward=forward, transpose_backward=backward, image_reader_writer=reader
    )


def residual(plans, configuration):
    """A residual encoder, with a block whose input is pooled and one whose input is projected."""
    architecture = configuration["architecture"]
    architecture["network_class_name"] = (
        "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
    )
    del architecture["arch_kwargs"]["n_conv_per_stage"]
    architecture["arch_kwargs"] |= {"n_blocks_per_stage": [1, 3]}


CASES = {
    "as the planner writes it": (OWN_SPACING, None, None, "LPS"),
    "resampled": (OTHER_SPACING, None, None, "RAS"),
    "slices apart": (SLICES_APART, None, None, "LAS"),
    "read by nibabel": (OTHER_SPACING, None, reader("NibabelIO"), "PIR"),
    "mirrored along all axes": (OWN_SPACING, (0, 1, 2), None, "LPS"),
    "mirrored along two axes": (OWN_SPACING, (0, 2), None, "LPS"),
    "another slope and epsilon": (
        OWN_SPACING,
        None,
        network(
            nonlin_kwargs={"inplace": True, "negative_slope": 0.3},
            norm_op_kwargs={"eps": 0.1, "affine": True},
        ),
        "LPS",
    ),
    "scans by linear splines": (OTHER_SPACING, None, resampled("data", order=1), "LPS"),
    "scores by cubic splines": (OTHER_SPACING, None, resampled("probabilities", order=3), "LPS"),
    "linear along the coarse axis": (SLICES_APART, None, resampled("data", order_z=1), "LPS"),
    "the coarsest axis always apart": (
        OTHER_SPACING,
        None,
        resampled("data", force_separate_z=True),
        "LPS",
    ),
    "the coarsest axis never apart": (
        SLICES_APART,
        None,
        resampled("data", force_separate_z=False),
        "LPS",
    ),
    "another threshold of anisotropy": (
        OTHER_SPACING,
        None,
        resampled("data", separate_z_anisotropy_threshold=1.5),
        "LPS",
    ),
    "by torch, slices apart": (SLICES_APART, None, by_torch, "LPS"),
    "by torch, in 3D": (OTHER_SPACING, None, by_torch_in_3d, "LPS"),
    "a residual encoder": (OTHER_SPACING, (0, 2), residual, "LPS"),
    "transposed": ([1.2, 1.3, 2.0], None, transposed([1, 2, 0], [2, 0, 1]), "RAS"),
    "transposed after turning": (
        [1.2, 2.0, 1.3],
        None,
        transposed([1, 0, 2], [1, 0, 2], "NibabelIOWithReorient"),
        "PIR",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_mask_is_that_of_nnunets_predictor(tmp_path, name):
    spacing_mm, mirror_axes, change, axes = CASES[name]
    plans = plans_of(spacing_mm, change) if change else plans_of(spacing_mm)
    write_folder(tmp_path / "model", plans, mirror_axes)
    scan = write_scan(tmp_path / "scan.nii.gz", axes)
    theirs = their_mask(tmp_path / "model", scan)
    assert share_that_differs(our_mask(tmp_path / "model", scan), theirs) <= 0.001


@pytest.mark.parametrize("name", ["NibabelIOWithReorient", "SimpleITKIOWithReorient"])
def test_a_reader_that_turns_scans_does_so_for_every_file(tmp_path, name):
    """Of axes that point anywhere, and of a tilted scan."""
    write_folder(tmp_path / "model", plans_of(OTHER_SPACING, reader(name)))
    for axes, tilt in (("LPS", 0), ("PIR", 0), ("SAL", 20)):
        scan = write_scan(tmp_path / f"{axes}.nii.gz", axes, tilt)
        theirs = their_mask(tmp_path / "model", scan)
        assert share_that_differs(our_mask(tmp_path / "model", scan), theirs) <= 0.001, axes


@pytest.mark.parametrize("spacing_mm", [OWN_SPACING, OTHER_SPACING])
def test_masks_of_regions_are_those_of_nnunets_predictor(tmp_path, spacing_mm):
    """Whose channels are probabilities each of its own, with nothing outside of what is not 0."""
    write_folder(tmp_path / "model", plans_of(spacing_mm), folds=("0", "1"), dataset=REGIONS)
    whole = nib.load(write_scan(tmp_path / "whole.nii.gz"))
    voxels = np.asarray(whole.dataobj).copy()
    voxels[:3], voxels[:, -2:], voxels[..., :2] = 0, 0, 0
    scan = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(voxels, whole.affine, whole.header), scan)
    theirs = their_mask(tmp_path / "model", scan, folds=None)
    assert len(np.unique(theirs)) > 2
    assert share_that_differs(our_mask(tmp_path / "model", scan), theirs) <= 0.001


def test_several_folds_are_averaged_as_nnunet_averages_them(tmp_path):
    """Not the one that was trained on all."""
    write_folder(tmp_path / "model", plans_of(OTHER_SPACING), folds=("0", "1", "all"))
    scan = write_scan(tmp_path / "scan.nii.gz")
    theirs = their_mask(tmp_path / "model", scan, folds=None)
    assert share_that_differs(our_mask(tmp_path / "model", scan), theirs) <= 0.001
    one = their_mask(tmp_path / "model", scan)
    assert share_that_differs(one, theirs) > 0.1


def test_the_best_checkpoint_of_the_fold_of_all_is_taken_where_there_is_no_other(tmp_path):
    names = ("checkpoint_best.pth",)
    write_folder(tmp_path / "model", plans_of(OWN_SPACING), folds=("all",), names=names)
    scan = write_scan(tmp_path / "scan.nii.gz")
    theirs = their_mask(tmp_path / "model", scan, ("all",), *names)
    assert share_that_differs(our_mask(tmp_path / "model", scan), theirs) <= 0.001
