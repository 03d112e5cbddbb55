"""How every kernel of this package is compiled: lazily, cached on disk, without the GIL."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

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
    try:
        compiled: Callable[..., Any] = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no directory can be written, not even the user's: compile each time
        compiled = numba.njit(**options)(function)
    return compiled
