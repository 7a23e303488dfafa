"""The edge of every command: what no one expected to fail is one line too."""

import gzip
import subprocess
import sys

import pytest

from covid_jax.errors import writing

WRITES = "open('/dev/full', 'w').write('x' * 100_000)"


def ended(fault):
    """What a command in which this happens says last, and its exit status."""
    program = f"from covid_jax.errors import run_command; run_command(lambda: {fault}, None)"
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    return finished.stderr, finished.returncode


def test_a_full_disk_is_one_line_wherever_it_is_met():
    line = "error: output: No space left on device; mend that and start it again\n"
    assert ended(WRITES) == (line, 1)


def test_a_fault_of_the_program_keeps_its_traceback():
    said, status = ended("1 / 0")
    assert "ZeroDivisionError" in said
    assert status == 1


def test_an_error_without_a_number_is_no_full_disk_where_there_is_room(tmp_path):
    (tmp_path / "scan.gz").write_bytes(b"no gzip")
    with (
        pytest.raises(gzip.BadGzipFile),
        writing(tmp_path / "mask.nii.gz"),
        gzip.open(tmp_path / "scan.gz") as scan,
    ):
        scan.read()
