"""How many threads the CPU backends use: as many as the user, torch or OpenMP say."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

_VARIABLES: Mapping[Any, Any] = getattr(os.environ, "_data", os.environ)
_KEYS = {
    name: getattr(os.environ, "encodekey", str)(name)
    for name in ("KOOPCORE_BACKEND", "KOOPCORE_NUM_THREADS", "OMP_NUM_THREADS")
}


def setting(name: str) -> str:
    """An environment variable as it is now; empty where it is not set.

    ``os.environ.get`` raises two exceptions to find nothing, which takes a microsecond.
    """
    return os.environ[name] if _KEYS[name] in _VARIABLES else ""


def thread_count() -> int:
    """KOOPCORE_NUM_THREADS; else torch's number, where it is imported, or OMP_NUM_THREADS.

    Otherwise the number of processors this process may run on. So N processes on one machine, of
    which torchrun lets each use one thread, do not take N times the processors. Read at every call,
    so that a change takes effect at once. Raises ValueError for a KOOPCORE_NUM_THREADS that is no
    int >= 1.
    """
    given = setting("KOOPCORE_NUM_THREADS").strip()
    if given:
        if not given.isdecimal() or int(given) < 1:
            raise ValueError(
                f"KOOPCORE_NUM_THREADS is {given!r}; give a whole number >= 1, or unset it to use "
                "as many threads as torch"
            )
        return int(given)
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_num_threads"):  # not while it is being imported
        return int(torch.get_num_threads())
    openmp = setting("OMP_NUM_THREADS").partition(",")[0].strip()
    if openmp.isdecimal() and int(openmp) >= 1:  # what else it may be is OpenMP's to say
        return int(openmp)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
