"""Which files are a raw dataset's cases, beside nnU-Net's own look-up."""

import json
from pathlib import Path

from covid_jax.data.datasets import read_dataset
from tests.conftest import installed

utils = installed("nnunetv2.utilities.utils", extra="peers")


def files_of(cases):
    return {name: ([Path(file) for file in images], Path(label)) for name, images, label in cases}


def test_named_files_are_those_of_nnunet(tmp_path, monkeypatch):
    """Relative to the raw folder, absolute, by a variable, and through a folder above."""
    raw, other = tmp_path / "raw", tmp_path / "other"
    monkeypatch.setenv("OTHER", str(other))
    named = {
        "relative": {"images": ["scans/a.nii.gz", "./scans/b.nii.gz"], "label": "masks/a.nii.gz"},
        "absolute": {"images": [f"{other}/a.nii.gz", "$OTHER/b.nii.gz"], "label": "$OTHER/m.nrrd"},
        "above": {"images": ["../other/a.nii.gz", "${OTHER}/b.nii.gz"], "label": "masks/b.nii.gz"},
    }
    for file in (
        *("raw/scans/a.nii.gz", "raw/scans/b.nii.gz", "raw/masks/a.nii.gz", "raw/masks/b.nii.gz"),
        *("other/a.nii.gz", "other/b.nii.gz", "other/m.nrrd"),
    ):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    description = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "lesion": 1},
        "file_ending": ".nii.gz",
        "dataset": named,
    }
    (raw / "dataset.json").write_text(json.dumps(description))
    theirs = utils.get_filenames_of_train_images_and_targets(str(raw))
    ours = read_dataset("nnunet", raw)
    assert files_of((case.name, case.images, case.label) for case in ours.cases) == files_of(
        (name, files["images"], files["label"]) for name, files in theirs.items()
    )
