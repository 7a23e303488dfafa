"""nnU-Net v2's own predictor beside ours, with the same weights on the same files."""

import dataclasses
import functools
import json
import types

import jax
import nibabel as nib
import numpy as np
import pytest

from covid_jax.config import Config, DataConfig, InferenceConfig, UNetConfig
from covid_jax.data.normalization import ct
from covid_jax.data.plan import Plan
from covid_jax.data.preprocess import gathered, prepare_case, read_scan
from covid_jax.errors import UserError
from covid_jax.inference.scan import make_predictor
from covid_jax.model.nnunet_weights import to_params, to_state_dict
from covid_jax.nnunet.model_folder import (
    Model,
    plain_dataset,
    read_model,
    write_model,
)
from covid_jax.nnunet.run_folder import read_run
from covid_jax.training.checkpoint import load_params
from covid_jax.training.platform import platform_of
from tests.conftest import ROOT, installed
from tests.networks import assert_near

torch = installed("torch", extra="peers")
from benchmarks.peers.torch_predictor import predictor  # noqa: E402, I001
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO  # noqa: E402
from nnunetv2.inference import predict_from_raw_data  # noqa: E402

from benchmarks.peers import torch_nnunet as peer  # noqa: E402
from tests.parity import golden  # noqa: E402

NETWORK = UNetConfig(
    num_classes=3,
    features_per_stage=(6, 10, 12),
    kernel_sizes=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
    n_conv_per_stage=(1, 2, 1),
    n_conv_per_stage_decoder=(2, 1),
)
RESIDUAL = dataclasses.replace(NETWORK, n_conv_per_stage=(), n_blocks_per_stage=(1, 2, 2))
NETWORKS = pytest.mark.parametrize("network", [NETWORK, RESIDUAL], ids=["plain", "residual"])
PLANS = {
    "isotropic": (2.0, 2.5, 2.2),
    "slices apart": (7.5, 2.5, 2.5),
    "the scan's own": (1.5, 1.5, 1.5),
}


def random_model(spacing_mm, mirror, sums="float32", network=NETWORK):
    net = peer.network(network)
    golden.load_random_weights(net, seed=3)
    config = Config(
        model=network,
        data=DataConfig(datasets=("nnunet",), patch_size=(16, 40, 48)),
        inference=InferenceConfig(average="logits", sums=sums, mirror=mirror),
    )
    plan = Plan(spacing_mm, (ct(-900.0, 300.0, -400.0, 350.0),), (40, 60, 60), (), file_axes=True)
    return Model(config, plan, to_params(net.state_dict(), network), plain_dataset(3))


def nnunet_prediction(folder, scan, mirror):
    """Mask and probabilities (K, D, H, W), in the axes of the file."""
    image, properties = SimpleITKIO().read_images([str(scan)])
    return predictor(folder, mirror).predict_single_npy_array(image, properties, None, None, True)


def our_probabilities(model, scan):
    """(K, D, H, W) in the axes of the file."""
    mirror = model.config.inference.mirror
    predict = make_predictor(model.config, model.plan, model.params, mirror, platform_of("cpu"))
    case = prepare_case(read_scan(scan), None, model.plan)
    return gathered(predict(case), case.geometry)


@pytest.fixture(params=["LPS", "RAS"])
def scan(request, thorax, tmp_path):
    """A part of a real thorax, as a file whose axes point to the left, back, head, and another."""
    image = nib.load(thorax)
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(tuple(request.param))
    )
    turned = image.slicer[10:60, 5:75, 20:60].as_reoriented(turn)
    nib.save(turned, tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


@pytest.fixture
def in_float32(monkeypatch):
    """Makes nnU-Net add up the windows in float32, where it does in half precision."""
    names = {**vars(torch), "half": torch.float32}
    monkeypatch.setattr(predict_from_raw_data, "torch", types.SimpleNamespace(**names))
    gaussian = functools.partial(predict_from_raw_data.compute_gaussian, dtype=torch.float32)
    gaussian.cache_clear = lambda: None
    monkeypatch.setattr(predict_from_raw_data, "compute_gaussian", gaussian)


CASES = pytest.mark.parametrize(
    ("spacing", "mirror"), [("isotropic", True), ("slices apart", False), ("the scan's own", False)]
)


@CASES
def test_an_exported_network_predicts_there_what_it_predicts_here(
    tmp_path, scan, spacing, mirror, in_float32
):
    """Random weights, several windows."""
    model = random_model(PLANS[spacing], mirror)
    write_model(tmp_path / "model", model)
    their_mask, theirs = nnunet_prediction(tmp_path / "model", scan, mirror)
    ours = our_probabilities(model, scan)
    assert_near(ours, theirs, 1e-4)
    best, second = np.sort(ours, axis=0)[:-3:-1]
    clear = best - second > 2e-4  # each may be off by half of it
    assert np.array_equal(ours.argmax(0)[clear], their_mask[clear])
    assert len(np.unique(their_mask)) > 1


@CASES
@pytest.mark.parametrize("scan", ["LPS"], indirect=True)
def test_sums_in_half_precision_are_those_there(tmp_path, scan, spacing, mirror):
    """Its weights vanish at the corners of windows, where those in float32 are still Gaussian."""
    model = random_model(PLANS[spacing], mirror, sums="float16")
    write_model(tmp_path / "model", model)
    their_mask, theirs = nnunet_prediction(tmp_path / "model", scan, mirror)
    ours = our_probabilities(model, scan)
    assert np.abs(ours - theirs).mean() < 0.1 * 2**-11  # of probabilities: half rounds by 2**-11
    assert (ours.argmax(0) != their_mask).mean() < 1e-4


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tiny_run, command):
    """A trained run as nnU-Net's model, and that model as a run again."""
    model, run = (tmp_path_factory.mktemp("nnunet") / name for name in ("model", "run"))
    for arguments in (
        ("--export", f"--checkpoint={tiny_run}", f"--out_dir={model}"),
        (f"--checkpoint={model}/fold_0/checkpoint_final.pth", f"--out_dir={run}"),
    ):
        finished = command("import_nnunet", *arguments)
        assert finished.returncode == 0, finished.stderr
    return model, run


