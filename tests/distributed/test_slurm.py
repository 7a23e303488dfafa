"""A real Slurm of one node, set up here where root is and slurm-wlm is installed.

apt-get install slurm-wlm munge
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from covid_jax.errors import UserError
from covid_jax.files import write_json
from covid_jax.lock import is_held
from covid_jax.studies.grid import Step
from covid_jax.studies.schedule import overview, run_steps, states
from covid_jax.studies.slurm import Slurm
from covid_jax.training.checkpoint import load_params
from tests.conftest import ROOT, SMALL_NETWORK
from tests.processes import Process

PYTHON = sys.executable
NEEDED = ("slurmctld", "slurmd", "munged", "sbatch", "sacct")
PATH = f"{os.environ['PATH']}:/usr/sbin"
missing = [name for name in NEEDED if shutil.which(name, path=PATH) is None]
pytestmark = [
    pytest.mark.skipif(os.getuid() != 0, reason="no root for Slurm: sudo bash launch/test.sh"),
    pytest.mark.skipif(
        bool(missing), reason=f"no {', '.join(missing)}: apt-get install slurm-wlm munge"
    ),
]

CONFIG = """
ClusterName=test
SlurmctldHost={host}
SlurmUser=root
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=20
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobs.txt
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
SlurmdParameters=config_overrides
KillWait=30
MinJobAge=3600
SchedulerParameters=sched_interval=1,batch_sched_delay=0
NodeName={host} CPUs=16 State=UNKNOWN
PartitionName=test Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:8
"""


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("localhost", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The environment of commands of a Slurm that runs here."""
    folder = tmp_path_factory.mktemp("slurm")
    folder.chmod(0o755)
    host = socket.gethostname().split(".")[0]
    (folder / "slurm.conf").write_text(CONFIG.format(host=host, folder=folder, ports=free_ports(2)))
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SLURM")},
        "SLURM_CONF": str(folder / "slurm.conf"),
        "PATH": PATH,
    }
    munge = ["munged", "--foreground", "--force", f"--key-file={key}"]
    for name in ("socket", "pid-file", "log-file", "seed-file"):
        munge.append(f"--{name}={folder}/munge.{name.removesuffix('-file')}")
    daemons = []
    for command in (munge, ["slurmctld", "-D"], ["slurmd", "-D"]):
        with (folder / f"{command[0]}.out").open("w") as output:
            daemons.append(
                subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
            )
        time.sleep(1)
    deadline = time.monotonic() + 30
    while (
        "idle"
        not in subprocess.run(
            ["sinfo", "-h"], env=environment, capture_output=True, text=True, check=False
        ).stdout
    ):
        logs = "\n".join(path.read_text()[-2000:] for path in folder.glob("*.out"))
        assert time.monotonic() < deadline, logs
        time.sleep(0.2)
    yield environment
    subprocess.run(["scancel", "--user=root"], env=environment, check=False)
    for daemon in reversed(daemons):
        daemon.terminate()
        daemon.wait(timeout=30)


def settings(tiny_run, workdir):
    return [
        f"--config={ROOT}/configs/tiny.py",
        f"--config.data.prepared_dir={tiny_run / 'data'}",
        f"--workdir={workdir}",
        "--config.steps_per_epoch=100",
        "--config.validation_steps=0",
        "--config.data.augment=False",
        "--config.test=False",
        "--config.mesh.data=2",
        *SMALL_NETWORK,
    ]


def in_slurm(environment, *command):
    finished = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def wait_for(reached, what, seconds=300):
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, what()
        time.sleep(0.2)


