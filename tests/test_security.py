"""Files from strangers, and scans of patients: nothing is executed, written elsewhere, or told."""

import ast
import gzip
import re
import shutil

import numpy as np
import pydicom
import pytest

from covid_jax.data.phantom import write_raw_dataset
from covid_jax.data.store import open_case
from covid_jax.errors import UserError
from covid_jax.training.checkpoint import Checkpoints, load_params
from tests.conftest import ROOT
from tests.faults.test_checkpoint_faults import save
from tests.nnunet.test_pickles import Evil

PACKAGE = ROOT / "covid_jax"
READS_PICKLES = PACKAGE / "nnunet" / "pickles.py"  # by a reader that calls nothing: test_pickles.py
EXECUTES = {"eval", "exec", "__import__"}
UNPICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "pandas"}
UNPACKS = {"extractall", "extract", "unpack_archive", "tarfile"}
PARSES_XML = {"xml", "lxml", "defusedxml", "expat"}


def names_in(path):
    """(modules imported, names and attributes called) of a module."""
    modules, called = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module.split(".")[0])
        elif isinstance(node, ast.Call):
            called.add(getattr(node.func, "id", getattr(node.func, "attr", "")))
    return modules, called


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_no_module_unpickles_executes_unpacks_or_parses_xml(path):
    modules, called = names_in(path)
    if path != READS_PICKLES:
        assert not modules & UNPICKLES
    assert not (modules | called) & UNPACKS
    assert not modules & PARSES_XML
    assert not called & EXECUTES
    assert "allow_pickle" not in path.read_text()


def evil_array(marker):
    return np.array([Evil(marker)], dtype=object)


@pytest.mark.parametrize("file", ["image.npy", "label.npy", "foreground.npy"])
def test_a_prepared_case_with_a_pickle_in_it_is_refused(tiny_run, tmp_path, file):
    folder = tmp_path / "case"
    shutil.copytree(next((tiny_run / "data" / "phantom" / "cases").iterdir()), folder)
    np.save(folder / file, evil_array(tmp_path / "marker"), allow_pickle=True)
    with pytest.raises(UserError, match="missing or damaged case"):
        open_case(folder)
    assert not (tmp_path / "marker").exists()


def test_a_checkpoint_with_pickles_for_files_is_refused(tmp_path):
    save(tmp_path, 10)
    for path in (tmp_path / "checkpoints" / "10").rglob("*"):
        if path.is_file():
            with path.open("wb") as file:
                np.save(file, evil_array(tmp_path / "marker"), allow_pickle=True)
    with pytest.raises(UserError, match="damaged checkpoint"):
        load_params(tmp_path)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="damaged"):
        checkpoints.newest()
    assert not (tmp_path / "marker").exists()


SECRETS = {
    "PatientName": "Doe^Jane",
    "PatientID": "ID-998877",
    "PatientBirthDate": "19510203",
    "PatientAddress": "12 Baker Street",
    "InstitutionName": "Hospital of Nowhere",
    "ReferringPhysicianName": "House^Gregory",
    "AccessionNumber": "ACC-445566",
    "StudyID": "ST-112233",
    "StudyDescription": "follow-up of Jane",
    "ImageComments": "../../../etc/jane",
}


def identify(file):
    """Puts the secrets into the header of a DICOM file."""
    header = pydicom.dcmread(file)
    for name, value in SECRETS.items():
        setattr(header, name, value)
    block = header.private_block(0x0011, "covid_jax test", create=True)
    block.add_new(0x01, "LO", "private Jane")
    header.save_as(file)


@pytest.fixture
def identified(lidc_series, tmp_path):
    """A series whose headers say who the patient is, under a folder's name that does not."""
    folder = tmp_path / "scans" / "case_a"
    folder.mkdir(parents=True)
    for file in sorted(lidc_series.iterdir())[:6]:
        identify(shutil.copy(file, folder))
    return folder


def tells(folder, text):
    """What of SECRETS stands in the files below a folder, in their names, or in a text."""
    secrets = [*SECRETS.values(), "Jane", "Doe", "etc/jane"]
    told = [secret for secret in secrets if secret in text]
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        if path.name.endswith(".gz"):
            content = gzip.decompress(content)
        both = content + str(path.relative_to(folder)).encode()
        told += [secret for secret in secrets if secret.encode() in both]
    return told


def test_the_search_would_find_an_identifier(identified):
    assert set(tells(identified, "")) >= set(SECRETS.values())


def test_masks_and_words_of_predict_say_nothing_of_the_patient(
    identified, tiny_run, tmp_path, command
):
    out = tmp_path / "masks"
    finished = command(
        "predict",
        f"--checkpoint={tiny_run}",
        f"--input={identified.parent}",
        f"--output_dir={out}",
        "--save_probabilities",
    )
    assert finished.returncode == 0, finished.stderr
    assert (out / "case_a.nii.gz").is_file()
    assert tells(out, finished.stdout + finished.stderr) == []


def test_a_damaged_series_is_refused_without_a_word_of_the_patient(
    identified, tiny_run, tmp_path, command
):
    file = sorted(identified.iterdir())[2]
    file.write_bytes(file.read_bytes()[:-1000])
    out = tmp_path / "masks"
    finished = command(
        "predict", f"--checkpoint={tiny_run}", f"--input={identified}", f"--output_dir={out}"
    )
    assert finished.returncode == 1
    assert tells(out, finished.stdout + finished.stderr) == []


def test_prepared_data_says_nothing_of_the_patient(tmp_path, command):
    """Cases of NSCLC-Radiomics are named by the dataset's own, public, numbers."""
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_raw_dataset("nsclc_effusion", raw, 3, seed=0)
    for file in raw.rglob("*.dcm"):
        identify(file)
    finished = command(
        "prepare", "--dataset=nsclc_effusion", f"--raw_dir={raw}", f"--out_dir={out}"
    )
    assert finished.returncode == 0, finished.stderr
    assert list(out.glob("nsclc_effusion/cases/LUNG1-*/image.npy"))
    assert tells(out, finished.stdout + finished.stderr) == []


REQUIREMENTS = sorted((ROOT / "requirements").glob("*.txt"))


def pins(path):
    """{name: versions} of a file of requirements, and the lines that have a hash."""
    found, hashed = {}, 0
    for line in path.read_text().splitlines():
        if pin := re.match(r"([\w.-]+)==([\w.+]+)", line):
            name = re.sub(r"[-_.]+", "-", pin[1]).lower()
            found.setdefault(name, set()).add(pin[2])
            hashed += line.endswith("\\")
    return found, hashed


@pytest.mark.parametrize("path", REQUIREMENTS, ids=lambda path: path.stem)
def test_what_ci_installs_has_hashes_and_the_versions_of_the_constraints(path):
    required, hashed = pins(path)
    allowed, _ = pins(ROOT / "constraints.txt")
    assert hashed >= len(required) > 50
    for name, versions in required.items():
        assert versions <= allowed.get(name, versions), name
