"""The raw layouts: what is found on disk, and which folds it falls into."""

import json
import shutil
import unicodedata

import pytest

from covid_jax.data.datasets import DATASETS, read_dataset
from covid_jax.data.phantom import write_raw_dataset
from covid_jax.data.raw import SYNTHETIC_MARKER, cross_validation, published_splits
from covid_jax.data.store import load_dataset, save_dataset
from covid_jax.data.volume import read_volume
from covid_jax.errors import UserError
from covid_jax.label_space import LabelSpace


def test_the_real_cases_fall_into_the_papers_folds(covid19_raw):
    raw = read_dataset("covid19", covid19_raw)
    assert len(raw.cases) == 20
    assert not raw.synthetic
    assert not raw.notes
    assert [(len(split.train), len(split.test)) for split in raw.splits] == [(4, 16)] * 5
    for split in raw.splits:
        assert not set(split.train) & set(split.test)
    assert raw.splits[0].train[0] == "coronacases_008"


@pytest.mark.parametrize(
    ("name", "train", "test"),
    [("msd_lung", 51, 12), ("structseg_gtv", 40, 10), ("nsclc_effusion", 63, 15)],
)
def test_published_splits_have_the_benchmarks_sizes(name, train, test):
    (split,) = published_splits(name)
    assert (len(split.train), len(split.test)) == (train, test)


@pytest.mark.parametrize(
    "name", ["covid19", "msd_lung", "structseg_gtv", "nsclc_effusion", "phantom"]
)
def test_a_phantom_reads_back_in_the_raw_layout_of_its_dataset(tmp_path, name):
    write_raw_dataset(name, tmp_path / "raw", 3, seed=1)
    raw = read_dataset(name, tmp_path / "raw")
    assert raw.synthetic
    assert len(raw.cases) == 3
    for case in raw.cases:
        image, label = read_volume(case.images[0]), read_volume(case.label)
        assert image.voxels.shape == label.voxels.shape
        assert image.voxels.min() < -900
        assert set(label.voxels.ravel()) == {0, 1}


def test_folds_are_those_of_nnunet():
    """KFold(5, shuffle=True, random_state=12345) of scikit-learn, which nnU-Net calls."""
    folds = cross_validation([f"case_{i}" for i in range(7)])
    assert [fold.test for fold in folds] == [
        ("case_3", "case_6"),
        ("case_0", "case_4"),
        ("case_1",),
        ("case_5",),
        ("case_2",),
    ]


def test_an_nnunet_dataset_of_either_version_has_its_labels(tmp_path):
    write_raw_dataset("phantom", tmp_path / "raw", 2, seed=0)
    description = tmp_path / "raw" / "dataset.json"
    for labels in ({"background": 0, "a": 1, "b": 2}, {"0": "background", "1": "a", "2": "b"}):
        description.write_text(json.dumps({"labels": labels}))
        assert read_dataset("nnunet", tmp_path / "raw").labels == ("a", "b")


def test_voxels_that_nnunet_ignores_are_no_class(tmp_path):
    write_raw_dataset("phantom", tmp_path / "raw", 2, seed=0)
    labels = {"background": 0, "lesion": 1, "ignore": 2}
    (tmp_path / "raw" / "dataset.json").write_text(json.dumps({"labels": labels}))
    raw = read_dataset("nnunet", tmp_path / "raw")
    assert raw.label_space == LabelSpace(("lesion",), ignored=2)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    write_raw_dataset("phantom", folder, 2, seed=0)
    return folder


@pytest.fixture
def raw(phantoms, tmp_path):
    """Two cases in nnU-Net's layout, whose dataset.json a test may write."""
    shutil.copytree(phantoms, tmp_path / "raw")
    return tmp_path / "raw"


def test_a_datasets_licence_goes_with_its_prepared_data(raw, tmp_path):
    description = {"labels": {"background": 0, "lesion": 1}, "licence": "CC BY 4.0"}
    (raw / "dataset.json").write_text(json.dumps(description))
    (raw / SYNTHETIC_MARKER).unlink()
    save_dataset(tmp_path / "mine", read_dataset("nnunet", raw), "hash")
    stored = load_dataset(tmp_path, "mine", "hash")
    assert (stored.licence, stored.channels) == ("CC BY 4.0", ("CT",))