def test_what_was_exported_comes_back_bit_for_bit(tmp_path, exported, tiny_run):
    """Run -> nnU-Net -> run -> nnU-Net."""
    model, run = exported
    ours, returned = load_params(tiny_run), load_params(run)
    assert jax.tree.structure(ours) == jax.tree.structure(returned)
    assert all(map(np.array_equal, jax.tree.leaves(ours), jax.tree.leaves(returned)))
    write_model(tmp_path, read_run(run))
    weights = [
        torch.load(f / "fold_0" / "checkpoint_final.pth", weights_only=True)["network_weights"]
        for f in (model, tmp_path)
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    for name in ("plans.json", "dataset.json"):
        assert (model / name).read_text() == (tmp_path / name).read_text()


def test_an_export_keeps_beside_the_weights_what_nnunet_cannot_do(exported):
    text = (exported[0] / "README.md").read_text()
    assert "SCANS holds each scan as CASE_0000.nii.gz (CT); nnU-Net passes over" in text
    assert "LPS" in text
    assert "logits" in text


def test_predict_gives_the_mask_that_nnunet_gives_on_the_scans_own_grid(
    tmp_path, exported, tiny_run, command
):
    model, run = exported
    phantom = sorted((tiny_run / "data" / "raw_phantom" / "imagesTr").glob("*.nii.gz"))[0]
    scan = tmp_path / "scan.nii.gz"
    nib.save(nib.load(phantom).slicer[:70, :70], scan)
    finished = command(
        "predict", f"--checkpoint={run}", f"--input={scan}", f"--output_dir={tmp_path}/masks"
    )
    assert finished.returncode == 0, finished.stderr
    theirs, _ = nnunet_prediction(model, scan, mirror=True)
    mask = nib.load(tmp_path / "masks" / scan.name)
    np.testing.assert_array_equal(mask.affine, nib.load(scan).affine)
    assert (np.asarray(mask.dataobj).transpose() != theirs).mean() < 1e-4


def test_train_starts_from_an_imported_network(tmp_path, exported, tiny_run, command):
    finished = command(
        "train",
        f"--config={ROOT}/configs/tiny.py:frozen_encoder",
        f"--workdir={tmp_path}",
        f"--config.data.prepared_dir={tiny_run / 'data'}",
        f"--config.pretrained={exported[1]}",
        "--config.epochs=1",
        "--config.steps_per_epoch=2",
        "--config.data.augment=False",
        "--config.test=False",
    )
    assert finished.returncode == 0, finished.stderr
    tuned, imported = load_params(tmp_path)["encoder"], load_params(exported[1])["encoder"]
    assert all(map(np.array_equal, jax.tree.leaves(tuned), jax.tree.leaves(imported)))


def test_a_residual_encoder_predicts_there_what_it_predicts_here(tmp_path, thorax, in_float32):
    model = random_model(PLANS["slices apart"], mirror=False, network=RESIDUAL)
    write_model(tmp_path / "model", model)
    image = nib.load(thorax).slicer[10:60, 5:75, 20:60]
    nib.save(image, tmp_path / "scan.nii.gz")
    _, theirs = nnunet_prediction(tmp_path / "model", tmp_path / "scan.nii.gz", mirror=False)
    assert_near(our_probabilities(model, tmp_path / "scan.nii.gz"), theirs, 1e-4)


@NETWORKS
def test_a_model_goes_out_and_comes_back_bit_for_bit(tmp_path, network):
    model = random_model((2.0, 2.0, 2.0), False, sums="float16", network=network)
    write_model(tmp_path / "one", model)
    back = read_model(tmp_path / "one")
    assert back.config.model == network
    write_model(tmp_path / "two", back)
    one, two = (
        torch.load(tmp_path / name / "fold_0" / "checkpoint_final.pth", weights_only=True)
        for name in ("one", "two")
    )
    assert one["network_weights"].keys() == two["network_weights"].keys()
    for name, weight in one["network_weights"].items():
        assert torch.equal(weight, two["network_weights"][name]), name
    assert one["init_args"] == two["init_args"]


def test_torch_reads_an_export_without_executing_anything(tmp_path):
    """So others may load it with weights_only."""
    write_model(tmp_path, random_model((2.0, 2.0, 2.0), False))
    content = torch.load(tmp_path / "fold_0" / "checkpoint_final.pth", weights_only=True)
    assert content["init_args"]["configuration"] == "3d_fullres"


def test_a_checkpoint_with_all_that_nnunets_trainer_saves_is_read(tmp_path):
    """The checkpoint holds all that nnUNetTrainer saves."""
    model = random_model((2.0, 2.0, 2.0), True, sums="float16")
    write_model(tmp_path, model)
    path = tmp_path / "fold_0" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=True)
    content |= {
        "optimizer_state": torch.optim.SGD(peer.network(NETWORK).parameters(), 0.01).state_dict(),
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float64(0.5)], "ema_fg_dice": [0.4]},
        "_best_ema": np.float64(0.4),
        "current_epoch": 1000,
    }
    content["init_args"]["device"] = torch.device("cuda", 0)
    torch.save(content, path)
    back = read_model(path)
    assert back.plan == dataclasses.replace(model.plan, outside_apart=True)  # as of each of nnU-Net
    assert back.config.model == NETWORK
    assert back.config.inference == model.config.inference
    expected = to_state_dict(model.params, NETWORK)
    found = to_state_dict(back.params, NETWORK)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def old_form(configuration):
    """The same network as plans before nnU-Net 2.5 tell it."""
    architecture = configuration.pop("architecture")
    arguments = architecture["arch_kwargs"]
    blocks = arguments.get("n_conv_per_stage") or arguments["n_blocks_per_stage"]
    configuration |= {
        "UNet_class_name": architecture["network_class_name"].rpartition(".")[2],
        "UNet_base_num_features": 6,
        "unet_max_num_features": 12,
        "n_conv_per_stage_encoder": blocks,
        "n_conv_per_stage_decoder": arguments["n_conv_per_stage_decoder"],
        "pool_op_kernel_sizes": arguments["strides"],
        "conv_kernel_sizes": arguments["kernel_sizes"],
    }


