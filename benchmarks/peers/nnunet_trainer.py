"""nnU-Net v2 itself on a raw dataset: its planner, its preprocessor and its nnUNetTrainer.

    python -m benchmarks.peers.nnunet_trainer plan
    python -m benchmarks.peers.nnunet_trainer train SEEDS EPOCHS STEPS VALIDATION_STEPS

A process of its own, on a CPU, for dataset 1 in the folders that the environment names nnU-Net's
way. `plan` leaves nnUNetPlans.json with a quarter of the features, and the preprocessed cases.
`train` leaves seed_0, seed_1, ... among the results, each with validation/, the masks of fold 0's
validation cases, and curve.json, the pseudo Dice of every epoch.
"""

import json
import os
import random
import sys
from pathlib import Path

import numpy as np
import torch
from nnunetv2.experiment_planning import plan_and_preprocess_api as api
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_results
from nnunetv2.run.run_training import get_trainer_from_args
from nnunetv2.utilities.dataset_name_id_conversion import convert_id_to_dataset_name

_CONFIGURATION = "3d_fullres"
_GPU_MEMORY_GB = 0.1  # patches are smaller than the cases
_FEWER_FEATURES = 4


def plan() -> None:
    """Plans and preprocesses; the folds are those of the raw dataset."""
    api.extract_fingerprints([1], num_processes=1, show_progress_bar=False)
    identifier = api.plan_experiments([1], gpu_memory_target_in_gb=_GPU_MEMORY_GB)
    path = _preprocessed() / f"{identifier}.json"
    plans = json.loads(path.read_text())
    network = plans["configurations"][_CONFIGURATION]["architecture"]["arch_kwargs"]
    network["features_per_stage"] = [n // _FEWER_FEATURES for n in network["features_per_stage"]]
    path.write_text(json.dumps(plans, indent=1))
    api.preprocess([1], identifier, [_CONFIGURATION], [1])


def train(seeds: int, epochs: int, steps: int, validation_steps: int) -> None:
    """Trains fold 0 from each of `seeds` seeds, and predicts its validation cases."""
    os.environ["nnUNet_n_proc_DA"] = "0"  # noqa: SIM112 - batches come from here, where seeds hold
    for seed in range(seeds):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        trainer = get_trainer_from_args("1", _CONFIGURATION, 0, device=torch.device("cpu"))
        trainer.num_epochs, trainer.num_iterations_per_epoch = epochs, steps
        trainer.num_val_iterations_per_epoch = validation_steps
        trainer.logger.plot_progress_png = lambda _: None  # takes longer than such an epoch
        trainer.run_training()
        trainer.perform_actual_validation()
        folder = Path(trainer.output_folder).rename(Path(nnUNet_results) / f"seed_{seed}")
        curve = [float(dice) for dice in trainer.logger.get_value("mean_fg_dice", None)]
        (folder / "curve.json").write_text(json.dumps(curve))


def _preprocessed() -> Path:
    return Path(nnUNet_preprocessed) / convert_id_to_dataset_name(1)


if __name__ == "__main__":
    command, *numbers = sys.argv[1:]
    plan() if command == "plan" else train(*map(int, numbers))