@pytest.mark.slow
def test_two_tasks_train_are_stopped_by_slurm_and_go_on_from_the_queue(slurm, tiny_run, tmp_path):
    """sbatch's script as it is, but for the GPUs, which this machine lacks."""
    script = tmp_path / "train.sbatch"
    text = (ROOT / "launch" / "slurm" / "train.sbatch").read_text()
    text = text.replace("#SBATCH --gpus-per-node=2\n", "").replace(".venv/bin/python", PYTHON)
    script.write_text(text)
    output, workdir = tmp_path / "job.txt", tmp_path / "run"
    submitted = in_slurm(
        slurm,
        "sbatch",
        "--parsable",
        f"--output={output}",
        "--cpus-per-task=1",
        str(script),
        *settings(tiny_run, workdir),
    )
    job = submitted.strip()

    def printed():
        return output.read_text() if output.exists() else ""

    wait_for(lambda: "of 2 processes" in printed(), printed)
    time.sleep(1)
    in_slurm(slurm, "scancel", "--signal=USR1", job)  # as --signal does before the time is over
    wait_for(lambda: "put into the queue again" in printed(), printed)
    assert len(re.findall("saved after step", printed())) == 2  # both processes, at one step

    def state():
        return printed() + in_slurm(slurm, "scontrol", "show", "job", job)

    wait_for(lambda: f"done: {workdir}" in printed(), state)
    assert "going on from the checkpoint of step" in printed()

    straight = tmp_path / "straight"
    alone = Process(settings(tiny_run, straight), tmp_path / "alone.txt", devices=2)
    assert alone.wait() == 0, alone.printed()
    assert any(line.startswith(f"{job} ") and "COMPLETED" in line for line in accounted(slurm))
    ours, theirs = (jax.tree.leaves(load_params(run)) for run in (workdir, straight))
    assert all(map(np.array_equal, ours, theirs))


@pytest.mark.slow
def test_a_study_submits_the_steps_that_are_ready_as_one_array_of_jobs(slurm, tmp_path):
    """Prepares SYNTHETIC phantoms in a job, and then trains two folds in an array of two."""
    study, output = tmp_path / "study", tmp_path / "study.txt"
    script = tmp_path / "study.sbatch"
    text = (ROOT / "launch" / "slurm" / "study.sbatch").read_text()
    script.write_text(text.replace(".venv/bin/python", PYTHON))
    in_slurm(
        slurm,
        "sbatch",
        f"--output={output}",
        str(script),
        f"--config={ROOT}/configs/quickstart.py",
        f"--workdir={study}",
        "--jobs=2",
        "--slurm=cpus_per_task=1,time=30",
        "--config.data.datasets=('phantom',)",
        "--config.study.raw.phantom_cases=5",
        "--config.study.folds=(0,1)",
        "--config.study.runs=('scratch',)",
        "--config.study.scans=()",
        "--config.epochs=1",
        "--config.steps_per_epoch=5",
        "--config.data.augment=False",
        *SMALL_NETWORK,
    )

    def printed():
        return output.read_text() if output.exists() else ""

    wait_for(lambda: "report: " in printed() or "error: " in printed(), printed)
    assert "error: " not in printed()
    tested = {path.parent.name for path in study.glob("runs/*/metrics.json")}
    assert tested == {"scratch-none-fold0", "scratch-none-fold1"}
    wait_for(lambda: not in_slurm(slurm, "squeue", "--noheader").strip(), printed)
    assert sorted(len(jobs) for jobs in arrays(study)) == [1, 2]
    assert sum("COMPLETED" in line for line in accounted(slurm)) >= 4


def accounted(environment):
    """Lines of sacct."""
    command = ["sacct", "--completion", "--format=JobID,JobName,State,Start,End"]
    return in_slurm(environment, *command).splitlines()


def arrays(study):
    """The jobs of each array that was submitted, by what each printed beside its step's log."""
    folder = study / "steps" / "slurm"
    return [list(folder.glob(f"{script.stem}_*.txt")) for script in folder.glob("*.sh")]


@pytest.fixture
def here(slurm, tmp_path, monkeypatch):
    """A folder to run a study in, by steps that Slurm finds there."""
    monkeypatch.chdir(tmp_path)
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, slurm[name])
    monkeypatch.setattr("covid_jax.studies.slurm._ASK_SECONDS", 0.5)
    yield tmp_path
    subprocess.run(["scancel", "--user=root"], env=slurm, check=False)
    wait_for(lambda: not in_slurm(slurm, "squeue", "--noheader").strip(), lambda: "it goes on")


STEP = """
import pathlib, time
def main():
    with open("began_NAME", "a") as file: file.write("x")
    SCRIPT
    pathlib.Path("NAME").write_text("")
main()
"""


def step(name, script="pass", needs=()):
    """That tells how often it began."""
    text = STEP.replace("SCRIPT", script).replace("NAME", name)
    Path(f"step_{name}.py").write_text(text)
    return Step(name, (f"step_{name}",), (Path(name).absolute(),), tuple(needs))


