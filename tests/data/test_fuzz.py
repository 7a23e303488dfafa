"""Damaged files: a clear error or a right result, never a crash, a hang, or memory run wild.

The files are small real ones; each input is one of them cut short, with bits flipped, with a
header that lies about its size, or with anything else in one of its header's fields.
"""

import gzip
import re
import shutil
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from covid_jax.data.geometry import Volume, from_spacing
from covid_jax.data.volume import read_volume, write_volume
from covid_jax.errors import UserError

SHAPE = (6, 20, 24)
SLACK = 48 << 20  # for what a library loads when it is first used
TEXT = (".nrrd", ".mha", ".mhd")
FORMATS = (".nii", ".nii.gz", *TEXT)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, lidc_series):
    """A sound file of each format, and a series of four DICOM slices."""
    folder = tmp_path_factory.mktemp("fuzz")
    rng = np.random.default_rng(0)
    volume = from_spacing(rng.integers(-1000, 400, SHAPE).astype(np.int16), (2.0, 1.0, 1.0))
    for suffix in FORMATS:
        write_volume(folder / f"scan{suffix}", volume)
    (folder / "series").mkdir()
    for file in sorted(lidc_series.iterdir())[:4]:
        header = pydicom.dcmread(file)
        header.PixelData = header.pixel_array[:32, :32].tobytes()
        header.Rows = header.Columns = 32
        header.save_as(folder / "series" / file.name)
    return folder


@pytest.fixture(scope="module")
def honest(whole):
    """What the sound ones read as; reading them also loads what the readers need."""
    names = (*(f"scan{suffix}" for suffix in FORMATS), "series")
    return {name: read_volume(whole / name) for name in names}


def memory_of(run):
    """What `run` returns, and the bytes by which the process grew at most meanwhile."""
    Path("/proc/self/clear_refs").write_text("5")
    before = high_water()
    result = run()
    return result, high_water() - before


def high_water():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError


def read(path):
    try:
        return read_volume(path)
    except UserError as error:
        return error


def check(path, size):
    found, grown = memory_of(lambda: read(path))
    assert grown < 4 * size + SLACK
    if isinstance(found, UserError):
        message = str(found)
        assert str(path) in message
        assert "\n" not in message
    else:
        assert isinstance(found, Volume)
        assert found.voxels.ndim == 3
        assert np.isfinite(found.spacing_mm).all()
        assert (found.spacing_mm > 0).all()


def damaged(content, cut, flips):
    """`content` without its end, and with some bits flipped; both are shares of its length."""
    content = bytearray(content[: len(content) - int(cut * len(content))])
    for place, bit in flips:
        if content:
            content[int(place * len(content)) % len(content)] ^= 1 << bit
    return bytes(content)


share = st.floats(0, 1, exclude_max=True)
flips = st.lists(st.tuples(st.one_of(share, st.floats(0, 0.05)), st.integers(0, 7)), max_size=6)
cuts = st.one_of(st.just(0.0), share)
often = settings(max_examples=100, deadline=10_000, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("suffix", FORMATS)
@often
@given(cut=cuts, flips=flips)
def test_a_damaged_file_is_refused_or_read(whole, honest, suffix, cut, flips):
    path = whole / f"damaged{suffix}"
    path.write_bytes(damaged((whole / f"scan{suffix}").read_bytes(), cut, flips))
    check(path, path.stat().st_size)
    path.unlink()


@often
@given(dims=st.tuples(*[st.integers(-32768, 32767)] * 3), compress=st.booleans())
def test_a_header_that_lies_about_its_size_allocates_no_more(whole, honest, dims, compress):
    content = bytearray((whole / "scan.nii").read_bytes())
    struct.pack_into("<3h", content, 42, *dims)
    path = whole / f"lying.nii{'.gz' if compress else ''}"
    path.write_bytes(gzip.compress(bytes(content)) if compress else bytes(content))
    check(path, len(content))
    path.unlink()


WHOLE_NUMBERS = st.sampled_from([0, 1, -1, 7, 8, 255, 32767, -32768, 2**31 - 1, -(2**31)])
NUMBERS = st.sampled_from([0.0, -1.0, 1e-38, 1e38, 1e3, np.nan, np.inf, -np.inf])
WORDS = ["", "0", "-1", "nan", "inf", "1e39", "9999999999", "none", "(0,0,0)", "LIST", "%d", "x"]


@often
@given(
    field=st.sampled_from(nib.nifti1.header_dtype.names),
    place=share,
    whole_number=WHOLE_NUMBERS,
    number=NUMBERS,
)
def test_any_number_in_a_field_of_nifti_is_refused_or_read(
    whole, honest, field, place, whole_number, number
):
    content = bytearray((whole / "scan.nii").read_bytes())
    kind = nib.nifti1.header_dtype[field].base
    if kind.kind in "iuf":
        values = np.frombuffer(content, nib.nifti1.header_dtype, 1)[field].reshape(-1)
        odd = number if kind.kind == "f" else np.array(whole_number)
        values[int(place * values.size)] = np.asarray(odd).astype(kind)
    path = whole / "odd.nii"
    path.write_bytes(content)
    check(path, len(content))
    path.unlink()


@pytest.mark.parametrize("suffix", TEXT)
@often
@given(place=share, word=st.sampled_from(WORDS))
def test_any_word_in_a_header_of_lines_is_refused_or_read(whole, honest, suffix, place, word):
    content = (whole / f"scan{suffix}").read_bytes()
    words = list(re.finditer(rb"[^ \n]+", content[:400].split(b"LOCAL")[0].split(b"\n\n")[0]))
    start, end = words[int(place * len(words))].span()
    path = whole / f"odd{suffix}"
    path.write_bytes(content[:start] + word.encode() + content[end:])
    check(path, len(content))
    path.unlink()


@often
@given(which=st.integers(0, 3), cut=cuts, flips=flips)
@example(which=0, cut=0.85546875, flips=[(0.2265625, 0)])  # a length that its type cannot have
def test_a_damaged_slice_is_refused_or_read(whole, honest, which, cut, flips):
    folder = whole / "damaged_series"
    shutil.copytree(whole / "series", folder)
    try:
        file = sorted(folder.iterdir())[which]
        file.write_bytes(damaged(file.read_bytes(), cut, flips))
        check(folder, sum(f.stat().st_size for f in folder.iterdir()))
    finally:
        shutil.rmtree(folder)


def test_the_sound_ones_read_as_they_were(honest):
    names = [f"scan{suffix}" for suffix in FORMATS]
    for name in names[1:]:
        np.testing.assert_array_equal(honest[name].voxels, honest[names[0]].voxels)
    assert honest["series"].voxels.shape == (4, 32, 32)
