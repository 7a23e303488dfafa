"""Every setting does something: each is changed, and what it is for is seen to change.

A setting that a run would pass over is refused (the second table).
"""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

from covid_jax.config import Config, run_name, validate
from covid_jax.errors import UserError
from covid_jax.inference.postprocess import load_postprocessing
from covid_jax.inference.scan import make_scorer
from covid_jax.studies.grid import plan_steps
from covid_jax.training.cost import abstract_params, lowered_step
from covid_jax.training.explain import explain
from covid_jax.training.platform import platform_of
from covid_jax.training.state import learning_rate, new_params, schedule
from covid_jax.transfer.strategies import frozen_patterns, network_of
from tests.conftest import ROOT, tiny

BASE = tiny()
CONTINUAL = tiny("continual-msd", pretrained="somewhere")
MIRRORED = tiny()
MIRRORED.inference.mirror = True
STUDY = tiny()
STUDY.study.runs = ("scratch", "body-msd")


CONFIGS = (BASE, CONTINUAL, MIRRORED, STUDY)


@functools.cache
def parameters():
    shape = (1, *BASE.data.patch_size, 1)
    return new_params(network_of(dataclasses.replace(BASE, dtype="float32"), "lax"), 0, shape)


def program(config):
    """The compiled step's text, which holds every number of it."""
    patterns = frozen_patterns(config)[0]
    shapes = jax.tree.map(lambda leaf: leaf.shape, abstract_params(config))
    return lowered_step(config, patterns).as_text(), shapes


def scores(config):
    """What is averaged over the windows of a volume of more than one."""
    volume = np.random.default_rng(0).normal(size=(8, 24, 44)).astype(np.float32)
    slabs_of = make_scorer(config, parameters(), config.inference.mirror, platform_of("tpu"))
    return np.concatenate(list(slabs_of(volume)))


def rates(config):
    first, epochs, _ = schedule(config)
    return [learning_rate(config, first + epoch) for epoch in range(epochs)]


def postprocessing(config):
    return load_postprocessing(ROOT / "nowhere", config.inference)


def commands(config):
    """Those of a study."""
    steps = plan_steps(config, tiny, ROOT / "nowhere")
    return [(step.name, step.command) for step in steps]


@functools.cache
def unchanged(seen, which):
    """What is seen of one of the configs that are changed here."""
    return seen(CONFIGS[which])


KERNELS = ((1, 3, 3), (3, 3, 3), (3, 1, 3))
SEEN = {
    "strategy": (BASE, "multi_encoder", program),
    "source": (CONTINUAL, "nsclc", run_name),
    "variant": (BASE, "thawed", run_name),
    "fold": (BASE, 1, run_name),
    "pretraining": (CONTINUAL, True, rates),
    "pretraining_epochs": (CONTINUAL, 5, rates),
    "epochs": (BASE, 5, rates),
    "steps_per_epoch": (BASE, 5, explain),
    "dtype": (BASE, "bfloat16", program),
    "remat": (BASE, True, program),
    "frozen": (BASE, ("encoder",), program),
    "frozen_schedule": (BASE, ((1, "encoder"),), frozen_patterns),
    "model.in_channels": (BASE, 2, program),
    "label_space.names": (BASE, ("infection",), explain),
    "label_space.regions": (BASE, ((1,), (1, 2)), program),
    "model.num_classes": (BASE, 3, program),
    "model.features_per_stage": (BASE, (4, 8, 12), program),
    "model.kernel_sizes": (BASE, KERNELS, program),
    "model.strides": (BASE, ((1, 1, 1), (2, 2, 2), (2, 2, 2)), program),
    "model.n_conv_per_stage": (BASE, (1, 2, 1), program),
    "model.n_conv_per_stage_decoder": (BASE, (2, 1), program),
    "model.kernel_sizes_decoder": (BASE, KERNELS[1:], program),
    "model.deep_supervision": (BASE, False, program),
    "model.conv_bias": (BASE, False, program),
    "model.head_bias": (BASE, False, program),
    "model.norm_epsilon": (BASE, 0.1, program),
    "model.negative_slope": (BASE, 0.3, program),
    "optimizer.learning_rate": (BASE, 0.02, rates),
    "optimizer.momentum": (BASE, 0.9, program),
    "optimizer.weight_decay": (BASE, 1e-4, program),
    "optimizer.clip_norm": (BASE, 1.0, program),
    "optimizer.poly_power": (BASE, 1.0, rates),
    "data.datasets": (STUDY, ("covid19",), commands),
    "data.patch_size": (BASE, (8, 16, 24), program),
    "data.batch_size": (BASE, 3, program),
    "loss.batch_dice": (BASE, True, program),
    "inference.step_size": (BASE, 0.3, scores),
    "inference.average": (BASE, "logits", scores),
    "inference.mirror": (BASE, True, scores),
    "inference.mirror_axes": (MIRRORED, (0,), scores),
    "inference.sums": (BASE, "float16", scores),
    "inference.threshold": (BASE, 0.3, postprocessing),
    "inference.largest_only": (BASE, True, postprocessing),
    "study.folds": (STUDY, (3,), commands),
    "study.seeds": (STUDY, (0, 1), commands),
    "study.runs": (STUDY, ("scratch",), commands),
    "study.scans": (STUDY, (f"{ROOT}/examples/lidc/LIDC-IDRI-0001",), commands),
    "study.raw.phantom": (STUDY, "raw", commands),
    "study.raw.msd_lung": (STUDY, "raw", commands),
    "study.raw.own": (STUDY, (("msd_2", "raw"),), lambda config: config.study.raw.folders),
    "study.raw.phantom_cases": (STUDY, 4, commands),
    "study.raw.phantom_lesions": (STUDY, (("msd_lung", "covid19"),), commands),
}
"""By the setting: a config, another value for it, and what must then be another."""

