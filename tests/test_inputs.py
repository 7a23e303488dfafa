"""No command changes a file that it reads: every input is hashed before and after.

The inputs are a raw dataset, its prepared form, scans in several formats, masks, a DICOM series, a
run and a model of nnU-Net.
"""

import hashlib
import shutil

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from covid_jax.data.volume import read_volume
from tests.conftest import ROOT


def digests(folder):
    """Of every file below, by its path."""
    return {
        path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, tiny_run, lidc_series):
    folder = tmp_path_factory.mktemp("inputs")
    shutil.copytree(tiny_run / "data" / "raw_phantom", folder / "raw")
    shutil.copytree(tiny_run / "data", folder / "prepared")
    shutil.copytree(tiny_run, folder / "run")
    shutil.copytree(lidc_series, folder / "series" / "one")
    shutil.copytree(ROOT / "tests" / "files" / "nnunet_version_1", folder / "model")
    scan = next((folder / "raw" / "imagesTr").glob("*.nii.gz"))
    label = next((folder / "raw" / "labelsTr").glob("*.nii.gz"))
    for name in ("scans", "masks", "truths", "twins"):
        (folder / name).mkdir()
    image = nib.load(scan).slicer[:40, :40]
    nib.save(image, folder / "scans" / "a.nii.gz")
    sitk.WriteImage(sitk.ReadImage(folder / "scans" / "a.nii.gz"), folder / "scans" / "b.nrrd")
    for name in ("a", "b"):
        for place in ("masks", "truths"):
            nib.save(nib.load(label).slicer[:40, :40], folder / place / f"{name}.nii.gz")
    nib.save(image, folder / "twins" / "a.nii")
    nib.save(image, folder / "twins" / "a.nii.gz")
    (folder / "link").symlink_to(folder / "scans")
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("predict --checkpoint=run --input=scans --output_dir=scans", "holds the input"),
        ("predict --checkpoint=run --input=link --output_dir=scans --overwrite", "holds the input"),
        ("predict --checkpoint=run --input=series --output_dir=series", "holds the input"),
        ("predict --checkpoint=run --input=scans --output_dir=scans/masks", "which holds inputs"),
        ("predict --checkpoint=run --input=scans --output_dir=masks", "did not write"),
        ("predict --checkpoint=run --input=scans --output_dir=scans/a.nii.gz", "holds the input"),
        ("predict --checkpoint=run --input=scans --output_dir=raw/dataset.json", "cannot be wri"),
        ("predict --checkpoint=run --input=twins --output_dir=new", "both of the case a"),
        ("evaluate --predictions=masks --references=masks --output=masks/a.nii.gz", "no metrics"),
        ("evaluate --predictions=masks --references=raw/labelsTr --output=raw/dataset.json", "no "),
        ("evaluate --predictions=masks --references=truths --output=new.json", ""),
        ("evaluate --predictions=masks --references=masks --output=new.json", "the very files"),
        ("prepare --dataset=nnunet --raw_dir=raw --out_dir=raw", "holds inputs"),
        ("prepare --dataset=nnunet --raw_dir=raw --check_only", ""),
        ("prepare --dataset=phantom --raw_dir=scans --out_dir=new", "holds other files"),
        ("prepare --dataset=covid19 --synthetic --raw_dir=raw --out_dir=new", "holds other files"),
        ("import_nnunet --checkpoint=model --out_dir=model", "not an empty folder"),
        ("import_nnunet --checkpoint=model --out_dir=model/new", "which holds inputs"),
        ("import_nnunet --export --checkpoint=run --out_dir=run", "not an empty folder"),
    ],
)
def test_a_command_leaves_every_input_as_it_was(inputs, tmp_path, command, arguments, message):
    before = digests(inputs)
    name, *flags = arguments.split()
    placed = []
    for flag in flags:
        key, equals, value = flag.partition("=")
        folder = tmp_path if value.startswith("new") else inputs
        is_path = equals and key not in ("--dataset",)
        placed.append(f"{key}={folder / value}" if is_path else flag)
    finished = command(name, *placed)
    assert digests(inputs) == before
    assert "Traceback" not in finished.stderr
    assert (finished.returncode != 0) == bool(message)
    assert message in finished.stderr
    assert not (message and list(tmp_path.iterdir()))


def test_predict_goes_on_past_a_bad_scan_and_keeps_what_it_has(inputs, tmp_path, command):
    """And refuses its own masks' place to what is not its own."""
    scans, masks = tmp_path / "scans", tmp_path / "masks"
    shutil.copytree(inputs / "scans", scans)
    (scans / "a.nii.gz").rename(scans / "a_0000.nii.gz")
    (scans / "c.nii.gz").write_bytes(b"no scan")
    (scans / "d.nii.gz").symlink_to(scans / "nowhere")
    before = digests(scans)
    run = f"--checkpoint={inputs / 'run'}", f"--input={scans}", f"--output_dir={masks}"
    finished = command("predict", *run)
    assert finished.returncode == 1
    assert "c.nii.gz: damaged or not NIfTI" in finished.stderr.splitlines()[-1]
    assert "d.nii.gz: cannot be read" in finished.stderr.splitlines()[-1]
    assert not masks.exists()
    finished = command("predict", *run, "--skip_bad")
    assert finished.returncode == 1
    assert "2 scans were left out" in finished.stderr.splitlines()[-1]
    assert sorted(path.name for path in masks.iterdir()) == ["a.nii.gz", "b.nii.gz"]
    (scans / "c.nii.gz").unlink()
    (scans / "d.nii.gz").unlink()
    made = {path.name: path.stat().st_mtime_ns for path in masks.iterdir()}
    (masks / "b.nii.gz").unlink()
    finished = command("predict", *run, "--continue")
    assert "2 masks are in" in finished.stdout
    assert "1 of them from before" in finished.stdout
    assert (masks / "a.nii.gz").stat().st_mtime_ns == made["a.nii.gz"]
    corrected = nib.load(masks / "b.nii.gz")
    voxels = 1 - np.asarray(corrected.dataobj)
    nib.save(nib.Nifti1Image(voxels, corrected.affine, corrected.header), masks / "b.nii.gz")
    finished = command("predict", *run)
    assert "holds 1 files that this command did not write, or that were changed" in finished.stderr
    np.testing.assert_array_equal(nib.load(masks / "b.nii.gz").dataobj, voxels)
    assert command("predict", *run, "--overwrite", "--save_probabilities").returncode == 0
    assert len(list(masks.glob("*_probability_1.nii.gz"))) == 2
    assert read_volume(masks / "b.nii.gz").voxels.max() <= 1
    # Another patient's scan of the name is not what the mask is of.
    (scans / "b.nrrd").rename(tmp_path / "b.nrrd")
    nib.save(nib.load(scans / "a_0000.nii.gz").slicer[:30], scans / "b.nii.gz")
    finished = command("predict", *run, "--continue")
    assert "holds 1 files that it made of other scans of these names" in finished.stderr
    finished = command("predict", *run, "--overwrite")
    assert finished.returncode == 0
    assert "b_probability_1.nii.gz: is not of the mask" in finished.stdout
    assert len(list(masks.glob("*_probability_1.nii.gz"))) == 1
    (scans / "b.nii.gz").unlink()
    (tmp_path / "b.nrrd").rename(scans / "b.nrrd")
    del before[scans.joinpath("c.nii.gz").relative_to(scans)]
    assert digests(scans) == before
