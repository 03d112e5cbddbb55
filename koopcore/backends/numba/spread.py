"""Ranges of work for the threads: the same pieces whatever their number, so the results too."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from koopcore.backends.threads import thread_count

SERIAL = 2_000_000  # multiplications that are done before another thread has woken up
RANGES_PER_THREAD = 4  # so that a thread that was held up costs little

_pools: dict[int, ThreadPoolExecutor] = {}
if hasattr(os, "register_at_fork"):  # threads do not survive a fork
    os.register_at_fork(after_in_child=_pools.clear)


def spread(work: Callable[[int, int], object], ends: npt.NDArray[np.int64], align: int = 1) -> None:
    """Call work(low, high) on ranges that cover all items, in several threads if it is worth it.

    ends: (n_items,) multiplications of the items up to and with each; align: ranges begin at
    multiples of it. An exception of any range is raised here.
    """
    items = len(ends)
    threads = thread_count()
    if threads == 1 or items <= align or ends[-1] < SERIAL:
        if items:
            work(0, items)
        return
    shares = threads * RANGES_PER_THREAD
    cuts = np.searchsorted(ends, ends[-1] * np.arange(1, shares) / shares, side="right")
    bounds = np.unique(np.concatenate(([0], cuts // align * align, [items]))).tolist()
    ranges = list(itertools.pairwise(bounds))
    turn = itertools.count()

    def take() -> None:
        while (i := next(turn)) < len(ranges):
            work(*ranges[i])

    pool = _pools.get(threads) or _pools.setdefault(
        threads, ThreadPoolExecutor(threads - 1, thread_name_prefix="koopcore")
    )
    others = [pool.submit(take) for _ in range(min(threads, len(ranges)) - 1)]
    take()
    for other in others:
        other.result()


def equal_ends(items: int, cost: float) -> npt.NDArray[np.int64]:
    """``ends`` of items of one cost each."""
    return (np.arange(1, items + 1) * max(cost, 1.0)).astype(np.int64)
