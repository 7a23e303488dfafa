"""Volumes that come and go in slabs are resampled as whole ones are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covid_jax.data import resample as module
from covid_jax.data.plan import Resampling
from covid_jax.data.resample import resample, resample_planes

SIZES = st.tuples(*[st.integers(1, 12)] * 3)
SPACINGS = st.tuples(*[st.sampled_from([0.7, 1.0, 1.3, 5.0])] * 3)
HOW = st.sampled_from(
    [
        Resampling(0),
        Resampling(1),
        Resampling(1, separate=False),
        Resampling(1, separate=True),
        Resampling(3),
        Resampling(1, coarse_order=1),
    ]
)


@pytest.fixture(autouse=True)
def small_slabs(monkeypatch):
    """So that a few planes leave at once."""
    monkeypatch.setattr(module, "_SLAB_BYTES", 3000)


@settings(max_examples=150)
@given(SIZES, SIZES, SPACINGS, SPACINGS, HOW, st.integers(1, 13))
def test_slabs_of_any_thickness_give_what_the_whole_gives(shape, size, before, after, how, cut):
    volume = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
    expected = np.stack([resample(channel, size, before, after, how) for channel in volume])
    slabs = (volume[:, at : at + cut] for at in range(0, shape[0], cut))
    ours = np.concatenate(list(resample_planes(slabs, shape, size, before, after, how)), axis=1)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-6 * np.abs(volume).max())


def test_planes_leave_before_all_have_come():
    come = []

    def slabs():
        for at in range(100):
            come.append(at)
            yield np.full((2, 1, 8, 8), at, np.float32)

    way = (2.0, 1.0, 1.0), (1.0, 0.5, 0.5)
    planes = resample_planes(slabs(), (100, 8, 8), (200, 16, 16), *way, Resampling(1))
    next(planes)
    assert len(come) < 5
