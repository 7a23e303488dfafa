"""Prepared data is what the raw data is now."""

import dataclasses
import json
import os
import shutil

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from covid_jax.data.check import changes_in, check
from covid_jax.data.findings import check_dataset
from covid_jax.data.normalization import Z_SCORE, Normalization
from covid_jax.data.phantom import write_raw_dataset
from covid_jax.data.plan import load_plan, save_plan
from covid_jax.data.planner import Planning, coarsest_first
from covid_jax.data.preparation import open_dataset, prepare_dataset
from covid_jax.data.raw import Case, Split
from covid_jax.data.store import load_case, load_dataset
from covid_jax.data.volume import files_of, read_volume, write_volume
from covid_jax.errors import UserError
from covid_jax.files import digest
from covid_jax.lock import only_here


def small_dataset(folder, count=3, seed=0):
    """Cases of nnU-Net's layout with a lesion in a little noise."""
    rng = np.random.default_rng(seed)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for index in range(count):
        image = rng.normal(-500, 200, (10, 9, 8)).astype(np.int16)
        label = np.zeros(image.shape, np.uint8)
        label[3:6, 3:6, 3:6] = 1
        save(folder / "imagesTr" / f"c{index}_0000.nii.gz", image)
        save(folder / "labelsTr" / f"c{index}.nii.gz", label)
    describe(folder, {"background": 0, "lesion": 1}, numTraining=count)
    return folder


LESION = {"background": 0, "lesion": 1}


def describe(folder, labels, **more):
    text = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz", **more}
    (folder / "dataset.json").write_text(json.dumps(text))


def save(path, voxels):
    nib.Nifti1Image(voxels, np.diag([-2.0, -2.0, 3.0, 1.0])).to_filename(path)


@pytest.fixture
def raw(tmp_path):
    return small_dataset(tmp_path / "raw")


@pytest.fixture
def prepared(raw, tmp_path, capsys):
    prepare_dataset("nnunet", raw, tmp_path / "out")
    capsys.readouterr()
    return tmp_path / "out"


def stored(prepared, name):
    dataset = load_dataset(prepared, "nnunet", load_plan(prepared / "plan.json").hash)
    return load_case(dataset, name)


def would_change(raw, prepared):
    dataset = open_dataset("nnunet", raw)
    return changes_in(dataset, prepared, check_dataset(dataset, 1), 1)


def times(prepared):
    return {
        path.parent.name: path.stat().st_mtime_ns
        for path in (prepared / "nnunet" / "cases").glob("*/image.npy")
    }


def test_what_did_not_change_is_kept(raw, prepared):
    before = times(prepared)
    prepare_dataset("nnunet", raw, prepared)
    assert times(prepared) == before


def test_a_corrected_label_is_taken_though_size_and_time_are_as_before(raw, prepared, capsys):
    path = raw / "labelsTr" / "c1.nii.gz"
    before, kept = path.stat(), times(prepared)
    label = np.asarray(nib.load(path).dataobj).copy()
    label[0, 0, 0] = 1
    save(path, label)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    prepare_dataset("nnunet", raw, prepared)
    assert stored(prepared, "c1").label.sum() == 28
    assert "c1: its label changed since it was prepared: prepared again" in capsys.readouterr().out
    changed = {name for name, time in times(prepared).items() if kept[name] != time}
    assert changed == {"c1"}


def test_a_changed_scan_is_taken_and_the_plan_that_it_made_is_named(raw, prepared, capsys):
    training = load_plan(prepared / "plan.json").training_cases[0]
    image = np.random.default_rng(9).normal(-500, 200, (10, 9, 8)).astype(np.int16)
    save(raw / "imagesTr" / f"{training}_0000.nii.gz", image)
    prepare_dataset("nnunet", raw, prepared)
    said = capsys.readouterr().out
    assert f"{training}: its image changed since it was prepared: prepared again" in said
    assert f"was made from cases that changed since ({training}) and is kept; delete it" in said


def test_other_class_names_and_another_way_to_read_are_seen(raw, prepared, capsys):
    describe(raw, {"background": 0, "tumour": 1})
    prepare_dataset("nnunet", raw, prepared)
    assert "labels ['lesion'] -> ['tumour'] changed" in capsys.readouterr().out
    before = times(prepared)
    prepare_dataset("nnunet", raw, prepared, intensities="as_is")
    assert "intensities auto -> as_is changed" in capsys.readouterr().out
    assert all(before[name] != time for name, time in times(prepared).items())


