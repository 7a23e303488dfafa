r"""What a GPU would have to do for a training step, read from its program; needs no GPU.

    bash launch/gpu_program.sh --output=DIR

XLA compiles the step of configs/paper.py for an H100 ahead of time, and what stands in the program
is counted: calls of cuDNN and cuBLAS, fused kernels, transposes, and the bytes that each reads and
writes. Bytes over the memory's bandwidth is a floor of the step's time; nothing is timed here.
Writes gpu_program.json.
"""

import dataclasses
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from absl import flags
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.harness import environment
from benchmarks.harness.arithmetic import counted_flops
from benchmarks.harness.tables import Line, gpu_program_table
from benchmarks.harness.trace import instructions, kind_of
from covid_jax.command import as_process, require, run_command
from covid_jax.config import STRATEGY_NAMES, Config, DataConfig
from covid_jax.errors import UserError
from covid_jax.training.cost import abstract_arguments
from covid_jax.training.platform import Platform, platform_of
from covid_jax.training.program import make_program
from covid_jax.transfer.strategies import frozen_patterns

_FLAGS = flags.FlagValues()
_OUTPUT = flags.DEFINE_string("output", None, "Folder of gpu_program.json.", _FLAGS)

BANDWIDTH = 3_352_320_000_000  # bytes a second
H100 = f"""
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info {{ major: 9 minor: 12 }}
runtime_version {{ major: 13 }}
gpu_device_info {{
  cuda_compute_capability {{ major: 9 }}
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  device_memory_size: 84929347584
  memory_bandwidth: {BANDWIDTH}
  l2_cache_size: 52428800
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}}
"""
"""XLA's description of the device (GpuTargetConfigProto)."""

# Both would have to time kernels on the device.
_WITHOUT_A_DEVICE = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}


def h100_mesh() -> Mesh:
    """One H100 that is not there, to compile for.

    Raises:
      UserError: JAX's plugin for CUDA is not installed.
    """
    try:
        topology = topologies.get_topology_desc(
            platform="cuda", topology="1x1x1", target_config=H100
        )
    except NotImplementedError:
        raise UserError(
            "JAX's compiler for CUDA is missing: bash launch/gpu_program.sh brings it"
        ) from None
    return Mesh(np.array(topology.devices).reshape(1, 1), ("data", "space"))


def compiled_for_h100(config: Config, platform: Platform) -> jax.stages.Compiled:
    """The training step of a run as a program for an H100, with the choices of `platform`."""
    mesh = h100_mesh()
    program = make_program(config, mesh, platform)
    arguments = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, PartitionSpec())
        ),
        abstract_arguments(config, program, frozen_patterns(config)[0]),
    )
    lowered = program.train_step.trace(*arguments).lower(lowering_platforms=("cuda",))  # type: ignore[attr-defined]
    return lowered.compile(_WITHOUT_A_DEVICE)


def line(config: Config, platform: Platform, variant: str) -> Line:
    """The line of gpu_program.json for one program: kernels and bytes by kind."""
    compiled = compiled_for_h100(config, platform)
    count: Counter[str] = Counter()
    size: Counter[str] = Counter()
    for name, one in instructions(compiled.as_text() or "").items():
        kind = kind_of(name, one["opcode"])
        if kind:
            count[kind] += 1
            size[kind] += one["bytes"]
    return {
        "strategy": config.strategy,
        "dtype": config.dtype,
        "variant": variant,
        "patch_size": list(config.data.patch_size),
        "batch_size": config.data.batch_size,
        "augmented": config.data.augment,
        "kernels": dict(count),
        "bytes": dict(size),
        "seconds_of_memory": size.total() / BANDWIDTH,
        "tflop_per_step_counted": counted_flops(config, frozen_patterns(config)[0]) / 1e12,
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,  # type: ignore[union-attr]
    }


def work() -> None:
    """Compiles the step of several strategies, in both precisions and layouts."""
    require(_OUTPUT)
    # The plugin looks for a GPU's libraries when it is loaded; a compiler needs none.
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    path = Path(_OUTPUT.value) / "gpu_program.json"
    packed, half = platform_of("gpu"), Config(dtype="bfloat16", data=DataConfig(augment=False))
    lax = dataclasses.replace(packed, form="lax")
    full = dataclasses.replace(half, dtype="float32")
    wanted = {
        "XLA's layout": [(half, dataclasses.replace(lax, compiler_options={}))],
        "channels last": [(half, lax), (full, lax)],
        "packed": [
            *((dataclasses.replace(half, strategy=s), packed) for s in STRATEGY_NAMES),
            (full, packed),
        ],
        "packed, augmented": [
            (dataclasses.replace(half, data=DataConfig()), packed),
        ],
    }
    lines: list[Line] = []
    for variant, programs in wanted.items():
        for config, platform in programs:
            lines.append(line(config, platform, variant))
            environment.save(path, lines)
    print(gpu_program_table(lines))
    print(f"{path}")


def main(arguments: Sequence[str]) -> int:
    """This command; returns its exit status."""
    return run_command(work, _FLAGS, __doc__, arguments)


if __name__ == "__main__":
    as_process(main)