SEEN_BY = {
    "seed": "data/test_sampling.py::test_another_step_seed_or_stream_is_another_batch",
    "pretrained": "test_train.py::test_a_pretrained_network_of_another_shape_is_refused",
    "first_conv": "transfer/test_strategies.py::test_a_first_convolution_is_taken_from",
    "model.n_blocks_per_stage": "training/test_step.py::test_every_strategy_trains_a_residual",
    "validation_steps": "test_train.py::test_a_run_without_such_files_needs_neither_simpleitk_nor",
    "checkpoint_every": "test_train.py::test_replay_shows_the_very_step_of_the_run",
    "deterministic": "training/test_platform.py::test_a_deterministic_gpu_reads_at_its_second",
    "test": "test_train.py::test_unfreezing_at_an_epoch_goes_on_exactly_after_a_kill",
    "data.prepared_dir": "test_train.py::test_a_run_whose_data_was_prepared_again_is_refused",
    "data.foreground_fraction": "data/test_sampling.py::test_as_many_of_a_batch_are_centred_on_a",
    "data.augment": "training/test_platform.py::test_the_augmented_training_step_is_made_for_a_gpu",
    "data.workers": "data/test_sampling.py::test_worker_processes_make_the_batches_that_threads",
    "loss.marginal": "model/test_loss.py::test_",
    "label_space.regions_class_order": "test_label_space.py::test_a_mask_of_regions_has_the_value",
    "label_space.ignored": "parity/test_region_parity.py::test_the_loss_and_its_gradient_to_every",
    "mesh.data": "training/test_parallel.py::test_more_devices_than_there_are_is_refused",
    "mesh.space": "training/test_parallel.py::test_a_mesh_that_does_not_divide_batch_or_depth",
    "inference.batch_size": "inference/test_sliding_window.py::test_a_voxelwise_network_gives_each",
    "inference.choose": "evaluation/test_scoring.py::test_what_scores_best_on_the_given_cases_is",
    "study.planner": "studies/test_grid.py::test_what_is_left_to_the_plan_is_planned_once",
    "study.gpu_memory_gb": "studies/test_grid.py::test_what_is_left_to_the_plan_is_planned_once",
    "study.title": "reporting/test_page.py::test_the_page_opens_from_disk_without_network_or_error",
    "study.note": "test_study.py::test_every_table_says_which_data_is_synthetic_though_the_note",
}
"""What takes a run or data to see, by the test that does."""

SAME_AS = dict.fromkeys(
    (
        "study.raw.covid19",
        "study.raw.structseg_gtv",
        "study.raw.nsclc_effusion",
        "study.raw.nnunet",
    ),
    "study.raw.msd_lung",
)


def leaves(settings, prefix=""):
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def changed(config, name, value):
    first, _, rest = name.partition(".")
    value = changed(getattr(config, first), rest, value) if rest else value
    return dataclasses.replace(config, **{first: value})


def test_every_setting_is_in_a_table():
    tables = (SEEN, SEEN_BY, SAME_AS)
    assert sorted(name for table in tables for name in table) == sorted(leaves(Config()))


@pytest.mark.parametrize("name", SEEN)
def test_another_value_changes_what_the_setting_is_for(name):
    config, value, seen = SEEN[name]
    other = changed(config, name, value)
    validate(other)
    before, after = unchanged(seen, CONFIGS.index(config)), seen(other)
    if seen is scores:
        before, after = before.tolist(), after.tolist()
    assert before != after


@pytest.mark.parametrize("name", SEEN_BY)
def test_the_test_that_sees_it_is_there(name):
    file, _, test = SEEN_BY[name].partition("::")
    assert re.search(rf"^def {test}", (ROOT / "tests" / file).read_text(), re.MULTILINE)


PASSED_OVER = [
    (tiny(source="msd"), {}, "config.source='msd': scratch starts from nothing"),
    (BASE, {"frozen_schedule": ((2, "encoder"),)}, "this run has the epochs 0 to 1"),
    (BASE, {"frozen_schedule": ((-1, "encoder"),)}, "this run has the epochs 0 to 1"),
    (BASE, {"inference.choose": True, "inference.threshold": 0.3}, "leave them out"),
    (BASE, {"inference.choose": True, "inference.largest_only": True}, "leave them out"),
    (BASE, {"inference.choose": True, "test": False}, "is done with the test"),
    (BASE, {"study.raw.phantom_lesions": (("msd", "covid19"),)}, "msd is no synthetic dataset"),
    (
        BASE,
        {"study.raw.msd_lung": "raw", "study.raw.phantom_lesions": (("msd_lung", "covid19"),)},
        "msd_lung is no synthetic dataset",
    ),
]


@pytest.mark.parametrize(("config", "changes", "message"), PASSED_OVER)
def test_what_a_run_would_pass_over_is_refused(config, changes, message):
    for name, value in changes.items():
        config = changed(config, name, value)
    with pytest.raises(UserError, match=re.escape(message)):
        validate(config)


def test_pretraining_may_choose_nothing_though_the_study_does():
    pretraining = tiny("pretraining-msd")
    validate(changed(pretraining, "inference.choose", True))
