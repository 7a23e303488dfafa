"""What is chosen for each platform, run on this one: the same numbers, and programs for a GPU."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covid_jax.config import DataConfig
from covid_jax.inference.scan import make_network
from covid_jax.model import onednn
from covid_jax.training.cost import abstract_arguments, abstract_batch, abstract_params
from covid_jax.training.parallel import make_mesh
from covid_jax.training.platform import (
    cpu_device,
    deterministic,
    keep_choices,
    platform_for,
    platform_of,
    with_dtype,
)
from covid_jax.training.program import make_program
from covid_jax.transfer.freezing import mask, split
from covid_jax.transfer.strategies import STRATEGIES, frozen_patterns
from tests.conftest import ROOT, tiny
from tests.networks import SOON_IN_A_PROCESS, assert_near

FAST_ON_CPU = "onednn" if onednn.available() else "slices"


@pytest.mark.parametrize(
    ("name", "mesh", "form", "at_once", "dtype"),
    [
        ("cpu", (1, 1), FAST_ON_CPU, False, "float32"),
        ("cpu", (2, 1), "slices", False, "float32"),
        ("cpu", (1, 2), "lax", False, "float32"),
        ("gpu", (1, 1), "packed", True, "bfloat16"),
        ("gpu", (2, 2), "packed", True, "bfloat16"),
        ("tpu", (1, 1), "lax", True, "bfloat16"),
    ],
)
def test_the_choices_are_a_function_of_platform_and_mesh(name, mesh, form, at_once, dtype):
    found = platform_of(name, *mesh)
    assert (found.form, found.at_once, found.dtype) == (form, at_once, dtype)
    assert bool(found.compiler_options) == (name == "gpu")


def test_without_onednn_a_cpu_takes_planar_convolutions(monkeypatch):
    monkeypatch.setattr(onednn, "available", lambda: False)
    assert platform_of("cpu").form == "slices"


def test_auto_is_the_platforms_dtype_and_a_given_one_stays():
    assert tiny().dtype == "auto"
    assert with_dtype(tiny(), platform_of("gpu")).dtype == "bfloat16"
    assert with_dtype(tiny(), platform_of("cpu")).dtype == "float32"
    assert with_dtype(tiny(dtype="float32"), platform_of("gpu")).dtype == "float32"


@pytest.mark.parametrize(
    ("capability", "dtype"), [("7.0", "float32"), ("7.5", "float32"), ("8.0", "bfloat16")]
)
def test_a_gpu_that_does_not_multiply_bfloat16_trains_in_float32(capability, dtype):
    device = SimpleNamespace(platform="gpu", compute_capability=capability)
    assert platform_for(device).dtype == dtype
    assert platform_for(device).form == "packed"


def test_a_deterministic_gpu_reads_at_its_second_start_what_the_first_one_chose(tmp_path):
    first = deterministic(platform_of("gpu"), tmp_path).compiler_options
    assert first["xla_gpu_exclude_nondeterministic_ops"]
    assert first.items() > platform_of("gpu").compiler_options.items()
    assert "xla_gpu_load_autotune_results_from" not in first
    written = Path(first["xla_gpu_dump_autotune_results_to"])
    written.write_text("version: 3")  # by XLA, whenever it compiles
    assert deterministic(platform_of("gpu"), tmp_path).compiler_options == first
    keep_choices(tmp_path)  # with a checkpoint
    written.write_text("vers")  # cut short by a kill
    second = deterministic(platform_of("gpu"), tmp_path).compiler_options
    assert Path(second["xla_gpu_load_autotune_results_from"]).read_text() == "version: 3"


@pytest.mark.parametrize("name", ["cpu", "tpu"])
def test_other_platforms_are_deterministic_by_themselves(name, tmp_path):
    assert deterministic(platform_of(name), tmp_path) == platform_of(name)


def test_only_commands_and_the_mesh_ask_jax_what_it_runs_on():
    asking = r"default_backend|devices\(.*\)\[0\]\.platform|\bplatform_for\("
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in ("covid_jax", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(asking, path.read_text())
    }
    assert found == {
        "covid_jax/training/platform.py",
        "covid_jax/train.py",  # from the mesh's devices
        "benchmarks/harness/environment.py",
    }


def test_parameters_are_drawn_on_the_cpu_whatever_else_is_there():
    assert cpu_device().platform == "cpu"


STEPS = """
import dataclasses, functools, json, sys
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_num_cpu_devices", 4)
from covid_jax.config import DataConfig, MeshConfig, UNetConfig
from covid_jax.training.parallel import make_mesh, put_batch, replicate
from covid_jax.training.platform import platform_of
from covid_jax.training.program import make_program
from covid_jax.training.state import initial_state, new_params
from covid_jax.transfer.freezing import mask, split
from covid_jax.transfer.strategies import frozen_patterns
from covid_jax.data.augment import input_size
from benchmarks.harness.steps import dummy_batch
from tests.conftest import tiny

