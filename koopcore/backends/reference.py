"""The engine's stages in NumPy: short, plainly correct, and the definition of every other backend.

Notation of the whole engine, for one group of m parameters and its n snapshots x_1 … x_n:

    d_k = x_{k+1} - x_k                                    exact for close floats
    B   = [x_1, d_1, …, d_{n-1}]                           the difference basis, (m, n)
    G   = BᵀB                                              the Gram matrix, packed lower by rows

    linear  F = [x_1 … x_{n-1}]   F' = [x_2 … x_n]         U = F'F⁺     (Dogra & Redman, eq. 4)
    affine  F = [d_1 … d_{n-2}]   F' = [d_2 … d_{n-1}]     A = F'F⁺,  x_{n+T} = x_n + Σ Aʲ d_{n-1}

A prediction in snapshot space is a weight vector w on B: x_{n+T} = B w. All is float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from koopcore.backends.composed import Composed
from koopcore.backends.protocol import (
    LEAST_EIGENVALUE,
    SQUARES,
    WEIGHT_LIMIT,
    Companion,
    Projection,
    Snapshots,
    breakdown_tolerance,
    near_cut_off,
    packed_size,
    rank_tolerance,
    unpack,
)
from koopcore.backends.reflection import reflect
from koopcore.partition.partition import Partition
from koopcore.types import FloatArray, IntArray

PIVOT_RANGE = 0.25  # of the largest: diagonals scaled by powers of two are within this
BLOCK = 2**14  # parameters whose products are summed in a row
DIRECT_STEPS = 1024  # beyond this horizon a rollout squares its operator instead of stepping


def recurrence(factor: FloatArray, scale: FloatArray, k: int, affine: bool) -> FloatArray:
    """Coefficients (k,) of column k on the columns before it, on snapshots or on differences."""
    y = np.linalg.solve(factor[:k, :k].T, factor[k, :k]) * scale[:k] / scale[k]
    if affine:
        return y
    a = y - np.append(y[1:], 0.0)  # from [x_1, d_1 …] to [x_1, x_2 …]
    a[-1] += 1.0
    return a


def cholesky(a: FloatArray, columns: int) -> tuple[FloatArray, int]:
    """L of the equilibrated ``a`` in time order, and the columns done before a pivot broke down.

    Rows past ``columns`` are right-hand sides: their pivot is a residual and may be zero.
    """
    factor = np.zeros_like(a)
    for k in range(len(a)):
        for i in range(k):
            factor[k, i] = (a[k, i] - factor[k, :i] @ factor[i, :i]) / factor[i, i]
        pivot = a[k, k] - factor[k, :k] @ factor[k, :k]
        if k < columns and not pivot > breakdown_tolerance(columns) * a[k, k]:
            return factor, k
        factor[k, k] = np.sqrt(max(pivot, 0.0))
    return factor, columns


def sure_of_rank(factor: FloatArray, scale: FloatArray, squares: FloatArray) -> bool:
    """Whether full rank is no rounding, nor near the cut-off of F, and squares are in range.

    factor: L of the columns and one right-hand side, scaled by ``scale``; squares: theirs.
    """
    columns = len(factor) - 1
    pivots = np.diag(factor)[:columns]
    total = squares[:-1].sum()
    in_range = SQUARES[0] < total < SQUARES[1] and squares[-1] < SQUARES[1]
    apart = (pivots / scale[:columns]) ** 2 > near_cut_off(columns) * total
    # The smallest eigenvalue is at most N/‖z‖² for Lᵀz = (±1, …, ±1), signs by which z grows.
    z = np.zeros(columns)
    for k in reversed(range(columns)):
        rest = -factor[k + 1 : columns, k] @ z[k + 1 :]
        z[k] = (rest - 1.0 if rest < 0.0 else rest + 1.0) / pivots[k]
    return bool(in_range and apart.all() and columns > LEAST_EIGENVALUE * (z @ z))


def power_of_two_scale(diagonal: FloatArray) -> FloatArray:
    """Scales s with s²·diagonal in [1/2, 2): exact to apply; 1 where the diagonal is zero."""
    _, exponent = np.frexp(diagonal)
    return np.where(diagonal > 0.0, np.ldexp(1.0, -(exponent // 2)), 1.0)


def whiten(a: FloatArray, keep: int | None, ridge: float, raw: bool) -> tuple[FloatArray, float]:
    """V (N, r) with V Vᵀ = A⁺, or (A + ridge·D)⁻¹ with D = mean diagonal, and cond(F).

    Without a ridge by diagonal pivoting, which finds the rank, and by the singular values of F from
    the factor, which are cut off: `truncate`. A ridge leaves nothing deficient: V = L⁻ᵀ from
    A = L Lᵀ in natural order then, unless that breaks down.
    """
    scale = power_of_two_scale(np.diag(a))
    scaled = a * scale * scale[:, None]
    scaled[np.diag_indices_from(scaled)] += ridge * np.trace(scaled) / max(len(a), 1)
    factor, rank = cholesky(scaled, len(scaled)) if ridge > 0.0 else (scaled, -1)
    natural = rank == len(scaled)
    order = np.arange(rank)
    if not natural:
        factor, order = pivoted_cholesky(scaled, scale)
    pivots = np.diag(factor)
    if not pivots.size:
        return factor, np.inf
    condition = pivots.max() / pivots.min()
    if natural and (keep is None or keep >= rank):
        return np.linalg.inv(factor).T * scale[:, None], condition
    lower = np.zeros_like(factor)
    lower[order] = factor
    v = truncate(lower, scale, keep, raw)
    reach = np.linalg.norm(v) / np.sqrt(max(v.shape[1], 1))  # by far more where columns are alike
    return v * scale[:, None], max(condition, reach)


def truncate(lower: FloatArray, scale: FloatArray, keep: int | None, raw: bool) -> FloatArray:
    """S⁻¹V (N, r), V the leading right singular vectors of F over their values, from F S = Q Lᵀ.

    Q has orthonormal columns. Values up to `rank_tolerance` of the largest are rounding and count
    as zero. Where ``raw``, singular vectors are those of [x_1, x_2, …], for F in [x_1, d_1, …].
    """
    columns = lower / scale[:, None]
    if raw:  # x_k = x_1 + d_1 + … + d_{k-1}
        columns = np.cumsum(columns, axis=0)
    right, sigma, left = np.linalg.svd(columns, full_matrices=False)
    rank = int((sigma > rank_tolerance(len(lower)) * sigma[0]).sum())
    rank = rank if keep is None else min(rank, keep)
    v, u = right[:, :rank] / sigma[:rank], left[:rank].T
    if raw:
        v = np.cumsum(v[::-1], axis=0)[::-1]
    # F v = Q u holds to the condition number of F; one correction in the scaled columns, which is
    # what the Gram matrix was factored in, makes it hold to theirs.
    v /= scale[:, None]
    q, t = np.linalg.qr(lower)
    return v + q @ np.linalg.inv(t).T @ (u - lower.T @ v)


def pivoted_cholesky(a: FloatArray, scale: FloatArray) -> tuple[FloatArray, IntArray]:
    """Diagonally pivoted a[p, p] = L Lᵀ, L (N, rank) lower trapezoidal, stopped at the noise.

    ``a`` is scaled to diagonals near 1. A small pivot has rounding in the rows below, which must
    not be those of far larger columns: of the pivots within `PIVOT_RANGE` of the largest, any of
    which finds the rank, the one that is largest without the scale comes first, and a row in which
    only noise is left takes no part in pivots smaller than its noise.
    """
    n = len(a)
    factor, order = np.zeros((n, n)), np.arange(n)
    rest = np.diag(a).copy()
    tolerance = rank_tolerance(n) * (rest.max() if n else 0.0)
    for k in range(n):
        largest = rest[k:].max()
        if not largest > tolerance:
            return factor[:, :k], order
        near = rest[k:] > max(PIVOT_RANGE * largest, tolerance)
        j = k + int(np.argmax(np.where(near, np.sqrt(rest[k:] * near) / scale[order[k:]], 0.0)))
        order[[k, j]], rest[[k, j]], factor[[k, j]] = order[[j, k]], rest[[j, k]], factor[[j, k]]
        factor[k, k] = np.sqrt(rest[k])
        below = a[order[k + 1 :], order[k]] - factor[k + 1 :, :k] @ factor[k, :k]
        noise = np.sqrt(tolerance) / scale[order[k + 1 :]]
        apart = (rest[k + 1 :] <= tolerance) & (noise > factor[k, k] / scale[order[k]])
        factor[k + 1 :, k] = np.where(apart, 0.0, below / factor[k, k])
        rest[k + 1 :] -= factor[k + 1 :, k] ** 2
    return factor, order


def _powers(
    step: FloatArray, start: FloatArray, horizons: Sequence[int]
) -> list[tuple[FloatArray, FloatArray]]:
    """(S^{T-1} z, Σ_{j<T} Sʲ z) at every T: by stepping, or by squaring beyond DIRECT_STEPS."""
    pairs = {}
    power, total = start, start
    for t in range(1, min(max(horizons), DIRECT_STEPS) + 1):
        pairs[t] = (power, total)
        power = step @ power
        total = total + power
    size = len(start)
    augmented = np.block([[step, np.zeros((size, size))], [step, np.eye(size)]])
    for t in horizons:
        if t not in pairs:
            both = np.linalg.matrix_power(augmented, t - 1) @ np.append(start, start)
            pairs[t] = (both[:size], both[size:])
    return [pairs[t] for t in horizons]


def hindcast_error(full: FloatArray, weights: FloatArray, holdout: int) -> float:
    """‖B w - x_n‖ / ‖x_n - x_{n-holdout}‖ from G = BᵀB."""
    error = weights - 1.0
    movement = np.zeros_like(error)
    movement[-holdout:] = 1.0
    square, scale = float(error @ full @ error), float(movement @ full @ movement)
    return float(np.sqrt(max(square, 0.0) / scale)) if scale > 0.0 else 0.0


def _window(snapshots: Snapshots, part: Partition, group: int) -> FloatArray:
    return snapshots.array[:, part.indices(group)][snapshots.order].astype(np.float64)


class Reference(Composed):
    """The engine's stages in NumPy, one group after the other."""

    name = "reference"
    device = "cpu"

    @np.errstate(over="ignore", invalid="ignore")
    def gram(self, snapshots: Snapshots, part: Partition) -> FloatArray:
        """G = BᵀB of every group: (n_groups, n(n+1)/2), packed lower by rows."""
        n = len(snapshots.order)
        out = np.empty((part.n_groups, packed_size(n)))
        lower = np.tril_indices(n)
        for group in range(part.n_groups):
            x = _window(snapshots, part, group)
            basis = np.concatenate([x[:1], np.diff(x, axis=0)])
            full = np.zeros((n, n))
            for low in range(0, basis.shape[1], BLOCK):  # rounding grows with the terms in a row
                some = basis[:, low : low + BLOCK]
                with np.errstate(over="ignore", invalid="ignore"):  # looked for where it is used
                    full += some @ some.T
            out[group] = full[lower]
        return out

    @np.errstate(over="ignore", invalid="ignore")
    def feature_gram(
        self, snapshots: Snapshots, part: Partition, affine: bool, stops: Sequence[int]
    ) -> FloatArray:
        """C = FFᵀ and E = F'Fᵀ of the first ``stop`` snapshots, (n_stops, n_groups, 2, m, m).

        The linear model is taken in the coordinates z = H x of `reflect`: position and motion stand
        in different coordinates there, so that C is as well conditioned as the motion itself.
        """
        m = int(part.sizes[0])
        out = np.empty((len(stops), part.n_groups, 2, m, m))
        for group in range(part.n_groups):
            x = _window(snapshots, part, group)
            columns = np.diff(x, axis=0) if affine else reflect(x, x[-1])
            for i, stop in enumerate(stops):
                f = columns[: stop - 1 - affine]
                ahead = columns[1 : stop - affine]
                out[i, group, 0] = f.T @ f
                out[i, group, 1] = out[i, group, 0] + (ahead - f).T @ f
        return out

    def solve(self, gram: FloatArray, n: int, affine: bool, holdout: int) -> Companion:
        """The companion coefficients of every group from one Cholesky factorization in time order.

        The leading blocks of L belong to the shorter windows, and row k of L is already the forward
        substitution of snapshot k: the held-out fit costs one more back substitution only.
        """
        first = int(affine)
        columns = n - 1 - first
        groups = len(gram)
        result = Companion(
            np.zeros((groups, columns)),
            np.zeros(groups, dtype=np.int64),
            np.zeros(groups),
            np.full(groups, np.inf),
            np.full(groups, np.nan),
        )
        for group in range(groups):
            full = unpack(gram[group], n)
            squares = np.diag(full)[first:]
            scale = power_of_two_scale(squares)
            factor, rank = cholesky(full[first:, first:] * scale * scale[:, None], columns)
            if rank == columns and not sure_of_rank(factor, scale, squares):
                rank = columns - 1
            result.rank[group] = rank
            if rank < columns:
                continue
            diagonal = np.diag(factor)[:columns]
            result.condition[group] = diagonal.max() / diagonal.min()
            result.residual[group] = factor[columns, columns] / scale[columns]
            result.coefficients[group] = recurrence(factor, scale, columns, affine)
            if 0 < holdout < columns:
                kept = columns - holdout
                a = recurrence(factor, scale, kept, affine)[None]
                weights = np.zeros(n)
                weights[: n - holdout] = self.rollout(a, affine, [holdout])[0][0, 0]
                result.hindcast[group] = hindcast_error(full, weights, holdout)
        return result

    def project(
        self, a: FloatArray, h: FloatArray, g: FloatArray, rank: int | None, ridge: float, raw: bool
    ) -> Projection:
        """K = Vᵀ H V and z = Vᵀ g with V Vᵀ = A⁺; see `whiten` and `truncate`."""
        whitened = [whiten(matrix, rank, ridge, raw) for matrix in a]
        width = max((v.shape[1] for v, _ in whitened), default=0)
        groups, n, _ = a.shape
        whitener = np.zeros((groups, n, width))
        for group, (v, _) in enumerate(whitened):
            whitener[group, :, : v.shape[1]] = v
        transposed = whitener.transpose(0, 2, 1)
        return Projection(
            transposed @ h @ whitener,
            whitener,
            (transposed @ g[:, :, None])[:, :, 0],
            np.array([v.shape[1] for v, _ in whitened], dtype=np.int64),
            np.array([condition for _, condition in whitened]),
        )

    def rollout(
        self, coefficients: FloatArray, affine: bool, horizons: Sequence[int]
    ) -> tuple[FloatArray, FloatArray]:
        """Weights w (n_horizons, n_groups, n) on B with x_{n+T} = B w, and the growth of ‖c_T‖.

        With S the companion matrix of a, linear: c_T = S^{T-1} a on [x_2 … x_n]; affine: the steps
        S^{j-1} a on [d_2 … d_{n-1}], summed over j = 1 … T. Where it has diverged, w = 1
        (the last snapshot) and the growth is infinite.
        """
        groups, columns = coefficients.shape
        n = columns + 1 + int(affine)
        weights = np.ones((len(horizons), groups, n))
        growth = np.ones((len(horizons), groups))
        for group, a in enumerate(coefficients):
            step = np.eye(columns, k=-1)
            step[:, -1:] = a[:, None]
            with np.errstate(over="ignore", invalid="ignore"):
                for i, (power, total) in enumerate(_powers(step, a, horizons)):
                    if affine:
                        weights[i, group, 2:] += total
                    else:
                        weights[i, group] = np.append(power.sum(), np.cumsum(power[::-1])[::-1])
                    growth[i, group] = np.linalg.norm(power) / np.linalg.norm(a)
                    if not np.abs(weights[i, group]).max() <= WEIGHT_LIMIT:
                        weights[i, group], growth[i, group] = 1.0, np.inf
        return weights, growth

    def rollout_dense(
        self, operator: FloatArray, start: FloatArray, affine: bool, horizons: Sequence[int]
    ) -> tuple[FloatArray, FloatArray]:
        """K^{T-1} z, or Σ_{j<T} Kʲ z where affine: (n_horizons, n_groups, r), and the growth."""
        groups, r = start.shape
        states = np.zeros((len(horizons), groups, r))
        growth = np.ones((len(horizons), groups))
        for group in range(groups):
            with np.errstate(over="ignore", invalid="ignore"):
                pairs = _powers(operator[group], start[group], horizons)
                for i, (power, total) in enumerate(pairs):
                    states[i, group] = total if affine else power
                    growth[i, group] = np.linalg.norm(power) / np.linalg.norm(start[group])
        return states, growth

    @np.errstate(over="ignore", invalid="ignore")
    def combine(
        self, snapshots: Snapshots, part: Partition, weights: FloatArray, out: npt.NDArray[Any]
    ) -> None:
        """x_{n+T} = x_n + B(w - 1) of every group, into its columns of ``out``."""
        limit = np.finfo(out.dtype).max
        for group in range(part.n_groups):
            x = _window(snapshots, part, group)
            basis = np.concatenate([x[:1], np.diff(x, axis=0)])
            values: FloatArray = x[-1] + (weights[:, group] - 1.0) @ basis
            out[:, part.indices(group)] = np.clip(values, -limit, limit)


def load() -> Reference:
    """The backend; it runs everywhere."""
    return Reference()
