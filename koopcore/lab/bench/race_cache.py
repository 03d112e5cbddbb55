"""What the cases of a race share is made once, and forgotten when the race is over."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_caches: list[Any] = []


def shared(function: Callable[P, T]) -> Callable[P, T]:
    """Keep the last result of ``function`` until `forget`, or until other arguments come."""
    cached = lru_cache(maxsize=1)(function)
    _caches.append(cached)
    return cached  # type: ignore[return-value]


def forget() -> None:
    """Release what every `shared` function keeps: snapshots may be gigabytes."""
    for cached in _caches:
        cached.cache_clear()
