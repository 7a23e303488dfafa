"""What a result was measured with: it stands in every file under benchmarks/results."""

import contextlib
import dataclasses
import json
import os
import platform
import shlex
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from covid_jax.config import Config, left_to_plan
from covid_jax.training.platform import Platform, platform_for, with_dtype

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
    platform = platform_for(jax.devices()[0], **vars(config.mesh))
    return with_dtype(config, platform), platform


def of_plan(config: Config) -> Config:
    """The run with the network, patch, batch and channels of its plan, and its data's classes.

    The plan is that of config.data.prepared_dir, where plan.json may lie alone: classes are then
    the config's. Without such a folder a config that leaves something open takes it, and the
    classes, from config.pretrained.

    Raises:
      UserError: as fitted, load_plan, load_dataset, load_config.
    """
    # Here, not above: machines that only time the step have none of the image libraries.
    from covid_jax.data.plan import load_plan
    from covid_jax.data.store import load_dataset
    from covid_jax.training.completion import fitted, planned
    from covid_jax.training.pretrained import load_config

    left, folder = left_to_plan(config), Path(config.data.prepared_dir)
    file, names = folder / "plan.json", config.data.datasets
    if config.data.prepared_dir and (left or file.is_file()):
        plan = load_plan(file)
        if not any((folder / name).exists() for name in names):
            return planned(config, plan)
        return fitted(config, plan, [load_dataset(folder, name, plan.hash) for name in names])
    if not left:
        return config
    pretrained = Path(config.pretrained)
    full = planned(config, load_plan(pretrained / "plan.json") if config.pretrained else None)
    before = load_config(pretrained)
    model = dataclasses.replace(full.model, num_classes=before.model.num_classes)
    return dataclasses.replace(full, model=model, label_space=before.label_space)


def network(config: Config) -> str:
    """What network is measured, in words."""
    model = config.model
    kind = "residual" if model.n_blocks_per_stage else "plain"
    blocks = " ".join(map(str, model.n_blocks_per_stage or model.n_conv_per_stage))
    features = " ".join(map(str, model.features_per_stage))
    return (
        f"{kind} encoder of {blocks} blocks, {features} features, {model.in_channels} channel"
        f"{'s' * (model.in_channels > 1)}, {config.label_space.told(model.num_classes)}"
    )


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Within it, the calling thread and all that it starts share one core.

    What started before, such as JAX's threads, keeps the cores that it has.
    """
    every = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(every)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, every)


def describe() -> dict[str, Any]:
    """The command, the versions of what is installed, and the machine without its name."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    module = getattr(sys.modules["__main__"], "__spec__", None)
    name = ["-m", module.name] if module else [Path(sys.argv[0]).name]
    return {
        "command": shlex.join(["python", *name, *sys.argv[1:]]),
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
