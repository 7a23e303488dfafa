"""How arrays lie on devices: batch over `data`, depth of the patch over `space`.

A batch comes to the devices of a row of the mesh whole, and is augmented there; then each keeps
its slab of the depth. From there XLA cuts the network along: it exchanges the slices next to a
border (halos) for convolutions, and sums for norms, loss and gradients.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from covid_jax.cache import cache_folder
from covid_jax.config import MeshConfig
from covid_jax.errors import UserError

Tree = Any
Augment = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""(keys (N,), image (N, ...), label (N, ...)) -> image, label"""
Apply = Callable[[Tree, jax.Array], tuple[jax.Array, ...]]
"""(params, image (N, D, H, W, C)) -> logits of each head, full resolution first."""
CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def make_mesh(config: MeshConfig, batch_size: int, depth: int) -> Mesh:
    """The mesh of the first data x space devices.

    Raises:
      UserError: too few devices, of several processes some left over, or a batch or depth that
        the mesh does not divide. It names the meshes that fit.
    """
    needed, there = config.data * config.space, jax.device_count()
    if needed > there:
        fault = f"it needs {needed} devices, {there} are here"
    elif batch_size % config.data:
        fault = f"config.data.batch_size={batch_size} is no multiple of its data"
    elif depth % config.space:
        fault = f"a patch of depth {depth} is no multiple of its space"
    elif needed < there and jax.process_count() > 1:
        fault = f"{there} devices are here, and a process without work would wait for ever"
    else:
        devices = np.array(jax.devices()[:needed]).reshape(config.data, config.space)
        return Mesh(devices, ("data", "space"))
    fitting = (f"{mesh.data} x {mesh.space}" for mesh in fitting_meshes(batch_size, depth))
    fit = ", ".join(fitting) or "none"
    raise UserError(
        f"mesh of {config.data} (config.mesh.data) x {config.space} (config.mesh.space): {fault}; "
        f"meshes that fit: {fit}"
    )


def fitting_meshes(batch_size: int, depth: int) -> list[MeshConfig]:
    """Every mesh of devices that are here which divides batch and depth, by its devices."""
    there = jax.device_count()
    meshes = [
        MeshConfig(data, space)
        for data in range(1, there + 1)
        for space in range(1, there // data + 1)
        if batch_size % data == 0 and depth % space == 0
        if jax.process_count() == 1 or data * space == there
    ]
    return sorted(meshes, key=lambda mesh: mesh.data * mesh.space)


def local_samples(mesh: Mesh, batch_size: int) -> range:
    """The samples of each batch that this process makes: those that its devices hold a part of."""
    here = [
        row
        for row, devices in enumerate(mesh.devices)
        if any(device.process_index == jax.process_index() for device in devices)
    ]
    each = batch_size // mesh.shape["data"]
    return range(here[0] * each, (here[-1] + 1) * each)


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh, batch_size: int) -> dict[str, jax.Array]:
    """The batch on the devices, N over data.

    Args:
      batch: this process' samples of it (local_samples).
      mesh: of the devices.
      batch_size: N of all processes together.
    """
    sharding = NamedSharding(mesh, PartitionSpec("data"))

    def put(array: np.ndarray) -> jax.Array:
        shape = (batch_size, *array.shape[1:])
        return jax.make_array_from_process_local_data(sharding, array, shape)

    return {name: put(array) for name, array in batch.items()}


def where_it_lies(augment: Augment, mesh: Mesh) -> Augment:
    """`augment`, by each device on the samples that it holds.

    The devices along space do the same: a warp needs all slices.
    """
    samples = PartitionSpec("data")
    return jax.shard_map(augment, mesh=mesh, in_specs=samples, out_specs=samples)


def cut_along(network: nn.Module, mesh: Mesh) -> Apply:
    """The network on images whose N is cut over data and whose D over space."""
    sharding = NamedSharding(mesh, PartitionSpec("data", "space"))

    def apply(params: Tree, image: jax.Array) -> tuple[jax.Array, ...]:
        return network.apply({"params": params}, jax.lax.with_sharding_constraint(image, sharding))

    return apply


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """The tree on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def keep_compiled_programs() -> None:
    """Keeps compiled programs on disk, so that the next start of the same work skips compiling.

    JAX_COMPILATION_CACHE_DIR names another folder than the default, or none where it is empty.
    """
    if CACHE_VARIABLE not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder("xla")))


@contextlib.contextmanager
def compiling_anew() -> Iterator[None]:
    """Within, programs are compiled whatever is kept on disk: a kept program tunes nothing.

    Also, the options of a deterministic run name its folder and process, by which JAX would look
    for kept programs; of several processes some would find one, and others wait for them to tune.
    """
    before = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    _use_kept_programs(False)
    try:
        yield
    finally:
        _use_kept_programs(before)


def _use_kept_programs(use: bool) -> None:
    jax.config.update("jax_enable_compilation_cache", use)
    compilation_cache.reset_cache()  # else JAX keeps to what it was told before its first program
