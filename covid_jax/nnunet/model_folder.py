"""Trained models of nnU-Net v1 and v2 as runs of ours, and a run of ours as a model of v2."""

import contextlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from covid_jax.config import Config, UNetConfig
from covid_jax.data.plan import Plan, check_plan
from covid_jax.data.planner import topology_of
from covid_jax.errors import UserError
from covid_jax.files import read_json, whole_file, write_json
from covid_jax.label_space import CLASSES, label_space, labels_json
from covid_jax.model.nnunet_weights import to_params, to_state_dict
from covid_jax.nnunet.own_plans import write_plans
from covid_jax.nnunet.pickles import load_checkpoint, load_pickle
from covid_jax.nnunet.plans import read_plans
from covid_jax.nnunet.version_1 import read_plans_v1
from covid_jax.values import mapping, read

Tree = Any

# Of v2 and of v1, in the order in which they are taken.
_CHECKPOINTS = (
    "checkpoint_final.pth",
    "model_final_checkpoint.model",
    "checkpoint_best.pth",
    "model_best.model",
)


@dataclass(frozen=True)
class Model:
    """A trained model: what a run folder holds, and nnU-Net's dataset.json.

    Attributes:
      notes: lines on what was read as what.
    """

    config: Config
    plan: Plan
    params: Tree
    dataset: dict[str, Any]
    notes: tuple[str, ...] = ()


def checkpoints_in(path: Path) -> dict[str, Path]:
    """The checkpoints that nnU-Net would predict with, by the names of their folders.

    Of a model's folder those of its numbered folds, else that of fold_all; the final ones, or
    where no fold has one, the best ones (nnU-Net: auto_detect_available_folds).

    Args:
      path: a checkpoint, a fold's folder, or a model's.

    Raises:
      UserError: a folder without a checkpoint.
    """
    if not path.is_dir():
        return {path.parent.name: path}
    for name in _CHECKPOINTS:
        found = sorted(
            file for file in (path / name, *path.glob(f"fold_*/{name}")) if file.is_file()
        )
        numbered = [file for file in found if file.parent.name != "fold_all"]
        if found:
            return {file.parent.name: file for file in numbered or found}
    raise UserError(
        f"{path}: holds no checkpoint of nnU-Net ({', '.join(_CHECKPOINTS)}), neither here nor in "
        "fold_0, fold_1, ... or fold_all"
    )


def read_model(checkpoint: Path, plans: Path | None = None) -> Model:
    """The model of a checkpoint of nnU-Net, of version 1 or 2.

    Args:
      checkpoint: checkpoint_final.pth (v2), model_final_checkpoint.model (v1), or a folder with
        one (checkpoints_in).
      plans: plans.json (v2) or plans.pkl (v1). None: the file beside the checkpoint or above it,
        else what the checkpoint itself says.

    Raises:
      UserError: a file that is missing, damaged or not plain data; a setting that decides the mask
        and is not supported; weights that do not fit; a folder of several checkpoints.
    """
    if plans and not plans.is_file():
        raise UserError(f"{plans}: no such file")
    found = checkpoints_in(checkpoint)
    if len(found) > 1:
        raise UserError(f"{checkpoint}: holds several checkpoints ({', '.join(found)}); give one")
    (path,) = found.values()
    content = load_checkpoint(path)
    if not isinstance(content, dict) or not {"network_weights", "state_dict"} & content.keys():
        raise UserError(f"{path}: holds no weights of nnU-Net")
    is_v2 = "network_weights" in content
    model = (_read_v2 if is_v2 else _read_v1)(path, content, plans)
    check_plan(model.plan, path)
    return model


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
    plans = write_plans(model.config, model.plan)
    checkpoint = {
        "network_weights": {name: tensors[id(array)] for name, array in weights.items()},
        "trainer_name": "nnUNetTrainer",
        "init_args": {
            "plans": plans,
            "configuration": "3d_fullres",
            "fold": 0,
            "dataset_json": model.dataset,
        },
        "inference_allowed_mirroring_axes": model.config.inference.mirror_axes or None,
    }
    packed = io.BytesIO()  # written by Python, which tells a full disk
    torch.save(checkpoint, packed)
    with whole_file(folder / "fold_0" / "checkpoint_final.pth") as partial:
        partial.write_bytes(packed.getbuffer())
    for name, text in {"dataset.json": model.dataset, "plans.json": plans}.items():
        write_json(folder / name, text)


def nnunet_plan(path: Path, dataset: Path, configuration: str) -> Plan:
    """The plan, with its network, of nnU-Net v2's plans.json at `path`.

    Raises:
      UserError: it is missing or damaged, or what decides masks there is not supported here.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; --plans is nnU-Net's plans.json")
    plans, description = read_json(path), read_json(dataset)
    with _faults_of(dataset):
        label_space(description)
    with _faults_of(path):
        settings = read_plans(plans, description, configuration)
    return replace(settings.plan, topology=topology_of(settings.config))


def plain_dataset(num_classes: int) -> dict[str, Any]:
    """A dataset.json of CT for a network whose classes have no names."""
    labels = labels_json(CLASSES, num_classes)
    return {"channel_names": {"0": "CT"}, **labels, "file_ending": ".nii.gz"}


def _read_v2(path: Path, content: Mapping[str, Any], plans_path: Path | None) -> Model:
    plans_file = _file_near(path, plans_path, "plans.json")
    dataset_file = _file_near(
        path, plans_path and plans_path.with_name("dataset.json"), "dataset.json"
    )
    with _faults_of(path):
        told = read(content, "init_args", mapping, {})
        plans = read_json(plans_file) if plans_file else read(told, "plans", mapping)
        dataset = (
            read_json(dataset_file) if dataset_file else dict(read(told, "dataset_json", mapping))
        )
    with _faults_of(dataset_file or path):
        label_space(dataset)
    with _faults_of(plans_file or path):
        settings = read_plans(
            plans,
            dataset,
            told.get("configuration", "3d_fullres"),
            content.get("inference_allowed_mirroring_axes"),
            content.get("trainer_name", "nnUNetTrainer"),
        )
    with _faults_of(path):
        params = _weights(content["network_weights"], settings.config.model)
    return Model(settings.config, settings.plan, params, dataset, settings.notes)


def _read_v1(path: Path, content: Mapping[str, Any], plans_path: Path | None) -> Model:
    beside = path.with_name(f"{path.name}.pkl")
    found = [p for p in (plans_path, beside, path.parent.parent / "plans.pkl") if p and p.is_file()]
    if not found:
        raise UserError(f"{beside}: missing; give the model's plans.pkl by --plans")
    facts = load_pickle(found[0])
    with _faults_of(found[0]):
        settings = read_plans_v1(facts)
    with _faults_of(path):
        params = _weights(content["state_dict"], settings.config.model)
    dataset = plain_dataset(settings.config.model.num_classes)
    return Model(settings.config, settings.plan, params, dataset, settings.notes)


@contextlib.contextmanager
def _faults_of(path: Path) -> Iterator[None]:
    """Names the file in what is wrong with it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: nnU-Net did not write this ({type(error).__name__}: {error})"
        ) from error


def _weights(state_dict: Mapping[str, Any], model: UNetConfig) -> Tree:
    return to_params({k: np.asarray(v, np.float32) for k, v in state_dict.items()}, model)


def _file_near(path: Path, given: Path | None, name: str) -> Path | None:
    """The file that is given, or that lies beside a checkpoint or above it; None without one."""
    places = [given] if given else [path.with_name(name), path.parent.with_name(name)]
    return next((place for place in places if place.is_file()), None)
