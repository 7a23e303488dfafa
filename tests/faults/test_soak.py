"""Some of the soak, by one seed; `python -m tests.faults.soak --help` runs as much as one likes."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_half_a_minute_of_trouble_gives_no_wrong_result():
    soak = [sys.executable, "-m", "tests.faults.soak", "--seconds=30", "--seed=0"]
    finished = subprocess.run(soak, capture_output=True, text=True, cwd=ROOT, check=False)
    print(finished.stdout.splitlines()[-1])
    assert finished.returncode == 0, finished.stdout + finished.stderr
