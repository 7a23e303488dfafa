"""A run from the command line: what it leaves, and that a kill changes nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import nibabel as nib
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from covid_jax.data.preprocess import PreparedCase
from covid_jax.data.store import open_case, save_case
from covid_jax.data.volume import read_volume
from covid_jax.lock import only_here
from covid_jax.nnunet.run_folder import read_run
from covid_jax.stopping import REQUEUE_STATUS
from covid_jax.training.checkpoint import Best, best_of, load_params
from covid_jax.training.pretrained import load_pretrained
from covid_jax.training.progress import read_log
from covid_jax.transfer.freezing import leaf_paths
from tests.conftest import ROOT, SMALL_NETWORK, tiny
from tests.processes import Process

TINY = f"--config={ROOT}/configs/tiny.py"


def shown_by_tensorboard(workdir):
    """The steps whose loss TensorBoard shows."""
    events = EventAccumulator(str(workdir / "tensorboard"))
    events.Reload()
    return [scalar.step for scalar in events.Scalars("loss")]


def equal(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def test_a_run_leaves_what_the_readme_says(tiny_run):
    names = {path.name for path in tiny_run.iterdir()}
    assert {
        "config.json",
        "plan.json",
        "checkpoints",
        "best",
        "log.jsonl",
        "progress.png",
        "tensorboard",
        "predictions",
        "metrics.json",
    } <= names
    assert shown_by_tensorboard(tiny_run) == [10, 20]


def test_its_best_epoch_is_a_run_folder_too(tiny_run, tmp_path, command, refuses):
    best, folder = best_of(tiny_run), tiny_run / "best"
    first, second = (line["validation_dice"] for line in read_log(tiny_run))
    averages = [line["dice_average"] for line in read_log(tiny_run)]
    assert averages == [first, 0.9 * first + 0.1 * second]
    assert best == Best(10 * (1 + int(np.argmax(averages))), max(averages))
    card = (folder / "README.md").read_text()
    assert f"- Epoch: {best.step // 10} of 2, the best by the moving average of the" in card
    assert "It was not tested" in card
    assert not (folder / "metrics.json").exists()
    read_run(folder)  # for import_nnunet --export
    assert load_pretrained(tiny("body-msd", pretrained=str(folder))) is not None
    scan = sorted((tiny_run / "data" / "raw_phantom" / "imagesTr").iterdir())[0]
    masks = command(
        "predict", f"--checkpoint={folder}", f"--input={scan}", f"--output_dir={tmp_path}"
    )
    assert masks.returncode == 0, masks.stderr
    assert list(tmp_path.glob("*.nii.gz"))
    assert "is the best epoch of the run" in refuses("train", TINY, f"--workdir={folder}")


def test_its_config_says_the_dtype_and_its_provenance_the_device(tiny_run):
    assert json.loads((tiny_run / "config.json").read_text())["dtype"] == "float32"
    (device,) = json.loads((tiny_run / "provenance.json").read_text())["devices"]
    assert device["kind"] == jax.devices()[0].device_kind
    assert device["jax"] == jax.__version__


BLOCK = """
import sys
from importlib.machinery import PathFinder
class Without:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in {"SimpleITK", "pydicom", "highdicom"}:
            return None
        return PathFinder.find_spec(name, path, target)