def test_the_ending_of_a_datasets_files_goes_with_its_prepared_data(raw, tmp_path):
    """By which nnU-Net finds scans for a network that is exported."""
    for ending in (".nii.gz", ".mha"):
        description = {"labels": {"background": 0, "lesion": 1}, "file_ending": ending}
        (raw / "dataset.json").write_text(json.dumps(description))
        save_dataset(tmp_path / "mine", read_dataset("nnunet", raw), "hash")
        assert load_dataset(tmp_path, "mine", "hash").file_ending == ending
    written = json.loads((tmp_path / "mine" / "dataset.json").read_text())
    del written["file_ending"]  # as of before it was kept
    (tmp_path / "mine" / "dataset.json").write_text(json.dumps(written))
    assert load_dataset(tmp_path, "mine", "hash").file_ending == ".nii.gz"


def test_scans_that_are_not_prepared_are_told(raw):
    (raw / "imagesTs").mkdir()
    assert f"{raw / 'imagesTs'}: not prepared; predict reads it as it is" in (
        read_dataset("nnunet", raw).notes
    )


def test_the_licence_of_a_public_dataset_is_known_and_synthetic_cases_have_none(covid19_raw, raw):
    assert read_dataset("covid19", covid19_raw).licence.startswith("CC BY-NC-SA 4.0")
    assert read_dataset("phantom", raw).licence == ""


@pytest.mark.parametrize("values", [(0.0, 1.0), ("0", "1.0"), (0, [1])])
def test_whole_numbers_are_values_of_labels_however_they_are_written(raw, values):
    labels = dict(zip(("background", "lesion"), values, strict=True))
    (raw / "dataset.json").write_text(json.dumps({"labels": labels}))
    assert read_dataset("nnunet", raw).labels == ("lesion",)


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ('{"background": 0, "lesion": 2.5}', "label 'lesion': its value 2.5 is no whole number"),
        ('{"background": 0, "lesion": true}', "its value True is no whole number"),
        ('{"background": 0, "lesion": "one"}', "its value 'one' is no whole number"),
        ('{"background": 0, "lesion": [1, 2]}', "its labels are regions, and regions_class"),
        ('{"background": 0, "lesion": 1, "lesion": 2}', "says 'lesion' twice"),
        ('{"background": 0, " ": 1}', "the label of the value 1 has no name"),
        ('{"background": 1, "lesion": 0}', "its background is 1; nnU-Net wants it to be 0"),
        ('{"background": 0, "ignore": 1, "lesion": 2}', "ignore is 1, and another one 2;.*highest"),
    ],
)
def test_labels_that_are_none_are_refused_with_the_reason(raw, labels, told):
    (raw / "dataset.json").write_text(f'{{"labels": {labels}}}')
    with pytest.raises(UserError, match=rf"dataset\.json: .*{told}"):
        read_dataset("nnunet", raw)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"channel_names": "CT"}, "its channel_names is 'CT'; wanted: values by their keys"),
        ({"channel_names": {"0": 1}}, "its channel_names: 0 is 1; wanted: a text"),
        ({"channel_names": {"1": "CT"}}, "its channel_names are of '1'; wanted: '0', '1'"),
        ({"file_ending": 1}, "its file_ending is 1; wanted: a text"),
        ({"numTraining": "4"}, "its numTraining is '4'; wanted: a whole number"),
        ({"labels": [0, 1]}, r"its labels is \[0, 1\]; wanted: values by their keys"),
        ({"overwrite_image_reader_writer": "NaturalImage2DIO"}, "are read by NaturalImage2DIO; su"),
        ({"overwrite_image_reader_writer": 1}, "its overwrite_image_reader_writer is 1"),
        ({"dataset": ["a"]}, r"its dataset is \['a'\]; wanted: values by their keys"),
        ({"dataset": {"a": {"images": "a.nii.gz"}}}, "its case a: images is 'a.nii.gz'"),
        ({"dataset": {"a": {"images": ["a", "b"], "label": "a"}}}, "wanted: a list of 1"),
        ({"dataset": {"a": {"images": ["a.nii.gz"]}}}, "its case a: label is missing"),
        ({"dataset": {"a": {"images": ["no"], "label": "n"}}}, "not there: .*raw/n, .*raw/no"),
        ({"dataset": {"../a": {}}}, "a case '../a', which cannot name a file"),
    ],
)
def test_what_a_dataset_json_cannot_mean_is_refused_with_the_reason(raw, said, told):
    description = {"labels": {"background": 0, "lesion": 1}} | said
    (raw / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match=rf"dataset\.json: .*{told}"):
        read_dataset("nnunet", raw)