def test_a_case_that_is_gone_from_the_raw_folder_goes(raw, prepared, capsys):
    (raw / "imagesTr" / "c2_0000.nii.gz").unlink()
    prepare_dataset("nnunet", raw, prepared)
    said = capsys.readouterr().out
    assert f"c2: is not there any more in {raw}: removed" in said
    assert f"1 not taken, labels without an image in {raw / 'labelsTr'}: c2.nii.gz" in said
    assert "says numTraining" in said
    assert not (prepared / "nnunet" / "cases" / "c2").exists()
    assert not (prepared / "nnunet" / "references" / "c2.nii.gz").exists()


def test_another_dataset_of_the_same_name_is_refused_and_nothing_is_lost(prepared, tmp_path):
    other = small_dataset(tmp_path / "other", seed=1)
    before = times(prepared)
    with pytest.raises(UserError, match=r"cases of another dataset.*give another --out_dir"):
        prepare_dataset("nnunet", other, prepared)
    assert times(prepared) == before
    assert stored(prepared, "c0").image.shape


def test_a_preparation_that_stops_half_way_does_not_count_as_prepared(raw, prepared):
    label = raw / "labelsTr" / "c1.nii.gz"
    save(label, np.full((10, 9, 8), 7, np.uint8))
    with pytest.raises(UserError, match=r"c1\.nii\.gz: holds the value 7"):
        prepare_dataset("nnunet", raw, prepared)
    with pytest.raises(UserError, match=r"no such file; run python -m covid_jax.prepare"):
        stored(prepared, "c0")


def test_a_case_from_before_sources_were_kept_is_prepared_again(raw, prepared, capsys):
    path = prepared / "nnunet" / "cases" / "c0" / "case.json"
    facts = json.loads(path.read_text())
    del facts["source"]
    path.write_text(json.dumps(facts))
    prepare_dataset("nnunet", raw, prepared)
    assert "c0: nothing is known of the raw files" in capsys.readouterr().out


@pytest.mark.parametrize("out", ["raw", "raw/out", "link", "raw/../raw"])
def test_prepared_data_in_the_raw_folder_is_refused_before_anything_is_written(raw, out):
    (raw.parent / "link").symlink_to(raw)
    before = sorted(raw.rglob("*"))
    with pytest.raises(UserError, match=r"lies in .*raw, which holds inputs"):
        prepare_dataset("nnunet", raw, raw.parent / out)
    assert sorted(raw.rglob("*")) == before


def test_a_raw_folder_in_the_place_of_its_prepared_data_is_refused(tmp_path):
    raw = small_dataset(tmp_path / "out" / "nnunet")
    with pytest.raises(UserError, match=r"--out_dir=.*nnunet, which holds inputs"):
        prepare_dataset("nnunet", raw, tmp_path / "out")


def test_a_channel_is_normalised_by_its_name_and_shares_no_plan_with_another(raw, tmp_path):
    prepare_dataset("nnunet", raw, tmp_path / "ct")
    describe(raw, LESION, channel_names={"0": "T1"})
    with pytest.raises(UserError, match=r"channels \(T1\) want ZScore.*is of CTNorm.*give another"):
        prepare_dataset("nnunet", raw, tmp_path / "ct")
    with pytest.raises(UserError, match="--intensities=8bit is of CT"):
        prepare_dataset("nnunet", raw, tmp_path / "mr", intensities="8bit")
    prepare_dataset("nnunet", raw, tmp_path / "mr")
    (finding, *_) = check_dataset(open_dataset("nnunet", raw), 1)
    assert (finding.mended, finding.read_as) == ((), "as they are (no CT)")
    image = stored(tmp_path / "mr", "c1").image
    assert abs(image.mean()) < 1e-5
    assert abs(image.std() - 1) < 1e-5