sys.meta_path = [Without if finder is PathFinder else finder for finder in sys.meta_path]
"""


def test_a_run_without_such_files_needs_neither_simpleitk_nor_pydicom(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(BLOCK)
    short = (
        *("--config.epochs=1", "--config.steps_per_epoch=1", "--config.validation_steps=0"),
        "--config.data.augment=False",
    )
    finished = subprocess.run(
        [
            *(sys.executable, "-m", "covid_jax.train", TINY, f"--workdir={tmp_path}/run"),
            *short,
            *SMALL_NETWORK,
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "run" / "metrics.json").is_file()  # trained, predicted and scored
    assert "in float32" in finished.stdout


def test_the_log_has_a_line_an_epoch_with_the_pinned_fields(tiny_run):
    log = read_log(tiny_run)
    assert [line["step"] for line in log] == [10, 20]
    assert {"step", "epoch", "loss", "learning_rate", "seconds", "validation_dice"} <= log[0].keys()
    assert log[1]["loss"] < log[0]["loss"]
    assert all(0 <= line["waiting_seconds"] < line["seconds"] for line in log)


def test_metrics_are_of_the_folds_test_cases_on_their_own_grids(tiny_run):
    metrics = json.loads((tiny_run / "metrics.json").read_text())
    masks = sorted((tiny_run / "predictions").iterdir())
    assert sorted(metrics["cases"]) == [path.name.removesuffix(".nii.gz") for path in masks]
    for path in masks:
        name = path.name.replace(".nii.gz", "_0000.nii.gz")
        mask = nib.load(path)
        scan = nib.load(tiny_run / "data" / "raw_phantom" / "imagesTr" / name)
        assert mask.shape == scan.shape
        np.testing.assert_array_equal(mask.affine, scan.affine)


def saves(workdir):
    """The steps of the checkpoints that are there or are being written (orbax: STEP.orbax-...)."""
    return [int(path.name.partition(".")[0]) for path in (workdir / "checkpoints").glob("[0-9]*")]


def kill_at_checkpoint(step, workdir, *arguments):
    """Starts a training and kills it as soon as the checkpoint of `step` is there."""
    kill_when((workdir / "checkpoints" / str(step)).is_dir, 0.0, workdir, *arguments)


def kill_when(reached, delay, workdir, *arguments):
    """Starts a training and kills it `delay` seconds after `reached` says so."""
    process = Process([f"--workdir={workdir}", *arguments], Path(f"{workdir}.txt"))
    process.wait_until(reached)
    time.sleep(delay)
    process.send(signal.SIGKILL)
    process.wait()
    assert not (workdir / "metrics.json").exists()


def prepare_again(folder):
    """Prepares a case as if its scan had been another."""
    case = open_case(folder)
    facts = json.loads((folder / "case.json").read_text())
    kept = {name: value for name, value in facts.items() if name not in ("geometry", "sha256")}
    reference = folder.parents[1] / "references" / f"{folder.name}.nii.gz"
    other = PreparedCase(np.array(case.image) + 1, np.array(case.label), case.geometry)
    save_case(folder.parents[1], folder.name, other, read_volume(reference), kept)


@pytest.mark.parametrize("file", ["image.npy", "label.npy", "foreground.npy", "case.json"])
def test_prepared_data_that_was_damaged_is_refused_by_name(tiny_run, tmp_path, refuses, file):
    data = tmp_path / "data"
    shutil.copytree(tiny_run / "data", data)
    path = sorted((data / "phantom" / "cases").glob(f"*/{file}"))[0]
    content = bytearray(path.read_bytes())
    at = content.index(b"spacing") + 20 if file == "case.json" else len(content) // 2
    content[at : at + 1] = b"7" if content[at : at + 1] != b"7" else b"8"
    path.write_bytes(content)
    arguments = [TINY, f"--workdir={tmp_path / 'run'}", f"--config.data.prepared_dir={data}"]
    line = refuses("train", *arguments, f"--config.fold={fold_with(data, path.parent.name)}")
    assert f"{path.parent.name}: missing or damaged case; prepare the data again" in line


def fold_with(data, case):
    """The first fold that trains on a case."""
    splits = json.loads((data / "phantom" / "dataset.json").read_text())["splits"]
    return next(fold for fold, split in enumerate(splits) if case in split["train"])


@pytest.mark.parametrize(
    ("number", "epochs", "length"),
    [(signal.SIGTERM, 2, 60), (signal.SIGUSR1, 8, 1), (signal.SIGINT, 2, 60)],
)
def test_a_signal_saves_wherever_an_epoch_stands_and_the_run_goes_on_exactly(
    tiny_run, tmp_path, command, number, epochs, length
):
    arguments = [
        TINY,
        f"--config.data.prepared_dir={tiny_run / 'data'}",
        f"--config.epochs={epochs}",
        f"--config.steps_per_epoch={length}",
        "--config.validation_steps=1",
        "--config.checkpoint_every=100",
        "--config.test=False",
        *SMALL_NETWORK,
    ]
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert command("train", f"--workdir={straight}", *arguments).returncode == 0
    process = Process([f"--workdir={stopped}", *arguments], tmp_path / "stopped.txt")
    process.wait_until((stopped / "checkpoints").is_dir)
    process.send(number)
    time.sleep(0.1)
    process.send(number)  # a second one changes nothing
    assert process.wait() == REQUEUE_STATUS
    told = process.printed().splitlines()[-1]
    assert told.startswith(f"stopped: {stopped}: saved after step")
    (step,) = saves(stopped)
    assert step < epochs * length
    finished = command("train", f"--workdir={stopped}", *arguments)
    assert f"going on from the checkpoint of step {step}" in finished.stdout
    assert equal(load_params(stopped), load_params(straight))
    ours, theirs = (
        [(line["step"], line["loss"], line["validation_loss"]) for line in read_log(run)]
        for run in (stopped, straight)
    )
    assert ours == theirs  # the epoch that was stopped has the mean of all its steps


def test_a_loss_that_is_not_finite_stops_the_run_and_can_be_looked_into(
    tiny_run, tmp_path, refuses, command
):
    arguments = [
        TINY,
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.prepared_dir={tiny_run / 'data'}",
        "--config.optimizer.learning_rate=1e20",
        *SMALL_NETWORK,
    ]
    line = refuses("train", *arguments)
    assert "step 1: loss nan" in line
    assert "from voxel (" in line
    assert not saves(tmp_path / "run")
    assert read_log(tmp_path / "run") == []
    replayed = command("train", *arguments, "--replay=1")
    assert replayed.returncode == 0, replayed.stderr
    batch = line.partition("its batch: ")[2].partition(";")[0]
    assert f"batch: {batch}" in replayed.stdout
    assert "image as augmented" in replayed.stdout
    assert "are not finite, first" in replayed.stdout
    assert not saves(tmp_path / "run")


def test_replay_shows_the_very_step_of_the_run(tiny_run, tmp_path, command):
    """An epoch of one step, whose loss is the log's."""
    arguments = [
        TINY,
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.prepared_dir={tiny_run / 'data'}",
        "--config.epochs=3",
        "--config.steps_per_epoch=1",
        "--config.checkpoint_every=2",
        "--config.test=False",
        *SMALL_NETWORK,
    ]
    assert command("train", *arguments).returncode == 0
    shown = command("train", *arguments, "--replay=2").stdout
    assert "step 2, from the checkpoint of step 2" in shown
    assert "parameters: all finite" in shown
    assert "outputs of the network: all finite" in shown
    loss = float(shown.split("loss ")[1].partition(",")[0])
    assert loss == pytest.approx(read_log(tmp_path / "run")[2]["loss"], rel=1e-5)


