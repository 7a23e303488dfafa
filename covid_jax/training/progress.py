"""What a run tells while it runs: a bar or lines, log.jsonl, TensorBoard events, progress.png."""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from tqdm import tqdm

from covid_jax.config import Config
from covid_jax.device import peak_resident_bytes
from covid_jax.errors import UserError, writing
from covid_jax.files import is_number, whole_file

_PICTURE_SECONDS = 60.0  # between two pictures: drawing one takes half a second


class EpochLog:
    """Gathers what the steps of an epoch report, and makes the epoch's line of the log of it.

    Args:
      so_far: of an epoch that was stopped, what `unfinished` returned.
      describe: names the batch of a step, for the error.
    """

    def __init__(self, so_far: dict[str, Any], describe: Callable[[int], str]) -> None:
        self._describe = describe
        self._losses: list[float] = list(so_far.get("losses", ()))
        self._norms: list[float] = list(so_far.get("gradient_norms", ()))
        self._waited: float = so_far.get("waiting_seconds", 0.0)
        self._began = time.perf_counter() - so_far.get("seconds", 0.0)
        self._pending: tuple[int, dict[str, jax.Array]] | None = None

    def add(self, step: int, metrics: dict[str, jax.Array], waited: float) -> None:
        """Takes the metrics of a step, and the seconds that it waited for its batch.

        Those of the step before are read now, so that the device never waits for the host.

        Raises:
          UserError: the loss or the gradient of the step before is not finite.
        """
        self._read()
        self._pending = step, metrics
        self._waited += waited

    @property
    def loss(self) -> float | None:
        """Of the last step that was read; None before that."""
        return self._losses[-1] if self._losses else None

    def unfinished(self) -> dict[str, Any]:
        """What a checkpoint within the epoch keeps of it. Raises as `add`."""
        self._read()
        return {
            "losses": self._losses,
            "gradient_norms": self._norms,
            "waiting_seconds": self._waited,
            "seconds": time.perf_counter() - self._began,
        }

    def line(self, batch_size: int) -> dict[str, Any]:
        """Means over the steps, seconds and throughput. Raises as `add`."""
        self._read()
        seconds = time.perf_counter() - self._began
        return {
            "loss": sum(self._losses) / len(self._losses),
            "gradient_norm": sum(self._norms) / len(self._norms),
            "largest_gradient_norm": max(self._norms),
            "seconds": seconds,
            "waiting_seconds": self._waited,  # for data; of them the device may have worked
            "samples_per_second": batch_size * len(self._losses) / seconds,
        }

    def _read(self) -> None:
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        loss, norm = float(metrics["loss"]), float(metrics["gradient_norm"])
        if not math.isfinite(loss + norm):
            raise UserError(
                f"step {step}: loss {loss}, gradient norm {norm}; its batch: "
                f"{self._describe(step)}; nothing of it was saved; the same command with "
                f"--replay={step} shows where it comes from"
            )
        self._losses.append(loss)
        self._norms.append(norm)


def with_bar(steps: range, length: int, title: str, log: EpochLog) -> Iterator[int]:
    """The steps that are left of an epoch of `length`; on a terminal with a bar."""
    done = length - len(steps)
    silent = True if jax.process_index() > 0 else None  # None: where there is no terminal
    with tqdm(total=length, initial=done, unit="step", mininterval=1, disable=silent) as bar:
        bar.set_description(title)
        for step in steps:
            yield step
            if log.loss is not None:
                bar.set_postfix(loss=f"{log.loss:.3f}", refresh=False)
            bar.update()


def dice_by_name(config: Config, dice: np.ndarray) -> dict[str, float]:
    """Of the log, the validation Dice of each class or region of several, where it has one."""
    names = config.label_space.names_of(config.model.num_classes)
    each = zip(names, dice, strict=True) if len(names) > 1 else ()
    return {f"validation_dice/{name}": float(d) for name, d in each if not math.isnan(d)}


def moving_average(epochs: Sequence[dict[str, Any]], dice: float) -> float:
    """Of the validation Dice, after the log's `epochs` and one more. nnU-Net: ema_fg_dice."""
    before = epochs[-1].get("dice_average") if epochs else None
    return dice if before is None else 0.9 * before + 0.1 * dice


def _peak_bytes() -> int:
    """Of the device's memory, or where it has none of its own this process's, since it started."""
    statistics = jax.local_devices()[0].memory_stats()
    if statistics:
        return statistics["peak_bytes_in_use"]
    return peak_resident_bytes()


def _told(line: dict[str, Any], count: int) -> str:
    """A line of the log for a reader, such as "epoch 3 of 10: loss -0.412, Dice 0.61, 12 s"."""
    dice = f", Dice {line['validation_dice']:.3f}" if "validation_dice" in line else ""
    seconds = line["seconds"] + line.get("validation_seconds", 0.0)
    return f"epoch {line['epoch'] + 1} of {count}: loss {line['loss']:.3f}{dice}, {seconds:.3g} s"


