"""How many threads the CPU backends use: KOOPCORE_NUM_THREADS, else the processors allowed."""

from __future__ import annotations

import os


def thread_count() -> int:
    """KOOPCORE_NUM_THREADS, an int >= 1, or the number of processors this process may run on.

    Read at every call, so that a change takes effect at once. Raises ValueError on anything else.
    """
    given = os.environ.get("KOOPCORE_NUM_THREADS", "").strip()
    if given:
        if not given.isdecimal() or int(given) < 1:
            raise ValueError(
                f"KOOPCORE_NUM_THREADS is {given!r}; give a whole number >= 1, or unset it to use "
                "every processor this process may run on"
            )
        return int(given)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
