"""The order of steps, several at once, and what a failure keeps from running. Real workers."""

import dataclasses
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from covid_jax.errors import UserError
from covid_jax.files import write_json
from covid_jax.lock import is_held, only_here
from covid_jax.stopping import REQUEUE_STATUS, StoppedError
from covid_jax.studies.executors import local, share_of_cores
from covid_jax.studies.grid import Step
from covid_jax.studies.schedule import overview, run_steps, states, the_only_study
from covid_jax.studies.slurm import elapsed_seconds


def step(folder, name, script, needs=()):
    """A step whose command is a module, written beside it, that does what the script says."""
    module = f"def main(arguments):\n{textwrap.indent(script.strip(), '    ')}\n    return 0\n"
    (folder / f"step_{name}.py").write_text(module)
    return Step(name, (f"step_{name}",), (folder / name,), tuple(needs))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a worker finds the modules here
    return tmp_path


def run(steps, folder, jobs=1, fresh=False):
    """The causes of failure of steps in workers."""
    with local(jobs, fresh) as executor:
        return run_steps(steps, folder, executor)


def makes(name, seconds=0.0):
    return f"import pathlib, time; time.sleep({seconds}); pathlib.Path('{name}').write_text('')"


KILLED = "its process was killed by signal 9 (Killed), as the system does where memory is short"
FAILS = "import sys; print('much'); sys.exit('error: the disk is full')"


def test_what_a_step_needs_comes_before_it_however_many_run_at_once(folder):
    steps = [
        step(folder, "first", makes("first", 0.3)),
        step(folder, "second", f"open('first'); {makes('second')}", ["first"]),
        step(folder, "third", f"open('second'); {makes('third')}", ["second"]),
    ]
    assert run(steps, folder, 3) == {}
    assert all(one.done for one in steps)


def test_as_many_run_at_once_as_asked(folder):
    script = """
import pathlib, time
pathlib.Path("here_NAME").write_text("")
while len(list(pathlib.Path().glob("here_*"))) < 2: time.sleep(0.01)
pathlib.Path("NAME").write_text("")
"""
    steps = [step(folder, name, script.replace("NAME", name)) for name in ("a", "b")]
    assert run(steps, folder, 2) == {}  # each waits for the other


def test_a_failure_keeps_only_what_needs_it_from_running(folder):
    steps = [
        step(folder, "bad", FAILS),
        step(folder, "child", makes("child"), ["bad"]),
        step(folder, "grandchild", makes("grandchild"), ["child"]),
        step(folder, "other", makes("other")),
    ]
    failed = run(steps, folder)
    assert failed == {
        "bad": "the disk is full",
        "child": "needs bad, which failed",
        "grandchild": "needs child, which failed",
    }
    assert steps[-1].done
    assert (folder / "steps" / "bad.txt").read_text().startswith("much\n")
    assert states(steps, folder)["bad"].word == "failed"
    assert states(steps, folder)["bad"].cause == "the disk is full"


def test_a_step_that_leaves_no_result_has_failed(folder):
    one = step(folder, "lazy", "print('all is well')")
    assert run([one], folder) == {"lazy": "all is well"}


def test_a_step_that_was_asked_to_stop_starts_again(folder):
    script = f"""
import pathlib, sys
once = pathlib.Path("once")
if not once.exists():
    once.write_text("")
    sys.exit({REQUEUE_STATUS})
pathlib.Path("step").write_text("")
"""
    one = step(folder, "step", script)
    assert run([one], folder) == {}
    assert one.done


def test_a_study_that_is_stopped_stops_its_steps_and_waits_for_them(folder):
    """As study does on SIGTERM: an exception, by which the steps get SIGTERM and save."""
    script = """
import pathlib, signal, sys, time
def stop(*_):
    time.sleep(0.3)
    pathlib.Path("saved").write_text("")
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
pathlib.Path("started").write_text("")
time.sleep(60)
"""
    one = step(folder, "step", script)

    def stop_the_study(number, frame):
        raise StoppedError("the study")

    before = signal.signal(signal.SIGALRM, stop_the_study)
    signal.setitimer(signal.ITIMER_REAL, 2)
    with pytest.raises(StoppedError):
        run([one], folder)
    signal.signal(signal.SIGALRM, before)
    assert (folder / "started").exists()
    assert (folder / "saved").exists()