def test_a_scan_of_several_channels_is_prepared_from_a_file_each(raw, tmp_path):
    describe(raw, LESION, channel_names={"0": "CT", "1": "PET"})
    with pytest.raises(UserError, match=r"c0_0001\.nii\.gz: cannot be read \(No such"):
        prepare_dataset("nnunet", raw, tmp_path / "out")
    for path in list((raw / "imagesTr").iterdir()):
        of_pet = path.name.replace("_0000", "_0001")
        save(raw / "imagesTr" / of_pet, nib.load(path).get_fdata().astype(np.int16) + 500)
    prepare_dataset("nnunet", raw, tmp_path / "out")
    case = stored(tmp_path / "out", "c1")
    assert case.image.shape == (*case.label.shape, 2)
    z_scores = case.image[..., 1]
    assert abs(z_scores.mean()) < 1e-5
    before = stored(tmp_path / "out", "c1").image.copy()
    save(raw / "imagesTr" / "c1_0001.nii.gz", np.arange(720).reshape(10, 9, 8).astype(np.int16))
    prepare_dataset("nnunet", raw, tmp_path / "out")  # the second channel is part of its source
    after = stored(tmp_path / "out", "c1").image
    np.testing.assert_array_equal(after[..., 0], before[..., 0])
    assert (after[..., 1] != before[..., 1]).any()
    save(raw / "imagesTr" / "c2_0001.nii.gz", np.zeros((10, 9, 7), np.int16))
    with pytest.raises(UserError, match=r"c2_0001\.nii\.gz: its shape .* first channel"):
        prepare_dataset("nnunet", raw, tmp_path / "out")
    (raw / "imagesTr" / "c2_0001.nii.gz").unlink()
    kept = prepare_dataset("nnunet", raw, tmp_path / "out", skip_bad=True)
    assert [case.name for case in kept.cases] == ["c0", "c1"]


def test_datasets_of_one_layout_lie_side_by_side_by_their_names(raw, tmp_path):
    other = small_dataset(tmp_path / "other", seed=1)
    for name, folder in (("a-b", raw), ("c.d", other)):
        assert prepare_dataset("nnunet", folder, tmp_path / "out", called=name).name == name
    plan = load_plan(tmp_path / "out" / "plan.json")
    assert load_dataset(tmp_path / "out", "a-b", plan.hash).name == "a-b"
    assert load_dataset(tmp_path / "out", "c.d", plan.hash).labels == ("lesion",)
    with pytest.raises(UserError, match=r"--name=\.\./x: must be a name"):
        prepare_dataset("nnunet", raw, tmp_path / "out", called="../x")


def test_folds_are_those_of_a_file_where_there_is_one(raw, tmp_path):
    folds = [{"train": ["c0"], "val": ["c2"]}]
    (raw / "splits_final.json").write_text(json.dumps(folds))
    found = open_dataset("nnunet", raw)
    assert found.splits == (Split(("c0",), ("c2",)),)
    assert any(
        "1 not taken, to train or test on, as splits_final.json has it: c1" in note
        for note in found.notes
    )
    given = tmp_path / "mine.json"
    given.write_text(json.dumps([{"train": ["c1", "c2"], "val": ["c0"]}]))
    assert open_dataset("nnunet", raw, splits=given).splits == (Split(("c1", "c2"), ("c0",)),)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is no list of folds"),
        ('{"train": []}', "is no list of folds"),
        ("[]", "has no fold"),
        ('[{"train": ["c0"]}]', "is no list of folds"),
        ('[{"train": ["c0"], "val": ["c9"]}]', "names cases that are not there: c9"),
        ('[{"train": ["c0", "c1"], "val": ["c1"]}]', "fold 0 trains and tests on c1"),
    ],
)
def test_folds_that_cannot_be_are_one_line(raw, tmp_path, text, told):
    (tmp_path / "mine.json").write_text(text)
    with pytest.raises(UserError, match=told):
        open_dataset("nnunet", raw, splits=tmp_path / "mine.json")


def test_a_plan_that_is_given_is_taken_and_no_other_is_beside_it(raw, prepared, tmp_path):
    plan = dataclasses.replace(load_plan(prepared / "plan.json"), spacing_mm=(4.0, 3.0, 2.0))
    prepare_dataset("nnunet", raw, tmp_path / "new", plan=plan)
    assert load_plan(tmp_path / "new" / "plan.json") == plan
    with pytest.raises(UserError, match="another plan than the one that is given"):
        prepare_dataset("nnunet", raw, prepared, plan=plan)


def test_what_is_read_by_no_reader_is_refused_by_its_ending(raw, tmp_path):
    describe(raw, LESION, file_ending=".png")
    with pytest.raises(UserError, match=r"its scans are \.png files, which are not read"):
        prepare_dataset("nnunet", raw, tmp_path / "out")


@pytest.mark.parametrize(
    "labels",
    [{"0": "background", "1": "lesion"}, {"background": "0", "lesion": "1"}],
    ids=["version 1", "values as text"],
)
def test_labels_are_read_from_every_form_of_dataset_json(raw, tmp_path, labels):
    describe(raw, labels)
    assert prepare_dataset("nnunet", raw, tmp_path / "out").labels == ("lesion",)


