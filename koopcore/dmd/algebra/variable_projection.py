"""Exponentials fitted to thousands of series at once: variable projection on the eigenvalues.

    min over α ‖C - Φ(α) Φ(α)⁺ C‖²,   Φ_tj = exp(α_j t)

C (S, n, k) are coordinates of the snapshots, so that the number of features is gone. With
B = Φ⁺C, R = C - ΦB, D = tΦ, E = DᴴR the Gauss-Newton matrix of Kaufman's is

    N = (Dᴴ P D) ∘ (B̄ Bᵀ),   P = 1 - ΦΦ⁺,     g_i = Σ_c E_ic B̄_ic

all r x r: an iteration is one product Φᴴ [Φ, tΦ, t²Φ, C, tC] and small algebra.
Source: Golub & Pereyra 1973; Kaufman 1975; Askham & Kutz 2018; damping: Nielsen 1999.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from koopcore.backends.protocol import Backend, ExponentFit
from koopcore.dmd.algebra.dynamics import solve
from koopcore.dmd.algebra.eigen import ComplexArray
from koopcore.types import FloatArray, IntArray

CONVERGED, STALLED, EXHAUSTED = 0, 1, 2

HEADROOM = 2.0
"""Re α T may exceed that of the start, or zero, by this: with too many modes they blow up."""


class Point(NamedTuple):
    """The objective at some exponents, and its Gauss-Newton model."""

    error: FloatArray  # (S,)
    matrix: ComplexArray  # (S, r, r) N
    slope: ComplexArray  # (S, r) g
    steepness: FloatArray  # (S,) cosine between the residual and the model's columns


def fit_exponents(
    c: npt.NDArray[Any],
    start: ComplexArray,
    times: FloatArray,
    ceiling: float,
    partner: IntArray | None,
    most: int,
    on: Backend,
) -> ExponentFit:
    """Levenberg-Marquardt from ``start`` (S, r), NaN where a system has fewer exponents.

    c: (S, n, k) at times (n,) in [0, 1]. ceiling: bound on Re α. partner: (S, r) which exponent is
    the conjugate of which, for real series; None for complex ones. most: iterations at most. on:
    what may do it at once, of real series at equal steps.
    One trial an iteration; systems that have ended leave the batch.
    """
    equal = len(times) > 1 and np.array_equal(times, np.linspace(0.0, 1.0, len(times)))
    if partner is not None and equal:
        fit = on.exponent_fit(c, start, partner, ceiling, HEADROOM, most)
        if fit is not None:
            return fit
    used = ~np.isnan(start)
    alpha = np.where(used, start, 0.0)
    limit = np.minimum(np.maximum(alpha.real, 0.0) + HEADROOM, ceiling)
    alpha = bounded(alpha, limit)
    total = (c.real**2 + c.imag**2).sum(axis=(1, 2)) if c.dtype.kind == "c" else (c * c).sum((1, 2))
    result = ExponentFit(
        alpha,
        np.full(len(alpha), EXHAUSTED),
        np.zeros(len(alpha), dtype=np.int64),
        np.zeros(len(alpha)),
    )
    at = np.arange(len(alpha))
    here = evaluate(c, total, alpha, used, times)
    damping, factor = np.full(len(at), 1e-2), np.full(len(at), 2.0)
    for iteration in range(1, most + 1):
        diagonal = np.einsum("sii->si", here.matrix).real
        eye = np.eye(alpha.shape[1])
        damped = here.matrix + (damping[:, None] * diagonal)[:, :, None] * eye
        step = solve(damped, here.slope[:, :, None])[:, :, 0]
        moved = alpha + step
        if partner is not None:
            moved = paired(moved, partner)
        moved = bounded(moved, limit)
        step = moved - alpha
        there = evaluate(c, total, moved, used, times)
        gain = here.error - there.error
        expected = (step.conj() * (here.slope + damping[:, None] * diagonal * step)).real.sum(
            axis=1
        )
        better = gain > 0.0
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            ratio = np.where(expected > 0.0, gain / expected, 1.0)
            shrink = np.maximum(1.0 / 3.0, 1.0 - (2.0 * np.clip(ratio, -1.0, 2.0) - 1.0) ** 3)
        damping = np.where(better, damping * shrink, damping * factor)
        factor = np.where(better, 2.0, factor * 2.0)
        alpha = np.where(better[:, None], moved, alpha)
        here = Point(
            *(
                np.where(better.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
                for new, old in zip(there, here, strict=True)
            )
        )
        size = np.sqrt((np.abs(alpha) ** 2).sum(axis=1)) + 1.0
        small = np.sqrt((np.abs(step) ** 2).sum(axis=1)) < 1e-10 * size
        exact = here.error <= 1e-26 * total
        little = better & (gain < 1e-12 * here.error)
        done = exact | little | small | (here.steepness < 1e-8)
        stalled = ~done & (damping > 1e12)
        ended = done | stalled | (iteration == most)
        if ended.any():
            over = at[ended]
            result.alpha[over] = alpha[ended]
            result.error[over] = here.error[ended]
            result.iterations[over] = iteration
            result.stop[over] = np.where(
                done[ended], CONVERGED, np.where(stalled[ended], STALLED, EXHAUSTED)
            )
            go = ~ended
            if not go.any():
                break
            at, alpha, c, total, used = at[go], alpha[go], c[go], total[go], used[go]
            limit, damping, factor = limit[go], damping[go], factor[go]
            partner = None if partner is None else partner[go]
            here = Point(*(one[go] for one in here))
    return result._replace(alpha=np.where(np.isnan(start), np.nan, result.alpha))


def exponentials(
    alpha: ComplexArray, used: npt.NDArray[np.bool_], times: FloatArray
) -> ComplexArray:
    """Φ (S, n, r), growing ones relative to the end: at most one in magnitude."""
    reference = np.where(alpha.real > 0.0, 1.0, 0.0)
    phases = alpha[:, None] * (times[:, None] - reference[:, None])
    return np.exp(phases) * used[:, None]


def evaluate(
    c: npt.NDArray[Any],
    total: FloatArray,
    alpha: ComplexArray,
    used: npt.NDArray[np.bool_],
    times: FloatArray,
) -> Point:
    """The objective, and N and g, from one product of Φᴴ with everything."""
    r, k = alpha.shape[1], c.shape[2]
    phi = exponentials(alpha, used, times)
    late = times[:, None] * phi
    wide = np.concatenate([phi, late, times[:, None] * late, c, times[:, None] * c], axis=2)
    adjoint = np.ascontiguousarray(phi.conj().swapaxes(1, 2))
    gram, once, twice, right, late_right = np.split(adjoint @ wide, np.cumsum([r, r, r, k]), axis=2)
    both = solve(gram, np.concatenate([right, once], axis=2))
    b, inner = both[:, :, :k], both[:, :, k:]
    error = np.maximum(total - (right.conj() * b).real.sum(axis=(1, 2)), 0.0)
    # DᴴR = tΦᴴC - tΦᴴΦ B, DᴴPD = Φᴴt²Φ - (ΦᴴtΦ)(ΦᴴΦ)⁻¹(ΦᴴtΦ)
    e = late_right - once @ b
    curvature = twice - once @ inner
    matrix = curvature * (b.conj() @ b.swapaxes(1, 2))
    slope = (e * b.conj()).sum(axis=2)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.sqrt(np.einsum("sii->si", matrix).real * error[:, None])
        cosine = np.where(scale > 0.0, np.abs(slope) / scale, 0.0)
    return Point(error, matrix, slope, cosine.max(axis=1))


def bounded(alpha: ComplexArray, limit: FloatArray) -> ComplexArray:
    """Re α within its bound."""
    result: ComplexArray = np.minimum(alpha.real, limit) + 1j * alpha.imag
    return result


def partners(alpha: ComplexArray) -> IntArray:
    """Which exponent (S, r) is the conjugate of which: itself where it is real, or has none."""
    distance = np.abs(alpha[:, :, None] - alpha.conj()[:, None])
    distance = np.where(np.isnan(distance), np.inf, distance)
    nearest = distance.argmin(axis=2)
    own = np.arange(alpha.shape[1])
    mutual = np.take_along_axis(nearest, nearest, 1) == own
    return np.where(mutual, nearest, own)


def paired(alpha: ComplexArray, partner: IntArray) -> ComplexArray:
    """Exactly conjugate pairs; exponents that are their own partner are real."""
    other = np.take_along_axis(alpha, partner, 1).conj()
    result: ComplexArray = 0.5 * (alpha + other)
    return result
