"""The edge of every command: what no one expected to fail is one line too."""

import gzip
import os
import signal
import subprocess
import sys

import pytest

from covid_jax.errors import REQUEUE_STATUS, STOP_SIGNALS, writing
from tests.conftest import ROOT

COMMAND = """
from absl import flags
from covid_jax.command import as_process, run_command
OWN = flags.FlagValues()
"""
WRITES = "open('/dev/full', 'w').write('x' * 100_000)"


def ended(fault):
    """What a command in which this happens says last, and its exit status."""
    program = f"{COMMAND}as_process(lambda given: run_command(lambda: {fault}, OWN, None, given))"
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    return finished.stderr, finished.returncode


def test_a_full_disk_is_one_line_wherever_it_is_met():
    line = "error: output: No space left on device; mend that and start it again\n"
    assert ended(WRITES) == (line, 1)


def test_a_fault_of_the_program_keeps_its_traceback():
    said, status = ended("1 / 0")
    assert "ZeroDivisionError" in said
    assert status == 1


def test_an_error_without_a_number_is_no_full_disk_where_there_is_room(tmp_path):
    (tmp_path / "scan.gz").write_bytes(b"no gzip")
    with (
        pytest.raises(gzip.BadGzipFile),
        writing(tmp_path / "mask.nii.gz"),
        gzip.open(tmp_path / "scan.gz") as scan,
    ):
        scan.read()


SLEEPS = f"""{COMMAND}
import signal, sys, time, weakref
from covid_jax.errors import StoppedError
def work():
    try:
        BODY
    finally:
        print("in order")
as_process(lambda given: run_command(work, OWN, None, given))
"""


def stopped(body, number, again=None):
    """What a command says that gets a signal while it prints "ready" and does this; its status."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", SLEEPS.replace("BODY", body)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    for signalled in (number, *([again] if again else [])):
        process.send_signal(signalled)
    out, err = process.communicate(timeout=30)
    return out, err, process.returncode


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_to_stop_is_one_line_and_the_status_to_start_again(number):
    line = f"stopped: by {number.name}; the same command goes on\n"
    assert stopped("print('ready'); time.sleep(60)", number) == ("in order\n", line, REQUEUE_STATUS)


def test_a_second_signal_does_not_come_into_the_putting_in_order():
    """As where Ctrl-C reaches a study's step, and then the study's own SIGTERM."""
    body = "print('ready'); time.sleep(60)\n    except StoppedError: time.sleep(0.5); raise"
    out, told, status = stopped(body, signal.SIGINT, signal.SIGTERM)
    assert (out, status) == ("in order\n", REQUEUE_STATUS)
    assert told.count("\n") == 1


def test_no_handler_of_exceptions_takes_a_signal_for_a_fault():
    body = "print('ready'); time.sleep(60)\n    except Exception: print('a fault')"
    assert stopped(body, signal.SIGINT)[0] == "in order\n"


def test_a_signal_that_comes_into_a_callback_that_cannot_raise_stops_all_the_same():
    body = """
        class Gone: pass
        gone = Gone()
        def callback(_):
            print("ready")
            time.sleep(1)
        reference = weakref.ref(gone, callback)
        del gone
        time.sleep(60)
"""
    out, told, status = stopped(body, signal.SIGINT)
    assert (out, status) == ("in order\n", REQUEUE_STATUS)
    assert told.startswith("stopped: by SIG")
    assert told.count("\n") == 1


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_while_a_command_is_imported_is_one_line_too(tmp_path, number):
    """numpy is one of the first; this one takes its time."""
    (tmp_path / "numpy.py").write_text("import time; print('ready', flush=True); time.sleep(60)")
    process = subprocess.Popen(
        [sys.executable, "-m", "covid_jax.evaluate"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    told = process.communicate(timeout=30)[1]
    assert told == f"stopped: by {number.name}; the same command goes on\n"
    assert process.returncode == REQUEUE_STATUS