def test_images_without_the_suffix_of_their_channel_are_named(raw, tmp_path, capsys):
    (raw / "imagesTr" / "c1_0000.nii.gz").rename(raw / "imagesTr" / "c1.nii.gz")
    shutil.move(raw / "imagesTr" / "c2_0000.nii.gz", raw / "imagesTr" / "c2_0000.NII.GZ")
    raw_dataset = prepare_dataset("nnunet", raw, tmp_path / "out", skip_bad=True)
    assert "images without nnU-Net's _0000" in capsys.readouterr().out
    assert "c1" not in {case.name for case in raw_dataset.cases}


def test_synthetic_cases_whose_writing_was_stopped_are_written_again(tmp_path):
    write_raw_dataset("phantom", tmp_path / "whole", 2, seed=0)
    write_raw_dataset("phantom", tmp_path / "part", 2, seed=0)
    marker = tmp_path / "part" / "SYNTHETIC.txt"
    marker.write_text("unfinished: " + marker.read_text())
    (tmp_path / "part" / "dataset.json").unlink()
    write_raw_dataset("phantom", tmp_path / "part", 2, seed=0)
    files = {p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*.*")}
    assert files == {p.relative_to(tmp_path / "part") for p in (tmp_path / "part").rglob("*.*")}


def test_what_prepare_did_not_write_is_never_removed(raw, tmp_path):
    precious = tmp_path / "out" / "nnunet" / "cases" / "patient" / "slice.dcm"
    precious.parent.mkdir(parents=True)
    precious.write_bytes(b"precious")
    with pytest.raises(UserError, match="patient: prepare did not write this"):
        prepare_dataset("nnunet", raw, tmp_path / "out")
    assert precious.read_bytes() == b"precious"
    shutil.rmtree(precious.parents[1])
    describe(tmp_path / "out" / "nnunet", {"background": 0, "theirs": 1})
    with pytest.raises(UserError, match=r"dataset\.json: is of no prepared dataset"):
        prepare_dataset("nnunet", raw, tmp_path / "out")
    assert "theirs" in (tmp_path / "out" / "nnunet" / "dataset.json").read_text()


@pytest.mark.parametrize(
    "how",
    [
        "cut",
        "other voxels",
        "no reference",
        "another reference",
        "no facts",
        "facts of another kind",
    ],
)
def test_a_damaged_case_is_prepared_again(raw, prepared, capsys, how):
    folder = prepared / "nnunet" / "cases" / "c1"
    reference = prepared / "nnunet" / "references" / "c1.nii.gz"
    written = reference.read_bytes()
    if how == "cut":
        (folder / "image.npy").write_bytes((folder / "image.npy").read_bytes()[:-9])
    elif how == "other voxels":
        image = np.load(folder / "image.npy")
        np.save(folder / "image.npy", image + 1)
    elif how == "no reference":
        reference.unlink()
    elif how == "another reference":
        save(reference, np.zeros((10, 9, 8), np.uint8))
    elif how == "no facts":
        (folder / "case.json").unlink()
    else:
        facts = json.loads((folder / "case.json").read_text())
        (folder / "case.json").write_text(json.dumps(facts | {"geometry": 3, "source": "x"}))
    prepare_dataset("nnunet", raw, prepared)
    assert "c1: is damaged, changed or lacks a file: prepared again" in capsys.readouterr().out
    assert stored(prepared, "c1").label.sum() == 27
    assert reference.read_bytes() == written


def test_the_voxels_beside_a_header_are_of_the_raw_files_too(raw, tmp_path):
    """As are those that a linked folder of slices leads to."""
    label = raw / "labelsTr" / "c1.nii.gz"
    sitk.WriteImage(sitk.ReadImage(label), raw / "labelsTr" / "c1.mhd")
    label.unlink()
    prepare_dataset("nnunet", raw, tmp_path / "out")
    voxels = raw / "labelsTr" / "c1.raw"
    voxels.write_bytes(b"\1" + voxels.read_bytes()[1:])
    prepare_dataset("nnunet", raw, tmp_path / "out")
    assert stored(tmp_path / "out", "c1").label.sum() == 28


@pytest.mark.parametrize("name", ["scan.nrrd", "scan.mhd", "scan.nii.gz"])
def test_a_file_that_is_not_there_is_found_missing_when_it_is_read(tmp_path, name):
    assert files_of(tmp_path / name) == [tmp_path / name]
    with pytest.raises(UserError, match=f"{name}: no such file"):
        read_volume(tmp_path / name)


def test_the_files_of_a_series_are_found_through_links(tmp_path, lidc_series):
    (tmp_path / "case").mkdir()
    (tmp_path / "case" / "series").symlink_to(lidc_series)
    assert digest(files_of(tmp_path / "case")) == digest(files_of(lidc_series))


def test_check_only_tells_what_would_become_of_what_is_there(raw, prepared):
    (raw / "imagesTr" / "c2_0000.nii.gz").unlink()
    save(raw / "labelsTr" / "c1.nii.gz", np.zeros((10, 9, 8), np.uint8))
    before = times(prepared)
    changes = would_change(raw, prepared)
    assert (changes.missing, changes.removed) == (("c1",), ("c2",))
    assert times(prepared) == before


def check_only(raw, out=None, skip_bad=False):
    check("nnunet", raw, out, 0, 1, skip_bad, "auto")


def test_what_is_refused_is_not_said_to_be_prepared(raw, prepared, capsys):
    """Neither before it is refused, nor by --check_only, where it changed too."""
    for name, value in (("c0", 0), ("c1", 7)):
        save(raw / "labelsTr" / f"{name}.nii.gz", np.full((10, 9, 8), value, np.uint8))
    with pytest.raises(UserError, match=r"1 cases would be refused \(c1\)"):
        check_only(raw, prepared)
    said = capsys.readouterr().out
    assert "c1: REFUSED; " in said
    assert "c1: its label" not in said
    assert "c0: its label changed since it was prepared: prepared again" in said
    assert "1 cases would be prepared\n2 cases can be prepared" in said
    check_only(raw, prepared, skip_bad=True)
    said = capsys.readouterr().out
    assert "c1: left out; " in said
    assert f"c1: cannot be read in {raw}: removed" in said
    with pytest.raises(UserError, match="holds the value 7"):
        prepare_dataset("nnunet", raw, prepared)
    said = capsys.readouterr().out
    assert "c0: its label changed since it was prepared: prepared again" in said
    assert "c1: " not in said


def test_other_class_names_are_one_line_for_all_cases(raw, prepared, capsys):
    labels = {f"organ {i}": i for i in range(2, 100)}
    describe(raw, {"background": 0, "lesion": 1, **labels})
    prepare_dataset("nnunet", raw, prepared)
    describe(raw, {"background": 0, "tumour": 1, **labels})
    capsys.readouterr()
    prepare_dataset("nnunet", raw, prepared)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "tumour" in line)
    assert line == (
        "nnunet: labels ['lesion'] -> ['tumour'] changed since 3 cases were prepared (c0, c1, c2)"
    )


