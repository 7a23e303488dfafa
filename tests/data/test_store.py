"""Prepared cases on disk: whole or absent."""

import dataclasses
import json
import os
import shutil

import nibabel as nib
import numpy as np
import pytest

from covid_jax.data import store
from covid_jax.data.normalization import ct
from covid_jax.data.phantom import make_phantom, write_raw_dataset
from covid_jax.data.plan import Plan
from covid_jax.data.preparation import prepare_dataset
from covid_jax.data.preprocess import PreparedCase, as_volume, prepare_case
from covid_jax.data.store import (
    digests,
    facts_of,
    load_case,
    load_dataset,
    open_case,
    remove_case,
    save_case,
)
from covid_jax.data.volume import read_volume, write_volume
from covid_jax.errors import UserError
from covid_jax.stopping import StoppedError

PLAN = Plan((5.0, 3.0, 3.0), (ct(-1000.0, 200.0, -500.0, 250.0),), (36, 104, 128), ("a",))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    write_raw_dataset("phantom", folder / "raw", 3, seed=0)
    prepare_dataset("phantom", folder / "raw", folder / "prepared")
    return folder


def test_a_case_comes_back_as_it_was_prepared(tmp_path):
    image, label = make_phantom("msd_lung", 0, 0)
    case = prepare_case(image, label, PLAN)
    folder = tmp_path / "msd_lung"
    save_case(folder, "lung_001", case, label, {"plan": PLAN.hash})
    assert facts_of(folder)["lung_001"]["plan"] == PLAN.hash
    remove_case(folder, "lung_001")
    assert facts_of(folder) == {}
    assert not list((folder / "references").iterdir())


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null"])
def test_a_damaged_case_or_dataset_is_told_in_one_line(prepared, tmp_path, text):
    plan_hash = json.loads((prepared / "prepared" / "phantom" / "dataset.json").read_text())["plan"]
    shutil.copytree(prepared / "prepared", tmp_path / "copy")
    folder = tmp_path / "copy" / "phantom"
    (folder / "cases" / "phantom_001" / "case.json").write_text(text)
    assert facts_of(folder)["phantom_001"] == {}
    dataset = load_dataset(tmp_path / "copy", "phantom", plan_hash)
    with pytest.raises(UserError, match=r"phantom_001.*prepare the data again"):
        load_case(dataset, "phantom_001")
    with pytest.raises(UserError, match=r"case\.json.*prepare the data again"):
        digests(dataset)
    (folder / "dataset.json").write_text(text)
    with pytest.raises(UserError, match=r"dataset\.json: damaged; prepare the data again"):
        load_dataset(tmp_path / "copy", "phantom", plan_hash)


@pytest.fixture
def saved(tmp_path):
    """A NIfTI-2 scan in micron with an axis of one behind, and the folder of its stored case."""
    scan = tmp_path / "scan.nii"
    image = nib.Nifti2Image(np.full((6, 5, 4, 1), -500, np.int16), np.diag([3e3, 2e3, -5e3, 1]))
    image.header.set_xyzt_units("micron")
    image.to_filename(scan)
    volume = read_volume(scan)
    label = dataclasses.replace(volume, voxels=(volume.voxels > 0).astype(np.uint8))
    case = prepare_case(volume, label, PLAN)
    save_case(tmp_path / "dataset", "scan", case, label, {"plan": PLAN.hash})
    return scan, tmp_path / "dataset" / "cases" / "scan"


def test_a_mask_of_a_stored_case_says_what_the_header_of_its_scan_said(saved, tmp_path):
    scan, folder = saved
    geometry = open_case(folder, verified=True).geometry
    write_volume(tmp_path / "mask.nii", as_volume(np.ones(geometry.shape, np.uint8), geometry))
    mask, theirs = nib.load(tmp_path / "mask.nii"), nib.load(scan)
    assert type(mask) is nib.Nifti2Image
    assert mask.shape == theirs.shape
    for field in read_volume(scan).header.fields:
        np.testing.assert_array_equal(mask.header[field], theirs.header[field], field)


def test_a_case_from_before_headers_were_kept_opens_with_its_digest(saved):
    _, folder = saved
    facts = json.loads((folder / "case.json").read_text())
    del facts["geometry"]["header"]
    arrays = (np.load(folder / f"{name}.npy") for name in ("image", "label", "foreground"))
    facts["sha256"] = store._digest(facts["geometry"], *arrays)
    (folder / "case.json").write_text(json.dumps(facts))
    now = open_case(folder, verified=True).geometry
    assert now.header is None
    assert now.shape == (4, 5, 6)


