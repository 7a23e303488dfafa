"""What a folder holds: scans by name, and what is not taken, said."""

import os
import shutil

import nibabel as nib
import numpy as np
import pytest

from covid_jax.data.scans import files_in, masks_in, refuse_among, scans_in
from covid_jax.errors import UserError


def scan(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4)).to_filename(path)
    return path


def empty(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("a.nii.gz", "a"),
        ("B.NII.GZ", "B"),
        ("c.2.v3.nii", "c.2.v3"),
        ("d_0000.nii.gz", "d"),
        ("d_0001.nrrd", "d_0001"),
        ("päti ent #1%20.Mha", "päti ent #1%20"),
        ("_0000.nii", "_0000"),
    ],
)
def test_a_case_has_the_name_of_its_file_without_ending_and_first_channel(tmp_path, file, name):
    empty(tmp_path / file)
    assert list(scans_in(tmp_path).paths) == [name]


def test_everything_that_is_not_taken_is_counted_and_named(tmp_path):
    for name in ("a.nii.gz", "a_probability_1.nii.gz", "b_0000.nii.gz", "m.mhd"):
        empty(tmp_path / name)
    for name in ("._a.nii.gz", ".DS_Store", "m.raw", "notes.txt", "slice.dcm", "x.img"):
        empty(tmp_path / name)
    (tmp_path / "series").mkdir()
    found = files_in(tmp_path)
    assert list(found.paths) == ["a", "b_0000", "m"]
    assert sorted(line.removeprefix(f"{tmp_path}: ") for line in found.left_out) == [
        "1 not taken, a folder: series",
        "1 not taken, probabilities of a mask beside them: a_probability_1.nii.gz",
        "2 not taken, hidden: .DS_Store, ._a.nii.gz",
        "3 not taken, by its ending no scan: notes.txt, slice.dcm, x.img",
    ]


@pytest.mark.parametrize(
    "names",
    [("a.nii", "a.nii.gz"), ("a.nrrd", "a.NII.GZ"), ("a_0000.nii.gz", "a.nii.gz")],
)
def test_two_files_of_one_case_are_refused_by_name(tmp_path, names):
    for name in names:
        empty(tmp_path / name)
    with pytest.raises(UserError, match="both of the case a; keep one") as refused:
        scans_in(tmp_path)
    assert all(name in str(refused.value) for name in names)


def test_a_folder_without_a_scan_says_what_is_there(tmp_path):
    empty(tmp_path / "scan.img")
    with pytest.raises(UserError, match=r"no scan in it.*1 not taken, .*scan\.img"):
        scans_in(tmp_path)


def test_masks_among_their_scans_are_refused_whatever_leads_there(tmp_path, lidc_series):
    scans = [scan(tmp_path / "scans" / "a.nii.gz")]
    (tmp_path / "link").symlink_to(tmp_path / "scans")
    (tmp_path / "linked").mkdir()
    linked = tmp_path / "linked" / "a.nii.gz"
    linked.symlink_to(scans[0])
    series = [lidc_series]
    for output, inputs in (
        ("scans", scans),
        ("scans/../scans", scans),
        ("link", scans),
        ("scans", [linked]),
        ("linked", [linked]),
        (lidc_series, series),
        (lidc_series / "masks", series),
        (lidc_series.parent, series),
    ):
        with pytest.raises(UserError, match=r"--output_dir=.*give a folder of its own"):
            refuse_among(tmp_path / output, inputs)
    refuse_among(tmp_path / "masks", scans)
    refuse_among(tmp_path / "scans" / "masks", scans)
    refuse_among(lidc_series.parent.parent, series)
    assert os.listdir(tmp_path / "scans") == ["a.nii.gz"]


def test_numbered_scans_are_scans_and_not_channels_of_one(tmp_path):
    for index in range(3):
        empty(tmp_path / f"case_000{index}.nii.gz")
    empty(tmp_path / "other_0000.nii.gz")
    found = scans_in(tmp_path)
    assert list(found.paths) == ["case_0000", "case_0001", "case_0002", "other"]
    assert any("taken as scans, not as channels of one: case_0000" in x for x in found.left_out)


def test_masks_meet_references_by_their_whole_names_first(tmp_path):
    for name in ("case_0000", "case_0001", "short_0000"):
        empty(tmp_path / "p" / f"{name}.nii.gz")
    for name in ("case_0000", "case_0001", "short"):
        empty(tmp_path / "t" / f"{name}.nii.gz")
    masks, truths = masks_in(tmp_path / "p", tmp_path / "t")
    assert masks.keys() == truths.keys() == {"case_0000", "case_0001", "short"}


def test_a_folder_may_hold_files_and_series(tmp_path, lidc_series):
    scan(tmp_path / "a.nii.gz")
    (tmp_path / "patient").symlink_to(lidc_series)
    (tmp_path / "notes").mkdir()
    found = scans_in(tmp_path)
    assert list(found.paths) == ["a", "patient"]
    assert [line for line in found.left_out if "notes" in line]
    scan(tmp_path / "patient.nii.gz")
    with pytest.raises(UserError, match="both of the case patient"):
        scans_in(tmp_path)


def test_masks_never_go_among_the_slices_that_a_link_in_a_scan_leads_to(tmp_path, lidc_series):
    archive = tmp_path / "archive"
    shutil.copytree(lidc_series, archive)
    (tmp_path / "scans" / "case").mkdir(parents=True)
    (tmp_path / "scans" / "case" / "series").symlink_to(archive)
    with pytest.raises(UserError, match="give a folder of its own"):
        refuse_among(archive, [tmp_path / "scans" / "case"])
