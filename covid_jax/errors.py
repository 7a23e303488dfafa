"""The error type for a user's mistake, and the system's errors that are one."""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

_MOST_NAMED = 8  # in one line

FULL = (errno.ENOSPC, errno.EDQUOT)
UNWRITABLE = (
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENOTEMPTY,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EFBIG,
)


class UserError(Exception):
    """A mistake in the input, told in one line that names the file or field and the mend."""


def system_error(error: BaseException) -> int | None:
    """The number of the system's error that `error` tells of, such as errno.EIO; None without one.

    Python's own (several in one of shutil's), and tensorstore's, by which orbax reads and writes.
    """
    found = re.search(r"(?:\[Errno |os_error_code=')(\d+)", str(error))
    return int(found[1]) if found else None


def _is_full(target: Path) -> bool:
    folder = next(place for place in target.absolute().parents if place.is_dir())
    return shutil.disk_usage(folder).free == 0


@contextlib.contextmanager
def writing(target: str | Path) -> Iterator[None]:
    """Turns a full disk, and a file that cannot be written where it is to be, into one line."""
    try:
        yield
    except (OSError, ValueError) as error:
        number = system_error(error)
        if number is None and isinstance(error, OSError) and _is_full(Path(target)):
            number = errno.ENOSPC  # numpy reports a short write, which a full disk causes, without
        if number in UNWRITABLE:
            raise UserError(f"{target}: cannot be written ({os.strerror(number)})") from error
        if number not in FULL:
            raise
        raise UserError(
            f"{target}: the disk is full; free some space and start the same command again"
        ) from error


def listed(names: Iterable[str], most: int = _MOST_NAMED) -> str:
    """The first names, `most` of them, and how many more there are."""
    names = sorted(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
