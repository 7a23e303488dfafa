"""Does ours learn as nnUNetTrainer does, each from the same raw files on? Some seeds of each.

    python -m benchmarks.trainer_parity --dataset=channels --output=benchmarks/results

nnU-Net plans a synthetic dataset (harness/phantoms.py: of several channels, or of regions), and
both train by that plan, on their own: nnU-Net by its preprocessor, data loader, augmentation,
trainer and predictor, ours by `prepare --plans` and `train --config=configs/nnunet.py`. The masks
of the validation cases are scored by the same code. Writes trainer_parity_DATASET.json and .png:
the pseudo Dice of every epoch.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from absl import flags

from benchmarks.harness import environment
from benchmarks.harness.phantoms import PHANTOMS, write_phantoms
from benchmarks.harness.seeds import Curve, agreement, agreement_table, draw_curves
from covid_jax.command import as_process, require, run_command
from covid_jax.device import announce_cpu
from covid_jax.errors import UserError
from covid_jax.evaluation.folders import evaluate_folders, what_is_scored

matplotlib.use("agg")

_FLAGS = flags.FlagValues()
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the results.", _FLAGS)
_DATASET = flags.DEFINE_enum("dataset", None, list(PHANTOMS), "What both train on.", _FLAGS)
_EPOCHS = flags.DEFINE_integer(
    "epochs", 12, "Epochs of each run.", lower_bound=1, flag_values=_FLAGS
)
_STEPS = flags.DEFINE_integer("steps", 25, "Steps of an epoch.", lower_bound=1, flag_values=_FLAGS)
_VALIDATION_STEPS = flags.DEFINE_integer(
    "validation_steps", 8, "Validation steps of an epoch.", lower_bound=0, flag_values=_FLAGS
)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each.", lower_bound=1, flag_values=_FLAGS)

_CONFIG = Path(__file__).resolve().parent.parent / "configs" / "nnunet.py"


@dataclass(frozen=True)
class Trained:
    """What came of a run: the pseudo Dice of every epoch, and the mean DSC of each label."""

    curve: Curve
    dsc: dict[str, float]


def train_ours(folder: Path, seeds: int) -> list[Trained]:
    """Our commands, a run for each seed."""
    raw, prepared = raw_in(folder), folder / "prepared"
    run(
        "covid_jax.prepare",
        "--dataset=nnunet",
        f"--raw_dir={raw}",
        f"--plans={folder / 'preprocessed' / raw.name / 'nnUNetPlans.json'}",
        f"--out_dir={prepared}",
    )
    found = []
    for seed in range(seeds):
        workdir = folder / f"seed_{seed}"
        run(
            "covid_jax.train",
            f"--config={_CONFIG}",
            f"--workdir={workdir}",
            f"--config.data.prepared_dir={prepared}",
            f"--config.seed={seed}",
            f"--config.epochs={_EPOCHS.value}",
            f"--config.steps_per_epoch={_STEPS.value}",
            f"--config.validation_steps={_VALIDATION_STEPS.value}",
        )
        lines = map(json.loads, (workdir / "log.jsonl").read_text().splitlines())
        curve = [line["validation_dice"] for line in lines]
        found.append(Trained(curve, dsc(workdir / "predictions", raw)))
    return found


def train_nnunet(folder: Path, seeds: int) -> list[Trained]:
    """The same of nnUNetTrainer."""
    nnunet(
        folder, "train", *map(str, (seeds, _EPOCHS.value, _STEPS.value, _VALIDATION_STEPS.value))
    )
    runs = [folder / "results" / f"seed_{seed}" for seed in range(seeds)]
    return [
        Trained(
            json.loads((one / "curve.json").read_text()), dsc(one / "validation", raw_in(folder))
        )
        for one in runs
    ]


def raw_in(folder: Path) -> Path:
    """The raw dataset, called as nnU-Net wants it."""
    return folder / "raw" / f"Dataset001_{folder.name}"


def nnunet(folder: Path, *arguments: str) -> None:
    """Runs peers/nnunet_trainer.py on the dataset in `folder`."""
    places = {f"nnUNet_{part}": str(folder / part) for part in ("raw", "preprocessed", "results")}
    processes = {"nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "1"}
    run("benchmarks.peers.nnunet_trainer", *arguments, **places, **processes)


def run(module: str, *arguments: str, **environment: str) -> None:
    """Runs `python -m MODULE ARGUMENTS` on the CPU, with more in its environment.

    Raises:
      UserError: it failed; with the last line that it wrote.
    """
    finished = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if finished.returncode:
        last = finished.stdout.strip().rpartition("\n")[2]
        raise UserError(f"{module} ended with status {finished.returncode}: {last}")


def dsc(masks: Path, raw: Path) -> dict[str, float]:
    """The mean DSC of each label over the validation cases."""
    (fold,) = json.loads((raw / "splits_final.json").read_text())
    names, _ = what_is_scored(raw / "labelsTr", masks)
    metrics = evaluate_folders(masks, raw / "labelsTr", labels=names, cases=fold["val"])
    return {name: metrics["labels"][name]["mean"]["dsc"] for name in names.values()}


def compare(name: str, folder: Path, seeds: int) -> dict[str, Any]:
    """What both make of the dataset `name`, which is written into `folder`."""
    write_phantoms(raw_in(folder), name)
    for part in ("preprocessed", "results"):
        (folder / part).mkdir()
    nnunet(folder, "plan")
    found = {
        "covid_jax": train_ours(folder, seeds),
        "nnUNetTrainer": train_nnunet(folder, seeds),
    }
    labels = {}
    for label in found["covid_jax"][0].dsc:
        scores = {one: [trained.dsc[label] for trained in runs] for one, runs in found.items()}
        labels[label] = {"dsc": scores, **agreement(scores)}
    curves = {one: [trained.curve for trained in runs] for one, runs in found.items()}
    return {"labels": labels, "curves": curves}


def draw(what: str, curves: dict[str, list[Curve]], path: Path) -> None:
    """The pseudo Dice of every epoch."""
    figure, axes = plt.subplots(figsize=(6, 3.8))
    draw_curves(axes, curves)
    axes.set(xlabel="epoch", ylabel="pseudo Dice", ylim=(0, 1))
    axes.set_title(f"{what}, each from its raw files on; band: all seeds", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def work() -> None:
    """Trains, compares and writes what the flags say."""
    require(_OUTPUT, _DATASET)
    announce_cpu()
    output, name = Path(_OUTPUT.value), _DATASET.value
    what = f"SYNTHETIC {name}"
    with tempfile.TemporaryDirectory() as folder:
        found = compare(name, Path(folder) / name, _SEEDS.value)
    head = {"data": what, "epochs": _EPOCHS.value, "steps_per_epoch": _STEPS.value}
    result = {**environment.describe(), **head, **found}
    output.mkdir(parents=True, exist_ok=True)
    (output / f"trainer_parity_{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(what, found["curves"], output / f"trainer_parity_{name}.png")
    for label, one in found["labels"].items():
        print(f"{what}, DSC of {label} in the validation cases\n{agreement_table(one['dsc'])}\n")


def main(arguments: Sequence[str]) -> int:
    """This command; returns its exit status."""
    return run_command(work, _FLAGS, __doc__, arguments)


if __name__ == "__main__":
    as_process(main)
