"""A week of a cluster's troubles in minutes: small runs that are killed, stopped and damaged.

    python -m tests.faults.soak --seconds=1800 --seed=0

Each run is started again and again, on one or two devices, in one or two processes, until it is
done; what befalls each attempt is drawn from the seed. At the end its parameters and losses must be
those of a run that nothing befell, bit for bit. Prints a tally; exits with 1 where a result was
wrong, or an attempt ended in a way that its fault does not explain.
"""

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np

from covid_jax.stopping import REQUEUE_STATUS
from covid_jax.training.checkpoint import load_params
from covid_jax.training.progress import read_log
from tests.conftest import ROOT, SMALL_NETWORK
from tests.processes import Process, several

EPOCHS, LENGTH = 4, 40
LAYOUTS = ((1, 1, 1), (2, 1, 1), (2, 1, 2), (1, 2, 1), (1, 2, 2))
"""(data, space, processes)."""
DAMAGES = ("none", "bit", "cut", "leftover", "clock")
SIGNALS = {"kill": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGUSR1": signal.SIGUSR1}
DISK_MB = 8
PATIENCE = 90.0
"""Seconds without a word after which an attempt hangs; at work it moves its bar each second."""


@dataclass
class Tally:
    """What happened so far."""

    faults: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    attempts: int = 0
    steps_lost: int = 0
    went_back: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        faults = ", ".join(f"{count} {name}" for name, count in sorted(self.faults.items()))
        return (
            f"{sum(self.faults.values())} faults ({faults}) in {self.attempts} attempts: "
            f"{self.runs} runs completed, {self.steps_lost} steps done twice, "
            f"{self.went_back} damaged checkpoints passed over, {self.refused} refusals, "
            f"{len(self.wrong)} wrong results" + "".join(f"\n  {line}" for line in self.wrong)
        )


def settings(workdir: Path, data: Path, mesh: tuple[int, int]) -> list[str]:
    """The training of a run."""
    return [
        *(f"--config={ROOT}/configs/tiny.py", f"--workdir={workdir}"),
        f"--config.data.prepared_dir={data}",
        *(f"--config.mesh.data={mesh[0]}", f"--config.mesh.space={mesh[1]}"),
        *(f"--config.epochs={EPOCHS}", f"--config.steps_per_epoch={LENGTH}"),
        *("--config.validation_steps=0", "--config.test=False", "--config.data.augment=False"),
        *SMALL_NETWORK,
    ]


class Attempt:
    """A run that was started, in as many processes as asked."""

    def __init__(self, run: list[str], devices: int, processes: int, folder: Path) -> None:
        if processes == 1:
            self.processes = [Process(run, folder / "process0.txt", devices)]
        else:
            self.processes = several(run, folder, processes, devices // processes)

    def wait_for_start(self) -> None:
        """Until it tells what it trains: before, the others wait for one that is gone (300 s)."""
        while all(process.status() is None for process in self.processes):
            if "epochs of" in self.processes[0].printed():
                return
            time.sleep(0.02)

    def send(self, number: int, index: int) -> None:
        """To the process that trains: of several, each has a parent that waits for it."""
        process = self.processes[index % len(self.processes)]
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            os.kill(process.child() if len(self.processes) > 1 else process.pid, number)

    def end(self) -> tuple[int | None, str]:
        """(exit status of the first process, what it printed); None for one that hung."""
        first = self.processes[0]
        said, since = 0, time.monotonic()
        while any(process.status() is None for process in self.processes):
            if len(first.printed()) > said:
                said, since = len(first.printed()), time.monotonic()
            if time.monotonic() > since + PATIENCE:
                break
            time.sleep(0.05)
        hung = [index for index, one in enumerate(self.processes) if one.status() is None]
        for index in hung:
            self.send(signal.SIGKILL, index)
            self.processes[index].wait()
        return None if hung else first.status(), first.printed().replace("\r", "\n")


def soak(seconds: float, seed: int, folder: Path, disk: Path | None) -> Tally:
    """Runs and faults for so many seconds; `disk` is a small file system for the runs' folders."""
    rng = np.random.default_rng(seed)
    tally = Tally()
    data = folder / "data"
    straight = {mesh: folder / f"straight-{mesh[0]}x{mesh[1]}" for mesh in ((1, 1), (2, 1), (1, 2))}
    for mesh, workdir in straight.items():
        run = settings(workdir, data, mesh)
        status, text = Attempt(run, mesh[0] * mesh[1], 1, folder).end()
        assert status == 0, text
    began = time.monotonic()
    while time.monotonic() < began + seconds:
        workdir = (disk or folder) / f"run-{tally.runs}"
        mesh = tuple(LAYOUTS[rng.integers(len(LAYOUTS))][:2])
        if live(workdir, data, mesh, rng, tally, disk) and not same(workdir, straight[mesh]):
            tally.wrong.append(f"run {tally.runs} on {mesh}: not what an undisturbed run gives")
        tally.runs += 1
        shutil.rmtree(workdir)
        print(f"{time.monotonic() - began:6.0f} s: {tally}", flush=True)
    return tally


def live(
    workdir: Path,
    data: Path,
    mesh: tuple[int, int],
    rng: np.random.Generator,
    tally: Tally,
    disk: Path | None,
) -> bool:
    """Starts a run until it is done; files are damaged before, and something happens during it."""
    events = ["kill", "kill", "SIGTERM", "SIGUSR1", *(("full disk", "read-only") if disk else ())]
    for number in range(60):
        damage = DAMAGES[rng.integers(len(DAMAGES))] if steps_of(workdir) else "none"
        event = events[rng.integers(len(events))] if number < 4 else "none"
        do_damage(damage, workdir, rng)
        processes = rng.choice([layout[2] for layout in LAYOUTS if layout[:2] == mesh])
        with trouble_on_disk(event, rng, disk):
            run = settings(workdir, data, mesh)
            attempt = Attempt(run, mesh[0] * mesh[1], processes, data)
            if event in SIGNALS:
                attempt.wait_for_start()
                time.sleep(rng.uniform(0, 4))
                attempt.send(SIGNALS[event], rng.integers(2))
            status, text = attempt.end()
        tally.attempts += 1
        tally.faults.update(fault for fault in (damage, event) if fault != "none")
        tally.went_back += text.count("going back to an earlier one")
        tally.steps_lost += max(0, shown(text) - max(steps_of(workdir), default=0))
        if status == 0:
            return True
        if status == 1 and "every checkpoint is damaged" in text:
            tally.refused += 1
            shutil.rmtree(workdir)
        elif not explained(event, status, text):
            tally.wrong.append(f"{damage}, {event}: ended with {status}: {text[-400:]}")
    tally.wrong.append(f"{workdir.name} was not done after 60 attempts")
    return False


def do_damage(kind: str, workdir: Path, rng: np.random.Generator) -> None:
    """Damages what a run left: a file of its newest checkpoint, or the times of all."""
    newest = workdir / "checkpoints" / str(max(steps_of(workdir), default=0))
    files = sorted(path for path in newest.rglob("*") if path.is_file())
    if kind in ("bit", "cut"):
        path = files[rng.integers(len(files))]
        content = bytearray(path.read_bytes())
        at = rng.integers(max(len(content), 1))
        if kind == "bit" and content:
            content[at] ^= 1 << rng.integers(8)
        path.write_bytes(content[:at] if kind == "cut" else content)
    elif kind == "leftover":
        (newest.parent / f"{int(newest.name) + LENGTH}.orbax-checkpoint-tmp").mkdir(exist_ok=True)
    elif kind == "clock":
        for path in workdir.rglob("*"):
            moment = rng.uniform(0, 4e9)
            os.utime(path, (moment, moment))


@contextlib.contextmanager
def trouble_on_disk(event: str, rng: np.random.Generator, disk: Path | None) -> Iterator[None]:
    """Fills the disk all but some kB for the length of an attempt, or lets nothing be written."""
    if event == "full disk":
        free = shutil.disk_usage(disk).free
        (disk / "filler").write_bytes(bytes(max(0, free - rng.integers(600_000))))
    elif event == "read-only":
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    try:
        yield
    finally:
        if event == "read-only":
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        if event == "full disk":
            (disk / "filler").unlink()


def explained(event: str, status: int | None, text: str) -> bool:
    """Whether an attempt that did not finish ended as what happened to it has it."""
    if "Traceback" in text:
        return False
    if event in SIGNALS:
        by_signal = (-SIGNALS[event], 128 + SIGNALS[event])
        # After its work a run does not listen any more.
        return status == REQUEUE_STATUS or (
            status in by_signal and (event == "kill" or "done:" in text)
        )
    words = {"full disk": "the disk is full", "read-only": "cannot be written"}
    return status == 1 and event in words and words[event] in text


def steps_of(workdir: Path) -> list[int]:
    """The steps that have a checkpoint."""
    return [int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()]


def shown(text: str) -> int:
    """The last step of the last epoch that was told."""
    told = re.findall(rf"^epoch (\d+) of {EPOCHS}: ", text, re.M)
    return int(told[-1]) * LENGTH if told else 0


def same(workdir: Path, other: Path) -> bool:
    """Whether two runs have the same parameters and the same losses, bit for bit."""
    ours, theirs = (jax.tree.leaves(load_params(run)) for run in (workdir, other))
    losses, others = ([line["loss"] for line in read_log(run)] for run in (workdir, other))
    return all(map(np.array_equal, ours, theirs)) and losses == others


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A small file system of its own, where this user may mount one; else None."""
    place = folder / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(place)]
    if os.getuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def main() -> None:
    """Soaks for as long as asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, small_disk(Path(name)) as disk:
        if disk is None:
            print("no full and no read-only disks: it takes root, and a machine that lets it mount")
        tally = soak(arguments.seconds, arguments.seed, Path(name), disk)
    print(f"seed {arguments.seed}, {arguments.seconds:.0f} s: {tally}")
    sys.exit(bool(tally.wrong))


if __name__ == "__main__":
    main()
