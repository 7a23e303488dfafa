"""nnU-Net v2's plans.json and dataset.json as our settings.

What decides a mask there is honoured or refused by name; nothing of it is passed over.
"""

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from covid_jax.config import (
    ANISOTROPY,
    Config,
    DataConfig,
    InferenceConfig,
    LossConfig,
    UNetConfig,
    validate,
)
from covid_jax.data.datasets import READERS
from covid_jax.data.normalization import CT, SCHEMES, Z_SCORE, Normalization, ct
from covid_jax.data.plan import Plan, Resampling
from covid_jax.errors import UserError
from covid_jax.label_space import CLASSES, IGNORED, LabelSpace, label_space, unlike_nnunet
from covid_jax.values import (
    Kind,
    T,
    flag,
    mapping,
    maybe,
    number,
    read,
    several,
    text,
    whole,
)

AXES = (0, 1, 2)
"""D, H, W by their numbers."""

RAS = ("S", "A", "R")  # what the readers with Reorient turn a scan to, slices first
_LIBRARIES = ("torch.nn", "dynamic_network_architectures")
_ARCHITECTURES = "dynamic_network_architectures.architectures."
PLAIN_UNET = f"{_ARCHITECTURES}unet.PlainConvUNet"
RESIDUAL_UNET = f"{_ARCHITECTURES}unet.ResidualEncoderUNet"

_NETWORKS = {
    PLAIN_UNET: "n_conv_per_stage",
    RESIDUAL_UNET: "n_blocks_per_stage",
    f"{_ARCHITECTURES}residual_unet.ResidualEncoderUNet": "n_blocks_per_stage",
}
"""The networks by the names that plans have for them, and how each calls its encoder's blocks."""

_OLD_NETWORKS = {"PlainConvUNet": PLAIN_UNET, "ResidualEncoderUNet": RESIDUAL_UNET}
"""Their names in plans before nnU-Net 2.5."""

# Trainers of nnU-Net and of those that build on it, by what their names say of another network
# that has the same weights. Any other network shows in the names of its weights.
_OTHER_NETWORK = re.compile("relu|gelu|mish|norm|frn", re.IGNORECASE)

_PLANS_KEYS = {
    "dataset_name",
    "plans_name",
    "original_median_spacing_after_transp",
    "original_median_shape_after_transp",
    "image_reader_writer",
    "transpose_forward",
    "transpose_backward",
    "configurations",
    "experiment_planner_used",
    "label_manager",
    "foreground_intensity_properties_per_channel",
    "foreground_intensity_properties_by_modality",  # its name in the first plans of version 2
}
_OLD_NETWORK_KEYS = {
    "UNet_class_name",
    "UNet_base_num_features",
    "n_conv_per_stage_encoder",
    "n_conv_per_stage_decoder",
    "num_pool_per_axis",
    "pool_op_kernel_sizes",
    "conv_kernel_sizes",
    "unet_max_num_features",
}
_CONFIGURATION_KEYS = _OLD_NETWORK_KEYS | {
    "data_identifier",
    "preprocessor_name",
    "batch_size",
    "patch_size",
    "median_image_size_in_voxels",
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
    "resampling_fn_seg",
    "resampling_fn_seg_kwargs",
    "resampling_fn_probabilities",
    "resampling_fn_probabilities_kwargs",
    "architecture",
    "batch_dice",
    "inherits_from",
    "next_stage",
    "previous_stage",
}
_ARCHITECTURE_KEYS = {
    "n_stages",
    "features_per_stage",
    "conv_op",
    "kernel_sizes",
    "strides",
    "n_conv_per_stage_decoder",
    "conv_bias",
    "norm_op",
    "norm_op_kwargs",
    "dropout_op",
    "dropout_op_kwargs",
    "nonlin",
    "nonlin_kwargs",
    "deep_supervision",
}
# Of the one network and of the other, beside those above and its blocks.
_OWN_KEYS = {
    "n_conv_per_stage": {"nonlin_first"},
    "n_blocks_per_stage": {"block", "bottleneck_channels", "stem_channels"},
}


@dataclass(frozen=True)
class Settings:
    """What a run needs besides its weights; `notes` are lines on what was read as what."""

    config: Config
    plan: Plan
    notes: tuple[str, ...]