def change_plans(folder, change):
    plans = json.loads((folder / "plans.json").read_text())
    change(plans, plans["configurations"]["3d_fullres"])
    (folder / "plans.json").write_text(json.dumps(plans))


@NETWORKS
def test_plans_of_before_version_2_5_are_read(tmp_path, network):
    network = dataclasses.replace(network, features_per_stage=(6, 12, 12))
    net = peer.network(network)
    model = dataclasses.replace(
        random_model((2.0, 2.0, 2.0), True),
        config=Config(model=network),
        params=to_params(net.state_dict(), network),
    )
    write_model(tmp_path, model)
    change_plans(tmp_path, lambda _, configuration: old_form(configuration))
    assert read_model(tmp_path).config.model == network


def inherit(plans, configuration):
    plans["configurations"]["3d_fullres"] = {"inherits_from": "base", "batch_size": 7}
    plans["configurations"]["base"] = configuration


def test_a_configuration_has_what_it_inherits(tmp_path):
    write_model(tmp_path, random_model((2.0, 2.0, 2.0), True))
    change_plans(tmp_path, inherit)
    config = read_model(tmp_path).config
    assert (config.data.batch_size, config.data.patch_size) == (7, (16, 40, 48))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, c: p.update(transpose_forward=[1, 2, 0]), "does not undo"),
        (lambda p, c: c.update(normalization_schemes=["MyNormalization"]), "by MyNormalization"),
        (lambda p, c: c["architecture"].update(network_class_name="a.ResEnc"), "network is ResEnc"),
        (
            lambda p, c: c["architecture"]["arch_kwargs"].update(conv_bias=False),
            "networks with conv_bias=True",
        ),
        (lambda p, c: c.pop("spacing"), "its spacing is missing"),
    ],
)
def test_a_model_that_ours_is_not_is_refused_with_the_reason(tmp_path, change, message):
    write_model(tmp_path, random_model((2.0, 2.0, 2.0), True))
    change_plans(tmp_path, change)
    with pytest.raises(UserError, match=message):
        read_model(tmp_path)
