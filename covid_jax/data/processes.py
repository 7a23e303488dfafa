"""Work on many cases at once, in processes."""

import functools
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from tqdm import tqdm

from covid_jax.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(
    function: Callable[[Item], Result], items: Sequence[Item], processes: int, title: str
) -> Iterator[Result]:
    """What `function` makes of each item, in their order, with a progress bar.

    Raises:
      UserError: a process was killed.
    """
    bar = functools.partial(tqdm, desc=title, total=len(items), unit="case", mininterval=1)
    if min(processes, len(items)) < 2:
        yield from bar(map(function, items))
        return
    # Not forked: the parent may hold threads, as JAX does.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(items)), context) as pool:
        try:
            yield from bar(pool.map(function, items))
        except BrokenProcessPool as error:
            raise UserError(
                f"{title}: a process was killed, perhaps for want of memory; "
                "start again with fewer (--num_processes)"
            ) from error
