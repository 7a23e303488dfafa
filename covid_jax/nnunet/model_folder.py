"""Trained models of nnU-Net v1 and v2 as runs of ours, and a run of ours as a model of v2."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from covid_jax.config import Config, DataConfig, InferenceConfig, LossConfig, UNetConfig
from covid_jax.data.plan import Plan
from covid_jax.errors import UserError
from covid_jax.files import whole_file, write_json
from covid_jax.model.nnunet_weights import to_params, to_state_dict
from covid_jax.nnunet.pickles import load_checkpoint, load_pickle

Tree = Any

_CHECKPOINTS = ("checkpoint_final.pth", "model_final_checkpoint.model")
_MAX_FEATURES_V1 = 320  # Generic_UNet.MAX_NUM_FILTERS_3D
_PLAIN_UNET = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
_ALL_AXES = (0, 1, 2)


@dataclass(frozen=True)
class Model:
    """A trained model: what a run folder holds, and nnU-Net's dataset.json."""

    config: Config
    plan: Plan
    params: Tree
    dataset: dict[str, Any]


def read_model(checkpoint: Path, plans: Path | None = None) -> Model:
    """The model of a checkpoint of nnU-Net, of version 1 or 2.

    Args:
      checkpoint: checkpoint_final.pth (v2), model_final_checkpoint.model (v1), or a fold's folder.
      plans: plans.json (v2) or plans.pkl (v1). None: the file beside the checkpoint or above it,
        else what the checkpoint itself says.

    Raises:
      UserError: a file that is missing, damaged or not plain data; a network, a normalisation or
        an order of axes that is not supported; weights that do not fit.
    """
    if plans and not plans.is_file():
        raise UserError(f"{plans}: no such file")
    path = _checkpoint_file(checkpoint)
    content = load_checkpoint(path)
    if not isinstance(content, dict) or not {"network_weights", "state_dict"} & content.keys():
        raise UserError(f"{path}: holds no weights of nnU-Net")
    read = _read_v2 if "network_weights" in content else _read_v1
    try:
        return read(path, content, plans)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{plans or path}: plans that nnU-Net did not write ({type(error).__name__}: {error})"
        ) from error


