"""What becomes of a run whose files are damaged, whose disk is full, whose clock jumps.

It goes on from the last checkpoint that is whole and says so, or it refuses in one line.
"""

import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covid_jax.errors import UserError, writing
from covid_jax.reporting.card import export_model
from covid_jax.training.checkpoint import Checkpoints, load_params, newest_until
from covid_jax.training.state import TrainState
from covid_jax.transfer.freezing import mask, split


def params_at(step):
    """Parameters that are another noise at each step."""
    rng = np.random.default_rng(step)
    return {
        "encoder": {"kernel": rng.normal(size=(300, 200)).astype("float32")},
        "decoder": {"kernel": rng.normal(size=50).astype("float32")},
    }


def state_at(step):
    """(state, frozen) with params_at the step."""
    params = params_at(step)
    trainable, frozen = split(params, mask(params, ("encoder",)))
    return TrainState(step, trainable, (params["decoder"]["kernel"],)), frozen


def save(workdir, *steps):
    with Checkpoints(workdir) as checkpoints:
        for step in steps:
            checkpoints.save(*state_at(step))


def newest(workdir):
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.newest()


def are_of(params, step):
    return all(map(np.array_equal, jax.tree.leaves(params), jax.tree.leaves(params_at(step))))


def is_whole(saved):
    return are_of(saved.params, saved.step)


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    save(workdir, 10, 20)
    return workdir


@pytest.fixture
def run(two_checkpoints, tmp_path):
    shutil.copytree(two_checkpoints, tmp_path / "run")
    return tmp_path / "run"


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_no_damaged_file_is_taken_for_what_was_saved(two_checkpoints, data):
    """A bit turned, a tail cut off, a file gone: the same values, or those of the one before."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder)
        shutil.copytree(two_checkpoints, workdir, dirs_exist_ok=True)
        files = sorted(p for p in (workdir / "checkpoints" / "20").rglob("*") if p.is_file())
        path = data.draw(st.sampled_from(files))
        content = bytearray(path.read_bytes())
        at = data.draw(st.integers(0, max(len(content) - 1, 0)))
        kind = data.draw(st.sampled_from(["turn", "cut", "remove"]))
        if kind == "turn" and content:
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content[:at] if kind == "cut" else content)
        if kind == "remove":
            path.unlink()
        saved = newest(workdir)
        assert saved.step in (10, 20)
        assert is_whole(saved)
        assert (workdir / "checkpoints" / "damaged-20").exists() == (saved.step == 10)


def damage(workdir, step):
    """Turns a bit in the largest file of a checkpoint."""
    files = (p for p in (workdir / "checkpoints" / str(step)).rglob("*") if p.is_file())
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def test_going_back_is_told_and_the_step_can_be_saved_again(run, capsys):
    damage(run, 20)
    assert newest(run).step == 10
    assert "checkpoints/20: damaged checkpoint" in capsys.readouterr().out
    save(run, 20)
    assert newest(run).step == 20


def test_a_run_without_a_whole_checkpoint_is_refused_and_not_begun_anew(run):
    damage(run, 10)
    damage(run, 20)
    with pytest.raises(UserError, match="every checkpoint is damaged"):
        newest(run)
    with pytest.raises(UserError, match="every checkpoint is damaged"):
        newest(run)  # nor the second time, when they have been set aside


def test_a_damaged_network_is_not_predicted_with(run):
    damage(run, 20)
    with pytest.raises(UserError, match="checkpoints/20: damaged checkpoint"):
        load_params(run)


def test_a_checkpoint_under_another_step_is_damaged(run):
    (run / "checkpoints" / "20").rename(run / "checkpoints" / "30")
    assert newest(run).step == 10


def find_and_save_for_ever(workdir):
    """Writes down what checkpoint it found, and each that it saved."""
    saved = newest(workdir)
    assert saved is None or is_whole(saved)
    found = saved.step if saved else 0
    tell(workdir / "found", found)
    with Checkpoints(workdir) as checkpoints:
        for step in range(found + 1, 10**6):
            checkpoints.save(*state_at(step))
            checkpoints.wait()
            tell(workdir / "saved", step)


def tell(path, number):
    """Whole or not at all, as this process may be killed meanwhile."""
    path.with_suffix(".partial").write_text(str(number))
    path.with_suffix(".partial").rename(path)


@pytest.mark.slow
def test_a_save_that_is_killed_at_any_of_50_moments_leaves_a_whole_checkpoint(tmp_path):
    """And never loses one that had been saved before."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["covid_jax.training.checkpoint", "tests.conftest"])
    found, saved = tmp_path / "found", tmp_path / "saved"
    saved.write_text("0")
    rng, interrupted = np.random.default_rng(0), 0
    for _ in range(50):
        process = context.Process(target=find_and_save_for_ever, args=(tmp_path,))
        process.start()
        wait_for(found.exists)
        assert int(found.read_text()) >= int(saved.read_text())
        found.unlink()
        time.sleep(rng.uniform(0, 0.1))
        assert process.is_alive()
        process.kill()
        process.join()
        interrupted += any("tmp" in path.name for path in (tmp_path / "checkpoints").iterdir())
    assert interrupted > 5  # or it was not killed while it saved


