"""What a run's plan and network are in nnU-Net's plans.json, and what of them is not in it."""

import json
from typing import Any

import numpy as np

from covid_jax.config import (
    ANISOTROPY,
    Config,
    InferenceConfig,
)
from covid_jax.data.plan import Plan, Resampling
from covid_jax.data.planner import total_strides
from covid_jax.inference.postprocess import Postprocessing
from covid_jax.nnunet.plans import PLAIN_UNET, RAS, RESIDUAL_UNET, whole_numbers


def write_plans(config: Config, plan: Plan) -> dict[str, Any]:
    """What nnU-Net v2's ExperimentPlanner would have written for this network and plan."""
    network, data = config.model, config.data
    residual = bool(network.n_blocks_per_stage)
    blocks = (
        {"n_blocks_per_stage": network.n_blocks_per_stage}
        if residual
        else {"n_conv_per_stage": network.n_conv_per_stage}
    )
    resample = "resample_data_or_seg_to_shape"
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": data.batch_size,
        "patch_size": data.patch_size,
        "median_image_size_in_voxels": plan.median_shape,
        "spacing": plan.spacing_mm,
        "normalization_schemes": plan.schemes,
        "use_mask_for_norm": [how.use_mask_for_norm for how in plan.normalization],
        "resampling_fn_data": resample,
        "resampling_fn_data_kwargs": _arguments(plan.image_resampling, is_seg=False),
        "resampling_fn_seg": resample,
        "resampling_fn_seg_kwargs": _arguments(plan.label_resampling, is_seg=True),
        "resampling_fn_probabilities": resample,
        "resampling_fn_probabilities_kwargs": _arguments(plan.score_resampling, is_seg=False),
        "architecture": {
            "network_class_name": RESIDUAL_UNET if residual else PLAIN_UNET,
            "arch_kwargs": {
                "n_stages": len(network.features_per_stage),
                "features_per_stage": network.features_per_stage,
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": network.kernel_sizes,
                "strides": network.strides,
                **blocks,
                "n_conv_per_stage_decoder": network.n_conv_per_stage_decoder,
                "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                "norm_op_kwargs": {"eps": network.norm_epsilon, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True, "negative_slope": network.negative_slope},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": config.loss.batch_dice,
    }
    plans = {
        "dataset_name": "Dataset000_covid_jax",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": plan.spacing_mm,
        "original_median_shape_after_transp": plan.median_shape,
        "image_reader_writer": "NibabelIOWithReorient" if plan.axes == RAS else "SimpleITKIO",
        "transpose_forward": plan.transpose,
        "transpose_backward": whole_numbers(np.argsort(plan.transpose)),
        "configurations": {"3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": intensity_properties(plan),
    }
    return json.loads(json.dumps(plans))


def intensity_properties(plan: Plan) -> dict[str, dict[str, float]]:
    """Of each channel, what nnU-Net normalises by (foreground_intensity_properties)."""
    return {
        str(channel): {
            "mean": how.mean,
            "std": how.std,
            "percentile_00_5": how.lower,
            "percentile_99_5": how.upper,
        }
        for channel, how in enumerate(plan.normalization)
    }


def not_in_nnunet(config: Config, plan: Plan, postprocessing: Postprocessing) -> tuple[str, ...]:
    """What of a run nnU-Net cannot do with its network, and what to do about it: a line each."""
    inference = config.inference
    patch, factors = config.data.patch_size, total_strides(config.model.strides)
    limits = [
        (
            bool(np.any(np.array(patch) % factors)),
            f"The run's patch, {patch}, is no multiple of {factors}: nnU-Net's "
            "network stops with an error. Train it with one that is.",
        ),
        (
            not plan.file_axes and plan.axes == Plan.axes,
            "The run turns each scan to head, back, left; nnU-Net takes the axes of the file. Give "
            "it files whose axes point to the left, back and head (LPS): its masks of others are "
            "wrong.",
        ),
        (
            plan.resample_first,
            "The run resamples a scan before it clips intensities, as nnU-Net v1; v2 clips first: "
            "masks differ a little.",
        ),
        (
            inference.average != "logits",
            "The run averages the probabilities of windows and views, nnU-Net their logits: masks "
            "differ a little.",
        ),
        (
            not inference.mirror and bool(inference.mirror_axes),
            "The run does not mirror; nnU-Net does, unless it is given --disable_tta.",
        ),
        (
            inference.step_size != InferenceConfig.step_size,
            f"The run's windows are {inference.step_size:g} of a window apart: give nnU-Net "
            f"-step_size {inference.step_size:g}.",
        ),
        (
            bool(postprocessing.threshold),
            f"A lesion is from a probability of {postprocessing.threshold:g} on here; nnU-Net "
            "takes the likeliest class.",
        ),
        (
            postprocessing.largest_only,
            "The largest component alone is kept here; nnU-Net keeps all.",
        ),
        (
            any(how.is_ct for how in plan.normalization),
            "Scans of 8-bit grey are mapped to HU here; nnU-Net takes their values as they are: "
            "give it scans in HU.",
        ),
        (
            inference.sums != "float16",
            "nnU-Net adds up windows in half precision, which moves a few voxels, most of them at "
            "the edges of a scan.",
        ),
    ]
    return tuple(line for holds, line in limits if holds)


def _arguments(how: Resampling, is_seg: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "is_seg": is_seg,
        "order": how.order,
        "order_z": how.coarse_order,
        "force_separate_z": how.separate,
    }
    if how.anisotropy != ANISOTROPY:  # older versions of nnU-Net do not know it
        arguments["separate_z_anisotropy_threshold"] = how.anisotropy
    return arguments
