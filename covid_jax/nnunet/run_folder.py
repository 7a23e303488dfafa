"""Run folders as models of nnU-Net's, and such models as run folders.

Beside model_folder, which machines read that lack the libraries of a run's data.
"""

from pathlib import Path

from covid_jax.files import read_json, write_json
from covid_jax.nnunet.model_folder import Model
from covid_jax.training.checkpoint import save_params
from covid_jax.training.pretrained import load_run
from covid_jax.training.workdir import claim_workdir, dataset_json


def read_run(workdir: Path) -> Model:
    """A run of ours, with the dataset.json that it was imported with, or one of its own."""
    config, plan, params = load_run(workdir)
    dataset = read_json(workdir / "dataset.json") or dataset_json(config, plan)
    return Model(config, plan, params, dataset)


def write_run(workdir: Path, model: Model) -> None:
    """Writes a run folder; config.json, by which it counts as one, comes last."""
    save_params(workdir, model.params)
    write_json(workdir / "dataset.json", model.dataset)
    claim_workdir(workdir, model.config, model.plan)
