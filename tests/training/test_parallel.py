"""Meshes: what fits, and what is refused in one line."""

import subprocess
import sys

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from covid_jax.config import MeshConfig
from covid_jax.errors import UserError
from covid_jax.training.parallel import compiling_anew, make_mesh
from tests.conftest import ROOT


def test_one_device_is_a_mesh():
    assert make_mesh(MeshConfig(), 2, 16).shape == {"data": 1, "space": 1}


def test_more_devices_than_there_are_is_refused():
    with pytest.raises(UserError, match="needs 64 devices"):
        make_mesh(MeshConfig(data=8, space=8), 8, 16)


@pytest.mark.parametrize(
    ("mesh", "message"), [("data=2,space=1", "batch_size=3"), ("data=1,space=2", "depth 7")]
)
def test_a_mesh_that_does_not_divide_batch_or_depth_is_refused(mesh, message):
    script = f"""
from covid_jax.config import MeshConfig
from covid_jax.training.parallel import compiling_anew, make_mesh
make_mesh(MeshConfig({mesh}), 3, 7)
"""
    finished = subprocess.run(
        [sys.executable, "-c", script],
        env={"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert message in finished.stderr
    assert "meshes that fit: 1 x 1" in finished.stderr


def test_what_is_to_be_compiled_anew_is_neither_read_from_the_cache_nor_kept(tmp_path):
    """Also where the cache was in use before, by which JAX decides once."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}

    def kept(constant):
        """How many programs are kept, once another one was compiled."""
        jax.jit(lambda x: x * constant)(1.0)
        return len([*tmp_path.glob("*-cache")])

    try:
        for name, value in zip(names, (str(tmp_path), 0.0), strict=True):
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # of another folder, or that was not in use
        first = kept(2.0)
        assert first > 0
        with compiling_anew():
            assert kept(3.0) == first
        assert kept(4.0) > first
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
