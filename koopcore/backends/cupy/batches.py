"""Linear algebra of many small groups at once, in whatever array module is given (xp)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from koopcore.backends.protocol import (
    LEAST_EIGENVALUE,
    SQUARES,
    breakdown_tolerance,
    near_cut_off,
    rank_tolerance,
)

DIRECT_STEPS = 1024  # beyond this horizon a rollout squares its operator instead of stepping


def power_of_two_scale(xp: Any, diagonal: Any) -> Any:
    """Scales s with s²·diagonal in [1/2, 2), exact to apply; 1 where it is not positive."""
    _, exponent = xp.frexp(diagonal)
    return xp.where(diagonal > 0.0, xp.ldexp(xp.ones_like(diagonal), -(exponent // 2)), 1.0)


def factor_in_time_order(xp: Any, a: Any, columns: int) -> tuple[Any, Any, Any]:
    """(scale, L, rank): the Cholesky factors of the equilibrated ``a`` (n_groups, k, k).

    rank counts the columns done before a pivot broke down; rows past ``columns`` are right-hand
    sides, whose pivot is a residual and may be zero.
    """
    scale = power_of_two_scale(xp, xp.diagonal(a, axis1=1, axis2=2))
    scaled = a * scale[:, :, None] * scale[:, None]
    factor = xp.zeros_like(scaled)
    alive = xp.ones(len(a), dtype=bool)
    rank = xp.zeros(len(a), dtype=np.int64)
    for k in range(a.shape[1]):
        row = factor[:, k, :k]
        below = scaled[:, k:, k] - (factor[:, k:, :k] @ row[:, :, None])[:, :, 0]
        pivot = below[:, 0]
        if k < columns:
            alive = alive & (pivot > breakdown_tolerance(columns) * scaled[:, k, k])
            rank = xp.where(alive, k + 1, rank)
            root = xp.sqrt(xp.where(alive, pivot, 1.0))
            factor[:, k:, k] = xp.where(alive[:, None], below / root[:, None], 0.0)
            factor[:, k, k] = root
        else:
            factor[:, k, k] = xp.sqrt(xp.maximum(xp.where(alive, pivot, 0.0), 0.0))
    return scale, factor, rank


def sure_of_rank(xp: Any, factor: Any, scale: Any, squares: Any) -> Any:
    """`sure_of_rank` of backends/reference.py for every group."""
    columns = factor.shape[1] - 1
    pivots = xp.diagonal(factor, axis1=1, axis2=2)[:, :columns]
    total, newest = squares[:, :-1].sum(axis=1), squares[:, -1]
    in_range = (SQUARES[0] < total) & (total < SQUARES[1]) & (newest < SQUARES[1])
    distances = (pivots / scale[:, :columns]) ** 2
    apart = (distances > near_cut_off(columns) * total[:, None]).all(axis=1)
    k = pivots.argmin(axis=1)
    unit = (factor[:, :columns, :columns] / pivots[:, None]).transpose(0, 2, 1)
    z = xp.linalg.solve(unit, xp.eye(columns)[k][:, :, None])[:, :, 0]
    return in_range & apart & (pivots.min(axis=1) ** 2 > LEAST_EIGENVALUE * (z * z).sum(axis=1))


def recurrences(xp: Any, factor: Any, scale: Any, k: int, affine: bool) -> Any:
    """Coefficients (n_groups, k) of column k on the columns before it."""
    leading = factor[:, :k, :k].transpose(0, 2, 1)
    y = xp.linalg.solve(leading, factor[:, k, :k, None])[:, :, 0] * scale[:, :k] / scale[:, k, None]
    if not affine:
        y[:, :-1] -= y[:, 1:].copy()
        y[:, -1] += 1.0
    return y


def rolled(xp: Any, step: Any, start: Any, horizons: Sequence[int]) -> list[tuple[Any, Any]]:
    """(S^{T-1} z, Σ_{j<T} Sʲ z) at every T: by stepping, or by squaring beyond DIRECT_STEPS."""
    pairs = {}
    power, total = start, start
    for t in range(1, min(max(horizons), DIRECT_STEPS) + 1):
        if t in horizons:
            pairs[t] = (power, total)
        power = (step @ power[:, :, None])[:, :, 0]
        total = total + power
    size = start.shape[1]
    for t in horizons:
        if t in pairs:
            continue
        augmented = xp.zeros((len(start), 2 * size, 2 * size))
        augmented[:, :size, :size] = augmented[:, size:, :size] = step
        augmented[:, size:, size:] = xp.eye(size)
        both = xp.concatenate([start, start], axis=1)[:, :, None]
        left = t - 1
        while left:
            if left % 2:
                both = augmented @ both
            augmented = augmented @ augmented
            left //= 2
        pairs[t] = (both[:, :size, 0], both[:, size:, 0])
    return [pairs[t] for t in horizons]


def pseudo_inverse_root(
    xp: Any, a: Any, rank: int | None, ridge: float, raw: bool
) -> tuple[Any, Any, Any]:
    """(V, rank, condition) with V Vᵀ = A⁺, or (A + ridge·D)⁻¹: leading columns first, then zeros.

    By the singular values of F, or of [x_1, x_2, …] where ``raw``, which are cut off where they are
    rounding, and after ``rank`` of them; see `whiten` and `truncate` in backends/reference.py.
    """
    size = a.shape[1]
    scale = power_of_two_scale(xp, xp.diagonal(a, axis1=1, axis2=2))
    scaled = a * scale[:, :, None] * scale[:, None]
    mean = xp.trace(scaled, axis1=1, axis2=2) / max(size, 1)
    scaled = scaled + (ridge * mean)[:, None, None] * xp.eye(size)
    values, vectors = xp.linalg.eigh(scaled)
    values, vectors = values[:, ::-1], vectors[:, :, ::-1]
    kept = values > rank_tolerance(size) * xp.maximum(values[:, :1], 0.0)
    roots = xp.sqrt(xp.where(kept, values, 1.0))[:, None]
    least = xp.where(kept, values, np.inf).min(axis=1) if size else xp.ones(len(a))
    condition = xp.where(kept.any(axis=1), xp.sqrt(values[:, 0] / least), np.inf)
    lower = xp.where(kept[:, None], vectors * roots, 0.0)  # F S = Q Lᵀ
    back = xp.where(kept[:, None], vectors / roots, 0.0)
    if ridge > 0.0 and (rank is None or rank >= size):
        return back * scale[:, :, None], kept.sum(axis=1), condition
    columns = lower / scale[:, :, None]
    if raw:
        columns = xp.cumsum(columns, axis=1)
    left, sigma, right = xp.linalg.svd(columns.transpose(0, 2, 1), full_matrices=False)
    use = sigma > rank_tolerance(size) * sigma[:, :1]
    use[:, size if rank is None else rank :] = False
    v = xp.where(use[:, None], right.transpose(0, 2, 1) / xp.where(use, sigma, 1.0)[:, None], 0.0)
    if raw:
        v = xp.cumsum(v[:, ::-1], axis=1)[:, ::-1]
    v = v / scale[:, :, None]
    v = v + back @ (xp.where(use[:, None], left, 0.0) - lower.transpose(0, 2, 1) @ v)
    ranks = use.sum(axis=1)
    reach = xp.sqrt((v * v).sum(axis=(1, 2)) / xp.maximum(ranks, 1))
    return v * scale[:, :, None], ranks, xp.maximum(condition, reach)
