"""Values of scans: HU, or told, or refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from covid_jax.data.geometry import from_spacing
from covid_jax.data.intensities import read_as
from covid_jax.data.volume import read_volume
from covid_jax.errors import UserError


def chest(padding=None):
    """Air, lung and tissue with noise, in HU; outside of a circle the padding."""
    rng = np.random.default_rng(0)
    y, x = np.meshgrid(*[np.linspace(-1, 1, 24)] * 2, indexing="ij")
    hu = np.full((6, 24, 24), -1000.0)
    hu[:, (x / 0.9) ** 2 + (y / 0.8) ** 2 < 1] = 40
    hu[:, ((abs(x) - 0.4) / 0.3) ** 2 + (y / 0.5) ** 2 < 1] = -850
    hu = np.rint(hu + rng.normal(0, 15, hu.shape))
    if padding is not None:
        hu[:, x**2 + y**2 > 1] = padding
    return hu.astype(np.int16)


def read(voxels, told="auto"):
    return read_as(from_spacing(voxels, (1, 1, 1)), told)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int64, np.float32, np.float64])
@pytest.mark.parametrize("padding", [None, 0, -1024, -2000, -3024, -32768])
def test_a_ct_in_hu_is_taken_as_it_is_whatever_its_padding(padding, dtype):
    voxels = chest(padding).astype(dtype)
    volume, how = read(voxels)
    assert how == "as HU"
    assert volume.notes == ()
    np.testing.assert_array_equal(volume.voxels, voxels)


def padded(value):
    voxels = chest() + 1024
    outside = chest(padding=9999) == 9999
    voxels[outside] = value
    return voxels


@pytest.mark.parametrize(
    ("voxels", "looks"),
    [
        ((chest() - chest().mean()) / chest().std(), "normalised"),
        ((chest() + 1100) / 1300, "normalised"),
        (np.clip(chest() / 1100, -1, 1), "normalised"),
        (chest() + 1024, r"HU \+ 1024"),
        ((chest() + 1024).clip(0).astype(np.uint16), r"HU \+ 1024"),
        (padded(-1024), r"HU \+ 1024 with padding"),
        (padded(-2000), r"HU \+ 1024"),
        (padded(-3024), r"HU \+ 1024"),
        (chest().clip(0), "another window or modality"),
        (np.abs(chest() // 8).clip(0, 200), "another window or modality"),
        (chest() // 8, "another window or modality"),
        ((chest() + 1024).astype(np.uint64), "HU|modality"),
        (np.full((2, 2, 2), 40), "all its voxels are 40"),
        (np.where(chest() > 0, np.nan, chest()), "not finite"),
        (np.where(chest() > 0, -np.inf, chest()), "not finite"),
    ],
)
def test_what_cannot_be_hu_is_refused_with_what_it_looks_like(voxels, looks):
    with pytest.raises(UserError, match=looks):
        read(voxels)


def noisy(hu, seed=0):
    return np.rint(hu + np.random.default_rng(seed).normal(0, 15, hu.shape))


def scan(**shares):
    """A noisy scan of 20 x 30 x 40 voxels of which there is so much of each value."""
    sizes = np.cumsum([round(24_000 * share) for share in shares.values()])[:-1]
    hu = np.zeros(24_000)
    for part, name in zip(np.split(hu, sizes), shares, strict=True):
        part[:] = {"air": -1000, "fat": -100, "tissue": 40, "spongy": 300, "bone": 1000}[name]
    return noisy(hu).reshape(20, 30, 40).astype(np.int16)


KNEE = scan(air=0.35, fat=0.15, tissue=0.325, spongy=0.1, bone=0.075)
JAW = scan(air=0.25, fat=0.1, tissue=0.4, spongy=0.05, bone=0.2)
SKULL = scan(air=0.08, tissue=0.8, spongy=0.05, bone=0.07)
BRAIN = scan(tissue=1)


@pytest.mark.parametrize("voxels", [KNEE, JAW, SKULL, np.where(JAW > 1000, 3071, JAW)])
def test_much_bone_beside_air_that_was_measured_is_hu(voxels):
    for one in (voxels, voxels.clip(-1024)):
        assert read(one)[1] == "as HU"


def cut_out(voxels, value, inside=0.3):
    """The first part of a scan; all beside it has one value."""
    voxels = voxels.copy()
    voxels[int(inside * len(voxels)) :] = value
    return voxels


@pytest.mark.parametrize("padding", [-1000, -1024])
def test_a_region_cut_out_is_read_by_what_it_holds_not_by_what_surrounds_it(padding):
    body = scan(fat=0.2, tissue=0.78, spongy=0.02)
    lung = noisy(np.random.default_rng(1).normal(-850, 80, (20, 30, 40)))
    for inside in (BRAIN, body, lung):
        assert read(cut_out(inside, padding))[1] == "as HU"
        for share in (0.3, 0.05):
            with pytest.raises(UserError, match=r"HU \+ 1024 with padding below"):
                read(cut_out(inside + 1024, padding, share))


def test_edges_that_resampling_made_of_the_padding_are_no_air():
    scan_of_it = cut_out(scan(fat=0.2, tissue=0.78, spongy=0.02) + 1024, -1024).astype(float)
    with pytest.raises(UserError, match=r"HU \+ 1024 with padding below"):
        read(ndimage.zoom(scan_of_it, 1.5, order=1))


@pytest.mark.parametrize("spread", ["normal", "uniform"])
def test_what_lies_evenly_around_0_is_no_hu(spread):
    rng = np.random.default_rng(0)
    shape = (20, 30, 40)
    values = rng.normal(0, 300, shape) if spread == "normal" else rng.uniform(-4096, 4094, shape)
    values = values.clip(-1400, 1400)
    values[:5] = 0  # outside of the body
    with pytest.raises(UserError, match="a map of values around 0"):
        read(np.rint(values).astype(np.int16))


@pytest.mark.parametrize("lowest", [-450, -160])
def test_hu_of_a_window_without_air_is_called_so(lowest):
    with pytest.raises(UserError, match=f"HU of which all below {lowest} was cut off"):
        read(KNEE.clip(lowest, 400))


def test_real_scans_are_in_hu(thorax, lidc_series):
    for path in (thorax, lidc_series):
        assert read_as(read_volume(path))[1] == "as HU"


def test_8_bit_grey_is_mapped_and_said():
    grey = (np.clip((chest() + 1250) / 1500, 0, 1) * 255).astype(np.uint8)
    volume, how = read(grey)
    assert how == "as 8-bit grey mapped to -1250 ... 250 HU"
    assert np.abs(volume.voxels - chest().clip(-1250, 250)).max() < 6


def test_what_is_told_is_done():
    np.testing.assert_array_equal(read(chest() + 1024, "offset1024")[0].voxels, chest())
    for told in ("hu", "as_is"):
        np.testing.assert_array_equal(read(chest() + 1024, told)[0].voxels, chest() + 1024)
    with pytest.raises(UserError, match="no 8-bit grey"):
        read(chest(), "8bit")


@given(st.floats(0.8, 1.25), st.floats(-100, 100))
def test_a_scanner_that_is_a_little_off_still_gives_hu(scale, shift):
    assert read(chest() * scale + shift)[1] == "as HU"