def read_plans(
    plans: Mapping[str, Any],
    dataset: Mapping[str, Any],
    configuration: str = "3d_fullres",
    mirror_axes: Collection[int] | None = None,
    trainer: str = "nnUNetTrainer",
) -> Settings:
    """The settings of a network of nnU-Net v2.

    Args:
      plans, dataset: plans.json and dataset.json.
      configuration, mirror_axes, trainer: as the checkpoint has them (init_args,
        inference_allowed_mirroring_axes, trainer_name).

    Raises:
      UserError: whatever decides the mask there and is not supported here, by name.
    """
    refuse_other_network(trainer)
    settings = _inherited(read(plans, "configurations", mapping), configuration)
    _check_configuration(configuration, settings)
    space, channels = label_space(dataset), _channels(dataset)
    schemes = read(settings, "normalization_schemes", several(text))
    masked = read(settings, "use_mask_for_norm", maybe(several(flag)), None) or ()
    _require(
        len(schemes) == channels and len(masked) in (0, channels),
        f"its dataset has {channels} channels, and its configuration is of {len(schemes)}",
    )
    reader = read(plans, "image_reader_writer", text)
    transpose = read(plans, "transpose_forward", of_axes)
    back = read(plans, "transpose_backward", of_axes)
    _require(reader in READERS, f"its images are read by {reader}", READERS)
    _require(
        sorted(transpose) == list(AXES) and back == whole_numbers(np.argsort(transpose)),
        f"transpose_backward={back} does not undo transpose_forward={transpose}",
    )
    _require(
        plans.get("label_manager", "LabelManager") == "LabelManager",
        f"its label manager is {plans.get('label_manager')}",
        ["LabelManager"],
    )
    properties = "foreground_intensity_properties_per_channel"
    if plans.get(properties) is None and "foreground_intensity_properties_by_modality" in plans:
        properties = "foreground_intensity_properties_by_modality"
    intensities = read(plans, properties, mapping)
    axes = mirrored(mirror_axes or ())
    config = run_config(
        dataclasses.replace(_network(settings, space.heads), in_channels=channels),
        read(settings, "patch_size", several(whole)),
        read(settings, "batch_size", whole),
        read(settings, "batch_dice", flag),
        InferenceConfig(average="logits", sums="float16", mirror=bool(axes), mirror_axes=axes),
        space if space.ignored is None else dataclasses.replace(space, ignored=IGNORED),
    )
    normalization = [
        _normalization(scheme, str(channel), intensities, bool(masked and masked[channel]))
        for channel, scheme in enumerate(schemes)
    ]
    plan = dataclasses.replace(
        plan_of(settings, "spacing", "median_image_size_in_voxels", normalization),
        file_axes=not READERS[reader],
        axes=RAS if READERS[reader] else Plan.axes,
        transpose=transpose,
        image_resampling=_resampling(settings, "data"),
        score_resampling=_resampling(settings, "probabilities"),
        label_resampling=_resampling(settings, "seg"),
        outside_apart=True,
    )
    notes = [f"{trainer}, configuration {configuration}", *told(config, plan)]
    notes += [f"dataset.json: {line}" for line in unlike_nnunet(dataset)]
    if unknown := plans.keys() - _PLANS_KEYS:
        notes.append(f"plans has keys that this program does not know: {_listed(unknown)}")
    return Settings(config, plan, tuple(notes))


def told(config: Config, plan: Plan) -> Iterable[str]:
    """Lines on what was read from nnU-Net's files as what."""
    axes = "those of each file" if plan.file_axes else "turned to " + "".join(reversed(plan.axes))
    moved = "" if plan.transpose == AXES else f", transposed by {plan.transpose}"
    yield f"axes: {axes}{moved}"
    along = config.inference.mirror_axes
    views = 2 ** len(along)
    yield (
        f"mirrored along axes {along}: {views} views of each window, {views} times the time"
        if along
        else "not mirrored"
    )
    for what, how, usual in (
        ("scans", plan.image_resampling, Plan.image_resampling),
        ("scores", plan.score_resampling, Plan.score_resampling),
        ("labels", plan.label_resampling, Plan.label_resampling),
    ):
        if how != usual:
            apart = {None: "where it is coarse", True: "always", False: "never"}[how.separate]
            yield (
                f"{what} resampled by splines of order {how.order}, the coarsest axis apart {apart}"
            )


def refuse_other_network(trainer: str) -> None:
    """Raises a UserError for a trainer whose network is not the one that the plans tell."""
    _require(
        not _OTHER_NETWORK.search(trainer),
        f"its trainer is {trainer}, whose network is another than its plans tell",
    )


