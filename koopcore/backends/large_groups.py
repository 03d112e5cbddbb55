"""Feature-side fits of groups with many parameters: the products and factors of BLAS and LAPACK.

Lanes of a vector register suit many groups of some dozen parameters; of few and large ones most
lanes would be idle, and their matrices too large for a cache. What is fitted here has surely full
rank; groups that may not have it are left to the backend's own stages.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from koopcore.backends.composed import relative
from koopcore.backends.protocol import (
    WEIGHT_LIMIT,
    Ahead,
    FeatureSolved,
    Projection,
    Snapshots,
    out_of_range,
    rank_tolerance,
)
from koopcore.backends.reflection import reflect, unreflect
from koopcore.backends.second_pass import UNSURE
from koopcore.partition.partition import Partition
from koopcore.types import FloatArray

LARGE, LARGE_FOR_ITS_LANES = 256, 2000
"""A group of so many parameters is large; a few are if their square is so many times their number.

Lanes do eight groups in the time of one.
"""
FEW = 8
TRIANGLE = 32  # rows of a triangle that LAPACK inverts as if it were full
SURE_OF_RANK = 4.0  # what pivots have to be above the cut-off (kSureOfRank in csrc/algorithms)


def are_large(m: int, groups: int) -> bool:
    """Whether `feature_fit` is the faster way to fit ``groups`` groups of ``m`` parameters."""
    return m >= LARGE or (groups <= FEW and m * m >= LARGE_FOR_ITS_LANES * groups)


class _Fit(NamedTuple):
    operator: FloatArray  # (m, m) K = Vᵀ H V
    whitener: FloatArray  # (m, m) V
    readout: FloatArray  # (m, m) H V
    condition: float


class _Factor(NamedTuple):
    """C = B Bᵀ of full rank, V = B^{-T}."""

    back: FloatArray
    whitener: FloatArray
    condition: float
    square: float  # an upper bound on the condition number of C with unit diagonal


def feature_fit(
    snapshots: Snapshots, part: Partition, affine: bool, holdout: int, ahead: Ahead | None
) -> FeatureSolved:
    """`Backend.feature_fit` of groups of equal m; rank 0 where another way has to be found."""
    count, m = part.n_groups, int(part.sizes[0])
    rank = np.zeros(count, dtype=np.int64)
    condition, residual, hindcast = (np.full(count, np.nan) for _ in range(3))
    kept = (0, 0, 0) if ahead is not None else (count, m, m)
    operator, whitener, readout = (np.zeros(kept) for _ in range(3))
    start = np.zeros(kept[:2])
    for group in range(count):
        columns = part.indices(group)
        x = snapshots.array[:, columns][snapshots.order].astype(np.float64)
        d = np.diff(x, axis=0) if affine else reflect(x[None], x[None, -1])[0]
        limit = UNSURE["float32" if snapshots.array.dtype == np.float32 else "float64"]
        fits = _fits(d, holdout, limit / _reach(x) ** 2)
        if fits is None:
            continue
        shorter, whole = fits
        newest = d[-1]
        z = whole.whitener.T @ newest
        held = _rolled(shorter.operator, shorter.whitener.T @ d[-1 - holdout], holdout, affine)
        movement = x[-1] - x[-1 - holdout]
        missed = shorter.readout @ held - (movement if affine else newest)
        rank[group], condition[group] = m, whole.condition
        error, moved = np.linalg.norm(missed), np.linalg.norm(movement)
        hindcast[group] = relative(np.array([error]), np.array([moved]))[0]
        one_step = whole.readout @ (whole.whitener.T @ d[-2])
        residual[group] = np.linalg.norm(one_step - newest)
        if ahead is None:
            operator[group], whitener[group] = whole.operator, whole.whitener
            readout[group], start[group] = whole.readout, z
            continue
        most = np.finfo(ahead.out.dtype).max
        for row, horizon in zip(ahead.out, ahead.horizons, strict=True):
            state = _rolled(whole.operator, z, horizon, affine)
            if np.abs(state).max() <= WEIGHT_LIMIT:
                ahead_of = whole.readout @ state
                end = x[-1] + ahead_of if affine else unreflect(ahead_of[None], x[None, -1])[0]
                row[columns] = np.clip(end, -most, most)
            else:
                row[columns] = x[-1]
    if ahead is not None:
        return FeatureSolved(rank, condition, residual, hindcast, None, None)
    projection = Projection(operator, whitener, start, rank.copy(), condition)
    return FeatureSolved(rank, condition, residual, hindcast, projection, readout)


def _reach(x: FloatArray) -> float:
    """`second_pass.reach` of one group."""
    moved = float(np.linalg.norm(x[-1] - x[0])) / (2.0 * (len(x) - 1))
    step = float(np.linalg.norm(x[-1] - x[-2]))
    return min(moved / step, 2.0**53) if moved > step > 0.0 else 1.0 if moved <= step else 2.0**53


def _fits(d: FloatArray, holdout: int, unsure: float) -> tuple[_Fit, _Fit] | None:
    """Fits of the window without its last ``holdout`` columns and of all, from columns as rows.

    None where either may not have full rank. unsure: the share that rounding may have of the
    smallest direction before the sums are taken again in a basis of the first ones.
    """
    f, steps, n = d[:-1], np.diff(d, axis=0), len(d) - 1 - holdout
    if n < d.shape[1]:
        return None
    parts = (f[:n], steps[:n]), (f[n:], steps[n:])
    shorter, rest = ((rows.T @ rows, change.T @ rows) for rows, change in parts)
    whole = shorter[0] + rest[0], shorter[1] + rest[1]
    of_shorter, of_whole = _factor(shorter[0]), _factor(whole[0])
    if of_shorter is None or of_whole is None:
        return None
    if of_whole.square * 2.0**-53 <= unsure:
        return _fit(of_shorter, *shorter), _fit(of_whole, *whole)
    basis = of_whole.whitener
    inner, change = np.zeros_like(basis), np.zeros_like(basis)
    fits = []
    for rows, moved in parts:
        z = rows @ basis
        inner, change = inner + z.T @ z, change + moved.T @ z
        fit = _refit(of_whole, inner, change)
        if fit is None:
            return None
        fits.append(fit)
    return fits[0], fits[1]


def _factor(c: FloatArray) -> _Factor | None:
    """None unless diagonal pivoting too is sure to find full rank, and no value at the cut-off."""
    squares = np.diagonal(c)
    if not np.isfinite(c.sum()) or out_of_range(squares[None])[0] or not squares.min() > 0.0:
        return None
    scale = np.ldexp(1.0, -(np.frexp(squares)[1] // 2))
    a = c * scale[:, None] * scale
    try:
        lower = np.linalg.cholesky(a)
    except np.linalg.LinAlgError:
        return None
    inverse = _inverse(lower)
    of_inverse = np.square(inverse).sum(axis=0)  # the diagonal of A⁻¹
    tolerance = rank_tolerance(len(a))
    pivots = SURE_OF_RANK * tolerance * np.diagonal(a).max() * of_inverse.max()
    values = tolerance**2 * squares.sum() * (of_inverse * scale**2).sum()
    if not (pivots < 1.0 and values < 1.0):
        return None
    square = float(np.linalg.norm(a) * np.linalg.norm(inverse.T @ inverse))
    pivot = np.diagonal(lower)
    back, whitener = lower / scale[:, None], inverse.T * scale[:, None]
    return _Factor(back, whitener, float(pivot.max() / pivot.min()), square)


def _inverse(lower: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """L⁻¹ of a lower triangle by halves: products, which a BLAS does several times as fast."""
    size, half = len(lower), len(lower) // 2
    inverse: npt.NDArray[Any]
    if size <= TRIANGLE:
        inverse = np.linalg.inv(lower)
        return inverse
    top, bottom = _inverse(lower[:half, :half]), _inverse(lower[half:, half:])
    inverse = np.zeros_like(lower)
    inverse[:half, :half], inverse[half:, half:] = top, bottom
    inverse[half:, :half] = -(bottom @ (lower[half:, :half] @ top))
    return inverse


def _fit(factor: _Factor, c: FloatArray, change: FloatArray) -> _Fit:
    readout = (c + change) @ factor.whitener
    return _Fit(factor.whitener.T @ readout, factor.whitener, readout, factor.condition)


def _refit(factor: _Factor, inner: FloatArray, change: FloatArray) -> _Fit | None:
    """From Σ z zᵀ and Σ (y' - y) zᵀ, z the rows in the basis of the factor, as y = B z."""
    try:
        root = _inverse(np.linalg.cholesky(inner)).T
    except np.linalg.LinAlgError:
        return None
    whitener = factor.whitener @ root
    readout = (factor.back @ inner + change) @ root
    return _Fit(whitener.T @ readout, whitener, readout, factor.condition)


def _rolled(k: FloatArray, z: FloatArray, horizon: int, affine: bool) -> FloatArray:
    """Σ_{j<T} Kʲ z of the affine model, else K^{T-1} z; squarings as far as they repay."""
    gap = horizon - 1
    # A squaring has the flops of m products with a vector, and a BLAS does them faster.
    costs = [(gap >> level) + level * (1 + len(k) / 4) for level in range(gap.bit_length() + 1)]
    levels = costs.index(min(costs))
    ladder = [(k, z)]  # K^(2^level) and the sum of 2^level terms
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(levels):
            power, total = ladder[-1]
            ladder.append((power @ power, total + power @ total))
        state = z
        for level in range(levels, -1, -1):
            power, total = ladder[level]
            while gap >> level:
                state = power @ state + total if affine else power @ state
                gap -= 1 << level
    return state