SAVES_ONCE_ALL_ARE_ASKED = """
import pathlib, signal, sys, time
def stop(number, _):
    with open("asked_NAME", "a") as file: file.write(f"{signal.Signals(number).name} ")
    while len(list(pathlib.Path().glob("asked_*"))) < 2: time.sleep(0.01)
    time.sleep(1)
    pathlib.Path("saved_NAME").write_text("")
    sys.exit(75)
for number in (signal.SIGTERM, signal.SIGINT): signal.signal(number, stop)
pathlib.Path("started_NAME").write_text("")
time.sleep(60)
"""
STUDY = """
import pathlib, signal, sys
from covid_jax.stopping import StoppedError
from covid_jax.studies.executors import local
from covid_jax.studies.grid import Step
from covid_jax.studies.schedule import run_steps, the_only_study
from covid_jax.study import stopped_by_signals
steps = [Step(name, (f"step_{name}",), (pathlib.Path(name),)) for name in "ab"]
here = pathlib.Path()
try:
    with the_only_study(here) as lock, stopped_by_signals(here):
        with local(2, lock=[lock]) as executor:
            run_steps(steps, here, executor)
except StoppedError: sys.exit(75)
"""


@pytest.fixture
def study(folder):
    """A process that runs two steps which save when they are asked to, and once both do."""
    for name in "ab":
        step(folder, name, SAVES_ONCE_ALL_ARE_ASKED.replace("NAME", name))
    process = subprocess.Popen(
        [sys.executable, "-c", STUDY], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for(lambda: len(list(folder.glob("started_*"))) == 2)
    yield process
    process.kill()
    process.wait()
    process.stderr.close()


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_every_step_once_and_all_before_it_waits_for_one(
    folder, study, number, times
):
    """Ctrl-C of the terminal goes to the study's whole group; a second one ends nothing."""
    send = os.killpg if number == signal.SIGINT else os.kill
    for time_ in range(times):
        send(study.pid, number)
        wait_for(lambda: len(list(folder.glob("asked_*"))) == 2)
        time.sleep(0.3 * time_)
    _, told = study.communicate()
    assert study.returncode == 75, told
    assert told == "waiting until these have saved: a, b\n" * times
    assert [(folder / f"asked_{name}").read_text() for name in "ab"] == ["SIGTERM "] * 2
    assert len(list(folder.glob("saved_*"))) == 2


def test_several_signals_at_once_are_one_wish(folder, study):
    """As a system sends that goes down: none of them skips the waiting."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        study.send_signal(number)
    _, told = study.communicate()
    assert study.returncode == 75, told
    assert [(folder / f"asked_{name}").read_text() for name in "ab"] == ["SIGTERM "] * 2
    assert len(list(folder.glob("saved_*"))) == 2


def test_the_workers_of_a_study_that_was_killed_save_and_hold_its_folder_until_then(folder, study):
    def refused(line):
        with pytest.raises(UserError, match=line), the_only_study(folder):
            pass

    refused("steps: another study is at work here; wait for it, or stop it")
    study.kill()
    study.wait()
    assert is_held(folder)
    refused(": what a study that was killed had begun, and which saves and ends, is at work here")
    wait_for(lambda: not is_held(folder))
    assert len(list(folder.glob("saved_*"))) == 2
    steps = [step(folder, name, makes(name)) for name in "ab"]
    assert {state.word for state in states(steps, folder).values()} == {"interrupted"}
    assert run(steps, folder) == {}


def test_a_worker_that_is_killed_in_the_middle_fails_its_step_which_the_next_start_does(folder):
    """By another step at the same time, as the system might: it goes on, and so does the rest."""
    slow = "import os, pathlib; pathlib.Path('pid').write_text(str(os.getpid())); "
    script = """
import os, pathlib, time
while not (pathlib.Path("pid").exists() and pathlib.Path("pid").read_text()): time.sleep(0.01)
os.kill(int(pathlib.Path("pid").read_text()), 9)
pathlib.Path("other").write_text("")
"""
    killed = step(folder, "killed", slow + makes("killed", 60))
    steps = [killed, step(folder, "other", script), step(folder, "third", makes("third"))]
    assert run(steps, folder, 2) == {"killed": KILLED}
    assert [one.done for one in steps] == [False, True, True]
    assert [overview([one], folder)[0].split()[0] for one in steps] == ["failed", "done", "done"]
    step(folder, "killed", makes("killed"))
    assert run(steps, folder) == {}


def wait_for(reached):
    begun = time.monotonic()
    while not reached():
        assert time.monotonic() < begun + 60
        time.sleep(0.01)


def test_what_is_done_is_not_run_again(folder):
    one = step(folder, "done", FAILS)
    one.results[0].write_text("")
    assert run([one], folder) == {}


def test_a_step_that_watches_files_is_done_at_every_start_and_that_is_said(folder, capsys):
    """Such as a preparation, which sees for itself what changed in the raw folder."""
    one = dataclasses.replace(step(folder, "watches", makes("watches")), watches=True)
    two = step(folder, "done", FAILS)
    for each in (one, two):
        each.results[0].write_text("before")
    assert overview([one, two], folder)[-1] == (
        "2 of 2 steps are done; at each start looks for raw files that changed: watches"
    )
    assert run([one, two], folder) == {}
    assert one.results[0].read_text() != "before"
    assert capsys.readouterr().out.startswith(
        "2 of 2 steps were done before; again looks for raw files that changed: watches\n"
    )


@pytest.mark.parametrize("record", [{"state": "running", "job": "a_0"}, {"state": "failed"}])
def test_what_ended_well_while_nobody_looked_is_done(folder, record):
    one = step(folder, "one", FAILS)
    one.results[0].write_text("")
    write_json(folder / "steps" / "one.json", record)
    assert run([one], folder) == {}
    assert json.loads((folder / "steps" / "one.json").read_text()) == {"state": "done"}


def test_what_is_made_from_something_newer_is_made_again(folder):
    """As the mask of a run that was deleted and trained anew."""
    one = step(folder, "mask", makes("mask"))
    one = dataclasses.replace(one, made_from=folder / "metrics.json")
    assert not one.done
    one.results[0].write_text("")
    assert one.done  # the run may be gone
    (folder / "metrics.json").write_text("")
    os.utime(one.results[0], (1, 1))
    assert not one.done
    assert run([one], folder) == {}
    assert one.done


class Busy:
    """A cluster that takes a job, then none for a while, by the workers of another executor."""

    def __init__(self, executor, refusals):
        self.executor, self.refusals, self.took = executor, refusals, 0

    def room(self, running):
        return 1 - len(running) + self.took  # one more each time

    def start(self, orders):
        if self.took and self.refusals:
            self.refusals -= 1
            raise UserError("sbatch: Unable to contact slurm controller")
        self.took += 1
        return self.executor.start(orders)


def test_what_a_cluster_does_not_take_waits_while_others_are_at_work(folder, monkeypatch, capsys):
    monkeypatch.setattr("covid_jax.studies.schedule._AGAIN_SECONDS", 0.3)
    steps = [step(folder, name, makes(name, seconds)) for name, seconds in (("a", 4), ("b", 0))]
    with local(2) as executor:
        assert run_steps(steps, folder, Busy(executor, refusals=2)) == {}
    assert all(one.done for one in steps)
    told = "sbatch: Unable to contact slurm controller; what is at work goes on, and it is asked"
    assert capsys.readouterr().out.count(told) == 2


def test_a_cluster_that_takes_nothing_ends_the_study_by_its_line(folder):
    steps = [step(folder, name, makes(name)) for name in "ab"]
    with local(2) as executor:
        busy = Busy(executor, refusals=9)
        busy.took = 1
        with pytest.raises(UserError, match="Unable to contact"):
            run_steps(steps, folder, busy)
    assert not any(one.done for one in steps)


def test_a_step_whose_study_is_gone_was_interrupted(folder):
    one = step(folder, "long", makes("long"))
    (folder / "steps").mkdir()
    (folder / "steps" / "long.json").write_text(json.dumps({"state": "running"}))
    assert states([one], folder)["long"].word == "interrupted"
    with only_here(folder, "a study"):
        assert states([one], folder)["long"].word == "running"
    with (folder / ".lock").open() as other:  # who looks is not at work
        fcntl.flock(other, fcntl.LOCK_SH)
        assert states([one], folder)["long"].word == "interrupted"


def test_a_folder_without_locks_is_refused_and_nobody_holds_it(folder, monkeypatch):
    """As on a Lustre that is mounted without flock."""

    def lacks(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("covid_jax.lock.fcntl.flock", lacks)
    line = r"its file system keeps no locks \(Function not implemented\), .*"
    with pytest.raises(UserError, match=line), only_here(folder, "a study"):
        pass
    assert not is_held(folder)


def test_the_list_ends_with_what_is_left_and_what_is_known_of_it(folder):
    steps = [
        dataclasses.replace(step(folder, name, ""), command=(name[:3],))
        for name in ("one_a", "one_b", "two_a")
    ]
    (folder / "steps").mkdir()
    assert overview(steps, folder)[-1] == (
        "0 of 3 steps are done; how long 3 others take is known once steps like them are done"
    )
    steps[0].results[0].write_text("")
    (folder / "steps" / "one_a.json").write_text('{"state": "done", "seconds": 4.0}')
    assert overview(steps, folder)[-1] == (
        "1 of 3 steps are done; 1 more takes 4 s; how long 1 other takes is known once steps like "
        "it are done"
    )
    assert overview(steps[:1], folder)[-1] == "1 of 1 steps are done"


@pytest.mark.parametrize(
    "record", [{"seconds": "x"}, {"seconds": None}, {"state": []}, {"cause": 3}, {"seconds": True}]
)
def test_a_damaged_record_of_a_step_is_named(folder, record):
    one = step(folder, "one", makes("one"))
    one.results[0].write_text("")
    write_json(folder / "steps" / "one.json", record)
    with pytest.raises(UserError, match=r"steps/one\.json: damaged; .* Delete it"):
        overview([one], folder)


def test_running_steps_end_with_the_study(folder, monkeypatch):
    tells_its_pid = "import os, pathlib; pathlib.Path('pid').write_text(str(os.getpid()))"
    slow = step(folder, "slow", f"{tells_its_pid}; {makes('slow', 60)}")

    def stopped(_):
        if (folder / "pid").exists() and (folder / "pid").read_text():
            raise KeyboardInterrupt

    monkeypatch.setattr("covid_jax.studies.schedule.time.sleep", stopped)
    with pytest.raises(KeyboardInterrupt):
        run([slow], folder)
    assert not Path("/proc", (folder / "pid").read_text()).exists()
    assert not slow.done


def test_each_of_several_has_a_gpu_of_its_own(folder, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,7")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    script = (
        "import os, pathlib; pathlib.Path('NAME').write_text(os.environ['CUDA_VISIBLE_DEVICES'])"
    )
    slow = f"import time; time.sleep(1); {script}"
    steps = [step(folder, name, slow.replace("NAME", name)) for name in ("a", "b")]
    run(steps, folder, 2)
    assert {one.results[0].read_text() for one in steps} == {"3", "7"}


def test_those_that_share_a_gpu_share_its_memory(folder, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    script = """
import os, pathlib, time
time.sleep(1)
told = [os.environ.get(f"{name}") for name in
        ("CUDA_VISIBLE_DEVICES", "XLA_PYTHON_CLIENT_MEM_FRACTION")]
pathlib.Path("NAME").write_text(str(told))
"""
    steps = [step(folder, name, script.replace("NAME", name)) for name in ("a", "b")]
    assert run(steps, folder, 2) == {}
    assert [one.results[0].read_text() for one in steps] == ["['3', '0.450']"] * 2
    assert run([step(folder, "c", script.replace("NAME", "c"))], folder) == {}
    assert (folder / "c").read_text() == "['3', None]"


TELLS_ITS_PROCESS = """
import os, pathlib
print("of NAME, \u00e4")
pathlib.Path("NAME").write_text(str(os.getpid()))
"""


@pytest.mark.parametrize("fresh", [False, True])
def test_a_worker_does_one_step_after_another_unless_they_are_to_be_fresh(folder, fresh, capfd):
    steps = [step(folder, name, TELLS_ITS_PROCESS.replace("NAME", name)) for name in "abc"]
    assert run(steps, folder, fresh=fresh) == {}
    processes = {one.results[0].read_text() for one in steps}
    assert len(processes) == (3 if fresh else 1)
    assert not any(Path("/proc", number).exists() for number in processes)
    for name in "abc":
        assert (folder / "steps" / f"{name}.txt").read_text() == f"of {name}, \u00e4\n"
    printed = capfd.readouterr().out
    assert [line for line in printed.splitlines() if line.startswith("of ")] == [
        f"of {name}, \u00e4" for name in "abc"
    ]


@pytest.mark.parametrize(
    ("dies", "cause"),
    [
        ("import os; os.kill(os.getpid(), 9)", KILLED),
        ("import os; os.abort()", "its process was killed by signal 6 (Aborted)"),
        ("print('so far'); 1 / 0", "ZeroDivisionError: division by zero"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    ],
)
def test_a_step_that_dies_takes_its_worker_with_it_and_not_the_study(folder, dies, cause):
    tells = [step(folder, name, TELLS_ITS_PROCESS.replace("NAME", name)) for name in "ab"]
    failed = run([tells[0], step(folder, "bad", dies), tells[1]], folder)
    assert failed == {"bad": cause}
    assert tells[0].results[0].read_text() != tells[1].results[0].read_text()


LOSES_ITS_DEVICE = """
import jax
def lost(x): raise RuntimeError("device lost\\nand more of it")
print(jax.jit(lambda x: jax.pure_callback(lost, x, x))(jax.numpy.ones(1)))
"""


def test_a_device_that_is_lost_fails_each_step_by_one_line_in_a_worker_of_its_own(folder):
    """As JAX tells it: the error has a traceback in it, and a note behind it."""
    steps = [step(folder, name, LOSES_ITS_DEVICE) for name in "ab"]
    steps.append(step(folder, "needs", makes("needs"), ["a"]))
    steps.append(step(folder, "other", makes("other")))
    failed = run(steps, folder)
    assert set(failed) == {"a", "b", "needs"}
    for name in "ab":
        assert failed[name].startswith("jax.errors.JaxRuntimeError: INTERNAL: ")
        assert "\n" not in failed[name]
    assert steps[-1].done


@pytest.mark.parametrize(
    ("python", "cause"),
    [
        ("/bin/false", "it ended with status 1, without a word"),
        ("/no/python", "/no/python cannot be started (No such file or directory)"),
    ],
)
def test_a_worker_that_cannot_start_fails_its_step_and_the_others_are_tried(
    folder, monkeypatch, python, cause
):
    monkeypatch.setattr("covid_jax.studies.executors.sys.executable", python)
    steps = [step(folder, name, makes(name)) for name in "ab"]
    assert run(steps, folder) == dict.fromkeys("ab", cause)


@pytest.mark.parametrize(
    ("elapsed", "seconds"),
    [
        ("0:00", 0),
        ("1:02", 62),
        ("10:00:01", 36001),
        ("2-00:01:00", 172860),
        ("INVALID", 0),  # of a job that began after this machine's clock
    ],
)
def test_slurm_tells_times_in_days_hours_minutes_and_seconds(elapsed, seconds):
    assert elapsed_seconds(elapsed) == seconds


@pytest.mark.parametrize(
    ("cores", "jobs", "shares"),
    [
        ([4, 5], 1, [()]),
        ([4, 5], 2, [[4], [5]]),
        ([0, 1, 2, 3, 4], 2, [[0, 1], [2, 3, 4]]),
        ([4, 5], 3, [(4,), (5,), (4,)]),
    ],
)
def test_workers_without_a_gpu_share_the_cores(cores, jobs, shares):
    assert [share_of_cores(slot, jobs, cores) for slot in range(jobs)] == shares


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system tells no cores")
@pytest.mark.parametrize("gpus", ["", "0"])
def test_a_worker_has_its_cores_before_its_step_begins_and_beside_a_gpu_all(
    folder, monkeypatch, gpus
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    tells = "import os, pathlib, time; time.sleep(0.5)\n"
    tells += "pathlib.Path('{}').write_text(str(sorted(os.sched_getaffinity(0))))"
    assert run([step(folder, name, tells.format(name)) for name in ("a", "b")], folder, 2) == {}
    every = sorted(os.sched_getaffinity(0))
    found = [json.loads((folder / name).read_text()) for name in ("a", "b")]
    assert found == [every if gpus else list(share_of_cores(n, 2, every)) or every for n in (0, 1)]


def test_a_worker_that_died_between_two_steps_is_replaced(folder):
    tells = "import os, pathlib; pathlib.Path('first').write_text(str(os.getpid()))"
    first, second = step(folder, "first", tells), step(folder, "second", makes("second"))
    with local(1) as executor:
        assert run_steps([first], folder, executor) == {}
        os.kill(int((folder / "first").read_text()), signal.SIGKILL)
        time.sleep(0.2)
        assert run_steps([second], folder, executor) == {}


def test_what_a_workers_python_prints_as_it_starts_is_no_answer(folder, monkeypatch):
    (folder / "sitecustomize.py").write_text("print('hello')")
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{os.environ.get('PYTHONPATH', '')}")
    assert run([step(folder, "one", makes("one"))], folder) == {}
    assert "hello" in (folder / "steps" / "one.txt").read_text()


TRACEBACK = """Traceback (most recent call last):
  File "futures.py", line 449, in result
    return self.__get_result()
^^^^^^^
ValueError: why
--------------------
For simplicity, a library has removed its frames.
"""


def test_the_cause_of_a_fault_is_what_was_raised_and_no_line_of_the_source(folder):
    fails = step(folder, "one", f"import sys; sys.stderr.write({TRACEBACK!r}); sys.exit(1)")
    assert run([fails], folder) == {"one": "ValueError: why"}
