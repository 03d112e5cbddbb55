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

PIVOT_RANGE = 0.25  # of the largest, as in backends/reference.py
DIRECT_STEPS = 1024  # beyond this horizon a rollout squares its operator instead of stepping


def power_of_two_scale(xp: Any, diagonal: Any) -> Any:
    """Scales s with s²·diagonal in [1/2, 2), exact to apply; 1 where it is not positive."""
    _, exponent = xp.frexp(diagonal)
    return xp.where(diagonal > 0.0, xp.ldexp(xp.ones_like(diagonal), -(exponent // 2)), 1.0)


def equilibrated(xp: Any, a: Any) -> tuple[Any, Any]:
    """(scale, S a S): ``a`` (n_groups, k, k) with diagonals in [1/2, 2)."""
    scale = power_of_two_scale(xp, xp.diagonal(a, axis1=1, axis2=2))
    return scale, a * scale[:, :, None] * scale[:, None]


def cholesky(xp: Any, scaled: Any, columns: int) -> tuple[Any, Any]:
    """(L, rank): the Cholesky factors of ``scaled`` (n_groups, k, k) in time order.

    rank counts the columns done before a pivot broke down; rows past ``columns`` are right-hand
    sides, whose pivot is a residual and may be zero.
    """
    factor = xp.zeros_like(scaled)
    alive = xp.ones(len(scaled), dtype=bool)
    rank = xp.zeros(len(scaled), dtype=np.int64)
    for k in range(scaled.shape[1]):
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
    return factor, rank


def sure_of_rank(xp: Any, factor: Any, scale: Any, squares: Any) -> Any:
    """`sure_of_rank` of backends/reference.py: (n_groups,), of factors that did not break down."""
    columns = factor.shape[1] - 1
    pivots = xp.diagonal(factor, axis1=1, axis2=2)[:, :columns]
    total = squares[:, :-1].sum(axis=1)
    in_range = (total > SQUARES[0]) & (total < SQUARES[1]) & (squares[:, -1] < SQUARES[1])
    apart = (pivots / scale[:, :columns]) ** 2 > near_cut_off(columns) * total[:, None]
    z = xp.zeros_like(pivots)
    for k in reversed(range(columns)):
        rest = -(factor[:, k + 1 : columns, k] * z[:, k + 1 :]).sum(axis=1)
        z[:, k] = xp.where(rest < 0.0, rest - 1.0, rest + 1.0) / pivots[:, k]
    return in_range & apart.all(axis=1) & (columns > LEAST_EIGENVALUE * (z * z).sum(axis=1))


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
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows has diverged
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
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows has diverged
            while left:
                if left % 2:
                    both = augmented @ both
                augmented = augmented @ augmented
                left //= 2
        pairs[t] = (both[:, :size, 0], both[:, size:, 0])
    return [pairs[t] for t in horizons]


def whiten(xp: Any, a: Any, keep: int | None, ridge: float, raw: bool) -> tuple[Any, Any, Any]:
    """(V (n_groups, N, N), rank, condition) with V Vᵀ = A⁺, or (A + ridge·D)⁻¹.

    `whiten` of backends/reference.py for all groups at once; zeros past a group's rank.
    """
    size = a.shape[1]
    scale, scaled = equilibrated(xp, a)
    mean = xp.trace(scaled, axis1=1, axis2=2) / max(size, 1)
    scaled = scaled + (ridge * mean)[:, None, None] * xp.eye(size)
    lower, rank, pivots = pivoted_cholesky(xp, scaled, scale)
    if ridge > 0.0:
        factor, natural_rank = cholesky(xp, scaled, size)
        natural = natural_rank == size
        lower = xp.where(natural[:, None, None], factor, lower)
        rank = xp.where(natural, size, rank)
        pivots = xp.where(natural[:, None], xp.diagonal(factor, axis1=1, axis2=2), pivots)
    done = xp.arange(size) < rank[:, None]
    least = xp.where(done, pivots, np.inf).min(axis=1)
    condition = xp.where(rank > 0, pivots.max(axis=1) / least, np.inf)
    v, kept = truncate(xp, lower, scale, keep, raw, done)
    reach = xp.sqrt((v * v).sum(axis=(1, 2)) / xp.maximum(kept, 1))
    reach = xp.maximum(condition, reach)
    if ridge > 0.0 and (keep is None or keep >= size):
        whole = natural[:, None, None]
        inverse = xp.linalg.inv(xp.where(whole, factor, xp.eye(size))).transpose(0, 2, 1)
        v, kept = xp.where(whole, inverse, v), xp.where(natural, size, kept)
        reach = xp.where(natural, condition, reach)
    return v * scale[:, :, None], kept, reach


def pivoted_cholesky(xp: Any, a: Any, scale: Any) -> tuple[Any, Any, Any]:
    """(L (n_groups, N, N), rank, pivots (n_groups, N)) with a = L Lᵀ up to the noise.

    `pivoted_cholesky` of backends/reference.py, but rows stay in their places: each group's pivots
    have their own order. Columns of L and pivots past the rank are zero.
    """
    groups, n, _ = a.shape
    every = xp.arange(groups)
    lower, pivots = xp.zeros_like(a), xp.zeros((groups, n))
    rest = xp.diagonal(a, axis1=1, axis2=2).copy()
    tolerance = rank_tolerance(n) * rest.max(axis=1)[:, None]
    noise = xp.sqrt(tolerance) / scale
    alive, done = xp.ones(groups, dtype=bool), xp.zeros((groups, n), dtype=bool)
    for k in range(n):
        largest = xp.where(done, 0.0, rest).max(axis=1)[:, None]
        near = ~done & (rest > xp.maximum(PIVOT_RANGE * largest, tolerance))
        alive = alive & near.any(axis=1)
        j = xp.where(near, xp.sqrt(xp.where(near, rest, 0.0)) / scale, 0.0).argmax(axis=1)
        root = xp.sqrt(xp.where(alive, rest[every, j], 1.0))
        below = a[every, :, j] - (lower @ lower[every, j][:, :, None])[:, :, 0]
        apart = (rest <= tolerance) & (noise > (root / scale[every, j])[:, None])
        column = xp.where(apart, 0.0, below / root[:, None])
        column[every, j] = root
        column = xp.where(alive[:, None] & ~done, column, 0.0)
        lower[:, :, k], pivots[:, k] = column, xp.where(alive, root, 0.0)
        rest = rest - column * column
        done[every, j] |= alive
    return lower, (pivots > 0.0).sum(axis=1), pivots


def truncate(
    xp: Any, lower: Any, scale: Any, keep: int | None, raw: bool, done: Any
) -> tuple[Any, Any]:
    """(S⁻¹V (n_groups, N, N), rank) of `truncate` in backends/reference.py; zeros past the rank.

    done (n_groups, N): which columns of ``lower`` are not zero.
    """
    columns = lower / scale[:, :, None]
    if raw:
        columns = xp.cumsum(columns, axis=1)
    right, sigma, left = xp.linalg.svd(columns, full_matrices=False)
    use = sigma > rank_tolerance(lower.shape[1]) * sigma[:, :1]
    if keep is not None:
        use[:, keep:] = False
    v = xp.where(use[:, None], right / xp.where(use, sigma, 1.0)[:, None], 0.0)
    u = xp.where(use[:, None] & done[:, :, None], left.transpose(0, 2, 1), 0.0)
    if raw:
        v = xp.cumsum(v[:, ::-1], axis=1)[:, ::-1]
    v = v / scale[:, :, None]
    q, t = xp.linalg.qr(lower)
    t = t + xp.eye(lower.shape[1]) * ~done[:, None]
    missing = u - lower.transpose(0, 2, 1) @ v
    return v + q @ xp.linalg.inv(t).transpose(0, 2, 1) @ missing, use.sum(axis=1)