def test_dry_run_checks_everything_and_leaves_nothing(tiny_run, tmp_path, command):
    data = f"--config.data.prepared_dir={tiny_run / 'data'}"
    finished = command("train", TINY, "--dry_run", f"--workdir={tmp_path / 'run'}", data)
    assert finished.returncode == 0, finished.stderr
    for begin in ("data: phantom, 4 cases to train on", "a batch:", "mesh: 1 x 1", "memory:"):
        assert any(line.startswith(begin) for line in finished.stdout.splitlines())
    assert not (tmp_path / "run").exists()


def test_explain_makes_no_data(tmp_path, refuses):
    line = refuses("train", TINY, "--explain", f"--config.data.prepared_dir={tmp_path / 'data'}")
    assert "prepare the data first" in line
    assert not (tmp_path / "data").exists()


def test_a_run_whose_data_was_prepared_again_is_refused_unless_told(tiny_run, tmp_path, command):
    data, workdir = tmp_path / "data", tmp_path / "run"
    shutil.copytree(tiny_run, workdir)
    shutil.copytree(tiny_run / "data", data)
    arguments = [TINY, f"--workdir={workdir}", f"--config.data.prepared_dir={data}"]
    prepare_again(next((data / "phantom" / "cases").glob("*")))
    refused = command("train", *arguments)
    assert refused.returncode == 1
    (line,) = refused.stderr.splitlines()[-1:]
    assert "(phantom: phantom_" in line
    assert "--accept_changes" in line
    assert command("train", *arguments, "--accept_changes").returncode == 0
    assert command("train", *arguments).returncode == 0  # it is what was accepted