def write_model(folder: Path, model: Model) -> None:
    """Writes plans.json, dataset.json and fold_0/checkpoint_final.pth, which nnU-Net v2 loads.

    Raises:
      UserError: PyTorch is not installed, or nnU-Net v2 has no such network.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError("to export needs PyTorch: pip install 'covid-jax[nnunet]'") from error
    weights = to_state_dict(model.params, model.config.model)
    tensors = {id(array): torch.tensor(array) for array in weights.values()}
    plans = _plans_v2(model)
    checkpoint = {
        "network_weights": {name: tensors[id(array)] for name, array in weights.items()},
        "trainer_name": "nnUNetTrainer",
        "init_args": {
            "plans": plans,
            "configuration": "3d_fullres",
            "fold": 0,
            "dataset_json": model.dataset,
        },
        "inference_allowed_mirroring_axes": _ALL_AXES,
    }
    with whole_file(folder / "fold_0" / "checkpoint_final.pth") as partial:
        torch.save(checkpoint, partial)
    for name, text in {"dataset.json": model.dataset, "plans.json": plans}.items():
        write_json(folder / name, text)


def plain_dataset(num_classes: int) -> dict[str, Any]:
    """A dataset.json of CT for a network whose classes have no names."""
    names = ["lesion"] if num_classes == 2 else [f"lesion_{k}" for k in range(1, num_classes)]
    labels = {"background": 0, **{name: k for k, name in enumerate(names, start=1)}}
    return {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}


def _read_v2(path: Path, content: Mapping[str, Any], plans_path: Path | None) -> Model:
    arguments = content.get("init_args", {})
    plans = _json_near(path, plans_path, "plans.json") or arguments["plans"]
    dataset = _json_near(path, plans_path and plans_path.with_name("dataset.json"), "dataset.json")
    dataset = dataset or arguments["dataset_json"]
    if _tuple(plans["transpose_forward"]) != _ALL_AXES:
        raise UserError(f"{path}: its plans transpose axes, which is not supported")
    name = arguments.get("configuration", "3d_fullres")
    settings = _inherited(plans["configurations"], name)
    if settings["normalization_schemes"] != ["CTNormalization"]:
        raise UserError(
            f"{path}: normalised by {settings['normalization_schemes']}; only CT of one channel "
            "is supported"
        )
    labels = dataset["labels"]
    if any(isinstance(value, list | tuple) for value in labels.values()):
        raise UserError(f"{path}: trained on regions; only plain labels are supported")
    model = _network_v2(path, settings, sum(label != "ignore" for label in labels))
    intensities = plans["foreground_intensity_properties_per_channel"]["0"]
    mirrored = _tuple(content.get("inference_allowed_mirroring_axes") or ()) == _ALL_AXES
    inference = InferenceConfig(average="logits", mirror=mirrored)
    return Model(
        _config(model, settings, bool(settings["batch_dice"]), inference),
        _plan(
            settings["spacing"],
            settings["median_image_size_in_voxels"],
            intensities,
            intensities["std"],
        ),
        _weights(path, content["network_weights"], model),
        dict(dataset),
    )


def _network_v2(path: Path, settings: Mapping[str, Any], num_classes: int) -> UNetConfig:
    if "architecture" in settings:
        name = settings["architecture"]["network_class_name"]
        arguments = settings["architecture"]["arch_kwargs"]
        supported = name == _PLAIN_UNET and (
            arguments["conv_bias"],
            arguments["conv_op"].rpartition(".")[2],
            arguments["norm_op"].rpartition(".")[2],
            arguments["nonlin"].rpartition(".")[2],
            arguments.get("nonlin_first", False),
        ) == (True, "Conv3d", "InstanceNorm3d", "LeakyReLU", False)
    else:  # plans before nnU-Net 2.5
        name = settings["UNet_class_name"]
        supported = name == "PlainConvUNet"
        stages = len(settings["n_conv_per_stage_encoder"])
        arguments = {
            "features_per_stage": _features(
                settings["UNet_base_num_features"], stages, settings["unet_max_num_features"]
            ),
            "kernel_sizes": settings["conv_kernel_sizes"],
            "strides": settings["pool_op_kernel_sizes"],
            "n_conv_per_stage": settings["n_conv_per_stage_encoder"],
            "n_conv_per_stage_decoder": settings["n_conv_per_stage_decoder"],
        }
    if not supported or len(settings["patch_size"]) != 3:
        raise UserError(
            f"{path}: its network is {name.rpartition('.')[2]}; only the plain 3D U-Net is "
            "supported (PlainConvUNet with instance norm and leaky ReLU)"
        )
    kernels, strides = arguments["kernel_sizes"], arguments["strides"]
    return UNetConfig(
        num_classes=num_classes,
        features_per_stage=_tuple(arguments["features_per_stage"]),
        kernel_sizes=tuple(map(_tuple, kernels)),
        strides=tuple(map(_tuple, strides)),
        n_conv_per_stage=_each(arguments["n_conv_per_stage"], len(kernels)),
        n_conv_per_stage_decoder=_each(arguments["n_conv_per_stage_decoder"], len(kernels) - 1),
    )


def _read_v1(path: Path, content: Mapping[str, Any], plans_path: Path | None) -> Model:
    beside = path.with_name(f"{path.name}.pkl")
    found = [p for p in (plans_path, beside, path.parent.parent / "plans.pkl") if p and p.is_file()]
    if not found:
        raise UserError(f"{beside}: missing; give the model's plans.pkl by --plans")
    facts = load_pickle(found[0])
    plans = facts.get("plans", facts)
    arguments = facts.get("init")
    if _tuple(plans["transpose_forward"]) != _ALL_AXES:
        raise UserError(f"{path}: its plans transpose axes, which is not supported")
    if list(plans["normalization_schemes"].values()) != ["CT"]:
        raise UserError(f"{path}: only models of CT of one channel are supported")
    stages = plans["plans_per_stage"]
    if arguments is None and len(stages) > 1:
        raise UserError(f"{beside}: missing; plans.pkl has several stages, that file tells which")
    settings = stages[arguments[5] if arguments else next(iter(stages))]
    kernels = tuple(map(_tuple, settings["conv_kernel_sizes"]))
    count = len(kernels)
    blocks = int(plans["conv_per_stage"])
    model = UNetConfig(
        in_channels=int(plans["num_modalities"]),
        num_classes=int(plans["num_classes"]) + 1,
        features_per_stage=_features(plans["base_num_features"], count, _MAX_FEATURES_V1),
        kernel_sizes=kernels,
        strides=((1, 1, 1), *map(_tuple, settings["pool_op_kernel_sizes"])),
        n_conv_per_stage=(blocks,) * count,
        n_conv_per_stage_decoder=(blocks,) * (count - 1),
        head_bias=False,
        kernel_sizes_decoder=kernels[:0:-1],  # a stage of the decoder has those of the one below
    )
    intensities = plans["dataset_properties"]["intensityproperties"][0]
    batch_dice = bool(arguments[4]) if arguments else False
    inference = InferenceConfig(average="probabilities", mirror=True)
    return Model(
        _config(model, settings, batch_dice, inference),
        _plan(
            settings["current_spacing"],
            settings["median_patient_size_in_voxels"],
            intensities,
            intensities["sd"],
        ),
        _weights(path, content["state_dict"], model),
        plain_dataset(model.num_classes),
    )


def _config(
    model: UNetConfig, settings: Mapping[str, Any], batch_dice: bool, inference: InferenceConfig
) -> Config:
    data = DataConfig(
        datasets=("nnunet",),
        patch_size=_tuple(settings["patch_size"]),
        batch_size=int(settings["batch_size"]),
    )
    loss = LossConfig(batch_dice=batch_dice)
    return Config(test=False, model=model, data=data, loss=loss, inference=inference)


def _plan(
    spacing_mm: Sequence[float], size: Sequence[float], intensities: Mapping[str, float], std: float
) -> Plan:
    depth, height, width = map(float, spacing_mm)
    return Plan(
        spacing_mm=(depth, height, width),
        lower_hu=float(intensities["percentile_00_5"]),
        upper_hu=float(intensities["percentile_99_5"]),
        mean_hu=float(intensities["mean"]),
        std_hu=float(std),
        median_shape=_tuple(size),
        training_cases=(),
        file_axes=True,
    )


def _plans_v2(model: Model) -> dict[str, Any]:
    """What nnU-Net v2's ExperimentPlanner would have written for this network and plan."""
    network, plan, data = model.config.model, model.plan, model.config.data
    data_resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    label_resampling = {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None}
    score_resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    resample = "resample_data_or_seg_to_shape"
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": data.batch_size,
        "patch_size": data.patch_size,
        "median_image_size_in_voxels": plan.median_shape,
        "spacing": plan.spacing_mm,
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": resample,
        "resampling_fn_data_kwargs": data_resampling,
        "resampling_fn_seg": resample,
        "resampling_fn_seg_kwargs": label_resampling,
        "resampling_fn_probabilities": resample,
        "resampling_fn_probabilities_kwargs": score_resampling,
        "architecture": {
            "network_class_name": _PLAIN_UNET,
            "arch_kwargs": {
                "n_stages": len(network.features_per_stage),
                "features_per_stage": network.features_per_stage,
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": network.kernel_sizes,
                "strides": network.strides,
                "n_conv_per_stage": network.n_conv_per_stage,
                "n_conv_per_stage_decoder": network.n_conv_per_stage_decoder,
                "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": model.config.loss.batch_dice,
    }
    intensities = {
        "mean": plan.mean_hu,
        "std": plan.std_hu,
        "percentile_00_5": plan.lower_hu,
        "percentile_99_5": plan.upper_hu,
    }
    plans = {
        "dataset_name": "Dataset000_covid_jax",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": plan.spacing_mm,
        "original_median_shape_after_transp": plan.median_shape,
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": _ALL_AXES,
        "transpose_backward": _ALL_AXES,
        "configurations": {"3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": intensities},
    }
    return json.loads(json.dumps(plans))


def _weights(path: Path, state_dict: Mapping[str, Any], model: UNetConfig) -> Tree:
    try:
        return to_params({k: np.asarray(v, np.float32) for k, v in state_dict.items()}, model)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _checkpoint_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = [file for name in _CHECKPOINTS for file in (path / name, *path.glob(f"fold_*/{name}"))]
    found = [file for file in found if file.is_file()]
    if len(found) != 1:
        names = ", ".join(str(file.relative_to(path)) for file in found) or "none"
        raise UserError(f"{path}: one checkpoint of nnU-Net is wanted, there are: {names}")
    return found[0]


def _json_near(path: Path, given: Path | None, name: str) -> dict[str, Any] | None:
    """The JSON that is given, or that lies beside a checkpoint or above it."""
    for candidate in [given] if given else [path.with_name(name), path.parent.with_name(name)]:
        if candidate.is_file():
            try:
                return json.loads(candidate.read_text())
            except ValueError as error:
                raise UserError(f"{candidate}: damaged; it is no JSON") from error
    return None


def _inherited(configurations: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A configuration with what it inherits from others."""
    settings = configurations[name]
    base = settings.get("inherits_from")
    return {**(_inherited(configurations, base) if base else {}), **settings}


def _features(base: int, stages: int, most: int) -> tuple[int, ...]:
    return tuple(min(int(base) * 2**stage, int(most)) for stage in range(stages))


def _each(value: int | Sequence[int], count: int) -> tuple[int, ...]:
    return (value,) * count if isinstance(value, int) else _tuple(value)


def _tuple(values: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(int(value) for value in values)