class Progress:
    """The log of the run of `epochs` in `workdir`, from `step` on; `title` heads its picture.

    A context manager, at whose end the picture shows all epochs. Of several processes one `writes`.

    Lines after `step`, written by a run that was stopped before its next checkpoint, are dropped,
    so that the log shows each step once.
    """

    def __init__(
        self, workdir: Path, step: int, epochs: int, title: str, writes: bool = True
    ) -> None:
        self._title = title
        self._count = epochs
        self._log = workdir / "log.jsonl"
        self._picture = workdir / "progress.png"
        self._drawn = time.monotonic()
        self._events: RecordWriter | None = None
        self._peak_before = _peak_bytes()
        self.epochs = [line for line in read_log(workdir) if line["step"] <= step]
        if writes:
            with whole_file(self._log) as partial:
                partial.write_text("".join(json.dumps(line) + "\n" for line in self.epochs))
            # A file of its own for each start, in the order of their names.
            events = f"events.out.tfevents.{time.time_ns()}.{os.getpid()}"
            with writing(workdir / "tensorboard"):
                (workdir / "tensorboard").mkdir(exist_ok=True)
                self._events = RecordWriter((workdir / "tensorboard" / events).open("wb"))
            self._add_event(file_version="brain.Event:2")
            # TensorBoard hides what an earlier start logged after this step.
            self._add_event(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._events is not None:
            self._events.close()
            if self.epochs:
                draw_progress(self.epochs, self._title, self._picture)

    def epoch(self, line: dict[str, Any]) -> None:
        """Logs an epoch: {"step", "epoch", "loss", "learning_rate", "seconds", ...}.

        And the most memory that was taken, unless an earlier run of this process took more.
        """
        if (peak := _peak_bytes()) > self._peak_before:
            line = {**line, "peak_bytes": peak}
        self.epochs.append(line)
        if self._events is None:
            return
        if not sys.stderr.isatty():  # where there is no bar
            print(_told(line, self._count), flush=True)
        with writing(self._log), self._log.open("a") as log:
            log.write(json.dumps(line) + "\n")
        scalars = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in line.items()
            if isinstance(value, float)
        ]
        self._add_event(step=line["step"], summary=Summary(value=scalars))
        if time.monotonic() - self._drawn > _PICTURE_SECONDS:
            draw_progress(self.epochs, self._title, self._picture)
            self._drawn = time.monotonic()

    def _add_event(self, **content: Any) -> None:
        """In this thread: TensorBoard's own ends with a traceback where the disk is full."""
        assert self._events
        with writing(self._log.with_name("tensorboard")):
            self._events.write(Event(wall_time=time.time(), **content).SerializeToString())
            self._events.flush()


def read_log(workdir: Path) -> list[dict[str, Any]]:
    """The lines of log.jsonl; a last line that was cut short is left out.

    Raises:
      UserError: another line is damaged.
    """
    path = workdir / "log.jsonl"
    if not path.is_file():
        return []
    read: list[dict[str, Any]] = []
    for number, text in enumerate(path.read_text(errors="replace").split("\n")[:-1], start=1):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        after = read[-1]["step"] if read else 0
        if not (_is_line(line) and line["step"] > after):
            raise UserError(f"{path}: line {number} is damaged; delete that line")
        read.append(line)
    return read


def _is_line(line: Any) -> bool:
    """Whether this is what an epoch wrote: numbers, and at least these, which are finite."""
    return (
        isinstance(line, dict)
        and all(is_number(line.get(name)) for name in ("step", "epoch", "seconds"))
        and all(type(value) in (int, float) for value in line.values())
    )


def draw_progress(epochs: list[dict[str, Any]], title: str, path: Path) -> None:
    """Draws loss, validation Dice, learning rate and seconds of the epochs (progress.png).

    The green line is the moving average of the Dice, by which the best epoch is known.
    A dotted line stands where from one epoch to the next other parameters are frozen.
    """
    # At the end of an epoch, and not before: it takes a sixth of the time that a command starts in.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    number = [line["epoch"] + 1 for line in epochs]
    figure = Figure(figsize=(7, 8))
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    top.plot(number, [line["loss"] for line in epochs], ".-", label="training loss")
    if "validation_loss" in epochs[-1]:
        losses = [line["validation_loss"] for line in epochs]
        top.plot(number, losses, ".-", label="validation loss")
        right = top.twinx()
        dice = [line["validation_dice"] for line in epochs]
        right.plot(number, dice, ".", color="tab:green")
        averages = [line.get("dice_average", math.nan) for line in epochs]
        right.plot(number, averages, "-", color="tab:green")
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
    for axes in (top, middle, bottom):
        for line, before in zip(epochs[1:], epochs, strict=False):
            if line.get("frozen_parameters") != before.get("frozen_parameters"):
                # What is frozen changed between these two.
                axes.axvline(line["epoch"] + 0.5, color="tab:red", linestyle=":")
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.tight_layout()
    with whole_file(path) as partial:
        figure.savefig(partial, format="png", dpi=90)
