"""Errors of the system: which of them are a full disk."""

import gzip

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