def test_three_kills_at_any_moment_move_no_parameter(tiny_run, tmp_path, command):
    """40 steps, killed three times: at random, and while a checkpoint is being written."""
    arguments = [
        TINY,
        f"--config.data.prepared_dir={tiny_run / 'data'}",
        "--config.epochs=10",
        "--config.steps_per_epoch=4",
        "--config.validation_steps=0",
        "--config.test=False",
        *SMALL_NETWORK,
    ]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert command("train", f"--workdir={straight}", *arguments).returncode == 0
    rng = np.random.default_rng(0)
    for delay in (0.0, *rng.uniform(0, 0.15, 2)):
        done = max(saves(killed), default=0)
        kill_when(lambda done=done: max(saves(killed), default=0) > done, delay, killed, *arguments)
    finished = command("train", f"--workdir={killed}", *arguments)
    assert finished.returncode == 0, finished.stderr
    assert "going on from the checkpoint of step" in finished.stdout
    assert equal(load_params(killed), load_params(straight))
    assert [line["step"] for line in read_log(killed)] == list(range(4, 44, 4))
    assert shown_by_tensorboard(killed) == list(range(4, 44, 4))


def test_unfreezing_at_an_epoch_goes_on_exactly_after_a_kill(tiny_run, tmp_path, command):
    """Killed before the deepest stage of the encoder is unfrozen."""
    arguments = [
        TINY,
        f"--config.data.prepared_dir={tiny_run / 'data'}",
        "--config.data.augment=False",
        "--config.frozen=encoder",
        "--config.frozen_schedule=((1,'!encoder/stage_1'),(2,'!**/norm'))",
        "--config.epochs=3",
        "--config.steps_per_epoch=3",
        "--config.test=False",
        *SMALL_NETWORK,
    ]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    told = command("train", f"--workdir={straight}", *arguments).stdout
    assert "\nfrom epoch 1: !encoder/stage_1; " in told
    assert "\nfrom epoch 2: !**/norm; " in told
    held = [line["frozen_parameters"] for line in read_log(straight)]
    assert held == sorted(set(held), reverse=True)
    kill_at_checkpoint(3, killed, *arguments)
    before = load_params(killed)["encoder"]
    assert command("train", f"--workdir={killed}", *arguments).returncode == 0
    after = load_params(straight)
    assert equal(load_params(killed), after)
    moved = {
        path
        for path, a, b in zip(
            leaf_paths(before), *map(jax.tree.leaves, (before, after["encoder"])), strict=True
        )
        if not np.array_equal(a, b)
    }
    assert "stage_1/block_0/conv/kernel" in moved
    assert "stage_0/block_0/norm/scale" in moved
    assert "stage_0/block_0/conv/kernel" not in moved


def test_a_run_that_goes_on_to_more_epochs_does_so_exactly_after_a_kill(
    tiny_run, tmp_path, command, refuses
):
    arguments = [
        TINY,
        f"--config.data.prepared_dir={tiny_run / 'data'}",
        "--config.data.augment=False",
        "--config.steps_per_epoch=3",
        *SMALL_NETWORK,
    ]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    ended = command("train", f"--workdir={straight}", *arguments, "--config.epochs=1")
    assert ended.returncode == 0, ended.stderr
    longer = [*arguments, "--config.epochs=4"]
    line = refuses("train", f"--workdir={straight}", *longer)
    made = ["predictions", "metrics.json", "model"]
    assert f"{', '.join(made)} there are of another number of epochs" in line
    for name in made:
        path = straight / name
        path.unlink() if path.is_file() else shutil.rmtree(path)
    shutil.copytree(straight, killed)
    told = command("train", f"--workdir={straight}", *longer).stdout
    assert f"{straight}: going on to 4 epochs instead of 1: its schedule is over 4 now" in told
    kill_at_checkpoint(6, killed, *longer)
    finished = command("train", f"--workdir={killed}", *longer)
    assert finished.returncode == 0, finished.stderr
    assert "instead of" not in finished.stdout
    assert equal(load_params(killed), load_params(straight))
    assert best_of(killed) == best_of(straight)
    assert equal(load_params(killed / "best"), load_params(straight / "best"))
    log, other = (
        [(x["step"], x["loss"], x["learning_rate"]) for x in read_log(run)]
        for run in (straight, killed)
    )
    assert log == other
    assert [rate for _, _, rate in log] == [0.01, *(0.01 * (1 - k / 4) ** 0.9 for k in (1, 2, 3))]
    assert (straight / "metrics.json").is_file()


def test_a_finished_run_that_is_started_again_changes_nothing(tiny_run, tmp_path, command):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    before = (run / "metrics.json").stat().st_mtime_ns
    finished = command("train", TINY, f"--workdir={run}")
    assert finished.returncode == 0, finished.stderr
    assert "going on from the checkpoint of step 20" in finished.stdout
    assert (run / "metrics.json").stat().st_mtime_ns == before
    assert len(read_log(run)) == 2