def trained(name, dtype, mesh, remat, augmented=False, steps=3):
    # As train.py wraps it: shard_map around the augmentation, donated buffers, its mesh.
    config = tiny("frozen_encoder-msd", dtype=dtype, mesh=MeshConfig(*mesh), remat=remat)
    config.data = DataConfig(patch_size=(4, 16, 16), augment=augmented)
    config.model = UNetConfig(
        features_per_stage=(4, 8),
        kernel_sizes=((1, 3, 3), (3, 3, 3)),
        strides=((1, 1, 1), (2, 2, 2)),
        n_conv_per_stage=(1, 1),
        n_conv_per_stage_decoder=(1,),
    )
    devices = make_mesh(config.mesh, config.data.batch_size, config.data.patch_size[0])
    platform = platform_of(name, *mesh)
    if dtype == "float64" and platform.form == "onednn":
        platform = dataclasses.replace(platform, form="slices")
    program = make_program(config, devices, platform)
    params = new_params(program.network, 0, (1, *config.data.patch_size, 1))
    wide = "float64" if dtype == "float64" else "float32"
    params = jax.tree.map(lambda leaf: leaf.astype(wide), params)
    trainable, frozen = split(params, mask(params, frozen_patterns(config)[0]))
    state, frozen = replicate((initial_state(trainable, program.transform), frozen), devices)
    size = config.data.patch_size
    batch = dummy_batch(config, input_size(size) if augmented else size)
    batch["image"] = batch["image"].astype(wide)
    batch = put_batch(batch, devices, config.data.batch_size)
    rate, key = jnp.asarray(0.01, wide), jax.random.key(0)
    for _ in range(steps):
        given = state
        state, metrics = program.train_step(state, frozen, batch, rate, key)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given.trainable))
    losses = [float(metrics["loss"])]
    if dtype == "bfloat16":
        found = program.eval_step(state.trainable, frozen,
            put_batch(dummy_batch(config), devices, config.data.batch_size))
        losses.append(float(found["loss"]))
    return losses, jax.tree.leaves(jax.device_get(state))

def apart(a, b):
    return max(float(np.abs(x - y).max() / max(np.abs(y).max(), 1e-12)) for x, y in zip(a, b))

found = {}
with jax.enable_x64(True):
    one = {how: trained("cpu", "float64", (1, 1), False, how)[1] for how in (False, True)}
    for name, mesh, remat, augmented in (
        ("cpu", (2, 2), True, True), ("gpu", (1, 1), False, True), ("gpu", (2, 2), True, True),
        ("tpu", (1, 1), True, False), ("tpu", (2, 2), False, False),
    ):
        _, other = trained(name, "float64", mesh, remat, augmented)
        found[f"{name} {mesh} {remat}"] = apart(other, one[augmented])
