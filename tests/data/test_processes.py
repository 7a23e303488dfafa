"""Work in several processes, and how it ends."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from covid_jax.data.processes import each
from covid_jax.errors import UserError
from covid_jax.files import whole_file
from covid_jax.stopping import STOP_SIGNALS

ROOT = Path(__file__).resolve().parents[2]


def square(number):
    return number**2


def refuse(number):
    raise UserError(f"case {number}")


def die(number):
    os.kill(os.getpid(), signal.SIGKILL)


def write_slowly(path):
    """Writes half a file, says so, and is in no hurry with the rest."""
    with whole_file(Path(path)) as partial:
        partial.write_text("half")
        Path(f"{path}.begun").write_text("")
        time.sleep(60)


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_the_order_of_the_items(processes):
    assert list(each(square, range(7), processes, "a test")) == [n**2 for n in range(7)]


@pytest.mark.parametrize("processes", [1, 2])
def test_what_one_refuses_is_raised_here(processes):
    with pytest.raises(UserError, match="case 0"):
        list(each(refuse, range(50), processes, "a test"))


def test_a_process_that_is_killed_is_told():
    with pytest.raises(UserError, match="a test: a process was killed"):
        list(each(die, range(2), 2, "a test"))


def test_who_wants_no_more_leaves_no_process():
    some = each(square, range(100), 2, "a test")
    assert next(some) == 0
    some.close()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_to_all_of_a_command_ends_its_processes_and_what_they_have_half_written(
    tmp_path, number
):
    """As a terminal sends Ctrl-C, and Slurm SIGTERM."""
    paths = [str(tmp_path / f"{k}.txt") for k in range(9)]
    script = f"""
from covid_jax.data.processes import each
from absl import flags
from covid_jax.command import as_process, run_command
from tests.data.test_processes import write_slowly
if __name__ == "__main__":
    def work(): list(each(write_slowly, {paths!r}, 2, "a test"))
    as_process(lambda given: run_command(work, flags.FlagValues(), None, given))
"""
    (tmp_path / "main.py").write_text(script)
    process = subprocess.Popen(
        [sys.executable, tmp_path / "main.py"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while len(list(tmp_path.glob("*.begun"))) < 2:
        time.sleep(0.01)
    os.killpg(process.pid, number)
    told = process.communicate(timeout=30)[1]
    assert process.returncode == 75, told
    assert told.splitlines()[-1] == f"stopped: by {number.name}; the same command goes on"
    assert "Traceback" not in told
    assert {path.suffix for path in tmp_path.iterdir()} == {".py", ".begun"}
    assert len(list(tmp_path.glob("*.begun"))) == 2  # no further case was begun
