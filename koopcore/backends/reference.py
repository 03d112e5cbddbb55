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
    WEIGHT_LIMIT,
    Companion,
    Projection,
    Snapshots,
    breakdown_tolerance,
    packed_size,
    rank_tolerance,
    unpack,
)
from koopcore.backends.reflection import reflect
from koopcore.partition.partition import Partition
from koopcore.types import FloatArray, IntArray

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


def power_of_two_scale(diagonal: FloatArray) -> FloatArray:
    """Scales s with s²·diagonal in [1/2, 2): exact to apply; 1 where the diagonal is zero."""
    _, exponent = np.frexp(diagonal)
    return np.where(diagonal > 0.0, np.ldexp(1.0, -(exponent // 2)), 1.0)


def whiten(a: FloatArray, keep: int | None, ridge: float, raw: bool) -> tuple[FloatArray, float]:
    """V (N, r) with V Vᵀ = A⁺, or (A + ridge·D)⁻¹ with D = mean diagonal, and cond(F).

    By diagonal pivoting, which finds the rank. A ridge leaves nothing deficient: V = L⁻ᵀ from
    A = L Lᵀ in natural order then, unless that breaks down.
    """
    scale = power_of_two_scale(np.diag(a))
    scaled = a * scale * scale[:, None]
    scaled[np.diag_indices_from(scaled)] += ridge * np.trace(scaled) / max(len(a), 1)
    factor, rank = cholesky(scaled, len(scaled)) if ridge > 0.0 else (scaled, -1)
    if rank == len(scaled):
        order = np.arange(rank)
    else:
        factor, order = pivoted_cholesky(scaled)
    pivots = np.diag(factor)
    condition = pivots.max() / pivots.min() if pivots.size else np.inf
    if keep is not None and keep < factor.shape[1]:
        lower = np.zeros_like(factor)
        lower[order] = factor
        return truncate(lower / scale[:, None], keep, raw), condition
    if rank == len(scaled):
        v = np.linalg.inv(factor).T
    else:
        v = np.zeros_like(factor)
        unit = factor / pivots  # L = unit·D: the pivoting leaves ``unit`` well conditioned
        v[order] = np.linalg.solve(unit.T @ unit, unit.T).T / pivots  # L (LᵀL)⁻¹  (Courrieu 2005)
    return v * scale[:, None], condition


def truncate(lower: FloatArray, rank: int, raw: bool) -> FloatArray:
    """V (N, rank) from the leading singular values of F, given F = Q Lᵀ with orthonormal Q."""
    r = lower.T.copy()  # (r, N)
    if raw:  # [x_1, x_2, …] = [x_1, d_1, …] W⁻¹ with W⁻¹ the upper triangle of ones
        r = np.cumsum(r, axis=1)
    _, sigma, right = np.linalg.svd(r, full_matrices=False)
    v = right[:rank].T / sigma[:rank]
    return np.cumsum(v[::-1], axis=0)[::-1] if raw else v


def pivoted_cholesky(a: FloatArray) -> tuple[FloatArray, IntArray]:
    """Diagonally pivoted a[p, p] = L Lᵀ, L (N, rank) lower trapezoidal, stopped at the noise."""
    n = len(a)
    factor, order = np.zeros((n, n)), np.arange(n)
    rest = np.diag(a).copy()
    tolerance = rank_tolerance(n) * (rest.max() if n else 0.0)
    for k in range(n):
        j = k + int(np.argmax(rest[k:]))
        if not rest[j] > tolerance:
            return factor[:, :k], order
        order[[k, j]], rest[[k, j]], factor[[k, j]] = order[[j, k]], rest[[j, k]], factor[[j, k]]
        factor[k, k] = np.sqrt(rest[k])
        below = a[order[k + 1 :], order[k]] - factor[k + 1 :, :k] @ factor[k, :k]
        factor[k + 1 :, k] = below / factor[k, k]
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

    def gram(self, snapshots: Snapshots, part: Partition) -> FloatArray:
        """G = BᵀB of every group: (n_groups, n(n+1)/2), packed lower by rows."""
        n = len(snapshots.order)
        out = np.empty((part.n_groups, packed_size(n)))
        lower = np.tril_indices(n)
        for group in range(part.n_groups):
            x = _window(snapshots, part, group)
            basis = np.concatenate([x[:1], np.diff(x, axis=0)])
            out[group] = (basis @ basis.T)[lower]
        return out

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
            scale = power_of_two_scale(np.diag(full)[first:])
            factor, rank = cholesky(full[first:, first:] * scale * scale[:, None], columns)
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
