"""What a command runs on: its first line, and the GPU that was missed."""

import os
import subprocess

import pytest

from covid_jax.device import gpus_by_number, missed_gpu, nvidia_driver
from tests.conftest import ROOT

VERSION = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs)  "
    "Sun Jul 27 06:54:38 UTC 2025\nGCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n"
)


@pytest.fixture
def machine(tmp_path):
    """A machine with an NVIDIA GPU: the folder of its devices, and what its driver tells."""
    (tmp_path / "dev").mkdir()
    for name in ("null", "nvidiactl", "nvidia0"):
        (tmp_path / "dev" / name).touch()
    (tmp_path / "version").write_text(VERSION)
    return {"devices": tmp_path / "dev", "driver": tmp_path / "version"}


def test_the_driver_tells_its_version(machine, tmp_path):
    assert nvidia_driver(machine["driver"]) == "580.65.06"
    assert nvidia_driver(tmp_path / "nothing") is None


def test_a_gpu_that_jax_does_not_see_is_one_warning_line(machine):
    line = missed_gpu("cpu", "", **machine)
    assert line.startswith("warning: an NVIDIA GPU is here (driver 580.65.06) and JAX sees none")
    assert "\n" not in line


@pytest.mark.parametrize(("platform", "chosen"), [("gpu", ""), ("cpu", "cpu"), ("tpu", "")])
def test_nothing_is_missed_where_jax_sees_it_or_was_told_otherwise(machine, platform, chosen):
    assert missed_gpu(platform, chosen, **machine) is None


def test_a_driver_without_a_device_is_no_gpu(machine):
    """In a container /proc is that of the host."""
    (machine["devices"] / "nvidia0").unlink()
    assert missed_gpu("cpu", "", **machine) is None


@pytest.mark.parametrize(
    ("visible", "platforms", "numbers"),
    [
        ("0,1", "", ["0", "1"]),
        ("0", "cuda,cpu", ["0"]),
        ("0", "cpu", []),
        ("-1", "", []),
        ("", "", []),
    ],
)
def test_gpus_that_jax_is_not_to_use_are_none(monkeypatch, visible, platforms, numbers):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    assert gpus_by_number() == numbers


@pytest.mark.parametrize("plugin", [True, False])
def test_a_gpu_that_jax_has_no_plugin_for_is_none(machine, monkeypatch, plugin):
    for name in ("CUDA_VISIBLE_DEVICES", "JAX_PLATFORMS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("covid_jax.device._DEVICES", machine["devices"])
    monkeypatch.setattr("covid_jax.device.find_spec", lambda name: plugin or None)
    assert gpus_by_number() == ["0"] * plugin


@pytest.mark.parametrize(
    ("script", "extra", "told"),
    [
        ("echo 580.65.06", "cuda", "580.65.06"),
        ("echo 595.12; echo 595.12", "cuda", "595.12"),
        ("echo 535.183.01", "cuda12", "535.183.01"),
        ("echo 470.256.02", "", "older than 525"),
        ("echo 'WARNING: infoROM is corrupted'; echo ' 580.65.06'", "cuda", "580.65.06"),
        ("echo 58 GPUs found", "", "tells no driver"),
        ("echo broken >&2; exit 1", "", "broken"),
        ("echo 'NVIDIA-SMI has failed'; exit 9", "", "tells no driver"),
        (None, "", ""),
    ],
)
def test_the_extra_that_fits_the_driver_is_chosen(tmp_path, script, extra, told):
    if script is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    path = f"{tmp_path}:/usr/bin:/bin"
    finished = subprocess.run(
        ["bash", f"{ROOT}/launch/gpu_extra.sh"],
        env={"PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert finished.stdout.strip() == extra
    assert told in finished.stderr
    assert bool(told) == bool(finished.stderr)


@pytest.mark.parametrize(
    ("given", "installed"), [(None, "onednn,cuda"), ("dev,cuda12", "dev,cuda12")]
)
def test_set_up_installs_the_extra_of_the_driver_unless_it_is_told_otherwise(
    tmp_path, given, installed
):
    """With a pip that only tells what it would install."""
    for name in ("launch/environment.sh", "launch/gpu_extra.sh", "pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "constraints.txt").touch()
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements" / "none.txt").touch()
    for name, script in {
        "bin/nvidia-smi": "echo 580.65.06",
        ".venv/bin/python": 'echo "$@"',
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    environment.pop("EXTRAS", None)
    finished = subprocess.run(
        ["bash", "-c", "source launch/environment.sh onednn"],
        cwd=tmp_path,
        env={**environment, **({"EXTRAS": given} if given else {})},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"installing covid_jax with {installed}" in finished.stdout
    assert f"--editable .[{installed}]" in finished.stdout


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("train", [f"--config={ROOT}/configs/tiny.py", "--explain"]),
        ("prepare", ["--dataset=covid19", f"--raw_dir={ROOT}/examples/covid19", "--check_only"]),
        ("study", [f"--config={ROOT}/configs/quickstart.py", "--workdir=nowhere", "--list"]),
    ],
)
def test_the_first_line_of_a_command_names_the_device(command, name, arguments):
    finished = command(name, *arguments)
    assert finished.stdout.startswith("device"), finished.stderr
    assert "cpu" in finished.stdout.splitlines()[0]
