"""The work directory of a run: what it is by, and who may go on in it."""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from covid_jax.config import Config, differences, to_dict
from covid_jax.data.plan import Plan, load_plan, save_plan
from covid_jax.data.store import StoredDataset
from covid_jax.errors import UserError
from covid_jax.files import read_json, refuse_inside, write_json
from covid_jax.label_space import labels_json
from covid_jax.training.checkpoint import best_of, newest_step
from covid_jax.training.pretrained import load_config
from covid_jax.training.provenance import (
    changes,
    device_here,
    load_provenance,
    provenance,
    unlike_before,
)
from covid_jax.training.state import epochs_of, learning_rate, schedule

_MADE = (
    *("predictions", "metrics.json", "postprocessing.json", "model", "best"),
    *("log.jsonl", "progress.png"),
)

_MAY_CHANGE = (
    "data.prepared_dir",
    "data.workers",
    "pretrained",
    "study.",
    "inference.",
    "checkpoint_every",
    "mesh.",
    "label_space.names",
)
"""Settings that a run may be continued with although they changed: they move no parameter, or, the
mesh, by no more than the rounding of its sums."""

_MAY_NOT = "inference.mirror_axes: "
"""Of these the one that training depends on too."""

_MADE_BY_INFERENCE = ("metrics.json", "postprocessing.json", "model")
"""What a run makes by the settings of its inference."""

_MADE_AT_THE_END = ("predictions", *_MADE_BY_INFERENCE)
"""What a run makes of its last parameters."""


def claim_workdir(
    workdir: Path,
    config: Config,
    plan: Plan,
    datasets: Sequence[StoredDataset] = (),
    accept_changes: bool = False,
) -> None:
    """Writes what a run is by, or checks that what is there is this run's.

    That is config.json, plan.json, provenance.json, and dataset.json for the names of its classes.

    config.json always says what the run goes on with: settings that move no parameter may change,
    and the number of epochs, which is told; provenance.json keeps the one before.
    With `accept_changes` the run's provenance may differ from the one that is there. The device
    may, but for config.deterministic: another one rounds otherwise.

    Raises:
      UserError: the work directory belongs to a run with another config, plan or provenance; or
        it was tested with other settings of inference.
    """
    check_settings(workdir, config, plan)
    _remove_halves(workdir)
    is_new = not (workdir / "config.json").is_file()
    origin, path = provenance(config, datasets), workdir / "provenance.json"
    if unlike := unlike_before(config, plan):
        origin["unlike_before"] = unlike
    known = load_provenance(workdir)
    devices = known.get("devices", [])
    before = config if is_new else load_config(workdir)
    origin |= (kept := _earlier_lengths(workdir, config, before, known))
    compared = {name: of for name, of in known.items() if name != "earlier_lengths"} | kept
    changed = changes(origin, compared) if known else []
    if accept_changes:
        _test_again(workdir, changed)
    else:
        _refuse_changes(workdir, config, changed, devices)
    if not (known or is_new):
        print(f"note: {path} is missing, which told of changed data; it is made anew")
    if known != (origin := origin | {"devices": devices}):
        write_json(path, origin)
    if is_new:
        save_plan(workdir / "plan.json", plan)
    classes = workdir / "dataset.json"
    if datasets and (told := dataset_json(config, plan, datasets[0])) != read_json(classes):
        write_json(classes, told)
    if epochs_of(before) != epochs_of(config):
        print(_going_on(workdir, config, before))
        best = best_of(workdir)
        if best and best.step > newest_step(workdir):  # of the schedule before, and lost with it
            shutil.rmtree(workdir / "best")
    if is_new or before != config:
        write_json(workdir / "config.json", to_dict(config))


def _remove_halves(workdir: Path) -> None:
    """Removes what a run that was killed as it wrote has left (files.whole_file, whole_folder)."""
    for path in workdir.glob(".partial-*") if (workdir / "config.json").is_file() else ():
        if path.name.removeprefix(".partial-").partition("-")[2] in _MADE:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _test_again(workdir: Path, changed: Sequence[str]) -> None:
    """Removes what a run made of what has changed, where anything has."""
    if changed:
        for name in ("metrics.json", "postprocessing.json"):
            (workdir / name).unlink(missing_ok=True)
        shutil.rmtree(workdir / "model", ignore_errors=True)
        print(f"{workdir}: goes on with changes ({'; '.join(changed)}); its test is done again")


def _refuse_changes(
    workdir: Path, config: Config, changed: Sequence[str], devices: Sequence[dict[str, Any]]
) -> None:
    """Raises a UserError where data or program changed, or of a deterministic run the device."""
    what = "data or program"
    if not changed and config.deterministic and devices:
        there = {name: of for name, of in devices[-1].items() if name != "memory_fraction"}
        changed, what = differences(device_here(), there), "the device"
    if changed:
        raise UserError(
            f"{workdir}: {what} changed since the run began ({'; '.join(changed)}); "
            "use another --workdir, or --accept_changes to go on"
        )


