"""A process that does one step of a study after another; what it imports and compiles stays.

    python -m covid_jax.studies.worker

Each line that it reads is an order, ["covid_jax.train", "--workdir=...", ...] and a log file, which
gets all that the step prints; it answers with the step's exit status. A step that ends in a fault
of the program ends the process with it. See studies/executors.py, which starts it.
"""

import importlib
import json
import os
import sys
from collections.abc import Iterable
from typing import IO

from covid_jax.command import quieten


def serve(orders: Iterable[str], answers: IO[str]) -> None:
    """Does what the orders say until there are no more, or nobody who gave them."""
    for order in orders:
        command, log = json.loads(order)
        file = os.open(log, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, sys.stdout.fileno())
        os.dup2(file, sys.stderr.fileno())
        os.close(file)
        status = importlib.import_module(command[0]).main(command[1:])
        try:
            print(status, file=answers, flush=True)
        except BrokenPipeError:
            os._exit(status)  # the study is gone, and its next start finds what the step made


if __name__ == "__main__":
    quieten()
    # Copies that no child has; the steps have nothing to read.
    orders, answers = (os.fdopen(os.dup(n), mode) for n, mode in ((0, "r"), (1, "w")))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    serve(orders, answers)
