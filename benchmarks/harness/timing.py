"""Timing of several things beside each other: in turns, so that what drifts hits all alike."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.harness.energy import joules_used

NOISY = 0.10
"""Turns whose quartiles lie further apart than this share of their median are marked as noisy."""


@dataclasses.dataclass(frozen=True)
class Timing:
    """Of one call, of each turn: seconds; joules, where the device tells; and processor seconds.

    The last are this process's, of all cores together. On a machine that others use as well they
    say more than the clock does.
    """

    turns: tuple[float, ...]
    joules: tuple[float, ...] = ()
    processor: tuple[float, ...] = ()

    @property
    def median(self) -> float:
        """Of the turns, in seconds."""
        return statistics.median(self.turns)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the median, from 2000 resamplings of the turns."""
        rng = np.random.default_rng(0)
        medians = np.median(rng.choice(self.turns, (2000, len(self.turns))), axis=1)
        low, high = np.quantile(medians, (0.025, 0.975))
        return float(low), float(high)

    @property
    def spread(self) -> float:
        """The distance of the quartiles over the median."""
        low, high = np.quantile(self.turns, (0.25, 0.75))
        return float(high - low) / self.median

    def described(self) -> dict[str, Any]:
        """What a result file says of it besides the median."""
        return {
            "turns": list(self.turns),
            "interval": list(self.interval),
            "spread": self.spread,
            "noisy": self.spread > NOISY,
            "joules": statistics.median(self.joules) if self.joules else None,
            "processor_seconds": statistics.median(self.processor) if self.processor else None,
        }


def in_turns(
    runs: Sequence[Callable[[], Any]], rounds: int, seconds: float, platform: str = "cpu"
) -> Iterator[list[Timing]]:
    """Times `runs` in the order A-B-B-A; after every round, the timings so far.

    With the joules of the `platform` they run on, where it tells.

    Each run does its work and waits for its end. A turn is as many calls as fill `seconds`, one
    at least. Every run is called before the first round, to warm up, and again to be counted.
    """
    counts = []
    for run in runs:
        run()
        begin = time.perf_counter()
        if seconds:
            run()
        counts.append(max(1, round(seconds / (time.perf_counter() - begin))))
    timings = [Timing(()) for _ in runs]
    for turn in range(rounds):
        order = range(len(runs)) if turn % 2 == 0 else reversed(range(len(runs)))
        for index in order:
            used, busy, begin = joules_used(platform), time.process_time(), time.perf_counter()
            for _ in range(counts[index]):
                runs[index]()
            elapsed, worked = time.perf_counter() - begin, time.process_time() - busy
            after = joules_used(platform)
            timings[index] = Timing(
                (*timings[index].turns, elapsed / counts[index]),
                ()
                if used is None or after is None
                else (*timings[index].joules, (after - used) / counts[index]),
                (*timings[index].processor, worked / counts[index]),
            )
        yield list(timings)
