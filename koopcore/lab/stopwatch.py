"""Times of several calls measured in turns, so that a slow spell of the machine meets them all."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median


def in_turns(calls: Sequence[Callable[[], object]], rounds: int = 15) -> list[float]:
    """Median wall-clock seconds of each call over ``rounds`` rounds through all of them.

    One more round goes first, uncounted: a first call may compile or fill caches. Ratios of the
    results are steadier than the results themselves on a machine whose clock varies. Not for calls
    of less than some microseconds: time a loop of them.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; at least 1 is needed")
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds + 1):
        for call, own in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call()
            own.append(time.perf_counter() - start)
    return [median(own[1:]) for own in seconds]