def test_folds_that_are_dealt_anew_are_told_with_who_changed_sides(raw, prepared, capsys):
    before = load_dataset(prepared, "nnunet", load_plan(prepared / "plan.json").hash).splits
    for part, name in (("imagesTr", "c{}_0000.nii.gz"), ("labelsTr", "c{}.nii.gz")):
        shutil.copy(raw / part / name.format(0), raw / part / name.format(3))
    (line,) = (line for line in would_change(raw, prepared).lines if "dealt anew" in line)
    prepare_dataset("nnunet", raw, prepared)
    assert line in capsys.readouterr().out
    after = load_dataset(prepared, "nnunet", load_plan(prepared / "plan.json").hash).splits
    for number, (old, new) in enumerate(zip(before, after, strict=False)):
        seen = sorted({*old.train} & {*new.test})
        assert (f"fold {number}: {', '.join(seen)}" in line) == bool(seen)
    prepare_dataset("nnunet", raw, prepared)
    assert "dealt anew" not in capsys.readouterr().out


def test_one_case_alone_is_refused_beforehand_too(tmp_path):
    raw = small_dataset(tmp_path / "raw", count=1)
    for start in (check_only, prepare_dataset):
        arguments = (raw,) if start is check_only else ("nnunet", raw, tmp_path / "out")
        with pytest.raises(UserError, match=r"raw: no fold .*at least two cases are needed"):
            start(*arguments)
    assert not (tmp_path / "out").exists()


def test_a_fold_without_training_cases_is_refused_with_those_that_have_some(raw, tmp_path):
    with pytest.raises(UserError, match=r"--plan_fold=7: .* of that fold, but of 0, 1, 2"):
        prepare_dataset("nnunet", raw, tmp_path / "out", plan_fold=7)


