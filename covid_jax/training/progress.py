"""What a run tells while it runs: bars, log.jsonl, TensorBoard events, progress.png."""

import json
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator
from tensorboardX import SummaryWriter

from covid_jax.data.volume import whole_file

matplotlib.use("agg")


class Progress:
    """The log of the run in `workdir`, continued from `step`; `title` heads its picture.

    Lines after `step`, written by a run that was stopped before its next checkpoint, are dropped,
    so that the log shows each step once.
    """

    def __init__(self, workdir: Path, step: int, title: str) -> None:
        self._title = title
        self._log = workdir / "log.jsonl"
        self._picture = workdir / "progress.png"
        self.epochs = [line for line in read_log(workdir) if line["step"] <= step]
        with whole_file(self._log) as partial:
            partial.write_text("".join(json.dumps(line) + "\n" for line in self.epochs))
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def epoch(self, line: dict[str, Any]) -> None:
        """Logs an epoch: {"step", "epoch", "loss", "learning_rate", "seconds", ...}."""
        self.epochs.append(line)
        with self._log.open("a") as log:
            log.write(json.dumps(line) + "\n")
        for name, value in line.items():
            if isinstance(value, float):
                self._board.add_scalar(name, value, line["step"])
        draw_progress(self.epochs, self._title, self._picture)

    def close(self) -> None:
        """Flushes the TensorBoard events."""
        self._board.close()


def read_log(workdir: Path) -> list[dict[str, Any]]:
    """The lines of log.jsonl; a last line that was cut short is left out."""
    path = workdir / "log.jsonl"
    if not path.is_file():
        return []
    lines = path.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines]


def draw_progress(epochs: list[dict[str, Any]], title: str, path: Path) -> None:
    """Draws loss, validation Dice, learning rate and seconds of the epochs (progress.png)."""
    number = [line["epoch"] + 1 for line in epochs]
    figure, (top, middle, bottom) = plt.subplots(3, 1, figsize=(7, 8), sharex=True)
    top.plot(number, [line["loss"] for line in epochs], ".-", label="training loss")
    if "validation_loss" in epochs[-1]:
        losses = [line["validation_loss"] for line in epochs]
        top.plot(number, losses, ".-", label="validation loss")
        right = top.twinx()
        dice = [line["validation_dice"] for line in epochs]
        right.plot(number, dice, ".-", color="tab:green")
        right.set_ylabel("validation Dice", color="tab:green")
        right.set_ylim(0, 1)
    top.set_ylabel("loss")
    top.legend()
    top.set_title(title, fontsize=10)
    middle.plot(number, [line["learning_rate"] for line in epochs], ".-")
    middle.set_ylabel("learning rate")
    bottom.plot(number, [line["seconds"] for line in epochs], ".-")
    bottom.set_ylabel("seconds an epoch")
    bottom.set_xlabel("epoch")
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.tight_layout()
    with whole_file(path) as partial:
        figure.savefig(partial, format="png", dpi=90)
    plt.close(figure)
