"""How every kernel of this package is compiled: lazily, cached on disk, without the GIL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile at the first call; later processes load the machine code from the cache on disk.

    Division by zero gives inf or nan, as in NumPy. No fast-math: a kernel whose sums may be
    reordered says so itself, with the vectors of `simd`.
    """
    options = {"nogil": True, "error_model": "numpy"}
    try:
        compiled: Callable[..., Any] = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no directory can be written, not even the user's: compile each time
        compiled = numba.njit(**options)(function)
    return compiled
