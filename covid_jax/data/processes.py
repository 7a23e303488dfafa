"""Work on many cases at once, in processes."""

import contextlib
import functools
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from types import FrameType
from typing import TypeVar

from tqdm import tqdm

from covid_jax.errors import UserError
from covid_jax.stopping import StoppedError

Item = TypeVar("Item")
Result = TypeVar("Result")

_OF_ALL = (signal.SIGINT, signal.SIGUSR1)  # that a pool's processes need not see
_GRACE_SECONDS = 5.0  # for a process to end by itself


def each(
    function: Callable[[Item], Result], items: Sequence[Item], processes: int, title: str
) -> Iterator[Result]:
    """What `function` makes of each item, in their order, with a progress bar on a terminal.

    Where this process is asked to stop, or wants no more of them, the others end in the midst of
    their items, and no further ones are begun.

    Raises:
      UserError: a process was killed.
    """
    bar = functools.partial(
        tqdm, desc=title, total=len(items), unit="case", mininterval=1, disable=None
    )
    if min(processes, len(items)) < 2:
        yield from bar(map(function, items))
        return
    # Not forked: the parent may hold threads, as JAX does.
    context = multiprocessing.get_context("spawn")
    with without_signals(_OF_ALL):
        pool = ProcessPoolExecutor(min(processes, len(items)), context, _end_when_told)
    with pool:
        try:
            with without_signals(_OF_ALL):
                results = deque(pool.submit(_or_end, function, item) for item in items)
            yield from bar(results.popleft().result() for _ in items)
        except BrokenProcessPool as error:
            raise UserError(
                f"{title}: a process was killed, perhaps for want of memory; "
                "start again with fewer (--num_processes)"
            ) from error
        except (StoppedError, GeneratorExit):
            _end(multiprocessing.active_children())
            raise
        except Exception:
            pool.shutdown(cancel_futures=True)
            raise


@contextlib.contextmanager
def without_signals(numbers: Iterable[int]) -> Iterator[None]:
    """Processes that are started within never see these signals: who started them ends them.

    A terminal and Slurm send theirs to every process of a command.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        resource_tracker.ensure_running()  # Python's own, which undoes this for some when it starts
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(processes: Sequence[multiprocessing.process.BaseProcess]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(_GRACE_SECONDS)
        process.kill()


def _end_when_told() -> None:
    """SIGTERM goes through what a process has in hand, which removes what it has half written."""

    def end(_: int, __: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would come into the removing
        sys.exit(1)

    signal.signal(signal.SIGTERM, end)


def _or_end(function: Callable[[Item], Result], item: Item) -> Result:
    try:
        return function(item)
    except SystemExit:
        os._exit(1)  # the pool would take it for a result, and go on with the next item
