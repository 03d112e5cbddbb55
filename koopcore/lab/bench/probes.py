"""The roofs of the machine at hand: bytes read, bytes written, multiply-adds per second.

The reading probe is given the very array that the engine reads, so that both meet it in the same
state: left in a cache by the call before, or evicted by `evict`. It takes the best of several ways
of reading (`machine_code.READS`), because a slow probe would flatter every ratio that it is in.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from koopcore.backends.threads import thread_count
from koopcore.lab.bench import machine_code
from koopcore.lab.bench.machine_code import FMA_CHAINS, LINE


def on_threads(work: Callable[[int, int], object], threads: int | None = None) -> None:
    """work(thread, threads) on each of ``threads`` threads at once, the caller's among them."""
    threads = threads or thread_count()
    others = [threading.Thread(target=work, args=(k, threads)) for k in range(1, threads)]
    for other in others:
        other.start()
    work(0, threads)
    for other in others:
        other.join()


def flops_of_loop(turns: int, threads: int | None = None) -> float:
    """Floating-point operations of `multiply_add`: a multiply-add counts as two."""
    lanes = machine_code.vector_bytes() // 8
    return 2.0 * lanes * FMA_CHAINS * turns * (threads or thread_count())


def multiply_add(turns: int, threads: int | None = None) -> float:
    """Run ``turns`` turns of the loop on every thread. Returns what one of them computed."""
    loop, out = machine_code.fma_loop(), [0.0]

    def work(thread: int, _threads: int) -> None:
        out[0] = loop(turns, 0.5)

    on_threads(work, threads)
    return out[0]


def read(
    array: npt.NDArray[Any], shape: tuple[int, int, int], threads: int | None = None
) -> tuple[int, int]:
    """Read a C-contiguous array once, ``shape`` of `machine_code.READS`.

    Returns the exclusive or of its 64-bit words, and the bytes read: all but what does not fill
    a turn of every stream on every thread (reported, so that the rate is right).
    """
    if not array.flags.c_contiguous:
        raise ValueError("the reading probe needs a C-contiguous array")
    streams, lines, ahead = shape
    loop = machine_code.read_loop(streams, lines, ahead)
    threads = threads or thread_count()
    turn = lines * LINE
    distance = array.nbytes // (threads * streams) // turn * turn
    if distance == 0:
        raise ValueError(f"an array of {array.nbytes} bytes is too small for the reading probe")
    address, words = array.ctypes.data, [0] * threads

    def work(thread: int, _threads: int) -> None:
        words[thread] = loop(address + thread * streams * distance, distance, distance)

    on_threads(work, threads)
    return int(np.bitwise_xor.reduce(np.array(words, np.int64))), distance * streams * threads


def write(array: npt.NDArray[Any], past_caches: bool = True, threads: int | None = None) -> int:
    """Zeros to a C-contiguous array, by non-temporal stores or ordinary ones. Returns the bytes.

    All but the at most 127 bytes before the first and after the last whole cache line, which are
    few enough to be called everything.
    """
    if not array.flags.c_contiguous:
        raise ValueError("the writing probe needs a C-contiguous array")
    loop = machine_code.store_loop(past_caches)
    first = -(-array.ctypes.data // LINE) * LINE
    threads = threads or thread_count()
    piece = (array.ctypes.data + array.nbytes - first) // threads // LINE * LINE
    if piece <= 0:
        raise ValueError(f"an array of {array.nbytes} bytes is too small for the writing probe")
    on_threads(lambda thread, _: loop(first + thread * piece, piece), threads)
    return piece * threads


@cache
def _ballast(size: int) -> npt.NDArray[np.int64]:
    return np.ones(size // 8, np.int64)


def evict(last_level: int) -> None:
    """Push everything else out of the caches: read four times the last level's bytes.

    Caches of servers are not strictly least-recently-used, and some keep a share of the older
    lines: four times the size leaves little of them.
    """
    read(_ballast(4 * last_level), (8, 2, 0))
