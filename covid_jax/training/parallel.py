"""How arrays lie on devices: batch over `data`, depth of the patch over `space`."""

import os
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from covid_jax.cache import cache_folder
from covid_jax.config import MeshConfig
from covid_jax.errors import UserError

Tree = Any
CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def make_mesh(config: MeshConfig, batch_size: int, depth: int) -> Mesh:
    """The mesh of the first data x space devices.

    Raises:
      UserError: too few devices, or a batch or depth that the mesh does not divide.
    """
    needed, there = config.data * config.space, jax.device_count()
    mesh = f"mesh of {config.data} (config.mesh.data) x {config.space} (config.mesh.space)"
    if needed > there:
        raise UserError(f"{mesh} needs {needed} devices, {there} are here")
    if batch_size % config.data:
        raise UserError(f"{mesh}: config.data.batch_size={batch_size} is no multiple of its data")
    if depth % config.space:
        raise UserError(f"{mesh}: a patch of depth {depth} is no multiple of its space")
    devices = np.array(jax.devices()[:needed]).reshape(config.data, config.space)
    return Mesh(devices, ("data", "space"))


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
    """The batch on the devices: N over data, D over space (arrays of rank 3 and more).

    Args:
      batch: this process' samples of it (local_samples), D whole.
      mesh: of the devices.
      batch_size: N of all processes together.
    """

    def put(array: np.ndarray) -> jax.Array:
        axes = ("data", "space") if array.ndim > 2 else ("data",)
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        shape = (batch_size, *array.shape[1:])
        return jax.make_array_from_process_local_data(sharding, array, shape)

    return {name: put(array) for name, array in batch.items()}


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """The tree on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def keep_compiled_programs() -> None:
    """Keeps compiled programs on disk, so that the next start of the same work skips compiling.

    JAX_COMPILATION_CACHE_DIR names another folder than the default, or none where it is empty.
    """
    if CACHE_VARIABLE not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder("xla")))