def test_a_dead_link_or_a_pipe_among_slices_is_passed_over(raw, tmp_path, lidc_series):
    """By check as by prepare, which both digest what is read."""
    series, label = tmp_path / "series", raw / "labelsTr" / "series.nii.gz"
    shutil.copytree(lidc_series, series)
    volume = read_volume(series)
    write_volume(label, dataclasses.replace(volume, voxels=np.zeros(volume.voxels.shape, np.uint8)))
    dataset = dataclasses.replace(
        open_dataset("nnunet", raw), cases=(Case("series", (series,), label),)
    )
    (before,) = check_dataset(dataset, 1)
    (series / "notes.txt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(series / "pipe")
    (after,) = check_dataset(dataset, 1)
    assert not after.refused
    assert after.mended == ("passed over (not DICOM): notes.txt, pipe",)
    assert after.digests == before.digests


def test_a_scan_that_is_too_large_for_the_plan_is_refused_by_check_too(raw, prepared, capsys):
    plan = dataclasses.replace(load_plan(prepared / "plan.json"), spacing_mm=(1e-3, 1e-3, 1e-3))
    save_plan(prepared / "plan.json", plan)
    with pytest.raises(UserError, match="3 cases would be refused"):
        check_only(raw, prepared)
    assert "is its own spacing right?" in capsys.readouterr().out


def test_two_preparations_never_make_two_plans(raw, tmp_path):
    out = tmp_path / "out"
    with (
        only_here(out, "another"),
        pytest.raises(UserError, match=r"out: a preparation that makes plan\.json is at work"),
    ):
        prepare_dataset("nnunet", raw, out)
    assert not (out / "plan.json").exists()
    prepare_dataset("nnunet", raw, out)
    with only_here(out, "another"):  # the plan is there: nothing more is made in this folder
        prepare_dataset("nnunet", raw, out)


@pytest.mark.parametrize("part", ["", "nnunet", "nnunet/cases", "nnunet/references"])
def test_no_link_leads_prepared_data_to_the_inputs(raw, tmp_path, part):
    out = tmp_path / "out" / part
    out.parent.mkdir(parents=True, exist_ok=True)
    out.symlink_to(raw / "labelsTr")
    before = {path: path.read_bytes() for path in raw.rglob("*") if path.is_file()}
    for start in (prepare_dataset, lambda _, *places: check_only(*places)):
        with pytest.raises(UserError, match=r"--out_dir=.*lies in .*, which holds inputs"):
            start("nnunet", raw, tmp_path / "out")
    assert {path: path.read_bytes() for path in raw.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("linked", ["folder", "file"])
@pytest.mark.parametrize("out", ["", "within"])
def test_nor_do_links_lead_the_inputs_to_prepared_data(raw, tmp_path, linked, out):
    """A raw folder may be of links; what these lead to is an input wherever it is."""
    images, image = raw / "imagesTr", raw / "imagesTr" / "c1_0000.nii.gz"
    away = tmp_path / "away"
    if linked == "folder":
        images.rename(away)
        images.symlink_to(away)
    else:
        away.mkdir()
        image.rename(away / image.name)
        image.symlink_to(away / image.name)
    with pytest.raises(UserError, match=r"--out_dir=.*away.*which holds inputs"):
        prepare_dataset("nnunet", raw, away / out)
    (tmp_path / "nnunet").mkdir()
    away.rename(tmp_path / "nnunet" / "x")
    away.symlink_to(tmp_path / "nnunet" / "x")
    with pytest.raises(UserError, match=r"where prepared data goes; give another --out_dir"):
        prepare_dataset("nnunet", raw, tmp_path)


def test_a_case_that_is_left_out_as_bad_is_not_said_to_be_gone(raw, prepared, capsys):
    (raw / "labelsTr" / "c1.nii.gz").write_bytes(b"bad")
    prepare_dataset("nnunet", raw, prepared, skip_bad=True)
    assert f"c1: cannot be read in {raw}: removed" in capsys.readouterr().out


def test_a_copy_beside_an_image_is_no_other_channel_of_it(raw, tmp_path, capsys):
    shutil.copy(raw / "imagesTr" / "c1_0000.nii.gz", raw / "imagesTr" / "c1_copy.nii.gz")
    prepare_dataset("nnunet", raw, tmp_path / "out")
    assert "images without nnU-Net's _0000" in capsys.readouterr().out


def test_numbered_files_without_a_channel_are_refused_in_a_dataset_of_one(raw, tmp_path):
    shutil.copy(raw / "imagesTr" / "c1_0000.nii.gz", raw / "imagesTr" / "c1_0001.nii.gz")
    with pytest.raises(UserError, match=r"c1_0001\.nii\.gz are of other channels"):
        prepare_dataset("nnunet", raw, tmp_path / "out")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"background": 0, "a": 1, "b": 1}, "one name or one value"),
        ({"0": "background", "1": "lesion", "2": "lesion"}, "one name or one value"),
        ({"background": 0, **{f"l{i}": i for i in range(1, 256)}}, "at most 253 work"),
    ],
)
def test_labels_that_would_be_lost_are_refused(raw, tmp_path, labels, message):
    describe(raw, labels)
    with pytest.raises(UserError, match=rf"dataset\.json: .*{message}"):
        prepare_dataset("nnunet", raw, tmp_path / "out")