def until(name):
    return (
        "end = time.monotonic() + 60\n"
        f"    while not pathlib.Path('{name}').exists() and time.monotonic() < end:\n"
        "        time.sleep(0.05)"
    )


def began(*names):
    return [Path(f"began_{name}").read_text() for name in names]


def words(steps):
    return [state.word for state in states(steps, Path()).values()]


DRIVER = """
import sys
from pathlib import Path
from covid_jax.lock import only_here
from covid_jax.studies.grid import Step
from covid_jax.studies.schedule import run_steps
from covid_jax.studies.slurm import Slurm
jobs, *names = sys.argv[1:]
steps = [Step(name, (f"step_{name}",), (Path(name).absolute(),)) for name in names]
with only_here(Path(), "another study") as lock:
    run_steps(steps, Path(), Slurm({}, int(jobs), [lock]))
"""


def driver(jobs, *names, **more):
    return subprocess.Popen([sys.executable, "-c", DRIVER, str(jobs), *names], **more)


def test_jobs_that_outlive_a_study_that_was_killed_are_waited_for_by_the_next(here):
    steps = [
        step("a", until("go")),
        step("b"),
        step("bad", "raise SystemExit('error: the disk is full')"),
        step("c", needs=["a"]),
    ]
    study = driver(1, "a", "b", "bad")
    wait_for(lambda: Path("began_a").exists(), lambda: words(steps))
    study.kill()
    study.wait()
    assert words(steps) == ["running", "queued", "queued", "to do"]
    job = json.loads(Path("steps/a.json").read_text())["job"]
    lines = overview(steps, Path())
    assert re.fullmatch(r"running +\? s  a  job \d+_0", lines[0])
    Path("go").touch()
    assert run_steps(steps, Path(), Slurm({}, 1)) == {"bad": "the disk is full"}
    assert began("a", "b", "bad", "c") == ["x"] * 4
    assert words(steps) == ["done", "done", "failed", "done"]
    assert len(list(Path("steps/slurm").glob("*.sh"))) == 2
    assert Path("steps/slurm", f"{job.removesuffix('_0')}.sh").exists()


def test_jobs_that_ended_without_the_study_are_judged_by_what_they_made(here):
    steps = [
        step("a", until("go")),
        step("bad", f"{until('go')}\n    raise SystemExit('error: full')"),
    ]
    study = driver(2, "a", "bad")
    wait_for(lambda: all(Path(f"began_{one.name}").exists() for one in steps), lambda: words(steps))
    study.kill()
    study.wait()
    Path("go").touch()
    wait_for(lambda: words(steps) == ["done", "failed"], lambda: words(steps))
    assert overview(steps, Path())[1].endswith("bad  full")
    step("bad")
    assert run_steps(steps, Path(), Slurm({}, 2)) == {}
    assert began("a", "bad") == ["x", "xx"]


def test_a_study_that_dies_while_it_submits_runs_nothing_twice(here, monkeypatch):
    """The next start does not know what number Slurm gave, and finds the job by its name."""
    real = shutil.which("sbatch")
    (here / "bin").mkdir()
    fake = here / "bin" / "sbatch"
    fake.write_text(f'#!/bin/bash\n{real} "$@" >/dev/null\nkill -9 $PPID\nsleep 1\n')
    fake.chmod(0o755)
    steps = [step("a", until("go")), step("b", until("go"))]
    study = driver(2, "a", "b", env={**os.environ, "PATH": f"{here}/bin:{os.environ['PATH']}"})
    assert study.wait() == -signal.SIGKILL
    assert is_held(here)  # by sbatch, of which nobody knows whether it has submitted
    wait_for(lambda: not is_held(here), lambda: "sbatch goes on")
    Path("go").touch()
    assert run_steps(steps, Path(), Slurm({}, 2)) == {}
    assert began("a", "b") == ["x", "x"]
    assert len(list(Path("steps/slurm").glob("*.sh"))) == 1


def test_a_job_that_slurm_does_not_know_is_submitted_again(here):
    one = step("a")
    write_json(Path("steps/a.json"), {"state": "running", "job": "covid_jax-00000000_0"})
    assert words([one]) == ["interrupted"]
    assert run_steps([one], Path(), Slurm({}, 1)) == {}


