"""The answer by singular value decomposition of the columns themselves, many groups at once.

Nothing of koopcore is used: no Gram matrix, no Cholesky factorization. The rank rule is the one
that docs/mathematics.md states. `answer` comes with how far it moves under what no float64
computation can know, rounding of the snapshots and a cut-off higher or lower: where that is far,
there is no right answer to compare with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

EPSILON = 2.0**-52
WIDER = 30.0  # how much the cut-offs are moved to see whether they matter


@dataclass
class Answer:
    """Predictions of groups of equal m, and how sure they are."""

    values: np.ndarray  # (n_horizons, n_groups, m)
    movement: np.ndarray  # (n_horizons, n_groups) what an error is compared with
    spread: np.ndarray  # (n_horizons, n_groups) how far the answer moves, as a share of that
    rank: np.ndarray  # (n_groups,)
    last: np.ndarray  # (n_groups, m) the last snapshot


def answer(
    x: np.ndarray,
    affine: bool,
    horizons: Sequence[int],
    rank: int | None = None,
    ridge: float = 0.0,
    seed: int = 0,
) -> Answer:
    """x_{n+T} of snapshots x (n_groups, n, m) by U = F'F⁺, with its `Answer.spread`."""
    x = np.asarray(x, dtype=np.float64)
    unit = unit_of(x, affine)
    scaled = np.ldexp(x, -unit[:, None, None])
    base, ranks = predictions(scaled, affine, horizons, rank, ridge, 1.0)
    rng = np.random.default_rng(seed)
    others = [
        predictions(scaled, affine, horizons, rank, ridge, w)[0]
        for w in (WIDER, 1 / WIDER, 1 / WIDER**2)
    ]
    for _ in range(2):
        nearby = scaled * (1.0 + EPSILON * rng.uniform(-1.0, 1.0, scaled.shape))
        others.append(predictions(nearby, affine, horizons, rank, ridge, 1.0)[0])
    with np.errstate(over="ignore", invalid="ignore"):
        # Changes are compared: of the affine model's, the position is no part.
        far = np.maximum.reduce([np.linalg.norm(other - base, axis=2) for other in others])
        step = np.linalg.norm(np.ldexp(x[:, -1], -unit[:, None]) - scaled_before(x, unit), axis=1)
        moved = np.linalg.norm(base - (0.0 if affine else scaled[:, -1]), axis=2)
        movement = np.maximum(moved, step)
        spread = np.where(movement > 0.0, far / np.where(movement > 0.0, movement, 1.0), 0.0)
        values = np.ldexp(base, unit[:, None])
        if affine:
            values = values + x[:, -1]
    spread[~np.isfinite(base).all(axis=2)] = np.inf
    spread = np.nan_to_num(spread, nan=np.inf)
    return Answer(values, np.ldexp(movement, unit), spread, ranks, x[:, -1])


def unit_of(x: np.ndarray, affine: bool) -> np.ndarray:
    """Exponents (n_groups,) of what counts: the snapshots, or their differences."""
    _, exponent = np.frexp(np.abs(x).max(axis=(1, 2), initial=0.0))
    if affine:
        steps = np.diff(np.ldexp(x, -exponent[:, None, None] - 2), axis=1)
        largest = np.abs(steps).max(axis=(1, 2), initial=0.0)
        exponent = exponent + 2 + np.where(largest > 0.0, np.frexp(largest)[1], 0)
    return exponent


