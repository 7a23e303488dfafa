"""Meshes: what fits, and what is refused in one line."""

import subprocess
import sys

import pytest

from covid_jax.config import MeshConfig
from covid_jax.errors import UserError
from covid_jax.training.parallel import make_mesh
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
from covid_jax.training.parallel import make_mesh
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
