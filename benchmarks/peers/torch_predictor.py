"""nnU-Net v2's own predictor."""

from pathlib import Path

import numpy as np
import torch

from benchmarks.peers.stand_ins import before_nnunet

before_nnunet()
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor  # noqa: E402


def predictor(
    folder: Path, mirror: bool, step_size: float = 0.5, device: str = "cpu"
) -> nnUNetPredictor:
    """The predictor of fold 0 of a model folder; on "cuda" in half precision, all of it there."""
    made = nnUNetPredictor(
        tile_step_size=step_size,
        use_mirroring=mirror,
        perform_everything_on_device=device == "cuda",
        device=torch.device(device),
        verbose=False,
        allow_tqdm=False,
    )
    made.initialize_from_trained_model_folder(str(folder), (0,), "checkpoint_final.pth")
    return made


def predict_logits(made: nnUNetPredictor, volume: np.ndarray) -> np.ndarray:
    """The logits (K, D, H, W) of a normalised volume (D, H, W, C)."""
    image = torch.from_numpy(np.ascontiguousarray(np.moveaxis(volume, -1, 0)))
    return made.predict_logits_from_preprocessed_data(image).numpy()
