"""How kernels are compiled, and how threads share their work."""

from __future__ import annotations

import hashlib
import itertools
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from koopcore.backends.threads import thread_count

# Division by zero gives inf or nan, as in NumPy. No fast-math: sums are reordered only where a
# kernel does so itself, with the vectors of `simd`. Wrappers for C callers would never be called.
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}


def _version() -> str:
    """A digest of all sources that are compiled into one another."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for source in [*sorted(here.glob("*.py")), here.parent / "protocol.py"]:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:10]


_VERSION = _version()


def _cache_directory() -> str:
    """The user's folder for caches: files beside the sources would outlive an uninstall."""
    if sys.platform == "darwin":
        base = "~/Library/Caches"
    elif sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA", "~/AppData/Local")
    else:
        base = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return str(Path(base).expanduser() / "koopcore")


_CACHE = _cache_directory()


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile at the first call; later processes load the machine code from the cache on disk."""
    return _compiled(function, **_OPTIONS)


def inner(function: Callable[..., Any]) -> Callable[..., Any]:
    """A part of a kernel that makes no array: nothing to unbox, no references to count.

    Only to be called by other compiled functions.
    """
    return _for_any_number(_compiled(function, no_cpython_wrapper=True, _nrt=False, **_OPTIONS))


def making(function: Callable[..., Any]) -> Callable[..., Any]:
    """A part of a kernel that makes arrays: as `inner`, but these have to be let go again."""
    return _for_any_number(_compiled(function, no_cpython_wrapper=True, **_OPTIONS))


def _for_any_number(compiled: Any) -> Any:
    """Compile once for int64, not once more for every constant that an argument may be."""
    template = compiled.get_call_template

    def get_call_template(args: Any, kws: Any) -> Any:
        plain = tuple(numba.types.unliteral(kind) for kind in args)
        return template(plain, {name: numba.types.unliteral(kws[name]) for name in kws})

    compiled.get_call_template = get_call_template
    return compiled


def _compiled(function: Callable[..., Any], **options: bool | str) -> Callable[..., Any]:
    # Numba's cache notices when the file of a function changes, not when that of a function it
    # calls does; its entries are found by qualified name.
    function.__qualname__ = f"{function.__name__}_{_VERSION}"
    elsewhere = numba.config.CACHE_DIR  # read by Numba when a function is decorated
    numba.config.CACHE_DIR = elsewhere or _CACHE
    try:
        compiled: Callable[..., Any] = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no directory can be written, not even the user's: compile each time
        compiled = numba.njit(**options)(function)
    finally:
        numba.config.CACHE_DIR = elsewhere
    return compiled


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
