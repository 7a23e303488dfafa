"""Phantoms: deterministic, labelled synthetic, with lesions inside the body."""

import numpy as np
import pytest

from covid_jax.data.phantom import LESIONS, make_phantom, write_raw_dataset
from covid_jax.data.raw import SYNTHETIC_MARKER
from covid_jax.errors import UserError

DATASETS = [name for name in LESIONS if name != "mirage"]
COARSE = (9.0, 6.0, 6.0)


@pytest.mark.parametrize("kind", DATASETS)
def test_the_same_seed_makes_the_same_scan_and_another_does_not(kind):
    image, label = make_phantom(kind, 0, 1, COARSE)
    again, _ = make_phantom(kind, 0, 1, COARSE)
    other, _ = make_phantom(kind, 1, 1, COARSE)
    np.testing.assert_array_equal(image.voxels, again.voxels)
    assert not np.array_equal(image.voxels, other.voxels)
    assert label.voxels.any()


@pytest.mark.parametrize("kind", DATASETS)
def test_a_phantom_is_a_chest_in_hu(kind):
    image, label = make_phantom(kind, 0, 0)
    assert image.voxels.dtype == np.int16
    assert image.voxels.min() < -950
    assert image.voxels.max() > 300
    lesion = image.voxels[label.voxels == 1]
    assert -700 < lesion.mean() < 150
    assert 0.0001 < label.voxels.mean() < 0.2


def test_a_dataset_can_have_another_ones_lesions_in_its_own_patients():
    own, _ = make_phantom("covid19", 0, 0)
    other, label = make_phantom("msd_lung", 0, 0, lesion="covid19")
    assert not np.array_equal(own.voxels, other.voxels)
    assert other.voxels[label.voxels == 1].mean() < -200  # ground glass, no solid tumour


def test_nothing_of_a_mirage_is_in_the_image_nor_of_the_image_in_it():
    cases = [make_phantom("msd_lung", 0, index, COARSE, "mirage") for index in range(8)]
    inside = np.concatenate([image.voxels[label.voxels == 1] for image, label in cases])
    everywhere = np.concatenate([image.voxels.ravel() for image, _ in cases])
    air, flesh = (inside < -900).mean(), (inside > -200).mean()
    assert air == pytest.approx((everywhere < -900).mean(), abs=0.25)
    assert flesh == pytest.approx((everywhere > -200).mean(), abs=0.25)


def test_a_raw_folder_of_phantoms_says_so(tmp_path):
    write_raw_dataset("phantom", tmp_path / "raw", 2, seed=0)
    assert "synthetic" in (tmp_path / "raw" / SYNTHETIC_MARKER).read_text()


def test_phantoms_never_go_into_a_folder_with_other_files(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="holds other files"):
        write_raw_dataset("phantom", tmp_path, 2, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("count", [0, 1, 100])
def test_a_number_of_cases_that_cannot_be_split_is_refused(tmp_path, count):
    with pytest.raises(UserError, match="--num_cases"):
        write_raw_dataset("msd_lung", tmp_path / "raw", count, seed=0)
