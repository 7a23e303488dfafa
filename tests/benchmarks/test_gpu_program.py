"""The training step is compiled for a GPU, on a machine without one."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

COMPILER = next((ROOT / ".venv" / "gpu_program").glob("[0-9]*"), None)
PROGRAM = """
import dataclasses, json, pathlib, sys
from benchmarks.gpu_program import line
from covid_jax.config import UNetConfig
from covid_jax.training.platform import deterministic, keep_choices, platform_of
from tests.conftest import tiny

config = tiny(dtype="bfloat16")
config.data = dataclasses.replace(config.data, patch_size=(8, 48, 48))
config.model = UNetConfig(
    features_per_stage=(32, 64),
    kernel_sizes=((1, 3, 3), (3, 3, 3)),
    strides=((1, 1, 1), (1, 2, 2)),
    n_conv_per_stage=(2, 1),
    n_conv_per_stage_decoder=(2,),
)
gpu = platform_of("gpu")
lax = dataclasses.replace(gpu, form="lax")
run = pathlib.Path(sys.argv[1])
chosen = deterministic(gpu, run).compiler_options["xla_gpu_dump_autotune_results_to"]
pathlib.Path(chosen).write_text("version: 3\\n")  # what the autotuner chose, here nothing
keep_choices(run)
again = deterministic(gpu, run)
assert "xla_gpu_load_autotune_results_from" in again.compiler_options
whole = line(config, again, "augmented, deterministic")
config.data = dataclasses.replace(config.data, augment=False)
variants = {
    "packed": gpu,
    "lax": lax,
    "no options": dataclasses.replace(lax, compiler_options={}),
}
found = {name: line(config, platform, name) for name, platform in variants.items()}
config.model = dataclasses.replace(
    config.model, n_conv_per_stage=(), n_blocks_per_stage=(1, 2), n_conv_per_stage_decoder=(1,)
)
config.data = dataclasses.replace(config.data, augment=True)
residual = line(config, gpu, "residual encoder, augmented")
print(json.dumps({"whole": whole, "residual": residual, **found}))
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    if COMPILER is None:
        pytest.skip("no compiler for GPUs here: bash launch/gpu_program.sh brings it")
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path_factory.mktemp("run"))],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(COMPILER), "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads(finished.stdout.splitlines()[-1])


def test_the_augmented_step_compiles_and_its_convolutions_are_cudnns(programs):
    assert programs["whole"]["augmented"]
    # Of two blocks, of one, and of two of which the first meets two inputs: six convolutions, with
    # their gradients to kernels and to all inputs but the image.
    assert programs["whole"]["kernels"]["convolutions"] == 17


def test_the_augmented_step_of_a_residual_encoder_compiles_likewise(programs):
    # A stem, three blocks of two and one skip's; one of two inputs. All have two gradients, and the
    # stem one.
    assert programs["residual"]["kernels"]["convolutions"] == 10 + 9 + 10


def test_its_compiler_options_save_bytes(programs):
    total = {name: sum(program["bytes"].values()) for name, program in programs.items()}
    assert total["lax"] < total["no options"]


def test_packing_costs_no_bytes(programs):
    """Neighbours along W are channels of one voxel without a copy; kernels alone grow."""
    total = {name: sum(program["bytes"].values()) for name, program in programs.items()}
    assert total["packed"] < 1.05 * total["lax"]
    temporary = {name: program["temporary_bytes"] for name, program in programs.items()}
    assert temporary["packed"] < 1.05 * temporary["lax"]
