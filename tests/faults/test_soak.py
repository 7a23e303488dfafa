"""Two minutes of the soak, from another seed each time; it prints the seed and its tally."""

import subprocess
import sys
import time

from tests.conftest import ROOT


def test_two_minutes_of_trouble_give_no_wrong_result():
    seed = int(time.time())
    soak = [sys.executable, "-m", "tests.faults.soak", "--seconds=80", f"--seed={seed}"]
    finished = subprocess.run(soak, capture_output=True, text=True, cwd=ROOT, check=False)
    print(finished.stdout.splitlines()[-1])
    assert finished.returncode == 0, finished.stdout + finished.stderr
