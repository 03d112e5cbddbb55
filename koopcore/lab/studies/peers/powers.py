"""Powers of small operators by binary doubling, on arrays of NumPy, torch and JAX alike."""

from __future__ import annotations

from typing import TypeVar

Array = TypeVar("Array")


def summed(step: Array, start: Array, horizon: int) -> Array:
    """Σ_{j<T} Sʲ z: (…, N, N), (…, N, 1), T >= 1 -> (…, N, 1).

    The sum over 2k steps is that over k, and S^k times it: log2 T squarings of N x N matrices,
    where T products with a vector read S a hundred times and powers of [[S, 0], [S, 1]] square
    matrices of twice the size.
    """
    power, doubled, total = step, start, None
    while True:
        if horizon & 1:
            total = doubled if total is None else doubled + power @ total  # type: ignore[operator]
        horizon >>= 1
        if not horizon:
            assert total is not None
            return total
        doubled = doubled + power @ doubled  # type: ignore[operator]
        power = power @ power  # type: ignore[operator]


def powered(step: Array, start: Array, horizon: int) -> Array:
    """S^T z, T >= 0, of the same shapes."""
    power = step
    while horizon:
        if horizon & 1:
            start = power @ start  # type: ignore[operator]
        horizon >>= 1
        if horizon:
            power = power @ power  # type: ignore[operator]
    return start
