"""What a run begins with."""

import jax
import numpy as np

from covid_jax.model.unet import UNet
from covid_jax.training.state import new_params
from tests.conftest import tiny


def flat(seed, fold):
    config = tiny()
    shape = (1, *config.data.patch_size, 1)
    leaves = jax.tree.leaves(new_params(UNet(config.model), seed, shape, fold))
    return np.concatenate([leaf.ravel() for leaf in leaves])


def test_seeds_and_folds_draw_parameters_of_their_own():
    drawn = [flat(seed, fold) for seed in (0, 1) for fold in (0, 1, 2)]
    assert not any(np.array_equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])
    assert np.array_equal(flat(1, 2), drawn[-1])