def test_another_config_for_the_same_folder_is_refused_with_the_difference(tiny_run, refuses):
    line = refuses("train", TINY, f"--workdir={tiny_run}", "--config.optimizer.momentum=0.5")
    assert "optimizer.momentum: 0.5, was 0.99" in line


def test_a_second_training_in_the_same_folder_stops(tmp_path, refuses):
    with only_here(tmp_path / "run", "a test"):
        line = refuses("train", f"--config={ROOT}/configs/tiny.py", f"--workdir={tmp_path / 'run'}")
    assert "another training is at work here" in line


def test_nothing_is_compiled_after_the_first_epoch(tiny_run, tmp_path):
    """Counts XLA's compilations; the second epoch adds none."""
    script = f"""
import dataclasses, jax
from pathlib import Path
from absl import flags
from covid_jax import train
from tests.conftest import tiny
flags.FLAGS(["test"])
counts, compiled = [], 0
def count(name, duration, **_):
    global compiled
    compiled += name == "/jax/core/compile/backend_compile_duration"
jax.monitoring.register_event_duration_secs_listener(count)
epoch = train.Progress.epoch
def logged(self, line):
    counts.append(compiled)
    epoch(self, line)
train.Progress.epoch = logged
config = tiny(epochs=3, steps_per_epoch=2, test=False)
config.data.augment = False
config.data.prepared_dir = {str(tiny_run / "data")!r}
train.train(config, Path({str(tmp_path / "run")!r}))
print("COUNTS", *counts)
"""
    finished = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    first, second, third = map(int, finished.stdout.split("COUNTS")[1].split())
    assert first > 0
    assert second == third == first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.zap=1"], "no field 'zap'"),
        (["--zap=1"], "Unknown command line flag 'zap'"),
        (["--config.epochs=ten"], "--config.epochs=ten: invalid literal"),
        (["--config.data.patch_size=0,48,48"], "patch_size"),
        (["--config.data.batch_size=0"], "batch_size"),
        (["--config.fold=9"], "folds 0 to 4"),
        (["--config.strategy=body", "--config.source=msd"], "config.pretrained is empty"),
        (["--config.pretrained=nowhere", "--config.strategy=body"], "nowhere"),
        (["--config.mesh.data=2"], "needs 2 devices"),
        (["--config.frozen=encoder/stag_0/**"], "near: encoder/stage_0"),
        (["--config.frozen=**"], "nothing is to train"),
        (["--config.pretrained=RUN"], "this strategy starts from nothing"),
        (["--config.model.in_channels=2"], "in_channels=2: the data has 1"),
        (["--config.model.num_classes=4"], "num_classes=4: the data has 2"),
        (["--explain", "--replay=1"], "give one of them"),
        (["--dry_run", "--accept_changes"], "has no meaning with --dry_run"),
        (["--explain", "--distributed"], "leave out --coordinator and --distributed"),
        (["--process_id=1"], "need --coordinator"),
        (["extra"], "unknown argument 'extra'"),
    ],
)
def test_a_mistake_is_one_line(tiny_run, tmp_path, refuses, arguments, message):
    data = f"--config.data.prepared_dir={tiny_run / 'data'}"
    arguments = [argument.replace("RUN", str(tiny_run)) for argument in arguments]
    assert message in refuses("train", TINY, f"--workdir={tmp_path}/run", data, *arguments)


def test_a_pretrained_network_of_another_shape_is_refused(tiny_run, tmp_path, refuses):
    line = refuses(
        "train",
        f"{TINY}:body",
        f"--workdir={tmp_path}/run",
        f"--config.data.prepared_dir={tiny_run / 'data'}",
        f"--config.pretrained={tiny_run}",
        "--config.model.features_per_stage=4,8,64",
    )
    assert "(2, 2, 2, 64, 8) here and (2, 2, 2, 16, 8) there, and 4 more leaves" in line
    assert not (tmp_path / "run" / "config.json").exists()


def test_explain_prints_what_a_run_would_do_and_leaves_nothing(tmp_path, command):
    finished = command("train", TINY, "--explain", f"--workdir={tmp_path / 'run'}")
    assert finished.returncode == 0, finished.stderr
    first, rest = finished.stdout.split("\n", 1)
    assert first.startswith("device: ")
    assert rest.startswith("scratch: phantom\n  network")
    assert not (tmp_path / "run").exists()
