"""The energy that the device has used so far, where it tells."""

import ctypes
import functools
import os
from pathlib import Path

_RAPL = Path("/sys/class/powercap/intel-rapl:0/energy_uj")


def joules_used(platform: str) -> float | None:
    """Joules since some moment in the past: of the first GPU, or of the CPU package; or None."""
    if platform == "gpu":
        return _of_gpu()
    try:
        return int(_RAPL.read_text()) / 1e6
    except OSError:  # not there, or for root alone
        return None


def _of_gpu() -> float | None:
    nvml = _nvml()
    if nvml is None:
        return None
    handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
    # NVML counts all GPUs, whichever CUDA is to see.
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    if first.isdigit():
        failed = nvml.nvmlDeviceGetHandleByIndex_v2(int(first), ctypes.byref(handle))
    else:
        failed = nvml.nvmlDeviceGetHandleByUUID(first.encode(), ctypes.byref(handle))
    failed = failed or nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules))
    return None if failed else millijoules.value / 1e3


@functools.cache
def _nvml() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    return None if library.nvmlInit_v2() else library
