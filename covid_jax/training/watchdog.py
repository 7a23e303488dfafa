"""Tells of a training step that takes far longer than the others, while it does."""

import threading
import time
from collections import deque
from statistics import median
from types import TracebackType

from tqdm import tqdm

_TIMES_THE_MEDIAN = 10
_SHORTEST = 5.0  # seconds: less is no reason to look
_KNOWN = 5  # steps before there is a median


class Watchdog:
    """Says so in a line when a step takes over 10 times the median of the last 100.

    A context manager; a thread looks once a second, so that a step that hangs is told as well.
    """

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=100)
        self._step: int | None = None
        self._began = 0.0
        self._told = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def begin(self, step: int | None) -> None:
        """A step begins, and the one before has ended; None: no step."""
        now = time.monotonic()
        if self._step is not None:
            self._seconds.append(now - self._began)
        self._step, self._began, self._told = step, now, False

    def _watch(self) -> None:
        while not self._end.wait(1.0):
            step, running = self._step, time.monotonic() - self._began
            if step is None or self._told or len(self._seconds) < _KNOWN:
                continue
            usual = median(self._seconds)
            if running > max(_TIMES_THE_MEDIAN * usual, _SHORTEST):
                self._told = True
                tqdm.write(
                    f"step {step} has been running for {running:.0f} s; the median is {usual:.3g} s"
                )
