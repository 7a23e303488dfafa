"""The edge of every command: what ends it is one line, and nothing of a call is left after it."""

import importlib
import os
import platform
import signal
import subprocess
import sys
import threading

import pytest
from absl import flags, logging

from covid_jax.command import keep_freed_memory, run_command
from covid_jax.config import config_from_flag, define_config_flag
from covid_jax.errors import UserError
from covid_jax.stopping import REQUEUE_STATUS, STOP_SIGNALS, StoppedError
from tests.conftest import ROOT, tiny

COMMANDS = ("prepare", "train", "predict", "evaluate", "study", "import_nnunet")

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


FREES = f"""{COMMAND}
import resource, numpy
def work():
    numpy.ones(25_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    numpy.ones(25_000_000)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
as_process(lambda given: run_command(work, OWN, None, given))
"""


def pages_touched_anew(chosen):
    """How many pages an array takes from the system where one as large was freed before."""
    without = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    command = [sys.executable, "-c", FREES]
    environment = without | {"NUMPY_MADVISE_HUGEPAGE": "0"} | chosen
    return int(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library allocates here")
def test_memory_that_a_command_freed_is_used_again():
    assert pages_touched_anew({}) < 20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library allocates here")
def test_who_sets_how_memory_is_allocated_has_chosen():
    assert pages_touched_anew({"MALLOC_ARENA_TEST_": "8"}) > 50  # 200 MB, of 2 MiB each at most


def test_a_c_library_without_mallopt_is_left_as_it_is():
    keep_freed_memory(object())


SLEEPS = f"""{COMMAND}
import signal, sys, time, weakref
from covid_jax.stopping import StoppedError
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


def state_of_the_process():
    """What a command may change of it while it works."""
    handlers = [signal.getsignal(number) for number in STOP_SIGNALS]
    return [*sys.argv], handlers, sys.unraisablehook, logging.get_verbosity()


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_of_one_process_know_nothing_of_each_other(name, capsys):
    main, before = importlib.import_module(f"covid_jax.{name}").main, state_of_the_process()
    assert main(["--help"]) == 0
    assert f"python -m covid_jax.{name} --" in capsys.readouterr().out
    for arguments in (["--nonsense=1"], ["nonsense"], []):
        assert main(arguments) == 1
        told = capsys.readouterr().err
        assert told.startswith("error: ")
        assert told.count("\n") == 1
    assert state_of_the_process() == before


OWN = flags.FlagValues()
NUMBER = flags.DEFINE_integer("number", 3, "One.", flag_values=OWN)
define_config_flag(OWN)


def call(*arguments, ends=None):
    """What a command of these flags sees in a call, and its status."""
    seen = []

    def work():
        given = OWN["config"].value and config_from_flag(OWN).epochs
        seen.extend([NUMBER.value, given, sys.argv[1:]])
        if ends is not None:
            raise ends

    return run_command(work, OWN, "usage", list(arguments)), seen


def test_no_call_has_the_flags_of_the_one_before():
    before, config = state_of_the_process(), f"--config={ROOT}/configs/tiny.py"
    some = ("--number=5", config, "--config.epochs=7")
    assert call(*some) == (0, [5, 7, [*some]])
    assert call(config) == (0, [3, tiny().epochs, [config]])
    assert call() == (0, [3, None, []])
    assert state_of_the_process() == before


@pytest.mark.parametrize(
    ("ends", "status", "told"),
    [
        (UserError("a mistake"), 1, "error: a mistake"),
        (StoppedError("by whom"), REQUEUE_STATUS, "stopped: by whom"),
        (
            OSError(28, "No space left on device", "mask"),
            1,
            "error: mask: No space left on device;",
        ),
        (OSError(27, "File too large", "mask"), 1, "error: mask: File too large;"),
    ],
)
def test_however_a_call_ends_nothing_of_it_is_left(ends, status, told, capsys):
    before = state_of_the_process()
    assert call("--number=5", ends=ends)[0] == status
    assert capsys.readouterr().err.startswith(told)
    with pytest.raises(ZeroDivisionError):
        call("--number=5", ends=ZeroDivisionError())
    assert call() == (0, [3, None, []])
    assert state_of_the_process() == before


def test_a_call_in_a_thread_leaves_signals_to_the_main_one():
    ended = []
    thread = threading.Thread(target=lambda: ended.append(call("--number=4")))
    thread.start()
    thread.join()
    assert ended == [(0, [4, None, ["--number=4"]])]


def test_a_reader_that_has_seen_enough_ends_a_command_without_a_word():
    program = (
        f"{COMMAND}as_process(lambda given: run_command(lambda: print('x' * 99), OWN, None, given))"
    )
    finished = subprocess.run(
        ["bash", "-o", "pipefail", "-c", '"$0" -c "$1" | true', sys.executable, program],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert (finished.returncode, finished.stderr) == (128 + signal.SIGPIPE, "")


def test_calls_in_several_threads_wait_for_each_other():
    ended, before = {}, state_of_the_process()
    threads = [
        threading.Thread(target=lambda n=n: ended.update({n: call(f"--number={n}")}))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended == {n: (0, [n, None, [f"--number={n}"]]) for n in range(8)}
    assert state_of_the_process() == before


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_a_command_works_without_what_it_would_read_and_print(closed, tmp_path):
    """And no file of its own gets their numbers, which a child would take for its input."""
    work = f"print('x', file=open('{tmp_path}/done', 'w')) or print(open('/dev/null').fileno())"
    program = f"{COMMAND}as_process(lambda given: run_command(lambda: {work}, OWN, None, given))"
    program = program.replace("open('/dev/null').fileno()", "1 / (open('/dev/null').fileno() > 2)")
    finished = subprocess.run(
        ["bash", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, program],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    assert (tmp_path / "done").read_text() == "x\n"
