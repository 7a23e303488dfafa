"""Errors of the system: which of them are a full disk; and a stop that nobody hears of."""

import gzip
import os
import subprocess
import sys

import pytest

from covid_jax.errors import writing


def test_an_error_without_a_number_is_no_full_disk_where_there_is_room(tmp_path):
    (tmp_path / "scan.gz").write_bytes(b"no gzip")
    with (
        pytest.raises(gzip.BadGzipFile),
        writing(tmp_path / "mask.nii.gz"),
        gzip.open(tmp_path / "scan.gz") as scan,
    ):
        scan.read()


def test_a_stop_is_no_fault_where_stderr_is_gone():
    """As after `2>&1 | tee log` and Ctrl-C, which ends tee too: what is to be saved still is."""
    reads, writes = os.pipe()
    os.close(reads)
    script = "from covid_jax.errors import tell_stop; tell_stop('saving'); print('saved')"
    ended = subprocess.run(
        [sys.executable, "-c", script], stderr=writes, stdout=subprocess.PIPE, check=False
    )
    os.close(writes)
    assert (ended.returncode, ended.stdout) == (0, b"saved\n")
