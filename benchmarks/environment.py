"""What a result was measured with: it stands in every file under benchmarks/results."""

import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from covid_jax.config import Config
from covid_jax.training.platform import Platform, platform_of, with_dtype

_PACKAGES = (
    "jax",
    "jaxlib",
    "jax-cuda13-plugin",
    "flax",
    "optax",
    "numpy",
    "torch",
    "nnunetv2",
    "dynamic-network-architectures",
    "batchgeneratorsv2",
)


def here(config: Config) -> tuple[Config, Platform]:
    """The run on the devices of this machine: with their dtype, and what is chosen for them."""
    platform = platform_of(jax.devices()[0].platform, **vars(config.mesh))
    return with_dtype(config, platform), platform


def describe() -> dict[str, Any]:
    """The command, the versions of what is installed, and the machine without its name."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    module = getattr(sys.modules["__main__"], "__spec__", None)
    name = f"-m {module.name}" if module else Path(sys.argv[0]).name
    return {
        "command": " ".join(["python", name, *sys.argv[1:]]),
        "versions": versions,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "cores": os.cpu_count(),
        "processor": _processor(),
    }


def save(path: Path, lines: Sequence[dict[str, Any]], **more: Any) -> None:
    """Writes a result file: what it was measured with, `more`, and its lines, one each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = json.dumps({**describe(), **more}, indent=1).removesuffix("\n}")
    results = ",\n".join(f"  {json.dumps(line)}" for line in lines)
    path.write_text(f'{head},\n "results": [\n{results}\n ]\n}}\n')


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