def _earlier_lengths(
    workdir: Path, config: Config, before: Config, known: dict[str, Any]
) -> dict[str, Any]:
    """For provenance.json, how many epochs a run was to have until which step, if not always these.

    `before` is its config, and `known` its provenance, up to now.
    """
    lengths, step = list(known.get("earlier_lengths", ())), newest_step(workdir)
    told = lengths[-1]["until_step"] if lengths else 0
    if epochs_of(before) != epochs_of(config) and step > told:  # a length without a step is none
        lengths.append({"epochs": epochs_of(before), "until_step": step})
    elif lengths and lengths[-1] == {"epochs": epochs_of(config), "until_step": step}:
        lengths.pop()
    return {"earlier_lengths": lengths} if lengths else {}


def _going_on(workdir: Path, config: Config, before: Config) -> str:
    """A line on a run that goes on to another number of epochs."""
    first, epochs, total = schedule(config)
    epoch = newest_step(workdir) // config.steps_per_epoch
    told = f"{workdir}: going on to {epochs} epochs instead of {epochs_of(before)}"
    if epoch == epochs:
        return f"{told}, which are trained"
    rate = learning_rate(config, first + epoch)
    return f"{told}: its schedule is over {total} now, learning rate {rate:.4g} in epoch {epoch}"


def dataset_json(config: Config, plan: Plan, data: StoredDataset | None = None) -> dict[str, Any]:
    """The dataset.json, as nnU-Net has it, of what a run predicts.

    Channels are called as the data's are, or by their normalisation; classes get names where the
    config, which is of before it knew them, has none.
    """
    names = plan.channel_names(data.channels if data else ())
    return {
        "channel_names": {str(k): name for k, name in enumerate(names)},
        **labels_json(config.label_space, config.model.num_classes),
        "file_ending": data.file_ending if data else StoredDataset.file_ending,
    }


def check_place(workdir: Path, config: Config) -> None:
    """Raises a UserError where `workdir` is no run and holds what a run would write over.

    Or where it is the best epoch of another, or lies in the prepared data.
    """
    if workdir.name == "best" and (workdir.parent / "config.json").is_file():
        raise UserError(
            f"{workdir}: is the best epoch of the run {workdir.parent}, and that one goes on; "
            "give another --workdir"
        )
    if config.data.prepared_dir:
        refuse_inside(workdir, Path(config.data.prepared_dir), "--workdir")
    held = [name for name in _MADE if (workdir / name).exists()]
    if held and not (workdir / "config.json").is_file():
        raise UserError(
            f"{workdir}: is no run, it has no config.json, and holds {', '.join(held)}, which a "
            "run writes over; give another --workdir"
        )


def as_begun(config: Config, workdir: Path) -> Config:
    """`config` with the dtype of the run in `workdir`, where it says "auto" and there is one.

    So a run that began on a GPU goes on as it began, wherever that is.
    """
    if config.dtype != "auto" or not (workdir / "config.json").is_file():
        return config
    return dataclasses.replace(config, dtype=load_config(workdir).dtype)


def check_settings(workdir: Path, config: Config, plan: Plan) -> None:
    """Raises a UserError where `workdir` belongs to a run with another config or plan.

    And where what was made with other settings of inference, or after another number of epochs, is
    there already; or where more epochs are trained than there are to be.
    """
    if not (workdir / "config.json").is_file():
        return
    every = differences(to_dict(config), to_dict(load_config(workdir)))
    length = "pretraining_epochs: " if config.pretraining else "epochs: "
    changed = [
        line
        for line in every
        if line.startswith(_MAY_NOT) or not line.startswith((*_MAY_CHANGE, length))
    ]
    if changed:
        raise UserError(
            f"{workdir} holds a run with another config ({'; '.join(changed)}); "
            "use another --workdir, or delete it to start over"
        )
    otherwise = [line for line in every if line.startswith("inference.")]
    made = [name for name in _MADE_BY_INFERENCE if (workdir / name).exists()]
    if otherwise and made:
        raise UserError(
            f"{workdir}: {', '.join(made)} there are of other settings ({'; '.join(otherwise)}); "
            "delete them to have them made with these"
        )
    if other := [line for line in every if line.startswith(length)]:
        _check_length(workdir, config, other[0])
    if load_plan(workdir / "plan.json").hash != plan.hash:
        raise UserError(f"{workdir} holds a run on data of another plan; use another --workdir")


def _check_length(workdir: Path, config: Config, told: str) -> None:
    """Raises a UserError where a run cannot go on to another number of epochs."""
    trained = -(-newest_step(workdir) // config.steps_per_epoch)
    if epochs_of(config) < trained:
        raise UserError(
            f"{workdir}: {trained} epochs are trained, and {told}; give as many or more, or "
            "another --workdir"
        )
    made = [name for name in _MADE_AT_THE_END if (workdir / name).exists()]
    if made:
        raise UserError(
            f"{workdir}: {', '.join(made)} there are of another number of epochs ({told}); delete "
            "them to go on, and the end makes them anew"
        )
