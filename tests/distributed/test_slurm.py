"""A real Slurm of one node, set up here where root is and slurm-wlm is installed.

apt-get install slurm-wlm munge
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from covid_jax.training.checkpoint import load_params
from tests.conftest import ROOT, SMALL_NETWORK

PYTHON = sys.executable
NEEDED = ("slurmctld", "slurmd", "munged", "sbatch", "sacct")
PATH = f"{os.environ['PATH']}:/usr/sbin"
missing = [name for name in NEEDED if shutil.which(name, path=PATH) is None]
pytestmark = [
    pytest.mark.skipif(os.getuid() != 0, reason="Slurm's daemons are started by root alone"),
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
    subprocess.run(
        [sys.executable, "-m", "covid_jax.train", *settings(tiny_run, straight)],
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    assert any(line.startswith(f"{job} ") and "COMPLETED" in line for line in accounted(slurm))
    ours, theirs = (jax.tree.leaves(load_params(run)) for run in (workdir, straight))
    assert all(map(np.array_equal, ours, theirs))


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
        *SMALL_NETWORK,
    )

    def printed():
        return output.read_text() if output.exists() else ""

    wait_for(lambda: "report: " in printed() or "error: " in printed(), printed)
    assert "error: " not in printed()
    tested = {path.parent.name for path in study.glob("runs/*/metrics.json")}
    assert tested == {"scratch-none-fold0", "scratch-none-fold1"}
    wait_for(lambda: not in_slurm(slurm, "squeue", "--noheader").strip(), printed)
    logs = [path.name.split("_") for path in (study / "steps" / "slurm").glob("*_0_log.out")]
    arrays = [parts[0] for parts in logs if len(parts) == 4]  # JOB_INDEX_TASK_log.out
    assert len(arrays) == 2
    assert len(set(arrays)) == 1
    assert sum("COMPLETED" in line for line in accounted(slurm)) >= 4


def accounted(environment):
    """Lines of sacct."""
    command = ["sacct", "--completion", "--format=JobID,JobName,State,Start,End"]
    return in_slurm(environment, *command).splitlines()
