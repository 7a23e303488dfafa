"""What a command runs on, told in its first line; and the GPU that JAX may have missed."""

import os
import re
import resource
import sys
from importlib.util import find_spec
from pathlib import Path

from covid_jax.errors import UserError

_DEVICES = Path("/dev")
_DRIVER = Path("/proc/driver/nvidia/version")


def announce_device() -> None:
    """Prints the devices that JAX computes on here, and a warning where it leaves a GPU alone.

    Raises:
      UserError: JAX_PLATFORMS names a platform that JAX cannot use here.
    """
    import jax  # commands that compute with NumPy alone do without

    chosen = _chosen()
    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"JAX finds no device for JAX_PLATFORMS={chosen}: {error}") from error
    platform, count = devices[0].platform, len(devices)
    if platform == "cpu":
        several = f"{count} virtual devices, " if count > 1 else ""
        print(f"device: cpu, {several}{len(cores())} cores", flush=True)
    else:
        print(f"device: {count} x {devices[0].device_kind} ({platform})", flush=True)
    if missed := missed_gpu(platform, chosen):
        print(missed, flush=True)


def announce_cpu() -> None:
    """Prints that a command computes with NumPy, in processes on the CPU."""
    print(f"device: cpu, {len(cores())} cores (this command uses no GPU)", flush=True)


def announce_device_of_children() -> None:
    """Prints what the processes that a command starts will find, without taking a device itself."""
    chosen = _chosen()
    platform = "gpu" if _plugin() and chosen != "cpu" and _gpus(_DEVICES) else chosen or "cpu"
    driver = f", driver {nvidia_driver()}" if platform == "gpu" else f", {len(cores())} cores"
    print(f"device of the runs: {platform}{driver}", flush=True)
    if missed := missed_gpu(platform, chosen):
        print(missed, flush=True)


def missed_gpu(
    platform: str, chosen: str, devices: Path = _DEVICES, driver: Path = _DRIVER
) -> str | None:
    """The warning where an NVIDIA GPU is here and JAX, without being told to, runs on the CPU.

    Args:
      platform: of JAX's devices.
      chosen: JAX_PLATFORMS, or "cpu" where CUDA_VISIBLE_DEVICES hides the GPUs; then no warning is
        due.
      devices: the folder of nvidia0 and the like.
      driver: the file in which the kernel's module tells its version.
    """
    if platform != "cpu" or chosen or not _gpus(devices):
        return None
    version = nvidia_driver(driver)
    return (
        f"warning: an NVIDIA GPU is here (driver {version or 'unknown'}) and JAX sees none; "
        "bash launch/gpu_extra.sh names the extra to install: pip install -e '.[cuda]', or cuda12"
    )


def nvidia_driver(file: Path = _DRIVER) -> str | None:
    """The version of the NVIDIA driver that the kernel runs, "580.65.06"; None: there is none."""
    if not file.is_file():
        return None
    found = re.search(r"\b(\d+\.\d+(?:\.\d+)?)\b", file.read_text())
    return found[1] if found else None


def peak_resident_bytes() -> int:
    """The most memory that this process has had since it started."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def cores() -> list[int]:
    """The numbers of those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return [*range(os.cpu_count() or 1)]


def gpus_by_number() -> list[str]:
    """By which CUDA_VISIBLE_DEVICES names each GPU of this machine that is to be used.

    Without JAX's plugin for GPUs there is none, unless that variable says otherwise.
    """
    chosen = _chosen()
    if chosen and not {"cuda", "gpu"} & {*chosen.split(",")}:
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    return [str(number) for number in range(len(_gpus(_DEVICES)))] if _plugin() else []


def _plugin() -> bool:
    return any(find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))


def _chosen() -> str:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return os.environ.get("JAX_PLATFORMS", "") or "cpu" * hidden


def _gpus(devices: Path) -> list[Path]:
    return list(devices.glob("nvidia[0-9]*")) or list(devices.glob("dxg"))  # of WSL2