def test_a_plan_of_other_channels_gives_its_grid_and_the_data_its_intensities(
    raw, prepared, tmp_path, capsys
):
    """As of a pre-training on two channels of MR."""
    own = load_plan(prepared / "plan.json")
    mr = (Normalization(Z_SCORE),) * 2
    given = dataclasses.replace(own, spacing_mm=(4.0, 3.0, 3.0), normalization=mr)
    for _ in range(2):  # the second time with its plan.json
        prepare_dataset("nnunet", raw, tmp_path / "theirs", plan=given)
    plan = load_plan(tmp_path / "theirs" / "plan.json")
    assert plan == dataclasses.replace(own, spacing_mm=given.spacing_mm)
    told = "its channels (CT) are normalised by its own intensities, as the plan that is given"
    assert f"{told} is of 2 channels" in capsys.readouterr().out


def test_a_plan_as_it_is_decides_the_normalisation_whatever_the_channel_is_called(
    raw, prepared, tmp_path
):
    own = load_plan(prepared / "plan.json")
    given = dataclasses.replace(own, normalization=(Normalization(Z_SCORE),))
    for _ in range(2):  # the second time with its plan.json
        prepare_dataset("nnunet", raw, tmp_path / "theirs", plan=given, as_planned=True)
    assert load_plan(tmp_path / "theirs" / "plan.json") == given
    image = stored(tmp_path / "theirs", "c1").image
    assert (abs(image.mean()) < 1e-5, abs(image.std() - 1) < 1e-5) == (True, True)
    two = dataclasses.replace(own, normalization=(Normalization(Z_SCORE),) * 2)
    with pytest.raises(
        UserError, match=r"raw: has 1 channels \(CT\), and the plan that is given 2"
    ):
        prepare_dataset("nnunet", raw, tmp_path / "two", plan=two, as_planned=True)
    assert not (tmp_path / "two" / "plan.json").exists()


def test_a_channel_is_asked_to_be_in_hu_where_the_plan_as_it_is_normalises_ct(
    raw, prepared, tmp_path
):
    """And there alone: the values lie from 0 to 1, which are no HU."""
    ct_plan = load_plan(prepared / "plan.json")
    z_plan = dataclasses.replace(ct_plan, normalization=(Normalization(Z_SCORE),))
    for path in (raw / "imagesTr").iterdir():
        save(path, np.random.default_rng(0).random((10, 9, 8)).astype(np.float32))
    prepare_dataset("nnunet", raw, tmp_path / "z", plan=z_plan, as_planned=True)
    describe(raw, LESION, channel_names={"0": "T1"})
    with pytest.raises(UserError, match=r"c0_0000\.nii\.gz: .*HU"):
        prepare_dataset("nnunet", raw, tmp_path / "ct", plan=ct_plan, as_planned=True)
    # What is only checked is read by the same plan.
    check("nnunet", raw, None, 0, 1, False, "auto", given=z_plan, as_planned=True)
    with pytest.raises(UserError, match="3 cases would be refused"):
        check("nnunet", raw, None, 0, 1, False, "auto", given=ct_plan, as_planned=True)
    # How CT is to be read may be told of what the plan takes for CT.
    told = {"plan": ct_plan, "as_planned": True, "intensities": "as_is"}
    prepare_dataset("nnunet", raw, tmp_path / "told", **told)
    open_dataset("nnunet", raw, "hu", as_planned=ct_plan)
    with pytest.raises(UserError, match="--intensities=hu is of CT"):
        open_dataset("nnunet", raw, "hu", as_planned=z_plan)


@pytest.mark.parametrize("by", ["spacing", "turn"])
def test_a_label_that_leaves_its_image_towards_the_far_corner_is_refused(raw, tmp_path, by):
    affine = np.diag([-2.0, -2.0, 3.0, 1.0])
    if by == "spacing":
        affine[0, 0] += 0.02  # 0.2 mm at the tenth voxel
    else:
        affine[:2, :2] = affine[:2, :2] @ [[1, 0.02], [-0.02, 1]]
    label = np.asarray(nib.load(raw / "labelsTr" / "c1.nii.gz").dataobj)
    nib.Nifti1Image(label, affine).to_filename(raw / "labelsTr" / "c1.nii.gz")
    with pytest.raises(UserError, match=r"c1\.nii\.gz: lies elsewhere than its image, by 0\."):
        prepare_dataset("nnunet", raw, tmp_path / "out")