def wait_for(reached):
    begun = time.monotonic()
    while not reached():
        assert time.monotonic() < begun + 60
        time.sleep(0.002)


UNREADABLE = {
    "Input/output error": ("facts/metadata", "/proc/self/mem"),  # its first bytes give EIO
    "Too many levels of symbolic links": ("params/manifest.ocdbt", "manifest.ocdbt"),
}


@pytest.mark.parametrize("cause", UNREADABLE)
def test_a_checkpoint_that_cannot_be_read_is_told_and_left(run, cause):
    """Python's error, and tensorstore's: the disk's fault says nothing of what is on it."""
    name, leads_to = UNREADABLE[cause]
    path = run / "checkpoints" / "20" / name
    kept = path.rename(path.with_name("kept"))
    path.symlink_to(leads_to)
    for read in (newest, load_params):
        with pytest.raises(UserError, match=rf"20: cannot be read \({cause}\)"):
            read(run)
    path.unlink()
    kept.rename(path)
    assert newest(run).step == 20


FEW_FILES = """
import os, resource, sys
from pathlib import Path
from covid_jax.errors import UserError
from covid_jax.training.checkpoint import Checkpoints
told, (_, most) = set(), resource.getrlimit(resource.RLIMIT_NOFILE)
with Checkpoints(Path(sys.argv[1])) as checkpoints:
    assert checkpoints.newest().step == 20
    for more in range(12):
        allowed = len(os.listdir("/proc/self/fd")) - 1 + more
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))
        try:
            assert checkpoints.newest().step == 20
        except UserError as error:
            told.add(str(error).partition("(")[2].partition(")")[0])
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
print(told)
"""


def test_too_many_open_files_are_no_damage(run):
    process = subprocess.run(
        [sys.executable, "-c", FEW_FILES, str(run)], capture_output=True, text=True, check=False
    )
    assert process.stdout == "{'Too many open files'}\n", process.stderr
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["10", "20"]


def test_no_memory_is_no_damage(run, monkeypatch):
    """Real errors of numpy and of XLA, raised where a checkpoint is decoded."""
    for allocate in (np.zeros, jax.numpy.zeros):

        def without_memory(*_, allocate=allocate, **__):
            allocate((2**50,), "int8")

        monkeypatch.setattr("orbax.checkpoint.CheckpointManager.restore", without_memory)
        with pytest.raises(UserError, match=r"20: cannot be read \(out of memory\)"):
            newest(run)
        monkeypatch.undo()
    assert newest(run).step == 20


def test_looking_back_at_a_step_goes_past_a_damaged_checkpoint_and_leaves_it(run, capsys):
    damage(run, 20)
    assert newest_until(run, 25).step == 10
    assert newest_until(run, 15).step == 10
    assert newest_until(run, 5) is None
    assert "checkpoints/20: damaged checkpoint" in capsys.readouterr().out
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["10", "20"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if os.getuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no small file system: sudo bash launch/test.sh, where root may mount one")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_is_full_in_the_middle_of_a_save_leaves_the_checkpoint_before(small_disk):
    save(small_disk, 10)
    filler = small_disk / "filler"
    free = shutil.disk_usage(small_disk).free
    filler.write_bytes(bytes(free - 100_000))
    with pytest.raises(UserError, match="the disk is full"):
        save(small_disk, 20, 30)
    filler.unlink()
    assert newest(small_disk).step == 10
    save(small_disk, 20)
    assert newest(small_disk).step == 20


def test_a_short_write_is_a_full_disk_where_the_disk_is_full(small_disk):
    (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free - 8192))
    array = np.zeros(100_000, "uint8")
    with (
        pytest.raises(UserError, match=r"array.npy: the disk is full"),
        writing(small_disk / "array.npy"),
    ):
        np.save(small_disk / "array.npy", array)


def test_a_model_for_which_there_is_no_room_is_none(small_disk, tiny_run):
    workdir = small_disk / "run"
    shutil.copytree(tiny_run, workdir, ignore=shutil.ignore_patterns("data", "model", "events*"))
    filler = small_disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 50_000))
    with pytest.raises(UserError, match="model: the disk is full"):
        export_model(workdir)
    assert not (workdir / "model").exists()
    filler.unlink()
    load_params(export_model(workdir))


def test_a_folder_that_cannot_be_written_is_told(small_disk):
    save(small_disk, 10)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UserError, match="cannot be written"):
        save(small_disk, 20)
    assert are_of(load_params(small_disk), 10)
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert newest(small_disk).step == 10


def test_a_clock_that_jumps_changes_no_order(run, monkeypatch):
    """The newest checkpoint is that of the highest step, whatever the clock said."""
    for path in (run / "checkpoints" / "10").rglob("*"):
        os.utime(path, (4e9, 4e9))
    for path in (run / "checkpoints" / "20").rglob("*"):
        os.utime(path, (0, 0))
    assert newest(run).step == 20
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 10**8)
    save(run, 30)
    monkeypatch.setattr(time, "time", lambda: now + 10**8)
    save(run, 40)
    assert newest(run).step == 40
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["30", "40"]
