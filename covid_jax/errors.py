"""The error type for a user's mistake, that of a stop, and the edge where they are printed."""

import contextlib
import errno
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from absl import app, flags, logging

REQUEUE_STATUS = 75
"""The exit status of a command that is to be started again: sysexits.h's EX_TEMPFAIL."""


STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""What asks a command to save and stop: kill, Kubernetes, Slurm; Slurm's --signal=USR1; Ctrl-C."""

_MOST_NAMED = 8  # in one line

_ONE_WISH_SECONDS = 5.0  # in which several signals are one, as Ctrl-C's and then a study's

_FULL = (errno.ENOSPC, errno.EDQUOT)
_UNWRITABLE = (
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENOTEMPTY,
    errno.ENAMETOOLONG,
    errno.ELOOP,
)


@contextlib.contextmanager
def stop_signals_go_to(
    handler: Callable[[int, FrameType | None], None], numbers: Iterable[int] = STOP_SIGNALS
) -> Iterator[None]:
    """Within, `handler` takes these signals; afterwards who took them before."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, handled in before.items():
            signal.signal(number, handled)


def end_on_stop_signals() -> None:
    """From now on STOP_SIGNALS end the process with one line, as nothing is to be put in order."""

    def end(number: int, _: FrameType | None) -> None:
        tell_stop(f"stopped: {_by(number)}")
        os._exit(REQUEUE_STATUS)

    for number in STOP_SIGNALS:
        signal.signal(number, end)


def tell_stop(line: str) -> None:
    """Writes a line to stderr from a handler of signals, which may come in the midst of a print."""
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
        if number in _UNWRITABLE:
            raise UserError(f"{target}: cannot be written ({os.strerror(number)})") from error
        if number not in _FULL:
            raise
        raise UserError(
            f"{target}: the disk is full; free some space and start the same command again"
        ) from error


def run_command(
    main: Callable[[], None],
    usage: str | None,
    check_arguments: Callable[[list[str]], None] | None = None,
) -> None:
    """Runs `main` under absl with `usage` as its --help text; a UserError becomes one line, exit 1.

    STOP_SIGNALS raise a StoppedError in it, which becomes one line too, and REQUEUE_STATUS.
    `check_arguments` sees sys.argv before absl does, for mistakes that absl ends in a traceback.
    """

    def edge(arguments: list[str]) -> None:
        if len(arguments) > 1:
            _fail(
                f"unknown argument {arguments[1]!r}: every setting is a --flag=value (see --help)"
            )
        with _stopped_by_signals():
            told, status = _outcome(main)
        if told:
            print(told, file=sys.stderr)
            sys.exit(status)

    logging.set_verbosity(logging.FATAL)  # orbax tells each step, and errors before it raises them
    if usage:
        sys.modules["__main__"].__doc__ = usage
    if check_arguments:
        try:
            check_arguments(sys.argv[1:])
        except UserError as error:
            _fail(str(error))
    app.run(edge, flags_parser=_parse_flags)


def _outcome(main: Callable[[], None]) -> tuple[str, int]:
    """The line that tells how `main` ended, and the exit status; no line where it ended well.

    Returned, not printed where it is caught: until then the frames of `main` live, and with them
    what ends only when it is dropped.
    """
    try:
        main()
    except UserError as error:
        return f"error: {error}", 1
    except StoppedError as stop:
        return f"stopped: {stop}", REQUEUE_STATUS
    except OSError as error:
        if error.errno not in (*_FULL, *_UNWRITABLE):
            raise
        where = error.filename or "output"
        return f"error: {where}: {error.strerror}; mend that and start it again", 1
    return "", 0


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Within, STOP_SIGNALS raise a StoppedError, once for all signals of one wish."""
    raised = -_ONE_WISH_SECONDS

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal raised
        if time.monotonic() - raised > _ONE_WISH_SECONDS:
            raised = time.monotonic()
            raise StoppedError(_by(number))

    def report(unraisable: Any) -> None:
        nonlocal raised
        if isinstance(unraisable.exc_value, StoppedError):
            # It came into what cannot raise, such as the callback of a weak reference: once more.
            raised = -_ONE_WISH_SECONDS
            threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGTERM)).start()
        else:
            _report_unraisable(unraisable)

    sys.unraisablehook = report
    with stop_signals_go_to(stop):
        yield


def _by(number: int) -> str:
    return f"by {signal.Signals(number).name}; the same command goes on"


def _report_unraisable(unraisable: Any) -> None:
    """Leaves out what a failed save has in its wake: orbax gave up, its writes end later."""
    if "Event loop is closed" not in str(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)


def _parse_flags(arguments: list[str]) -> list[str]:
    try:
        return flags.FLAGS(arguments)
    except flags.Error as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)


def listed(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    names = sorted(names)
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