def run_config(
    network: UNetConfig,
    patch_size: Sequence[int],
    batch_size: int,
    batch_dice: bool,
    inference: InferenceConfig,
    space: LabelSpace = CLASSES,
) -> Config:
    """The config of an imported run. Raises a UserError where a value cannot work."""
    data = DataConfig(
        datasets=("nnunet",), patch_size=whole_numbers(patch_size), batch_size=batch_size
    )
    loss = LossConfig(batch_dice=batch_dice)
    config = Config(
        test=False, label_space=space, model=network, data=data, loss=loss, inference=inference
    )
    validate(config)
    return config


def plan_of(
    settings: Mapping[str, Any], spacing: str, size: str, normalization: Iterable[Normalization]
) -> Plan:
    """The plan of nnU-Net's spacing, with the axes of the file.

    Args:
      spacing, size: under which keys the settings have the spacing in mm and the median size.
    """
    depth, height, width = read(settings, spacing, several(number, 3))
    _require(
        min(depth, height, width) > 0,
        f"its {spacing} is {[depth, height, width]}; wanted: lengths above 0",
    )
    return Plan(
        spacing_mm=(depth, height, width),
        normalization=tuple(normalization),
        median_shape=whole_numbers(read(settings, size, several(number, 3))),
        training_cases=(),
        file_axes=True,
    )


def _normalization(
    scheme: str, channel: str, intensities: Mapping[str, Any], of_mask: bool
) -> Normalization:
    _require(scheme in SCHEMES, f"its scans are normalised by {scheme}", SCHEMES)
    _require(
        not of_mask or scheme == Z_SCORE,
        f"its {scheme} is within a mask (use_mask_for_norm)",
        [f"{Z_SCORE} there"],
    )
    if scheme != CT:
        return Normalization(scheme, use_mask_for_norm=of_mask)
    whose = "its foreground intensity properties:"
    return ct_of(read(intensities, channel, mapping, whose=whose), "std")


def ct_of(properties: Mapping[str, Any], deviation: str) -> Normalization:
    """CT by nnU-Net's intensity properties of a channel.

    Args:
      deviation: under which key they have the standard deviation.
    """
    low, high, mean, std = (
        read(properties, key, number, whose="its foreground intensity properties:")
        for key in ("percentile_00_5", "percentile_99_5", "mean", deviation)
    )
    _require(low <= high, f"its CT is clipped to {low:g} to {high:g} (percentile_00_5, 99_5)")
    return ct(low, high, mean, std)


def mirrored(axes: Iterable[int]) -> tuple[int, ...]:
    """Axes of mirroring as a sorted tuple."""
    return tuple(sorted({whole(axis) for axis in axes}))


def whole_numbers(values: Iterable[Any]) -> tuple[Any, ...]:
    """`values` as whole numbers of Python's own."""
    return tuple(int(value) for value in values)


def _check_configuration(name: str, settings: Mapping[str, Any]) -> None:
    """Raises a UserError for what of a configuration is not supported but for the network."""
    unknown = settings.keys() - _CONFIGURATION_KEYS
    _require(
        not unknown,
        f"its configuration {name} has keys that may decide masks and that this program does not "
        f"know ({_listed(unknown)}); if they do not, take them out and give the file by --plans",
    )
    _require(
        settings.get("previous_stage") is None,
        f"its configuration {name} is the second stage of a cascade",
        ["networks that see the scan alone"],
    )
    preprocessor = settings.get("preprocessor_name", "DefaultPreprocessor")
    _require(
        preprocessor == "DefaultPreprocessor",
        f"its scans are prepared by {preprocessor}",
        ["DefaultPreprocessor"],
    )


def _channels(dataset: Mapping[str, Any]) -> int:
    """The number of channels."""
    key = "channel_names" if "channel_names" in dataset else "modality"
    return len(read(dataset, key, mapping, {"0": "CT"}))