half = [trained(name, "bfloat16", mesh, remat)[0]
        for name, mesh, remat in (("cpu", (1, 1), False), ("gpu", (1, 1), True),
                                  ("gpu", (2, 2), False))]
print(json.dumps({"float64": found, "bfloat16": half}))
"""


@pytest.fixture(scope="module")
def trained_everywhere():
    finished = subprocess.run(
        [sys.executable, "-c", STEPS],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": SOON_IN_A_PROCESS},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


def test_every_choice_of_every_platform_trains_the_same_network(trained_everywhere):
    """In float64, where no rounding hides a fault; on one device and on 2 x 2, with remat."""
    found = trained_everywhere["float64"]
    assert len(found) == 5
    assert max(found.values()) < 1e-11, found


def test_in_bfloat16_losses_agree_to_its_rounding(trained_everywhere):
    losses = np.array(trained_everywhere["bfloat16"])
    assert np.isfinite(losses).all()
    assert_near(losses, np.broadcast_to(losses[0], losses.shape), 0.1)


RESIDUAL = {"n_conv_per_stage": (), "n_blocks_per_stage": (1, 2, 1)}


def test_what_is_not_looked_at_for_a_gpu_trains_the_network_of_scratch():
    for name in STRATEGIES.keys() - {"frozen_encoder", "multi_encoder"}:
        assert STRATEGIES[name].network == STRATEGIES["scratch"].network
        assert STRATEGIES[name].frozen == ()


@pytest.fixture(params=["scratch", "frozen_encoder", "multi_encoder", "residual"])
def gpu_run(request):
    """A run with what a GPU is given, and its program: of each strategy that has one of its own.

    Continual and body train scratch's from another start; and one of another encoder.
    """
    is_residual = request.param == "residual"
    config = tiny(dtype="auto", strategy="scratch" if is_residual else request.param)
    if is_residual:
        config.model = dataclasses.replace(config.model, **RESIDUAL)
    config.data = DataConfig(patch_size=(8, 16, 16))
    platform = platform_of("gpu")
    config = with_dtype(config, platform)
    mesh = make_mesh(config.mesh, config.data.batch_size, config.data.patch_size[0])
    return config, platform, make_program(config, mesh, platform)


def lowered_for_cuda(function, *arguments):
    """StableHLO for a GPU, for which jax needs neither one nor its plugin."""
    text = function.trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    assert "stablehlo.convolution" in text
    assert "bf16" in text
    assert "onednn" not in text
    return text


def test_the_augmented_training_step_is_made_for_a_gpu(gpu_run):
    config, _, program = gpu_run
    arguments = abstract_arguments(config, program, frozen_patterns(config)[0])
    text = lowered_for_cuda(program.train_step, *arguments)
    assert "stablehlo.case" not in text  # all samples at once: no branches


def test_the_validation_step_is_made_for_a_gpu(gpu_run):
    config, _, program = gpu_run
    params = abstract_params(config)
    trainable, frozen = split(params, mask(params, frozen_patterns(config)[0]))
    lowered_for_cuda(program.eval_step, trainable, frozen, abstract_batch(config, cut=False))


def test_the_predictor_is_made_for_a_gpu(gpu_run):
    config, platform, _ = gpu_run
    image = abstract_batch(config, cut=False)["image"]
    lowered_for_cuda(make_network(config, platform), abstract_params(config), image)


def test_a_cpu_predicts_in_float32_what_was_trained_in_bfloat16():
    config = tiny(dtype="bfloat16")
    image = jax.ShapeDtypeStruct((1, 8, 16, 16, 1), jnp.float32)
    trace = make_network(config, platform_of("cpu")).trace(abstract_params(config), image)
    assert "bf16" not in str(trace.jaxpr)
    exact = dataclasses.replace(config, dtype="float32")
    trace = make_network(exact, platform_of("gpu")).trace(abstract_params(config), image)
    assert "bf16" not in str(trace.jaxpr)