def scaled_before(x: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """The last snapshot but one, in the group's unit."""
    return np.ldexp(x[:, -2], -unit[:, None])


def predictions(
    x: np.ndarray,
    affine: bool,
    horizons: Sequence[int],
    rank: int | None,
    ridge: float,
    wider: float,
) -> tuple[np.ndarray, np.ndarray]:
    """(n_horizons, n_groups, m): x_{n+T}, or x_{n+T} - x_n where affine; and ranks (n_groups,).

    wider: what the tolerances of the rank are multiplied with.
    """
    rows = np.diff(x, axis=1) if affine else x
    f, ahead = rows[:, :-1].transpose(0, 2, 1), rows[:, 1:].transpose(0, 2, 1)  # (G, m, N)
    apply, ranks = (
        regularized(f, affine, ridge, x)
        if ridge > 0.0
        else pseudo_inverse(f, ahead, affine, x, rank, wider)
    )
    out = np.empty((len(horizons), *x.shape[::2]))
    state, total = rows[:, -1], 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for t in range(1, max(horizons) + 1):
            state = (ahead @ apply(state)[:, :, None])[:, :, 0]
            total = total + state
            for i in np.flatnonzero(np.equal(horizons, t)):
                out[i] = total if affine else state
    return out, ranks


def pseudo_inverse(f, ahead, affine, x, rank, wider):
    """F⁺ as a function of vectors (n_groups, m), and the ranks.

    Singular values of F count above ε max(N, 16) of the largest, and as many of them at most as
    scaled columns (or scaled parameters, where these are fewer) have above √(ε max(N, 16)).
    """
    size = f.shape[1] if is_small(x) else f.shape[2]
    tolerance = EPSILON * max(size, 16)
    left, sigma, right = np.linalg.svd(f, full_matrices=False)
    most = (sigma > wider * tolerance * sigma[:, :1]).sum(axis=1)
    most = np.minimum(most, scaled_rank(f, affine, x, wider * np.sqrt(tolerance)))
    if rank is not None:
        most = np.minimum(most, rank)
    keep = np.arange(sigma.shape[1]) < most[:, None]
    inverse = np.where(keep, 1.0 / np.where(keep, sigma, 1.0), 0.0)

    def apply(state):
        along = (left.transpose(0, 2, 1) @ state[:, :, None])[:, :, 0] * inverse
        return (right.transpose(0, 2, 1) @ along[:, :, None])[:, :, 0]

    return apply, most


def is_small(x: np.ndarray) -> bool:
    """Whether a group has fewer parameters than snapshots, so that these are scaled, not those."""
    return x.shape[2] < x.shape[1] - 1


def scaled_rank(f, affine, x, tolerance):
    """Singular values above ``tolerance`` of the largest, of columns or parameters to unit norm."""
    if is_small(x):
        basis = f if affine else reflected(f, x[:, -1])
        norms = np.linalg.norm(basis, axis=2, keepdims=True)
    else:
        basis = f if affine else np.concatenate([f[:, :, :1], np.diff(f, axis=2)], axis=2)
        norms = np.linalg.norm(basis, axis=1, keepdims=True)
    unit = basis / np.where(norms > 0.0, norms, 1.0)
    sigma = np.linalg.svd(unit, compute_uv=False)
    return (sigma > tolerance * sigma[:, :1]).sum(axis=1)


def regularized(f, affine, ridge, x):
    """(F_sᵀF_s + λ)⁻¹F_sᵀ of scaled columns, or parameters, λ relative to the mean diagonal."""
    groups, m, n = f.shape
    feature = is_small(x)
    if feature:
        basis = f if affine else reflected(f, x[:, -1])
    else:
        basis = f if affine else np.concatenate([f[:, :, :1], np.diff(f, axis=2)], axis=2)
    square = (basis * basis).sum(axis=2 if feature else 1)
    if feature and not affine:  # what reflecting leaves of nothing
        noise = (EPSILON * max(m, 16)) ** 2 * square.sum(axis=1, keepdims=True)
        square = np.where(square > noise, square, 0.0)
        basis = basis * (square > 0.0)[:, :, None]
    _, exponent = np.frexp(square)
    scale = np.where(square > 0.0, np.ldexp(1.0, -(exponent // 2)), 1.0)
    scaled = basis * (scale[:, :, None] if feature else scale[:, None, :])
    mean = (scale * scale * square).mean(axis=1)
    left, sigma, right = np.linalg.svd(scaled, full_matrices=False)
    weight = sigma / (sigma * sigma + (ridge * mean)[:, None])
    weight = np.where(sigma > 0.0, weight, 0.0)

    def apply(state):
        if feature:
            if not affine:
                state = reflected(state[:, :, None], x[:, -1])[:, :, 0]
            state = state * scale
        along = (left.transpose(0, 2, 1) @ state[:, :, None])[:, :, 0] * weight
        c = (right.transpose(0, 2, 1) @ along[:, :, None])[:, :, 0]
        if feature:
            return c
        c = c * scale
        if affine:
            return c
        c[:, :-1] -= c[:, 1:].copy()  # from [x_1, d_1 …] to [x_1, x_2 …]
        return c

    return apply, np.full(groups, min(m, n))


def reflected(columns: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Columns (n_groups, m, k) in coordinates whose first axis is ``last`` (n_groups, m)."""
    v = last.copy()
    v[:, 0] += np.copysign(np.linalg.norm(last, axis=1), last[:, 0])
    square = (v * v).sum(axis=1)
    along = (
        np.einsum("gmk,gm->gk", columns, v)
        * (2.0 / np.where(square == 0.0, np.inf, square))[:, None]
    )
    return columns - v[:, :, None] * along[:, None, :]