def _network(settings: Mapping[str, Any], num_classes: int) -> UNetConfig:
    if "architecture" in settings:
        architecture = read(settings, "architecture", mapping)
        name = read(architecture, "network_class_name", text)
        arguments = read(architecture, "arch_kwargs", mapping)
    else:  # plans before nnU-Net 2.5
        name = read(settings, "UNet_class_name", text)
        name = _OLD_NETWORKS.get(name, name)
        arguments = _old_arguments(settings, _NETWORKS.get(name, ""))
    axes = len(read(settings, "patch_size", several(whole)))
    _require(
        name in _NETWORKS and axes == 3,
        f"its network is {name.rpartition('.')[2]} of {axes} axes",
        ["3D U-Nets with a plain or a residual encoder (PlainConvUNet, ResidualEncoderUNet)"],
    )
    blocks = _NETWORKS[name]
    unknown = arguments.keys() - _ARCHITECTURE_KEYS - {blocks} - _OWN_KEYS[blocks]
    _require(
        not unknown, f"its network has settings that this program does not know: {_listed(unknown)}"
    )
    read(arguments, "conv_bias", flag)
    read(arguments, "nonlin_first", flag, False)
    for key, wanted in {
        "conv_op": "Conv3d",
        "norm_op": "InstanceNorm3d",
        "nonlin": "LeakyReLU",
        "dropout_op": "None",
        "conv_bias": "True",
        "nonlin_first": "False",
        "block": "BasicBlockD",
        "bottleneck_channels": "None",
    }.items():
        optional = any(key in keys for keys in _OWN_KEYS.values())
        found = str(arguments.get(key, wanted if optional else None))
        module, _, name = found.rpartition(".")
        _require(
            name == wanted and (not module or module.startswith(_LIBRARIES)),
            f"its network has {key}={found}",
            [f"networks with {key}={wanted}"],
        )
    norm = _known(arguments, "norm_op_kwargs", {"eps", "affine", "momentum"})
    nonlin = _known(arguments, "nonlin_kwargs", {"inplace", "negative_slope"})
    affine = read(norm, "affine", flag, False, "its norm_op_kwargs:")
    _require(affine, "its instance norm is not affine", ["affine ones"])
    stages = read(arguments, "n_stages", whole)
    kernels = read(arguments, "kernel_sizes", _of_each(of_axes, stages))
    strides = read(arguments, "strides", _of_each(of_axes, stages))
    features = read(arguments, "features_per_stage", _of_each(whole, stages))
    stem = arguments.get("stem_channels")
    _require(
        stem in (None, features[0]),
        f"its network has stem_channels={stem}",
        [f"as many as the first stage has features, {features[0]}"],
    )
    in_encoder = read(arguments, blocks, _of_each(whole, stages))
    in_decoder = read(arguments, "n_conv_per_stage_decoder", _of_each(whole, stages - 1))
    residual = blocks == "n_blocks_per_stage"
    network = UNetConfig(
        num_classes=num_classes,
        features_per_stage=features,
        kernel_sizes=kernels,
        strides=strides,
        n_conv_per_stage=() if residual else in_encoder,
        n_blocks_per_stage=in_encoder if residual else (),
        n_conv_per_stage_decoder=in_decoder,
        norm_epsilon=read(norm, "eps", number, 1e-5, "its norm_op_kwargs:"),
        negative_slope=read(nonlin, "negative_slope", number, 0.01, "its nonlin_kwargs:"),
    )
    _require(
        network.strides[0] == (1, 1, 1),
        f"its network begins with strides of {network.strides[0]}",
        ["networks whose first stage is at full resolution"],
    )
    return network


def _old_arguments(settings: Mapping[str, Any], blocks: str) -> dict[str, Any]:
    """The arguments of the network that plans before nnU-Net 2.5 tell (ConfigurationManager).

    `blocks` is what it calls the number of blocks in each stage of its encoder.
    """
    in_encoder = read(settings, "n_conv_per_stage_encoder", several(whole))
    stages = len(in_encoder)
    base = read(settings, "UNet_base_num_features", whole)
    most = read(settings, "unet_max_num_features", whole)
    return {
        "n_stages": stages,
        "features_per_stage": [min(base * 2**stage, most) for stage in range(stages)],
        "conv_op": "Conv3d",
        "kernel_sizes": read(settings, "conv_kernel_sizes", several(of_axes)),
        "strides": read(settings, "pool_op_kernel_sizes", several(of_axes)),
        blocks: in_encoder,
        "n_conv_per_stage_decoder": read(settings, "n_conv_per_stage_decoder", several(whole)),
        "conv_bias": True,
        "norm_op": "InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": "LeakyReLU",
    }