def test_cases_whose_files_are_named_are_those_and_no_others(raw, monkeypatch):
    monkeypatch.setenv("SCANS", "elsewhere")
    (raw / "elsewhere").mkdir()
    (raw / "imagesTr" / "phantom_000_0000.nii.gz").rename(raw / "elsewhere" / "scan.nii.gz")
    named = {"mine": {"images": ["$SCANS/scan.nii.gz"], "label": "labelsTr/phantom_000.nii.gz"}}
    description = {"labels": {"background": 0, "lesion": 1}, "dataset": named}
    (raw / "dataset.json").write_text(json.dumps(description))
    found = read_dataset("nnunet", raw)
    (case,) = found.cases
    assert case.name == "mine"
    assert case.images == (raw / "elsewhere" / "scan.nii.gz",)
    assert case.label == raw / "labelsTr" / "phantom_000.nii.gz"
    assert "dataset.json does not name: phantom_001_0000.nii.gz" in "\n".join(found.notes)


@pytest.mark.parametrize(
    ("folds", "told"),
    [
        ([{"train": [0], "val": [1]}], r"fold 0: train is \[0\]; wanted: of each in it a text"),
        ([{"train": "c0", "val": "c1"}], "fold 0: train is 'c0'; wanted: a list"),
        ([{"train": ["c0"]}], "fold 0: val is missing"),
        ({"train": [], "val": []}, "a list"),
        ([[]], "values by their keys"),
    ],
)
def test_folds_that_are_none_are_refused_with_the_reason(raw, folds, told):
    (raw / "splits_final.json").write_text(json.dumps(folds))
    with pytest.raises(UserError, match=rf"splits_final\.json: is no list of folds.*\(.*{told}"):
        read_dataset("nnunet", raw)


def test_what_nnunet_would_not_take_is_told(raw):
    labels = {"background": 0, "lesion": 1, "ignore": 255}
    (raw / "dataset.json").write_text(json.dumps({"labels": labels, "file_ending": ".nrrd"}))
    notes = "\n".join(read_dataset("nnunet", raw).notes)
    assert "the label ignore is 255; nnU-Net wants 2" in notes
    assert "says file_ending .nrrd, and 4 of 4 files end otherwise" in notes


def test_names_in_either_form_of_unicode_are_one_case(raw):
    """As macOS writes them, letter and accent apart, and as others do, in one."""
    apart, composed = (unicodedata.normalize(form, "müller") for form in ("NFD", "NFC"))
    image, label = raw / "imagesTr" / "phantom_000_0000.nii.gz", raw / "labelsTr"
    image.rename(image.with_name(f"{apart}_0000.nii.gz"))
    (label / "phantom_000.nii.gz").rename(label / f"{composed}.nii.gz")
    case = read_dataset("nnunet", raw).cases[0]
    assert (case.name, case.label.is_file()) == (composed, True)
    shutil.copy(case.images[0], case.images[0].with_name(f"{composed}_0000.nii.gz"))
    with pytest.raises(UserError, match="are both of the case"):
        read_dataset("nnunet", raw)


@pytest.mark.parametrize("name", DATASETS)
def test_an_empty_or_missing_folder_is_refused_by_name(tmp_path, name):
    with pytest.raises(UserError, match=str(tmp_path)):
        read_dataset(name, tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        read_dataset(name, tmp_path / "nowhere")


def test_a_dataset_without_some_of_its_cases_has_folds_without_them(tmp_path):
    write_raw_dataset("covid19", tmp_path, 4, seed=0)
    raw = read_dataset("covid19", tmp_path)
    gone = raw.splits[0].train[0]
    rest = raw.without([gone])
    assert {case.name for case in raw.cases} - {case.name for case in rest.cases} == {gone}
    assert not any(gone in (*split.train, *split.test) for split in rest.splits)
    assert rest.splits[0].test == raw.splits[0].test
