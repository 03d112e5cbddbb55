"""The objective F(W, K): value, gradients, a joint gradient step, and its minimum over K."""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from koopcore.backends import backend_for
from koopcore.backends.protocol import rank_tolerance
from koopcore.learning.dictionaries.protocol import Dictionary
from koopcore.learning.trajectories import Pairs, power_of_two
from koopcore.types import FloatArray

_LAPACK_FROM = 64  # features; below, the engine's solve is as fast, and the same everywhere


class Gradient(NamedTuple):
    """F and its gradients at one (θ, K)."""

    value: float
    operator: FloatArray  # ∇_K F, (h, h)
    parameters: FloatArray  # ∇_θ F, (p,)


def errors(features: FloatArray, pairs: Pairs, operator: FloatArray) -> FloatArray:
    """e_n = ψ(x_{n+1}) - K ψ(x_n) as rows (N, h)."""
    ahead = features[pairs.current] @ operator.T
    return np.subtract(features[pairs.following], ahead, out=ahead)


def value(error: FloatArray) -> float:
    """F = (1/N) Σ ‖e_n‖²."""
    return float(np.vdot(error, error)) / len(error)


def objective(
    dictionary: Dictionary, parameters: FloatArray, operator: FloatArray, pairs: Pairs
) -> float:
    """F at (θ, K). Cost: 2 N h² flops and the features."""
    return value(errors(dictionary.features(parameters, pairs.states), pairs, operator))


def operator_gradient(features: FloatArray, pairs: Pairs, error: FloatArray) -> FloatArray:
    """∇_K F = -(2/N) Σ e_n ψ(x_n)ᵀ, (h, h)."""
    return (-2.0 / pairs.n_pairs) * (error.T @ features[pairs.current])


def feature_gradient(pairs: Pairs, error: FloatArray, back: FloatArray) -> FloatArray:
    """∂F/∂ψ at every point (M, h), from e (N, h) and ``back``, the rows Kᵀe_n (N, h)."""
    result = np.zeros((len(pairs.states), error.shape[1]))
    result[pairs.following] += error
    result[pairs.current] -= back
    result *= 2.0 / pairs.n_pairs
    return result


def gradient(
    dictionary: Dictionary, parameters: FloatArray, operator: FloatArray, pairs: Pairs
) -> Gradient:
    """F and both gradients at (θ, K).

        ∇_K F = -(2/N) Σ e_n ψ(x_n)ᵀ
        ∇_θ F =  (2/N) Σ [ J(x_{n+1})ᵀ e_n - J(x_n)ᵀ Kᵀ e_n ],  J = ∂ψ/∂θ

    Every state is passed through the dictionary once, also where it is both x_n and x_{n+1}.
    Cost: 6 N h² flops and one linearization. Source: Liu, Ding, Chen, Yeung 2020, section III.
    """
    features, pullback = dictionary.linearized(parameters, pairs.states)
    error = errors(features, pairs, operator)
    at_features = feature_gradient(pairs, error, error @ operator)
    return Gradient(value(error), operator_gradient(features, pairs, error), pullback(at_features))


def simultaneous_step(
    dictionary: Dictionary,
    parameters: FloatArray,
    operator: FloatArray,
    pairs: Pairs,
    step_k: float,
    step_w: float,
) -> tuple[FloatArray, FloatArray, Gradient]:
    """(θ, K) after one joint gradient step: what Algorithm 2 computes, on one machine.

    K ← K - η_K ∇_K F(θ, K) and θ ← θ - η_θ ∇_θ F(θ, K), both from the old (θ, K). Safe below
    2/L of the joint gradient, which is less than 2/L_K and 2/L_W. The definition that
    `DistributedLearner` is tested against.
    """
    slopes = gradient(dictionary, parameters, operator, pairs)
    return (parameters - step_w * slopes.parameters, operator - step_k * slopes.operator, slopes)