def _resampling(settings: Mapping[str, Any], of: str) -> Resampling:
    """How nnU-Net resamples `of` (data, probabilities, seg), with its functions' own defaults.

    resample_torch_fornnunet is trilinear, without a clip that linear needs none of, and takes the
    nearest slice, so it is a spline of order 1. Labels too, but where two values have the same
    share to half precision; of its other ways with labels none is here.
    """
    function, key = read(settings, f"resampling_fn_{of}", text), f"resampling_fn_{of}_kwargs"
    read(settings, key, mapping)  # nnU-Net has no defaults for all of them
    whose = f"its {key}:"
    common = {"is_seg", "force_separate_z", "separate_z_anisotropy_threshold"}
    if function == "resample_data_or_seg_to_shape":
        arguments = _known(settings, key, common | {"order", "order_z"})
        order = read(arguments, "order", whole, 3, whose)
        coarse_order = read(arguments, "order_z", whole, 0, whose)
        separate = read(arguments, "force_separate_z", maybe(flag), False, whose)
    elif function == "resample_torch_fornnunet":
        sparing = "memefficient_seg_resampling"
        known = common | {"num_threads", "device", sparing, "mode", "aniso_axis_mode"}
        arguments = _known(settings, key, known)
        modes = {"nearest-exact": 0, "linear": 1}
        along = arguments.get("aniso_axis_mode", "nearest-exact")
        _require(
            arguments.get("mode", "linear") == "linear" and along in modes,
            f"its {key} has mode={arguments.get('mode', 'linear')}, aniso_axis_mode={along}",
            ["mode=linear", *(f"aniso_axis_mode={name}" for name in modes)],
        )
        _require(
            of != "seg" or (along == "nearest-exact" and not arguments.get(sparing)),
            f"its {key} has {sparing}={arguments.get(sparing)}, aniso_axis_mode={along}",
            [f"labels by {sparing}=False, aniso_axis_mode=nearest-exact"],
        )
        order, coarse_order = 1, modes[along]
        separate = read(arguments, "force_separate_z", maybe(flag), None, whose)
    else:
        raise UserError(
            f"its resampling_fn_{of} is {function}; supported: resample_data_or_seg_to_shape, "
            "resample_torch_fornnunet"
        )
    labels = read(arguments, "is_seg", flag, False, whose)
    _require(
        labels == (of == "seg"),
        f"its {key} has is_seg={arguments.get('is_seg')}",
        [f"is_seg={of == 'seg'}"],
    )
    _require(
        {order, coarse_order} <= set(range(6)),
        f"its {key} has orders {order} and {coarse_order}",
        ["splines of order 0 to 5"],
    )
    threshold = read(arguments, "separate_z_anisotropy_threshold", number, ANISOTROPY, whose)
    return Resampling(order, coarse_order, separate, threshold)


def _inherited(configurations: Mapping[str, Any], name: str, *below: str) -> dict[str, Any]:
    """A configuration with what it inherits from others."""
    _require(
        name in configurations, f"its plans have no configuration {name}", sorted(configurations)
    )
    _require(name not in below, f"its configuration {name} inherits from itself")
    settings = read(configurations, name, mapping, whose="its configuration")
    base = read(settings, "inherits_from", maybe(text), None)
    return {**(_inherited(configurations, base, name, *below) if base else {}), **settings}


def _known(settings: Mapping[str, Any], key: str, known: Collection[str]) -> Mapping[str, Any]:
    """The arguments under `key`, all of them `known`."""
    arguments = read(settings, key, maybe(mapping), None) or {}
    unknown = arguments.keys() - known
    _require(not unknown, f"its {key} has {_listed(unknown)}", sorted(known))
    return arguments


def _of_each(kind: Kind[T], stages: int) -> Kind[tuple[T, ...]]:
    """A value of a kind for each stage: one for all, or as many as there are stages."""

    def read_each(value: Any) -> tuple[T, ...]:
        if isinstance(value, list | tuple):
            return several(kind, stages)(value)
        try:
            return (kind(value),) * stages
        except ValueError as wanted:
            raise ValueError(f"{wanted}, or a list of {stages}") from wanted

    return read_each


def of_axes(value: Any) -> tuple[int, int, int]:
    """A whole number for each axis: one for all, or three."""
    depth, height, width = _of_each(whole, len(AXES))(value)
    return depth, height, width


def _require(holds: bool, fault: str, supported: Iterable[str] = ()) -> None:
    """Raises a UserError of `fault`, and what is supported instead."""
    if not holds:
        instead = ", ".join(supported)
        raise UserError(f"{fault}; supported: {instead}" if instead else fault)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