def test_a_stored_case_has_its_foreground_and_its_reference(prepared):
    plan_hash = json.loads((prepared / "prepared" / "phantom" / "dataset.json").read_text())["plan"]
    dataset = load_dataset(prepared / "prepared", "phantom", plan_hash)
    assert dataset.synthetic
    for name in (*dataset.splits[0].train, *dataset.splits[0].test):
        case = load_case(dataset, name)
        assert isinstance(case.image, np.memmap)
        (lesion,) = case.foreground
        assert (case.label[tuple(lesion.T)] == 1).all()
        reference = read_volume(dataset.references / f"{name}.nii.gz")
        raw = read_volume(prepared / "raw" / "labelsTr" / f"{name}.nii.gz")
        np.testing.assert_array_equal(reference.voxels, raw.voxels)
        np.testing.assert_array_equal(reference.affine, raw.affine)


def test_preparing_again_keeps_what_is_done(prepared):
    case = prepared / "prepared" / "phantom" / "cases" / "phantom_000" / "image.npy"
    before = case.stat().st_mtime_ns
    prepare_dataset("phantom", prepared / "raw", prepared / "prepared")
    assert case.stat().st_mtime_ns == before


def test_what_a_system_leaves_in_folders_is_no_part_of_the_data(prepared, tmp_path):
    shutil.copytree(prepared / "prepared", tmp_path / "prepared")
    cases = tmp_path / "prepared" / "phantom" / "cases"
    for name in ("@eaDir", "phantom_001/.DS_Store", "phantom_001/._image.npy"):
        (cases / name).touch()
    assert facts_of(tmp_path / "prepared" / "phantom").keys() == {
        f"phantom_{number:03}" for number in range(3)
    }


def test_data_of_another_plan_is_refused(prepared):
    with pytest.raises(UserError, match="another plan"):
        load_dataset(prepared / "prepared", "phantom", "another")


def test_a_dataset_that_is_not_prepared_is_refused_with_the_command(prepared):
    with pytest.raises(UserError, match=r"covid_jax\.prepare --dataset=covid19"):
        load_dataset(prepared / "prepared", "covid19", "any")


def test_a_fold_that_is_not_there_is_refused(prepared):
    plan_hash = json.loads((prepared / "prepared" / "phantom" / "dataset.json").read_text())["plan"]
    with pytest.raises(UserError, match="folds 0 to 2"):
        load_dataset(prepared / "prepared", "phantom", plan_hash).split(7)


def test_a_stop_between_the_reference_and_its_case_leaves_no_case(saved, monkeypatch):
    _, folder = saved
    case, reference = open_case(folder), read_volume(folder.parents[1] / "references/scan.nii.gz")

    def stop(*written):
        write_volume(*written)
        raise StoppedError

    monkeypatch.setattr(store, "write_volume", stop)
    other = dataclasses.replace(reference, voxels=1 - reference.voxels)
    prepared = PreparedCase(np.array(case.image), np.array(case.label), case.geometry)
    with pytest.raises(StoppedError):
        save_case(folder.parents[1], "scan", prepared, other, {"plan": PLAN.hash})
    assert facts_of(folder.parents[1]) == {}


@pytest.mark.parametrize("how", ["another", "missing"])
def test_no_test_is_scored_against_another_reference(prepared, tmp_path, how):
    plan_hash = json.loads((prepared / "prepared" / "phantom" / "dataset.json").read_text())["plan"]
    shutil.copytree(prepared / "prepared", tmp_path / "copy")
    dataset = load_dataset(tmp_path / "copy", "phantom", plan_hash)
    path = dataset.reference("phantom_001")
    if how == "another":
        shutil.copy(dataset.reference("phantom_000"), path)
    else:
        path.unlink()
    with pytest.raises(UserError, match=r"phantom_001\.nii\.gz: is not the label that prepare"):
        load_case(dataset, "phantom_001")
    of_case = dataset.folder / "cases" / "phantom_001" / "case.json"
    facts = json.loads(of_case.read_text())
    del facts["reference"]  # as before references had digests
    of_case.write_text(json.dumps(facts))
    assert load_case(dataset, "phantom_001").label.any()
    assert digests(dataset)["phantom_001"].reference == ""


def test_folds_of_a_damaged_dataset_are_told_in_one_line(tmp_path):
    assert store.folds_of(tmp_path) == ()
    for fold in ("3", "{}", '{"train": []}', '{"train": [], "test": ["../../x"]}'):
        (tmp_path / "dataset.json").write_text(f'{{"splits": [{fold}]}}')
        with pytest.raises(UserError, match=r"dataset\.json: damaged; delete it"):
            store.folds_of(tmp_path)


def test_a_full_disk_is_one_line_and_leaves_no_case(small_disk):
    image, label = make_phantom("msd_lung", 0, 0)
    case = prepare_case(image, label, PLAN)
    with pytest.raises(UserError, match="the disk is full"):
        save_case(small_disk / "msd_lung", "lung_001", case, label, {"plan": PLAN.hash})
    assert os.listdir(small_disk / "msd_lung" / "cases") == []
    assert facts_of(small_disk / "msd_lung") == {}
