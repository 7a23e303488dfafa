"""How the values of a channel become what a network sees."""

import numpy as np
import pytest

from covid_jax.data.normalization import (
    CT,
    SCHEMES,
    Z_SCORE,
    Normalization,
    channel_of,
    ct,
    normalized,
    scheme_of,
)
from covid_jax.errors import UserError

VOXELS = np.random.default_rng(0).normal(100, 30, (5, 6, 7)).clip(1, 250).astype(np.float32)


def test_a_channels_name_says_its_scheme():
    assert [scheme_of(name) for name in ("CT", "ct", "noNorm", "rescale_to_0_1")] == [
        CT,
        CT,
        "NoNormalization",
        "RescaleTo01Normalization",
    ]
    assert scheme_of("rgb_to_0_1") == "RGBTo01Normalization"
    assert {scheme_of(name) for name in ("T1", "zscore", "PET", "")} == {Z_SCORE}


def test_every_scheme_has_a_channels_name():
    assert channel_of(CT) == "CT"
    assert all(scheme_of(channel_of(scheme)) == scheme for scheme in SCHEMES)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_normalised_values_are_float32_and_the_given_ones_stay(scheme):
    before = VOXELS.copy()
    found = normalized(VOXELS, Normalization(scheme, 0, 200, 100, 30), None)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(VOXELS, before)


def test_ct_is_clipped_and_scaled_by_the_plans_statistics():
    found = normalized(np.float32([-2000, 50, 900]), ct(-900, 100, -400, 250), None)
    np.testing.assert_allclose(found, [-2, 1.8, 2], rtol=1e-6)


def test_z_scores_within_the_mask_leave_what_is_outside():
    inside = VOXELS > 100
    voxels = np.where(inside, VOXELS, 0)
    found = normalized(voxels, Normalization(Z_SCORE, use_mask_for_norm=True), inside)
    assert (found[~inside] == 0).all()
    assert abs(found[inside].mean()) < 1e-5
    assert abs(found[inside].std() - 1) < 1e-5


def test_a_constant_channel_stays_finite():
    for scheme in SCHEMES:
        flat = np.full((2, 2, 2), 7, np.float32)
        assert np.isfinite(normalized(flat, Normalization(scheme), None)).all()


@pytest.mark.parametrize("value", [-1, 256])
def test_what_is_no_rgb_is_refused(value):
    with pytest.raises(UserError, match="are no RGB, 0 to 255"):
        normalized(np.float32([0, value]), Normalization("RGBTo01Normalization"), None)
