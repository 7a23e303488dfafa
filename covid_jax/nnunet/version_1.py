"""The plans of nnU-Net v1 (plans.pkl) as our settings."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from covid_jax.config import InferenceConfig, UNetConfig
from covid_jax.data.plan import Plan, Resampling
from covid_jax.errors import UserError
from covid_jax.nnunet.plans import (
    AXES,
    Settings,
    ct_of,
    of_axes,
    plan_of,
    refuse_other_network,
    run_config,
    told,
)
from covid_jax.values import flag, mapping, maybe, read, several, whole

_MAX_FEATURES = 320  # Generic_UNet.MAX_NUM_FILTERS_3D


def read_plans_v1(facts: Mapping[str, Any]) -> Settings:
    """The settings of a network of nnU-Net v1.

    Args:
      facts: the content of the .pkl beside a checkpoint, or of plans.pkl.

    Raises:
      UserError: whatever decides the mask there and is not supported here, by name; plans of
        several stages without the file beside the checkpoint, which tells the stage.
    """
    plans, arguments = facts.get("plans", facts), facts.get("init")
    trainer = facts.get("name", "nnUNetTrainerV2")
    refuse_other_network(trainer)
    preprocessor = plans.get("preprocessor_name") or "GenericPreprocessor"
    if preprocessor != "GenericPreprocessor":
        raise UserError(f"its scans are prepared by {preprocessor}; only GenericPreprocessor is")
    if list(read(plans, "normalization_schemes", mapping).values()) != ["CT"]:
        raise UserError("only models of CT of one channel are supported")
    masked = read(plans, "use_mask_for_norm", mapping)
    if any(read(masked, channel, flag, whose="its use_mask_for_norm:") for channel in masked):
        raise UserError(
            "it is normalised inside a mask (use_mask_for_norm), which is not supported"
        )
    if plans.get("regions_class_order"):
        raise UserError("it was trained on regions; only plain labels are supported")
    stages = read(plans, "plans_per_stage", mapping)
    if arguments is None and len(stages) > 1:
        raise UserError("the .pkl beside it is missing, which tells the stage of its plans")
    stage = arguments[5] if arguments else next(iter(stages))
    if stage > 0 and "Cascade" in trainer:
        raise UserError("it is the second stage of a cascade, which is not supported")
    settings = read(stages, stage, mapping, whose="its plans_per_stage:")
    if len(read(settings, "patch_size", several(whole))) != 3:
        raise UserError("its network is of 2 axes; only those of 3 are supported")
    kernels = read(settings, "conv_kernel_sizes", several(of_axes))
    base, blocks = read(plans, "base_num_features", whole), read(plans, "conv_per_stage", whole)
    network = UNetConfig(
        in_channels=read(plans, "num_modalities", whole),
        num_classes=read(plans, "num_classes", whole) + 1,
        features_per_stage=tuple(
            min(base * 2**depth, _MAX_FEATURES) for depth in range(len(kernels))
        ),
        kernel_sizes=kernels,
        strides=((1, 1, 1), *read(settings, "pool_op_kernel_sizes", several(of_axes))),
        n_conv_per_stage=(blocks,) * len(kernels),
        n_conv_per_stage_decoder=(blocks,) * (len(kernels) - 1),
        head_bias=False,
        kernel_sizes_decoder=kernels[:0:-1],  # a stage of the decoder has those of the one below
    )
    transpose = read(plans, "transpose_forward", of_axes)
    if sorted(transpose) != list(AXES):
        raise UserError(f"its plans transpose axes by {transpose}, which are not three")
    mirror = "nomirror" not in trainer.lower().replace("_", "")
    config = run_config(
        network,
        read(settings, "patch_size", several(whole)),
        read(settings, "batch_size", whole),
        bool(arguments[4]) if arguments else False,
        InferenceConfig(average="probabilities", mirror=mirror, mirror_axes=AXES if mirror else ()),
    )
    properties = read(plans, "dataset_properties", mapping)
    intensities = read(properties, "intensityproperties", mapping)
    of_channel = read(intensities, 0, mapping, whose="its intensityproperties:")
    plan = dataclasses.replace(
        plan_of(
            settings, "current_spacing", "median_patient_size_in_voxels", [ct_of(of_channel, "sd")]
        ),
        transpose=transpose,
        score_resampling=_score_resampling(
            read(plans, "segmentation_export_params", maybe(mapping), None)
        ),
        resample_first=True,
    )
    return Settings(config, plan, (trainer, *told(config, plan)))


def _score_resampling(arguments: Mapping[str, Any] | None) -> Resampling:
    if arguments is None:
        return Plan.score_resampling
    whose = "its segmentation_export_params:"
    return Resampling(
        read(arguments, "interpolation_order", whole, whose=whose),
        read(arguments, "interpolation_order_z", whole, whose=whose),
        read(arguments, "force_separate_z", maybe(flag), whose=whose),
    )
