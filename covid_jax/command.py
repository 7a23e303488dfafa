"""The edge of every command: its flags, one line for what went wrong, and the exit status.

A command is a module with flags of its own and `main(arguments) -> status`, which can be called
any number of times in one process: what a call changes of the process is as before after it.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

from absl import flags, logging

from covid_jax.errors import FULL, UNWRITABLE, UserError
from covid_jax.stopping import (
    ONE_WISH_SECONDS,
    REQUEUE_STATUS,
    StoppedError,
    stop_signals_go_to,
    stopped_by,
)

Main = Callable[[Sequence[str]], int]

_MALLOPT = (  # options of glibc's malloc.h, and their values
    (-4, 0),  # M_MMAP_MAX: no block is the system's again once it is freed,
    (-1, -1),  # M_TRIM_THRESHOLD: nor is the end of the heap,
    (-8, 1),  # M_ARENA_MAX: which is the only one that can hold large blocks
    (-2, 64 << 20),  # M_TOP_PAD: and grows by 64 MiB at least
)
_ONE_AT_A_TIME = threading.RLock()  # flags, sys.argv and what is logged are the process's
_HELP = {"--help", "-help", "--helpfull", "-h"}


def as_process(main: Main) -> NoReturn:
    """Runs a command as what this process is for: with its arguments, to its exit status."""
    for_commands()
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed: the next file would take its number
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):  # a file's name may hold what is no text
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        status = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # who read the output has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 128 + signal.SIGPIPE
    sys.exit(status)


def for_commands() -> None:
    """From now on this process is for commands, and is set up for them as a whole.

    What libraries tell in their wake is left out, and memory that was freed is kept.
    """
    logging.set_verbosity(logging.FATAL)  # orbax tells each step, and errors before it raises them
    sys.unraisablehook = _report_unraisable
    if not any(name.startswith("MALLOC_") for name in os.environ):  # who sets one has chosen
        keep_freed_memory(ctypes.CDLL(None))


def keep_freed_memory(libc: Any) -> None:
    """From now on what this process frees is for what it allocates next, not for the system.

    A program of JAX allocates all its intermediate values as one block, and frees it at its end. By
    glibc's own rules every step of a training, and every window of a prediction, then begins with
    pages that the system first has to find and clear.

    Args:
      libc: the C library that allocates here; one that is not glibc is left as it is.
    """
    if hasattr(libc, "mallopt"):
        for option, value in _MALLOPT:
            libc.mallopt(option, value)


def run_command(
    work: Callable[[], None],
    own: flags.FlagValues,
    usage: str | None,
    arguments: Sequence[str],
    check_arguments: Callable[[Sequence[str]], None] | None = None,
) -> int:
    """Runs `work` with a command's `own` flags set by `arguments`; returns the exit status.

    A UserError becomes one line, and 1. STOP_SIGNALS raise a StoppedError in it, which becomes one
    line too, and REQUEUE_STATUS. `check_arguments` sees the arguments before absl does, for
    mistakes that absl ends in a traceback. Calls in several threads wait for each other.

    Args:
      usage: what --help prints above the flags.
    """
    if _HELP & {*arguments}:
        print(f"{usage or ''}\nflags:\n{own.get_help(include_special_flags=False)}")
        return 0
    with _ONE_AT_A_TIME:
        verbosity = logging.get_verbosity()
        logging.set_verbosity(logging.FATAL)  # as `for_commands`
        try:
            if check_arguments:
                check_arguments(arguments)
            with _parsed(own, arguments), _stopped_by_signals():
                told, status = _outcome(work)
        except UserError as error:
            told, status = f"error: {error}", 1
        finally:
            logging.set_verbosity(verbosity)
    if told:
        print(told, file=sys.stderr)
    return status


def require(*wanted: flags.FlagHolder[Any]) -> None:
    """Raises a UserError for the first of these flags that is not given."""
    for flag in wanted:
        if not flag.value:
            raise UserError(f"--{flag.name} is missing (see --help)")


@contextlib.contextmanager
def _parsed(own: flags.FlagValues, arguments: Sequence[str]) -> Iterator[None]:
    """Within, the flags have the values of `arguments`. Raises a UserError for what is none."""
    defined = set(own)
    # ml_collections looks there for what of a config is overridden, and defines flags of it.
    before, sys.argv = sys.argv, [sys.argv[0], *arguments]
    try:
        try:
            _, *strange = own(sys.argv)
        except flags.Error as error:
            raise UserError(str(error)) from error
        if strange:
            raise UserError(
                f"unknown argument {strange[0]!r}: every setting is a --flag=value (see --help)"
            )
        yield
    finally:
        sys.argv = before
        for name in set(own) - defined:
            delattr(own, name)
        own.unparse_flags()


def _outcome(work: Callable[[], None]) -> tuple[str, int]:
    """The line that tells how `work` ended, and the exit status; no line where it ended well.

    Returned, and printed later: while an exception is handled the frames of `work` stay alive, and
    with them files and iterators, which close when they are dropped.
    """
    try:
        work()
    except UserError as error:
        return f"error: {error}", 1
    except StoppedError as stop:
        return f"stopped: {stop}", REQUEUE_STATUS
    except OSError as error:
        if error.errno not in (*FULL, *UNWRITABLE):
            raise
        where = error.filename or "output"
        return f"error: {where}: {error.strerror}; mend that and start it again", 1
    return "", 0


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Within, STOP_SIGNALS raise a StoppedError, once for all signals of one wish."""
    raised = -ONE_WISH_SECONDS
    hook = sys.unraisablehook

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal raised
        if time.monotonic() - raised > ONE_WISH_SECONDS:
            raised = time.monotonic()
            raise StoppedError(stopped_by(number))

    def report(unraisable: Any) -> None:
        nonlocal raised
        if isinstance(unraisable.exc_value, StoppedError):
            # It came into what cannot raise, such as the callback of a weak reference: once more.
            raised = -ONE_WISH_SECONDS
            threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGTERM)).start()
        else:
            hook(unraisable)

    sys.unraisablehook = report
    try:
        with stop_signals_go_to(stop):
            yield
    finally:
        sys.unraisablehook = hook


def _report_unraisable(unraisable: Any) -> None:
    """Leaves out what a failed save has in its wake: orbax gave up, its writes end later."""
    if "Event loop is closed" not in str(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)
