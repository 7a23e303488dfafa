"""The plans of nnU-Net v1 (plans.pkl) as our settings."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from covid_jax.config import InferenceConfig, UNetConfig
from covid_jax.data.normalization import ct
from covid_jax.data.plan import Plan, Resampling
from covid_jax.errors import UserError
from covid_jax.nnunet.plans import (
    AXES,
    Settings,
    as_tuple,
    plan_of,
    refuse_other_network,
    run_config,
    told,
)

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
    if list(plans["normalization_schemes"].values()) != ["CT"]:
        raise UserError("only models of CT of one channel are supported")
    if any(plans["use_mask_for_norm"].values()):
        raise UserError(
            "it is normalised inside a mask (use_mask_for_norm), which is not supported"
        )
    if plans.get("regions_class_order"):
        raise UserError("it was trained on regions; only plain labels are supported")
    stages = plans["plans_per_stage"]
    if arguments is None and len(stages) > 1:
        raise UserError("the .pkl beside it is missing, which tells the stage of its plans")
    stage = arguments[5] if arguments else next(iter(stages))
    if stage > 0 and "Cascade" in trainer:
        raise UserError("it is the second stage of a cascade, which is not supported")
    settings = stages[stage]
    kernels = tuple(as_tuple(size) for size in settings["conv_kernel_sizes"])
    if any(len(size) != 3 for size in kernels):
        raise UserError("its network is of 2 axes; only those of 3 are supported")
    base, blocks = int(plans["base_num_features"]), int(plans["conv_per_stage"])
    network = UNetConfig(
        in_channels=int(plans["num_modalities"]),
        num_classes=int(plans["num_classes"]) + 1,
        features_per_stage=tuple(
            min(base * 2**depth, _MAX_FEATURES) for depth in range(len(kernels))
        ),
        kernel_sizes=kernels,
        strides=((1, 1, 1), *map(as_tuple, settings["pool_op_kernel_sizes"])),
        n_conv_per_stage=(blocks,) * len(kernels),
        n_conv_per_stage_decoder=(blocks,) * (len(kernels) - 1),
        head_bias=False,
        kernel_sizes_decoder=kernels[:0:-1],  # a stage of the decoder has those of the one below
    )
    transpose = as_tuple(plans["transpose_forward"])
    if sorted(transpose) != list(AXES):
        raise UserError(f"its plans transpose axes by {transpose}, which are not three")
    mirror = "nomirror" not in trainer.lower().replace("_", "")
    config = run_config(
        network,
        settings["patch_size"],
        settings["batch_size"],
        bool(arguments[4]) if arguments else False,
        InferenceConfig(average="probabilities", mirror=mirror, mirror_axes=AXES if mirror else ()),
    )
    of_channel = plans["dataset_properties"]["intensityproperties"][0]
    normalization = ct(
        of_channel["percentile_00_5"],
        of_channel["percentile_99_5"],
        of_channel["mean"],
        of_channel["sd"],
    )
    plan = dataclasses.replace(
        plan_of(
            settings["current_spacing"], settings["median_patient_size_in_voxels"], [normalization]
        ),
        transpose=transpose,
        score_resampling=_score_resampling(plans.get("segmentation_export_params")),
        resample_first=True,
    )
    return Settings(config, plan, (trainer, *told(config, plan)))


def _score_resampling(arguments: Mapping[str, Any] | None) -> Resampling:
    if arguments is None:
        return Plan.score_resampling
    return Resampling(
        int(arguments["interpolation_order"]),
        int(arguments["interpolation_order_z"]),
        arguments["force_separate_z"],
    )
