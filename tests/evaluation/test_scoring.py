"""What is tried on a run's training cases before its test."""

import dataclasses

import numpy as np

from covid_jax.config import InferenceConfig, UNetConfig
from covid_jax.data.phantom import write_raw_dataset
from covid_jax.data.plan import load_plan, save_plan
from covid_jax.data.preparation import prepare_dataset
from covid_jax.data.store import load_dataset
from covid_jax.evaluation.scoring import choose, score_run
from covid_jax.inference.postprocess import Postprocessing
from covid_jax.training.platform import platform_of, with_dtype
from covid_jax.training.state import new_params
from covid_jax.transfer.strategies import network_of
from tests.conftest import tiny


def probabilities(lesion):
    return np.stack([1 - lesion, lesion])


def test_what_scores_best_on_the_given_cases_is_chosen_and_the_plainest_of_equals():
    truth = np.zeros((6, 6, 6), np.uint8)
    truth[1:4, 1:4, 1:4] = 1
    timid = probabilities(truth * 0.35)
    assert choose([(timid, truth)]) == Postprocessing(threshold=0.2)
    stray = truth * 0.9
    stray[5, 5, 5] = 0.9
    assert choose([(probabilities(stray), truth)]) == Postprocessing(largest_only=True)
    assert choose([(probabilities(truth * 0.9), truth)]) == Postprocessing()


def test_settings_are_chosen_by_references_on_the_grid_of_the_probabilities(tmp_path):
    """The plan sees the files' axes, and each case's file has other ones."""
    write_raw_dataset("phantom", tmp_path / "raw", 4, seed=0)
    prepare_dataset("phantom", tmp_path / "raw", tmp_path / "out")
    plan = dataclasses.replace(load_plan(tmp_path / "out" / "plan.json"), file_axes=True)
    save_plan(tmp_path / "out" / "plan.json", plan)
    prepare_dataset("phantom", tmp_path / "raw", tmp_path / "out")
    dataset = load_dataset(tmp_path / "out", "phantom", plan.hash)
    config = tiny(inference=InferenceConfig(choose=True))
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, patch_size=(16, 16, 16)),
        model=UNetConfig(
            features_per_stage=(2, 2),
            kernel_sizes=((1, 1, 1),) * 2,
            strides=((1, 1, 1), (2, 2, 2)),
            n_conv_per_stage=(1, 1),
            n_conv_per_stage_decoder=(1,),
        ),
    )
    platform = platform_of("cpu")
    network = network_of(with_dtype(config, platform), platform.form)
    params = new_params(network, 0, (1, 16, 16, 16, 1))
    metrics = score_run(config, plan, dataset, params, tmp_path / "run", platform)
    assert set(metrics["cases"]) == set(dataset.split(0).test)
    assert (tmp_path / "run" / "postprocessing.json").is_file()
