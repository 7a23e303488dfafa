"""How a command is asked to stop, and what it then ends with."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType

REQUEUE_STATUS = 75
"""The exit status of a command that is to be started again: sysexits.h's EX_TEMPFAIL."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""What asks a command to save and stop: kill, Kubernetes, Slurm; Slurm's --signal=USR1; Ctrl-C."""

ONE_WISH_SECONDS = 5.0
"""In which several signals are one, as Ctrl-C's and then a study's."""


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
