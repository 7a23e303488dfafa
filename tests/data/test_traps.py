"""What is wrong with files out there: mended where that is safe, and else refused by name.

Into a SYNTHETIC dataset in msd_lung's layout one trap is laid for each case.
"""

import json
import os

import nibabel as nib
import numpy as np
import pytest

from covid_jax.data.datasets import read_dataset
from covid_jax.data.findings import check_dataset, read_case
from covid_jax.data.phantom import write_raw_dataset
from covid_jax.data.preparation import prepare_dataset
from covid_jax.data.processes import each
from covid_jax.errors import UserError

CASES = 9


def load(path):
    image = nib.load(path)
    return np.asarray(image.dataobj), image.affine


def save(path, voxels, affine):
    nib.Nifti1Image(voxels, affine).to_filename(path)


def four_axes(image, label):
    voxels, affine = load(image)
    save(image, voxels[..., None], affine)


def moved_by_a_hair(image, label):
    voxels, affine = load(label)
    affine[:3, 3] += 3e-5
    save(label, voxels, affine)


def flipped(image, label):
    """The label's first axis runs the other way, and its affine says so."""
    voxels, affine = load(label)
    turned = affine.copy()
    turned[:, 0] *= -1
    turned[:3, 3] = (affine @ [len(voxels) - 1, 0, 0, 1])[:3]
    save(label, voxels[::-1], turned)


def nearly_whole(image, label):
    voxels, affine = load(label)
    save(label, voxels * np.float32(0.9999), affine)


def two_forms(image, label, apart=0.01):
    loaded = nib.load(image)
    other = loaded.affine.copy()
    other[0, 3] += apart
    changed = nib.Nifti1Image(np.asarray(loaded.dataobj), loaded.affine)
    changed.set_sform(loaded.affine, 1)
    changed.set_qform(other, 1)
    changed.to_filename(image)


def forms_far_apart(image, label):
    two_forms(image, label, apart=20.0)


def cut_short(image, label):
    image.write_bytes(image.read_bytes()[:3000])


def label_missing(image, label):
    label.unlink()


MENDED = {
    "4 axes, of which one channel": four_axes,
    "beside its image: taken as the same place": moved_by_a_hair,
    "axes are not its image's: turned": flipped,
    "beside whole numbers: rounded": nearly_whole,
    "qform and sform differ by 0.01 mm: the sform is taken": two_forms,
}
REFUSED = {
    "qform and sform lie 20 mm apart": forms_far_apart,
    "damaged or not NIfTI": cut_short,
    "missing label of case": label_missing,
}


def volumes_of(case, raw):
    (image,), label = read_case(case, raw)
    return image, label


@pytest.fixture(scope="module")
def laid(tmp_path_factory):
    """The raw folder, what case has which trap, and the cases as they were before."""
    folder = tmp_path_factory.mktemp("traps")
    write_raw_dataset("msd_lung", folder, CASES, seed=0)
    raw = read_dataset("msd_lung", folder)
    before = {case.name: volumes_of(case, raw) for case in raw.cases}
    traps = dict(zip(raw.cases, {**MENDED, **REFUSED}.items(), strict=False))
    for case, (_, lay) in traps.items():
        lay(case.images[0], case.label)
    return folder, {case.name: words for case, (words, _) in traps.items()}, before


def test_every_trap_is_found_in_its_case_and_nothing_in_the_others(laid):
    folder, traps, _ = laid
    for finding in check_dataset(read_dataset("msd_lung", folder), processes=1):
        words = traps.get(finding.case)
        assert (words in finding.refused) if words in REFUSED else not finding.refused
        assert [words in note for note in finding.mended] == [True] * (words in MENDED)


def test_what_is_mended_reads_as_it_did_without_the_trap(laid):
    folder, traps, before = laid
    raw = read_dataset("msd_lung", folder)
    for case in raw.cases:
        if traps.get(case.name) in MENDED:
            for found, expected in zip(volumes_of(case, raw), before[case.name], strict=True):
                np.testing.assert_array_equal(found.voxels, expected.voxels)
                np.testing.assert_allclose(found.affine, expected.affine, atol=1e-4)


def test_check_only_tells_all_of_it_and_writes_nothing(laid, command):
    folder, traps, _ = laid
    files = sorted(folder.rglob("*"))
    finished = command("prepare", "--dataset=msd_lung", f"--raw_dir={folder}", "--check_only")
    assert finished.returncode == 1
    lines = finished.stdout.splitlines()
    for case, words in traps.items():
        assert any(line.startswith(f"{case}: ") and words in line for line in lines)
    assert lines[0].startswith("device: cpu")
    assert "9 SYNTHETIC cases of msd_lung" in lines[1]
    assert "6 cases can be prepared, 5 of them are mended" in lines
    assert "3 cases would be refused" in finished.stderr.splitlines()[-1]
    assert sorted(folder.rglob("*")) == files


def test_check_only_looks_at_a_plan_and_says_that_it_makes_none(laid, command, refuses, tmp_path):
    folder, _, _ = laid
    check = ("prepare", "--dataset=msd_lung", f"--raw_dir={folder}", "--check_only")
    assert f"{tmp_path}: not the work dir" in refuses(*check, f"--plan_from={tmp_path}")
    told = command(*check, "--planner=default", "--skip_bad").stdout
    assert "--planner=default plans from prepared cases" in told


@pytest.fixture(scope="module")
def rest(laid, tmp_path_factory):
    """What one process prepares of the cases that can be."""
    out = tmp_path_factory.mktemp("rest")
    prepare_dataset("msd_lung", laid[0], out, processes=1, skip_bad=True)
    return out


def test_bad_cases_stop_prepare_or_are_left_out_where_asked(laid, rest, tmp_path):
    folder, traps, _ = laid
    with pytest.raises(UserError):
        prepare_dataset("msd_lung", folder, tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "msd_lung" / "dataset.json").exists()
    bad = {case for case, words in traps.items() if words in REFUSED}
    prepared = {path.name for path in (rest / "msd_lung" / "cases").iterdir()}
    assert len(prepared) == CASES - len(bad)
    assert not prepared & bad
    splits = json.loads((rest / "msd_lung" / "dataset.json").read_text())["splits"]
    assert not bad & {case for split in splits for case in (*split["train"], *split["test"])}


def test_several_processes_prepare_what_one_does(laid, rest, tmp_path):
    folder, _, _ = laid
    prepare_dataset("msd_lung", folder, tmp_path, processes=2, skip_bad=True)
    one, two = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (rest, tmp_path)
    )
    assert one == two


def test_a_process_that_is_killed_is_told_in_one_line():
    with pytest.raises(UserError, match="killed, perhaps for want of memory"):
        list(each(os._exit, [1, 1], 2, "preparing"))
