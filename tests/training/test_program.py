"""What is compiled for a run: of runs that differ in nothing of it, once."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from covid_jax.config import DataConfig, InferenceConfig, LossConfig, OptimizerConfig
from covid_jax.label_space import LabelSpace
from covid_jax.training.platform import GPU_OPTIONS, platform_of
from covid_jax.training.program import make_program
from tests.conftest import tiny

CPU = platform_of("cpu")
MESH = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "space"))
BASE = tiny(dtype="float32")


def program(config=BASE, platform=CPU, **more):
    return make_program(config, MESH, platform, **more)


@pytest.mark.parametrize(
    "change",
    [
        {"fold": 3, "seed": 5},
        {"epochs": 9, "steps_per_epoch": 4, "validation_steps": 7, "pretraining_epochs": 8},
        {"frozen": ("encoder",), "pretrained": "somewhere"},
        {"data": dataclasses.replace(BASE.data, prepared_dir="elsewhere", batch_size=4)},
        {"inference": dataclasses.replace(BASE.inference, step_size=0.25)},
    ],
)
def test_runs_that_compile_the_same_have_one_program(change):
    assert program(dataclasses.replace(BASE, **change)) is program()


OTHERS = {
    "strategy": dataclasses.replace(BASE, strategy="multi_encoder"),
    "dtype": dataclasses.replace(BASE, dtype="bfloat16"),
    "remat": dataclasses.replace(BASE, remat=True),
    "labels": dataclasses.replace(BASE, label_space=LabelSpace(("a", "b"), ((1, 2), (2,)), (1, 2))),
    "optimizer": dataclasses.replace(BASE, optimizer=OptimizerConfig(momentum=0.5)),
    "loss": dataclasses.replace(BASE, loss=LossConfig(batch_dice=True)),
    "patch": dataclasses.replace(BASE, data=DataConfig(patch_size=(16, 32, 32))),
    "augmentation": dataclasses.replace(
        BASE, data=dataclasses.replace(BASE.data, augment=not BASE.data.augment)
    ),
    "mirroring": dataclasses.replace(BASE, inference=InferenceConfig(mirror_axes=(0,))),
    "network": dataclasses.replace(BASE, model=dataclasses.replace(BASE.model, in_channels=2)),
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_is_compiled_otherwise_is_another_program(what):
    assert program(OTHERS[what]) is not program()


def test_other_devices_and_data_are_another_program():
    gpu = dataclasses.replace(CPU, compiler_options=GPU_OPTIONS)
    others = [program(platform=gpu), program(marginal=True), program(masked=(0,))]
    assert len({id(one) for one in (*others, program())}) == 4