def test_a_scan_that_is_metres_large_is_refused_before_it_takes_the_memory(raw, prepared):
    for part, name in (("imagesTr", "c0_0000.nii.gz"), ("labelsTr", "c0.nii.gz")):
        image = nib.load(raw / part / name)
        large = nib.Nifti1Image(np.asarray(image.dataobj), np.diag([-99.0, -99.0, 99.0, 1.0]))
        large.to_filename(raw / part / name)
    plan = dataclasses.replace(load_plan(prepared / "plan.json"), spacing_mm=(0.1, 0.1, 0.1))
    save_plan(prepared / "plan.json", plan)
    with pytest.raises(UserError, match=r"990 mm large.*is its own spacing right"):
        prepare_dataset("nnunet", raw, prepared)


def test_another_network_for_the_same_grid_is_taken_and_the_cases_stay(raw, tmp_path, capsys):
    out = tmp_path / "out"
    prepare_dataset("nnunet", raw, out, planning=Planning("resenc_m"))
    plan = load_plan(out / "plan.json")
    assert plan.topology.patch_size == (8, 10, 10)
    assert plan.topology.n_blocks_per_stage == (1, 3)
    told = "a {} network of 2 stages, for 2 patches of 8 x 10 x 10 at 3 x 2 x 2 mm"
    assert told.format("residual") in capsys.readouterr().out
    before = times(out)
    prepare_dataset("nnunet", raw, out)
    prepare_dataset("nnunet", raw, out, planning=Planning("resenc_m"))
    assert "another network" not in capsys.readouterr().out
    assert load_plan(out / "plan.json") == plan
    prepare_dataset("nnunet", raw, out, planning=Planning("default"))
    said = capsys.readouterr().out
    assert "plan.json: another network, on the grid that it has: its cases stay" in said
    assert told.format("plain") in said
    plain = load_plan(out / "plan.json")
    assert (plain.topology.n_blocks_per_stage, plain.hash) == ((), plan.hash)
    prepare_dataset("nnunet", raw, out, plan=plan)
    assert told.format("residual") in capsys.readouterr().out
    assert load_plan(out / "plan.json") == plan
    assert times(out) == before


def test_a_planned_network_is_given_cases_with_their_coarsest_axis_first(raw, tmp_path):
    """Their voxels are those of a plan without a network, transposed."""
    for part in ("imagesTr", "labelsTr"):
        for path in (raw / part).iterdir():
            voxels = nib.load(path).get_fdata().astype(np.int16)
            nib.Nifti1Image(voxels, np.diag([-2.0, -4.0, 2.0, 1.0])).to_filename(path)
    prepare_dataset("nnunet", raw, tmp_path / "as they are")
    prepare_dataset("nnunet", raw, tmp_path / "planned", planning=Planning())
    plan = load_plan(tmp_path / "planned" / "plan.json")
    assert (plan.spacing_mm, plan.transpose) == ((4.0, 2.0, 2.0), coarsest_first((2.0, 4.0, 2.0)))
    here, there = (stored(tmp_path / name, "c1") for name in ("planned", "as they are"))
    assert here.image.shape == (9, 8, 10, 1)
    np.testing.assert_array_equal(here.image, there.image.transpose(*plan.transpose, 3))
    np.testing.assert_array_equal(here.label, there.label.transpose(plan.transpose))


@pytest.mark.parametrize("by", ["planning", "plan"])
def test_a_plan_without_a_network_is_given_one_for_its_grid(raw, prepared, tmp_path, by):
    own, before = load_plan(prepared / "plan.json"), times(prepared)
    prepare_dataset("nnunet", raw, tmp_path / "planned", planning=Planning())
    planned = load_plan(tmp_path / "planned" / "plan.json")
    asked = {"planning": Planning()} if by == "planning" else {"plan": planned}
    prepare_dataset("nnunet", raw, prepared, **asked)
    assert load_plan(prepared / "plan.json") == planned != own
    assert times(prepared) == before


@pytest.mark.parametrize("other", [{"spacing_mm": (4.0, 2.0, 2.0)}, {"file_axes": True}])
def test_a_network_for_another_grid_than_the_plans_is_refused(raw, prepared, other):
    save_plan(
        prepared / "plan.json", dataclasses.replace(load_plan(prepared / "plan.json"), **other)
    )
    before = (prepared / "plan.json").read_text()
    with pytest.raises(
        UserError, match=r"plan\.json: is there already, on another grid.*--out_dir"
    ):
        prepare_dataset("nnunet", raw, prepared, planning=Planning())
    assert (prepared / "plan.json").read_text() == before