def test_jobs_are_not_started_beside_those_that_slurm_cannot_be_asked_about(here, monkeypatch):
    one = step("a")
    write_json(Path("steps/a.json"), {"state": "running", "job": "covid_jax-00000000_0"})
    monkeypatch.setenv("PATH", "/usr/nowhere")
    assert words([one]) == ["submitted"]
    with pytest.raises(UserError, match=r"^a may be at work .*no squeue here.*steps/NAME\.json$"):
        run_steps([one], Path(), Slurm({}, 1))


def test_all_that_is_ready_is_one_array_and_its_places_are_those_that_others_leave(here):
    """The first two of the second array are to be there at once: one of its places was p's."""
    first = "pathlib.Path('there_NAME').touch(); pathlib.Path('go').touch()"
    steps = [
        step("p", until("go")),
        step("q"),
        step("r", f"{first}\n    {until('there_s')}", ["q"]),
        step("s", f"{first}\n    {until('there_r')}", ["q"]),
        step("t", "assert pathlib.Path('s').exists() or pathlib.Path('r').exists()", ["q"]),
    ]
    assert run_steps(steps, Path(), Slurm({}, 2)) == {}
    assert sorted(len(jobs) for jobs in arrays(here)) == [2, 3]


@pytest.mark.slow
def test_ctrl_c_asks_the_jobs_to_save_and_the_next_start_goes_on(here):
    """At once, while Slurm has not yet taken them out of its queue."""
    saves = "signal.signal(15, lambda *_: (time.sleep(2), open('saved', 'w'), sys.exit(75)))"
    steps = [step("a", f"import signal, sys; {saves}\n    {until('saved')}"), step("b")]
    study = driver(1, "a", "b", stderr=subprocess.PIPE, text=True)
    wait_for(lambda: Path("began_a").exists(), lambda: words(steps))
    time.sleep(0.5)
    study.send_signal(signal.SIGINT)
    study.communicate()
    assert run_steps(steps, Path(), Slurm({}, 1)) == {}
    assert Path("saved").exists()
    assert began("a", "b") == ["xx", "x"]


def scancel(steps, name, *options):
    """In a thread, once the step has begun."""

    def cancel():
        wait_for(lambda: Path(f"began_{name}").exists(), lambda: words(steps))
        time.sleep(0.5)
        number = states(steps, Path())[name].cause.removeprefix("job ")
        subprocess.run(["scancel", *options, number], check=True)

    thread = threading.Thread(target=cancel)
    thread.start()
    return thread


@pytest.mark.slow
def test_a_job_saves_before_its_time_is_over_and_goes_on_from_the_queue(here):
    saves = "signal.signal(10, lambda *_: (open('saved', 'w'), sys.exit(75)))"
    steps = [step("a", f"import signal, sys; {saves}\n    {until('saved')}")]
    thread = scancel(steps, "a", "--signal=USR1")  # as --signal does
    assert run_steps(steps, Path(), Slurm({}, 1)) == {}
    thread.join()
    assert began("a") == ["xx"]
    assert len(list(Path("steps/slurm").glob("*.sh"))) == 1


def test_what_ended_a_job_from_outside_is_its_cause(here):
    """A signal, and who took it out of the queue."""
    steps = [step("a", "import os; os.kill(os.getpid(), 11)"), step("b", until("never"))]

    thread = scancel(steps, "b")
    failed = run_steps(steps, Path(), Slurm({}, 2))
    thread.join()
    assert failed["a"] == "its process was killed by signal 11"
    assert re.fullmatch(r"Slurm ended its job \d+_1: CANCELLED", failed["b"])


def test_an_option_that_sbatch_does_not_know_is_told_in_one_line(here):
    with pytest.raises(UserError, match=r"^sbatch: .*unrecognized option '--partiton=gpu'"):
        run_steps([step("a")], Path(), Slurm({"partiton": "gpu"}, 1))
    with pytest.raises(UserError, match=r"^sbatch: .*invalid partition specified: nowhere"):
        run_steps([step("a")], Path(), Slurm({"partition": "nowhere"}, 1))
