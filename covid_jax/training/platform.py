"""What differs between processors that compute the same: decided once, and handed down.

No function below asks JAX what it runs on, so that what is chosen for a GPU runs on a CPU too, in
the tests: slower there, with the same numbers up to rounding.
"""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax

from covid_jax.config import Config
from covid_jax.files import whole_file
from covid_jax.model import onednn
from covid_jax.model.conv import Form

_BFLOAT16_SINCE = 8.0  # compute capability, of Ampere

GPU_OPTIONS = {
    # Left to itself XLA lays 3D convolutions out with channels first, which costs transposes around
    # them, and again within cuDNN.
    "xla_gpu_force_conv_nhwc": True,
    # Two products of one array are not made one product, whose result would be taken apart again:
    # that of a head and of the transposed convolution above it.
    "xla_gpu_dot_merger_threshold_mb": 0,
}
"""Compiler options; what each is worth stands in docs/benchmarks.md."""


@dataclasses.dataclass(frozen=True)
class Platform:
    """The choices for the devices of a run.

    Attributes:
      name: JAX's name of it: "cpu", "gpu", "tpu".
      form: of the convolutions (model/conv.py).
      at_once: whether the samples of a batch are augmented at once (data/augment.py).
      dtype: of the activations, where the config says "auto". nnU-Net trains in half precision
        wherever the hardware has it, and so in float32 on a CPU.
      compiler_options: for jax.jit of whatever convolves.
      compiles_anew: whether programs that are kept on disk are passed over.
    """

    name: str
    form: Form
    at_once: bool
    dtype: str
    compiler_options: dict[str, Any] = dataclasses.field(hash=False)
    compiles_anew: bool = False


def platform_for(device: jax.Device, data: int = 1, space: int = 1) -> Platform:
    """The choices for a mesh of data x space devices like this one."""
    capability = float(getattr(device, "compute_capability", _BFLOAT16_SINCE))
    return platform_of(device.platform, data, space, half=capability >= _BFLOAT16_SINCE)


def platform_of(name: str, data: int = 1, space: int = 1, half: bool = True) -> Platform:
    """The choices for a mesh of data x space devices whose `jax.Device.platform` is `name`.

    `half` says whether a GPU multiplies bfloat16; older ones would compute in float32 all the same.

    On a CPU the samples are augmented one after another, so that what was not drawn is not
    computed. XLA cuts its own convolutions along the depth, planar ones along the batch, and
    oneDNN's calls not at all.
    """
    if name == "gpu":
        return Platform(name, "packed", True, "bfloat16" if half else "float32", GPU_OPTIONS)
    if name != "cpu":
        return Platform(name, "lax", True, "bfloat16", {})
    if space > 1:
        form: Form = "lax"
    else:
        form = "onednn" if data == 1 and onednn.available() else "slices"
    return Platform(name, form, False, "float32", {})


def platform_here() -> Platform:
    """The choices for one device of this process."""
    return platform_for(jax.local_devices()[0])


def deterministic(platform: Platform, workdir: Path) -> Platform:
    """`platform` with programs that train to the same bits in each run and after each restart.

    On a GPU XLA leaves out what adds up in an order that changes, and reads from `workdir` which
    kernels its autotuner had chosen, which would measure anew at each start (keep_choices). CPU
    and TPU are like that by themselves.
    """
    if platform.name != "gpu":
        return platform
    chosen, kept = _choices(workdir)
    options = {
        "xla_gpu_exclude_nondeterministic_ops": True,
        "xla_gpu_dump_autotune_results_to": str(chosen),
    }
    if kept.is_file():
        options["xla_gpu_load_autotune_results_from"] = str(kept)
    options = {**platform.compiler_options, **options}
    return dataclasses.replace(platform, compiler_options=options, compiles_anew=True)


def keep_choices(workdir: Path) -> None:
    """Makes what the autotuner has chosen so far that which the next start reads.

    To be called when a checkpoint is saved, before which there is nothing to go on from: XLA
    writes its file at every compilation, and one that was cut short would stop all later starts.
    """
    chosen, kept = _choices(workdir)
    if chosen.is_file():
        with whole_file(kept) as partial:
            shutil.copyfile(chosen, partial)


def _choices(workdir: Path) -> tuple[Path, Path]:
    """Where XLA writes what it chose, and where it reads it: of this process and version.

    Of a file each, not of a folder, which leaves some choices out (openxla/xla issue 37902).
    """
    name = f"autotuning-{jax.__version__}-{jax.process_index()}.pbtxt"
    return (workdir / f".{name}").absolute(), (workdir / name).absolute()


def cpu_device() -> jax.Device | None:
    """The CPU as a device of JAX, beside a GPU too; None where JAX_PLATFORMS leaves it out."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


def with_dtype(config: Config, platform: Platform) -> Config:
    """`config` with the dtype that "auto" stands for on `platform`."""
    return dataclasses.replace(config, dtype=platform.dtype) if config.dtype == "auto" else config
