"""Files that are whole or absent, and JSON."""

import contextlib
import hashlib
import json
import os
import resource
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from covid_jax.errors import UserError, writing

_OTHER_FILES = 512  # of libraries, checkpoints and logs
_LONGEST_TAIL = 200  # bytes; a file system takes names of 255


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name to write to that becomes `path` when the block ends well, and is gone otherwise."""
    # Of this process alone; and no longer than a name may be, with the ending of the format.
    tail = os.fsencode(path.name)[-_LONGEST_TAIL:].decode(errors="ignore")
    partial = path.with_name(f".partial-{os.getpid()}-{tail}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to write to that becomes `path` when the block ends well, and is gone otherwise.

    `path` is new, or empty; where it is a link, what it leads to.
    """
    path = path.resolve()
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")
    with writing(path):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            if path.is_dir():
                path.rmdir()
            partial.rename(path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def write_json(path: Path, content: Any) -> None:
    """Writes `content` to `path` as JSON; whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """What the JSON file at `path` says by name; nothing where there is no such file.

    Raises a UserError where it is damaged.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text("utf-8-sig"))  # editors put a mark in front
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged; it is no JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: damaged; it says nothing by name")
    return content


def is_number(value: Any) -> bool:
    """Whether what was read from JSON is a finite number."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def digest(files: Sequence[Path]) -> str:
    """Of the bytes of files, and of the names of several.

    Raises a UserError where one cannot be read.
    """
    whole = hashlib.sha256()
    for path in files:
        check_regular(path)
        try:
            with path.open("rb") as file:
                part = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
        whole.update(os.fsencode(f"{path.name} {part}\n" if len(files) > 1 else part))
    return whole.hexdigest()[:16]


def allow_open_files(count: int) -> None:
    """Lets this process have so many files open at once, and some more.

    Raises a UserError where the system allows it fewer.
    """
    wanted = count + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (ValueError, OSError) as error:
        raise UserError(
            f"{count} files are to be open at once, and the system allows {soft}; raise its limit "
            "(ulimit -Hn, /etc/security/limits.conf)"
        ) from error


def check_regular(path: Path) -> None:
    """Raises a UserError for a pipe or a device, which would be read for ever."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{path}: is a pipe or a device, no file; take it away")


def refuse_inside(output: Path, inputs: Path, flag: str) -> None:
    """Raises a UserError where the folder `output` is the folder `inputs` or lies in it.

    Whatever links lead there. `flag` names the folder of the outputs.
    """
    if inputs.resolve() in (output.resolve(), *output.resolve().parents):
        raise UserError(
            f"{flag}={output}: lies in {inputs}, which holds inputs; give a folder outside of it"
        )