def exact_operator(
    features: FloatArray,
    pairs: Pairs,
    ridge: float = 0.0,
    rows: slice = slice(None),
    backend: str | None = None,
) -> FloatArray:
    """K (h, h) = argmin F(W, ·) = (Σ ψ(x_{n+1}) ψ(x_n)ᵀ) (Σ ψ(x_n) ψ(x_n)ᵀ)⁺, or some rows of it.

    features: ψ of all states (M, h). ridge: Tikhonov term relative to the mean diagonal of the
    equilibrated Gram matrix. The pseudo-inverse is that of the engine's stage `project`: pivoted
    Cholesky, stopped at the rounding of the Gram matrix, so features that depend on each other
    (singular values below about 1e-8 of the largest) are left out and not amplified.
    A row of K depends on its own features ahead only: ``rows`` is what one worker solves.
    Features are squared in units of their own, powers of two, so that K does not depend on units.
    All NaN where a feature is not finite. backend: of the engine; None: as KOOPCORE_BACKEND says.
    Cost: 4 N h² flops and one h³ factorization, from 64 features on by LAPACK's blocked pivoted
    Cholesky (`dpstrf`) where SciPy is installed: the engine's own is for small matrices, thousands
    at once. Source: variable projection, Golub & Pereyra 1973.
    """
    now, ahead = features[pairs.current], features[pairs.following]
    if rows != slice(None):
        ahead = ahead[:, rows]
    if not np.isfinite(features).all():
        return np.full((ahead.shape[1], now.shape[1]), np.nan)
    unit = power_of_two(features)
    now, ahead = now / unit, ahead / unit[rows]
    operator = solved(now.T @ now, ahead.T @ now, ridge, backend)
    with np.errstate(over="ignore"):  # of units that are far apart
        return operator * (unit[rows, None] / unit)


def solved(
    gram: FloatArray, cross: FloatArray, ridge: float = 0.0, backend: str | None = None
) -> FloatArray:
    """cross gram⁺ (k, h), or cross (gram + ridge D)⁻¹, D the mean diagonal after equilibration.

    gram: (h, h), Σψψᵀ, of columns of like size; cross: (k, h).
    """
    if len(gram) >= _LAPACK_FROM and (linalg := _scipy_linalg()) is not None:
        return _solved_by_lapack(linalg, gram, cross, ridge)
    start = np.zeros((1, len(gram)))
    whitened = backend_for("cpu", backend).project(
        gram[None], gram[None], start, None, ridge, False
    )
    whitener: FloatArray = whitened.whitener[0]  # V with V Vᵀ = gram⁺
    operator: FloatArray = (cross @ whitener) @ whitener.T
    return operator


def _solved_by_lapack(linalg: Any, gram: FloatArray, cross: FloatArray, ridge: float) -> FloatArray:
    """`solved` by dpotrf with a ridge, else by dpstrf, which finds the rank."""
    h = len(gram)
    diagonal = np.diag(gram)
    _, exponents = np.frexp(diagonal)
    scale = np.where(diagonal > 0.0, np.ldexp(1.0, -(exponents // 2)), 1.0)
    scaled = np.asfortranarray(gram * scale * scale[:, None])
    scaled.flat[:: h + 1] += ridge * np.trace(scaled) / h
    right = (cross * scale).T
    if ridge > 0.0:
        factor, failed = linalg.lapack.dpotrf(scaled, lower=1)
        if not failed:
            solution, _ = linalg.lapack.dpotrs(factor, right, lower=1)
            return np.ascontiguousarray(solution.T) * scale
    tolerance = rank_tolerance(h) * float(np.diag(scaled).max())
    factor, order, rank, _ = linalg.lapack.dpstrf(scaled, tol=tolerance, lower=1)
    order = order - 1  # LAPACK counts from 1
    if rank == h:
        solution = np.empty_like(right)
        solution[order], _ = linalg.lapack.dpotrs(factor, right[order], lower=1)
        return np.ascontiguousarray(solution.T) * scale
    # gram = B Bᵀ and B = Q R, so gram⁺ = Q (R Rᵀ)⁻¹ Qᵀ: the solution of least norm.
    columns = np.zeros((h, rank))
    columns[order] = np.tril(factor[:, :rank])
    q, r = np.linalg.qr(columns / scale[:, None])
    half = linalg.solve_triangular(r, (cross @ q).T)
    return np.ascontiguousarray((q @ linalg.solve_triangular(r, half, trans=1)).T)


def _scipy_linalg() -> Any:
    """SciPy's linear algebra; None where it is not installed."""
    try:
        return import_module("scipy.linalg")
    except ImportError:
        return None
