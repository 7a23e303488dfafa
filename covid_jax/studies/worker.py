"""A process that does one step of a study after another; what it imports and compiles stays.

    python -m covid_jax.studies.worker ANSWERS [CORE ...]

Each line that it reads is an order, ["covid_jax.train", "--workdir=...", ...] and a log file, which
gets all that the step prints; a line with its exit status goes to the file descriptor ANSWERS. A
step that ends in a fault of the program ends the process with it; where who gave the orders is
gone, the step is asked to save and end. See studies/executors.py, which starts it.
"""

import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterable
from queue import SimpleQueue
from typing import IO

from covid_jax.command import for_commands


def serve(orders: Iterable[str], answers: IO[str]) -> None:
    """Does what the orders say until there are no more, or nobody who gave them."""
    taken, busy = SimpleQueue[str](), threading.Event()
    threading.Thread(target=_read, args=(orders, taken, busy), daemon=True).start()
    while order := taken.get():
        command, log = json.loads(order)
        file = os.open(log, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, sys.stdout.fileno())
        os.dup2(file, sys.stderr.fileno())
        os.close(file)
        status = importlib.import_module(command[0]).main(command[1:])
        busy.clear()
        try:
            print(status, file=answers, flush=True)
        except BrokenPipeError:
            os._exit(status)  # the study is gone, and its next start finds what the step made


def _read(orders: Iterable[str], taken: SimpleQueue[str], busy: threading.Event) -> None:
    """Takes the orders; where they end in the midst of a step, this process gets SIGTERM."""
    for order in orders:
        busy.set()
        taken.put(order)
    taken.put("")
    if busy.is_set():
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    for_commands()
    answers, *cores = map(int, sys.argv[1:])
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)  # before JAX and OpenMP count them
    # A copy that no child has; the steps have nothing to read.
    orders = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.set_inheritable(answers, False)
    serve(os.fdopen(orders), os.fdopen(answers, "w"))
