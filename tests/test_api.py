"""What docs/api.md shows can be imported from covid_jax, and does what it says."""

import re
import runpy
import subprocess
import sys

import covid_jax
from tests.conftest import ROOT

PAGE = ROOT / "docs" / "api.md"
WRITER = runpy.run_path(str(ROOT / "docs" / "write_api.py"))


def test_the_page_says_what_the_docstrings_say_of_every_public_name():
    assert PAGE.read_text() == WRITER["page"]()
    named = [name for names in WRITER["CHAPTERS"].values() for name in names]
    assert sorted(named) == sorted(covid_jax.__all__)
    assert set(covid_jax.__all__) <= set(dir(covid_jax))


def test_the_examples_of_the_page_run_one_after_another(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    names = {}
    for block in re.findall(r"^## .*?```python\n(.*?)```", PAGE.read_text(), re.DOTALL | re.M):
        exec(block, names)
    assert names["mask"].voxels.dtype == "uint8"
    told = capsys.readouterr()
    assert "SYNTHETIC phantom" in told.out
    assert re.search(r"^epoch 1 of 1: loss 0\.\d+, Dice 0\.\d+, [\d.]+ s$", told.out, re.M)
    assert not told.err  # bars are for terminals


def test_importing_the_package_loads_no_library():
    told = "import sys, covid_jax; print(*{'jax', 'numpy', 'absl'} & {*sys.modules})"
    finished = subprocess.run(
        [sys.executable, "-c", told], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert finished.stdout == "\n"
