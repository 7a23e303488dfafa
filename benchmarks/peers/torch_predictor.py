"""nnU-Net v2's own predictor on the CPU."""

import os
from pathlib import Path

import numpy as np
import torch

for _variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
    os.environ.setdefault(_variable, "unused")  # nnU-Net warns where they are not set
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor  # noqa: E402


def predictor(folder: Path, mirror: bool, step_size: float = 0.5) -> nnUNetPredictor:
    """The predictor of fold 0 of a model folder."""
    made = nnUNetPredictor(
        tile_step_size=step_size,
        use_mirroring=mirror,
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        verbose=False,
        allow_tqdm=False,
    )
    made.initialize_from_trained_model_folder(str(folder), (0,), "checkpoint_final.pth")
    return made


def predict_logits(made: nnUNetPredictor, volume: np.ndarray) -> np.ndarray:
    """The logits (K, D, H, W) of a normalised volume (D, H, W)."""
    return made.predict_logits_from_preprocessed_data(torch.from_numpy(volume[None])).numpy()
