"""nnU-Net v2's own preprocessor for CT, given our plan."""

from pathlib import Path
from typing import Any

from benchmarks.peers.stand_ins import before_nnunet

before_nnunet()
from nnunetv2.preprocessing.preprocessors.default_preprocessor import (  # noqa: E402
    DefaultPreprocessor,
)
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager  # noqa: E402

from covid_jax.data.plan import Plan  # noqa: E402
from covid_jax.nnunet.own_plans import intensity_properties  # noqa: E402

DATASET = {
    "labels": {"background": 0, "lesion": 1},
    "channel_names": {"0": "CT"},
    "file_ending": ".nii.gz",
}


def plans_of(plan: Plan) -> PlansManager:
    """nnU-Net's plans that ask for what `plan` asks for."""
    resampling = "resample_data_or_seg_to_shape"
    options = {"force_separate_z": None, "order_z": 0}
    of_label = plan.label_resampling
    configuration = {
        "architecture": {},
        "preprocessor_name": "DefaultPreprocessor",
        "patch_size": [56, 160, 192],
        "spacing": list(plan.spacing_mm),
        "normalization_schemes": plan.schemes,
        "use_mask_for_norm": [how.use_mask_for_norm for how in plan.normalization],
        "resampling_fn_data": resampling,
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, **options},
        "resampling_fn_seg": resampling,
        "resampling_fn_seg_kwargs": {
            "is_seg": True,
            "order": of_label.order,
            "order_z": of_label.coarse_order,
            "force_separate_z": of_label.separate,
        },
    }
    return PlansManager(
        {
            "image_reader_writer": "SimpleITKIO",
            "transpose_forward": list(plan.transpose),
            "transpose_backward": [plan.transpose.index(axis) for axis in range(3)],
            "foreground_intensity_properties_per_channel": intensity_properties(plan),
            "configurations": {"3d_fullres": configuration},
            "label_manager": "LabelManager",
        }
    )


def preprocess(image: Path, label: Path, plan: Plan, folder: Path) -> Any:
    """Reads, prepares and stores one case as nnU-Net does."""
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():  # blosc2 writes over nothing
        file.unlink()
    plans = plans_of(plan)
    DefaultPreprocessor(verbose=False).run_case_save(
        str(folder / "case"),
        [str(image)],
        str(label),
        plans,
        plans.get_configuration("3d_fullres"),
        DATASET,
    )
