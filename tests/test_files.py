"""Files are whole or absent, whatever their names are and whoever else writes them."""

import os
import resource
import threading

import pytest

from covid_jax.errors import UserError
from covid_jax.files import (
    allow_open_files,
    check_regular,
    digest,
    read_json,
    whole_file,
    whole_folder,
    write_json,
)


def test_what_is_written_at_once_is_one_of_both_and_whole(tmp_path, monkeypatch):
    """As two processes do: each has a partial file of its own."""
    path = tmp_path / "a.txt"
    with whole_file(path) as first:
        first.write_text("A" * 20)
        monkeypatch.setattr(os, "getpid", lambda: 1)
        with whole_file(path) as second:
            second.write_text("B" * 12)
        assert path.read_text() == "B" * 12
    assert path.read_text() == "A" * 20
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("name", ["x" * 248 + ".nii.gz", "ä" * 124 + ".nii.gz"])
def test_a_name_as_long_as_a_file_system_takes_can_be_written(tmp_path, name):
    with whole_file(tmp_path / name) as partial:
        assert partial.name.endswith(".nii.gz")
        partial.write_text("whole")
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("place", ["a file/x.json", "a file/sub/x.json", "folder", "y" * 300])
def test_what_cannot_be_written_there_is_one_line(tmp_path, place):
    (tmp_path / "a file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        write_json(tmp_path / place, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a file", "folder"]


def test_a_folder_is_written_where_a_link_leads(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    (tmp_path / "nowhere").symlink_to("new")
    for name in ("link", "nowhere"):
        with whole_folder(tmp_path / name) as partial:
            (partial / "a").write_text("whole")
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / name / "a").read_text() == "whole"


def test_a_folder_that_was_filled_meanwhile_is_left(tmp_path):
    def write():
        with whole_folder(tmp_path / "a") as partial:
            (partial / "ours").write_text("")
            (tmp_path / "a").mkdir()
            (tmp_path / "a" / "theirs").write_text("")

    with pytest.raises(UserError, match="cannot be written"):
        write()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "theirs"]


def test_a_pipe_is_refused_and_not_read_for_ever(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    found = []

    def read():
        for look in (check_regular, lambda path: digest([path])):
            with pytest.raises(UserError, match="is a pipe or a device"):
                look(tmp_path / "pipe")
            found.append(True)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(10)
    assert found == [True, True]


def test_as_many_files_may_be_open_as_are_needed_or_a_line_says_why_not():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        allow_open_files(10)  # and those of libraries
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert 256 < soft < 1024
        assert hard == before[1]
        allow_open_files(1)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft, hard)
        if hard != resource.RLIM_INFINITY:
            with pytest.raises(UserError, match="files are to be open at once, and the system al"):
                allow_open_files(hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_name_that_is_no_text_has_a_digest(tmp_path):
    files = [tmp_path / os.fsdecode(b"M\xfcller.dcm"), tmp_path / "other.dcm"]
    for file in files:
        file.write_bytes(b"x")
    assert digest(files) != digest(files[1:])


def test_a_json_that_is_nested_without_end_is_one_line(tmp_path):
    (tmp_path / "x.json").write_text('{"a": ' + "[" * 200_000)
    with pytest.raises(UserError, match=r"x\.json: damaged; it is no JSON"):
        read_json(tmp_path / "x.json")
