"""The error type for a user's mistake, and that of a stop."""

import contextlib
import errno
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType

REQUEUE_STATUS = 75
"""The exit status of a command that is to be started again: sysexits.h's EX_TEMPFAIL."""


STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""What asks a command to save and stop: kill, Kubernetes, Slurm; Slurm's --signal=USR1; Ctrl-C."""

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


@contextlib.contextmanager
def stop_signals_go_to(
    handler: Callable[[int, FrameType | None], None], numbers: Iterable[int] = STOP_SIGNALS
) -> Iterator[None]:
    """Within, `handler` takes these signals; afterwards who took them before.

    Only in the main thread, which signals go to: any other leaves them to it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, handled in before.items():
            signal.signal(number, handled)


def end_on_stop_signals() -> None:
    """From now on STOP_SIGNALS end the process with one line, as nothing is to be put in order."""

    def end(number: int, _: FrameType | None) -> None:
        tell_stop(f"stopped: {stopped_by(number)}")
        os._exit(REQUEUE_STATUS)

    for number in STOP_SIGNALS:
        signal.signal(number, end)


def stopped_by(number: int) -> str:
    """How a signal's stop is told."""
    return f"by {signal.Signals(number).name}; the same command goes on"


def tell_stop(line: str) -> None:
    """Writes a line to stderr from a handler of signals, which may come in the midst of a print.

    Where stderr is gone, as a terminal that was closed, nothing is told: what is to be saved is
    saved all the same.
    """
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())


class StoppedError(BaseException):
    """The command was asked to stop, or lost a process, and goes on when it is started again.

    Like KeyboardInterrupt it is no Exception: it may come anywhere, and is no fault of what it
    comes into.
    """


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
