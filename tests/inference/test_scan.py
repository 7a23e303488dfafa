"""Runs as predictors: what is averaged over several, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from covid_jax.config import Config, DataConfig, InferenceConfig, UNetConfig
from covid_jax.data.geometry import from_spacing
from covid_jax.data.normalization import ct
from covid_jax.data.plan import Plan
from covid_jax.data.preprocess import gathered, prepare_case
from covid_jax.errors import UserError
from covid_jax.inference.scan import make_ensemble, make_scorer
from covid_jax.model.unet import UNet
from covid_jax.training.platform import platform_of
from tests.networks import assert_near

NETWORK = UNetConfig(
    features_per_stage=(2, 4),
    kernel_sizes=((1, 3, 3), (3, 3, 3)),
    strides=((1, 1, 1), (2, 2, 2)),
    n_conv_per_stage=(1, 1),
    n_conv_per_stage_decoder=(1,),
)
PLAN = Plan((1.0, 1.0, 1.0), (ct(-1000.0, 200.0, -500.0, 250.0),), (4, 8, 8), ())
CPU = platform_of("cpu")


@pytest.fixture(scope="module")
def case():
    voxels = np.random.default_rng(0).normal(-500, 300, (4, 8, 8)).astype(np.float32)
    return prepare_case(from_spacing(voxels, (1.0, 1.0, 1.0)), None, PLAN)


def run(seed, average):
    config = Config(
        model=NETWORK,
        data=DataConfig(patch_size=(4, 8, 8)),
        inference=InferenceConfig(average=average, batch_size=1),
    )
    params = UNet(NETWORK).init(jax.random.key(seed), jnp.zeros((1, 4, 8, 8, 1)))["params"]
    return config, PLAN, params


def test_runs_are_averaged_in_what_each_of_them_averages(case):
    """One window on the scan's own grid, so scores and probabilities are simply related."""
    for average, kinds in (("logits", ("logits",) * 2), ("both", ("logits", "probabilities"))):
        runs = [run(seed, kind) for seed, kind in enumerate(kinds)]
        scores = [
            np.concatenate(list(make_scorer(c, p, False, CPU)(case.image))) for c, _, p in runs
        ]
        if average == "logits":
            expected = special.softmax((scores[0] + scores[1]) / 2, axis=-1)
        else:
            expected = (special.softmax(scores[0], axis=-1) + scores[1]) / 2
        ours = gathered(make_ensemble(runs, False, CPU)(case), case.geometry)
        assert_near(np.moveaxis(ours, 0, -1), expected, 1e-6)


def test_a_network_that_was_trained_without_mirroring_is_not_mirrored():
    config, _, params = run(0, "logits")
    config.inference = dataclasses.replace(config.inference, mirror_axes=())
    with pytest.raises(UserError, match="without --mirror"):
        make_scorer(config, params, True, CPU)
