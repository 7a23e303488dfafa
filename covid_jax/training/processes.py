"""Several processes that train one run: how they start, take turns, stop together, and end.

Every process works on the samples that its devices hold. The first one writes the run's folder,
which all of them see.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils

from covid_jax.errors import UserError
from covid_jax.stopping import (
    REQUEUE_STATUS,
    STOP_SIGNALS,
    StoppedError,
    stop_signals_go_to,
    stopped_by,
    tell_stop,
)

_HEARTBEAT_SECONDS = 30  # after which a silent process counts as dead
_ABORTED = 128 + signal.SIGABRT  # what this process ends with where JAX would abort it later
_GRACE_SECONDS = 10  # for others that fail as this process does
_LOST = (
    "another process of this run has ended; start all of them again: "
    "they go on from the last checkpoint"
)


def start_processes(coordinator: str, num_processes: int, process_id: int) -> None:
    """Makes this process one of the run's, before it touches a device.

    Args:
      coordinator: HOST:PORT that the first process listens on. Empty: JAX finds it and the other
        two from the variables of Slurm, of a TPU slice or of another cluster that it knows.
      num_processes, process_id: of the run, and of this one of them.

    Raises:
      UserError: JAX finds no cluster, or the others do not come.
    """
    try:
        jax.distributed.initialize(
            coordinator or None,
            num_processes if coordinator else None,
            process_id if coordinator else None,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        first_line = str(error).split("\n")[0]
        raise UserError(
            f"the processes of this run do not find each other ({first_line}); outside of a "
            "cluster that JAX knows, give --coordinator, --num_processes and --process_id"
        ) from error


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


@contextlib.contextmanager
def first_before_others() -> Iterator[None]:
    """Lets the first process do the block before the others do it."""
    if not is_first():
        multihost_utils.sync_global_devices("first before others")
    try:
        yield
    finally:
        if is_first():
            multihost_utils.sync_global_devices("first before others")


def end_processes() -> bool:
    """Parts the processes, all of which must come here. Whether this is the first one."""
    first = is_first()
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()
        if threading.current_thread() is threading.main_thread():
            # JAX had taken it from whom Python knows, and does not give it back.
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    return first


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[int], bool]]:
    """Within, the first of STOP_SIGNALS asks to save and to stop, and later ones change nothing.

    Yields:
      asked(step) -> whether to save and stop after this step. Of several processes all say so at
      the same step, whichever was asked.

    Raises:
      StoppedError: at the end, where a signal came after the last step that could save for it.
    """
    asked: list[int] = []
    distributed = jax.distributed.is_initialized()

    def handle(number: int, _: FrameType | None) -> None:
        if asked:
            return
        asked.append(number)
        tell_stop(f"\n{signal.Signals(number).name}: saving after this step")
        if distributed:
            os.kill(os.getpid(), signal.SIGTERM)  # which JAX tells the others

    # JAX itself handles SIGTERM where there are several processes.
    handled = [n for n in STOP_SIGNALS if not (distributed and n == signal.SIGTERM)]
    with stop_signals_go_to(handle, handled):
        if distributed:
            yield multihost_utils.reached_preemption_sync_point
        else:
            yield lambda step: bool(asked)
    if asked and not distributed:
        raise StoppedError(stopped_by(asked[0]))


@contextlib.contextmanager
def among_others() -> Iterator[None]:
    """Within, this process ends when another has gone, and others can when it fails alone."""
    try:
        yield
    except (Exception, StoppedError) as error:
        if jax.distributed.is_initialized():
            # Gloo's and NCCL's words for a connection that broke.
            words = ("gloo", "nccl", "connection", "peer", "coordination")
            is_theirs = isinstance(error, jax.errors.JaxRuntimeError | ValueError)
            if is_theirs and any(word in str(error).lower() for word in words):
                # Told by `supervise` alone, as JAX may print to the end. An orderly end would wait
                # for the one that is gone.
                os._exit(_ABORTED)
            # An orderly end waits for the others, which may be waiting for this process.
            status = REQUEUE_STATUS if isinstance(error, StoppedError) else 1
            end = threading.Timer(_GRACE_SECONDS, os._exit, [status])
            end.daemon = True
            end.start()
        raise


def supervise() -> None:
    """Goes on in a child of this process: returns there, and never here.

    JAX aborts a process whose coordinator is gone, so only another process can tell its user. To
    be called before JAX has a device, whose threads a child would lack.
    """
    sys.stdout.flush()  # or the child would print it again
    child = os.fork()
    if child == 0:
        return

    def pass_on(number: int, _: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(child, number)

    with stop_signals_go_to(pass_on):
        _, ended = os.waitpid(child, 0)
    status = os.waitstatus_to_exitcode(ended)
    if status in (-signal.SIGABRT, _ABORTED):
        raise StoppedError(_LOST)
    sys.exit(status if status >= 0 else 128 - status)
