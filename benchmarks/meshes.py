"""Whether every mesh of devices trains the same network, and what a device then holds.

    python -m benchmarks.meshes --config=configs/tiny.py --config.data.patch_size=16,48,48 \
        --output=out/meshes_tiny

Trains each strategy for some steps on one device and on each mesh, from the same parameters on the
same augmented noise, and writes meshes.json: how far parameters then lie apart (in float64, where
rounding cannot hide a fault, and in float32), the collectives in the compiled step, and the memory
that a device needs. Without an accelerator the devices are 8 virtual ones.

A float32 run is itself uncertain by its rounding: the line "1 x 1, rounded" is one device in
float64 from parameters that were changed in float32's last bit.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from benchmarks.harness import environment
from benchmarks.harness.steps import dummy_batch
from benchmarks.harness.tables import Line, meshes_table
from covid_jax.command import as_process, require, run_command
from covid_jax.config import (
    Config,
    MeshConfig,
    check_config_arguments,
    config_from_flag,
    define_config_flag,
)
from covid_jax.data.augment import input_size
from covid_jax.device import announce_device
from covid_jax.training.cost import planned_bytes
from covid_jax.training.parallel import make_mesh, put_batch, replicate
from covid_jax.training.platform import platform_of
from covid_jax.training.program import make_program
from covid_jax.training.state import initial_state, new_params
from covid_jax.transfer.freezing import mask, split
from covid_jax.transfer.strategies import (
    STRATEGIES,
    frozen_patterns,
    initial_params,
    network_of,
)

_FLAGS = flags.FlagValues()
define_config_flag(_FLAGS)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of meshes.json.", _FLAGS)
_STEPS = flags.DEFINE_integer(
    "steps", 10, "Training steps on each mesh.", lower_bound=1, flag_values=_FLAGS
)
_MESHES = flags.DEFINE_list("meshes", ["2x1", "1x2", "2x2", "2x4"], "Meshes, data x space.", _FLAGS)
_DTYPES = flags.DEFINE_list(
    "dtypes", ["float64", "float32"], "Of parameters and activations.", _FLAGS
)
_STRATEGIES = flags.DEFINE_list("strategies", list(STRATEGIES), "Strategies.", _FLAGS)

_COLLECTIVES = re.compile(
    r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)
Tree = Any


def first_params(config: Config) -> Tree:
    """The parameters that every mesh starts from, as if pre-trained where the strategy needs it."""
    shape = (1, *config.data.patch_size, config.model.in_channels)
    strategy = STRATEGIES[config.strategy]
    single = dataclasses.replace(config, strategy="scratch", dtype="float32")
    pretrained = (
        new_params(network_of(single, "lax"), 1, shape) if strategy.needs_pretraining else None
    )
    new = new_params(network_of(dataclasses.replace(config, dtype="float32"), "lax"), 0, shape)
    params = initial_params(strategy, new, pretrained)
    return jax.tree.map(lambda leaf: leaf.astype(config.dtype), params)


def rounded(params: Tree) -> Tree:
    """The parameters, each changed by about its rounding in float32."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: leaf * rng.choice([1 - 2**-24, 1, 1 + 2**-23], leaf.shape), params
    )


def trained(config: Config, params: Tree, steps: int) -> tuple[Tree, Counter[str], int]:
    """(parameters, collectives of the step, bytes of a device) after some steps on config.mesh."""
    mesh = make_mesh(config.mesh, config.data.batch_size, config.data.patch_size[0])
    # XLA's own convolutions on every mesh, so that the meshes alone differ.
    platform = dataclasses.replace(platform_of("cpu", **vars(config.mesh)), form="lax")
    program = make_program(config, mesh, platform)
    trainable, frozen = split(params, mask(params, frozen_patterns(config)[0]))
    state, frozen = replicate((initial_state(trainable, program.transform), frozen), mesh)
    size = input_size(config.data.patch_size) if config.data.augment else None
    batch = dummy_batch(config, size)
    rng = np.random.default_rng(0)
    rate, key = jnp.asarray(config.optimizer.learning_rate, config.dtype), jax.random.key(0)
    compiled = None
    for _ in range(steps):
        batch["image"] = rng.normal(size=batch["image"].shape).astype(config.dtype)
        batch["label"] = (batch["image"][..., 0] > 1).astype(np.uint8)
        given = put_batch(batch, mesh, config.data.batch_size)
        if compiled is None:
            compiled = program.train_step.lower(state, frozen, given, rate, key).compile()  # type: ignore[attr-defined]
        state, _ = compiled(state, frozen, given, rate, key)
    assert compiled is not None
    collectives = Counter(_COLLECTIVES.findall(compiled.as_text()))
    return jax.device_get(state.trainable), collectives, planned_bytes(compiled)


def difference(ours: Tree, theirs: Tree) -> tuple[float, float]:
    """(norm of the difference over the norm, largest of a leaf over the largest of that leaf)."""
    apart = jax.tree.map(np.subtract, ours, theirs)
    of_leaves = [
        float(np.abs(a).max() / max(np.abs(leaf).max(), 1e-12))
        for a, leaf in zip(jax.tree.leaves(apart), jax.tree.leaves(theirs), strict=True)
    ]
    return float(optax.tree.norm(apart) / optax.tree.norm(theirs)), max(of_leaves)


def compare(config: Config, meshes: list[MeshConfig], dtypes: list[str], steps: int) -> list[Line]:
    """A line of meshes.json for one device and for each mesh, in each dtype."""
    lines: list[Line] = []
    for dtype in dtypes:
        with jax.enable_x64(dtype == "float64"):
            typed = dataclasses.replace(config, dtype=dtype)
            first = first_params(typed)
            one, collectives, size = trained(typed, first, steps)
            found = {"1 x 1": (one, collectives, size)}
            if dtype == "float64":
                found["1 x 1, rounded"] = trained(typed, rounded(first), steps)
            for mesh in meshes:
                name = f"{mesh.data} x {mesh.space}"
                found[name] = trained(dataclasses.replace(typed, mesh=mesh), first, steps)
        for name, (params, collectives, size) in found.items():
            of_tree, of_leaf = difference(params, one)
            lines.append(
                {
                    "strategy": config.strategy,
                    "dtype": dtype,
                    "mesh": name,
                    "difference": of_tree,
                    "difference_of_leaf": of_leaf,
                    "collectives": dict(collectives),
                    "peak_bytes": size,
                }
            )
    return lines


def work() -> None:
    """Compares what the flags say."""
    require(_OUTPUT)
    jax.config.update("jax_num_cpu_devices", 8)
    announce_device()
    config = environment.of_plan(config_from_flag(_FLAGS))
    meshes = [MeshConfig(*map(int, mesh.split("x"))) for mesh in _MESHES.value]
    path = Path(_OUTPUT.value) / "meshes.json"
    lines: list[Line] = []
    for strategy in _STRATEGIES.value:
        run = dataclasses.replace(config, strategy=strategy)
        lines += compare(run, meshes, _DTYPES.value, _STEPS.value)
        environment.save(path, lines, steps=_STEPS.value)
    print(meshes_table(lines))
    print(path)


def main(arguments: Sequence[str]) -> int:
    """This command; returns its exit status."""
    return run_command(work, _FLAGS, __doc__, arguments, check_config_arguments)


if __name__ == "__main__":
    as_process(main)
