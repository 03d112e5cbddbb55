"""The answer by singular value decomposition of the columns themselves, many groups at once.

Nothing of koopcore is used: no Gram matrix, no Cholesky factorization. The rank rule is the one
that docs/mathematics.md states.

How far an answer may be off is part of it. With U = F'F⁺ and x_{n+T} = U^T x_n, a change δ of the
columns changes the prediction, to first order, by

    δx_{n+T} = Σ_{j<T} U^{T-1-j} (δU) x_{n+j} + U^T δx_n
    δU = δF' F⁺ - U δF F⁺ + F'(FᵀF)⁺ δFᵀ (1 - FF⁺) + F'(1 - F⁺F) δFᵀ (FFᵀ)⁺

What an orthogonal method in float64 does to F is a change of each column by k ε of its length at
most, for sums of k = max(m, n) terms, and by √k ε in practice. `spread` measures the response to
changes at random of that size, instead of bounding it by products of norms: these are thousands of
times too large where U is far from normal.
A ridge is added to A = F_sᵀF_s, F_s the scaled columns or parameters: to a matrix in float64. Its
entries are sums of products, rounded by u = ε/2 of the lengths of both factors in practice, and

    F'(A + δA + λ)⁻¹F_sᵀ - F'(A + λ)⁻¹F_sᵀ = -F'(A + λ)⁻¹ δA (A + λ)⁻¹F_sᵀ

to first order: up to 1/λ of it where F' moves in what F hardly does, as after a paused step. An
orthogonal method never forms A and has no such error, and no change of columns shows it. So changes
of A at random are among those that are tried.
Cut-offs of the rank count too: an answer that depends on whether a singular value at the tolerance
is one or is rounding has no right value. And where these small changes do not tell all, the answer
itself comes in extended precision, by rotations (`number=np.longdouble`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

EPSILON = 2.0**-52
WIDER = (30.0, 1 / 30.0, 1 / 900.0)  # cut-offs are moved so far to see whether they matter
DRAWS = 6  # changes of the columns that are tried


@dataclass
class Answer:
    """Predictions of groups of equal m."""

    values: np.ndarray  # (n_horizons, n_groups, m)
    movement: np.ndarray  # (n_horizons, n_groups) what an error is compared with
    rank: np.ndarray  # (n_groups,)
    horizons: Sequence[int]


class Method(NamedTuple):
    """How to fit."""

    affine: bool
    rank: int | None = None
    ridge: float = 0.0


class Inverse(NamedTuple):
    """F⁺ = ``synthesis`` diag(``weight``) ``analysis``ᵀ of every group."""

    analysis: np.ndarray  # (n_groups, m, k)
    weight: np.ndarray  # (n_groups, k)
    synthesis: np.ndarray  # (n_groups, N, k)


def answer(
    x: np.ndarray,
    method: Method,
    horizons: Sequence[int],
    number: type = np.float64,
    window: int | None = None,
) -> Answer:
    """x_{n+T} of snapshots x (n_groups, n, m) by U = F'F⁺, computed in numbers of that type.

    window: that n of which these snapshots are a part: it decides what is scaled.
    """
    rows, unit = rows_of(x, method.affine, number)
    some, rank = inverses(rows, window or x.shape[1], method)
    changes = predictions(rows, some, method.affine, horizons)
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.ldexp(changes, unit[:, None])
        if method.affine:
            values = values + x[:, -1].astype(number)
        moved = np.ldexp(movement(rows, changes, method.affine), unit)
        return Answer(values.astype(np.float64), moved, rank, horizons)


def spread(
    x: np.ndarray,
    method: Method,
    horizons: Sequence[int],
    noise: float = 0.0,
    rounding: float = 0.0,
    seed: int = 0,
) -> np.ndarray:
    """How far an answer moves (n_horizons, n_groups), as a share of the movement; see above.

    noise: what snapshots themselves may be off by, as a share of the longest of a group.
    rounding: what their numbers may be off by, as a share of each.
    """
    rows, unit = rows_of(x, method.affine, np.float64)
    change = EPSILON * np.sqrt(max(x.shape[1:])) * lengths(rows, axis=2, keepdims=True)
    if noise > 0.0:
        longest = lengths(np.ldexp(x.astype(np.float64), -unit[:, None, None]), axis=2)
        change = change + noise * longest.max(axis=1)[:, None, None]
    change /= np.sqrt(x.shape[2])
    n, rng = x.shape[1], np.random.default_rng(seed)
    some, rank = inverses(rows, n, method)
    base = predictions(rows, some, method.affine, horizons)
    far = np.zeros(base.shape[:2])
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(DRAWS):
            nearby = rows + change * rng.normal(size=rows.shape)
            if rounding > 0.0:
                off = np.ldexp(x.astype(np.float64), -unit[:, None, None])
                off *= rounding * rng.normal(size=x.shape)
                nearby += np.diff(off, axis=1) if method.affine else off
            part = inverses(nearby, n, method, rng=rng)[0]
            other = predictions(nearby, part, method.affine, horizons)
            far = np.maximum(far, lengths(other - base, axis=2))
        for at, part in other_ranks(rows, n, method, rank) if method.ridge == 0.0 else ():
            other = predictions(rows[at], part, method.affine, horizons)
            far[:, at] = np.maximum(far[:, at], lengths(other - base[:, at], axis=2))
        size = movement(rows, base, method.affine)
        share = np.where(size > 0.0, far / np.where(size > 0.0, size, 1.0), 0.0)
    share[~np.isfinite(base).all(axis=2)] = np.inf
    return np.nan_to_num(share, nan=np.inf)


def lengths(values: np.ndarray, axis: int, keepdims: bool = False) -> np.ndarray:
    """Euclidean norms along an axis, of numbers whose squares may leave float64."""
    most = np.abs(values).max(axis=axis, keepdims=True, initial=0.0)
    unit = np.where(most > 0.0, most, 1.0)
    norm = np.linalg.norm(values / unit, axis=axis, keepdims=True) * unit
    return norm if keepdims else np.squeeze(norm, axis)


def share(error: np.ndarray, of: Answer, dtype: np.dtype, predictions: int = 1) -> np.ndarray:
    """‖error‖ / movement (n_horizons, n_groups), less the rounding of so many ``predictions``.

    To their dtype, and of the float64 steps up to T. Predictions stop at the largest number.
    """
    size = np.abs(of.values).max(axis=2, initial=0.0) * np.sqrt(error.shape[2])
    steps = 64.0 * np.asarray(of.horizons)[:, None] * EPSILON
    limit, tiny = float(np.finfo(dtype).max), float(np.finfo(dtype).tiny)
    with np.errstate(over="ignore", invalid="ignore"):
        room = predictions * ((8.0 * np.finfo(dtype).eps + steps) * size + tiny)
        error = np.where(np.abs(of.values) > 0.5 * limit, 0.0, error)
        excess = np.maximum(lengths(error, axis=2) - room, 0.0)
        return np.where(excess > 0.0, excess / np.maximum(of.movement, tiny), 0.0)


def hindcast(x: np.ndarray, method: Method) -> np.ndarray:
    """Error (n_groups,) of predicting x_n without the window's last quarter, / the movement."""
    n = x.shape[1]
    kept = n - max(1, (n - 1) // 4)
    if kept - 1 - method.affine < 1:
        return np.full(len(x), np.nan)
    got = answer(x[:, :kept], method, [n - kept], window=n)
    error = lengths(got.values[0] - x[:, -1], axis=1)
    size = lengths(x[:, -1].astype(np.float64) - x[:, kept - 1], axis=1)
    return np.where(size > 0.0, error / np.where(size > 0.0, size, 1.0), 0.0)


def operator(x: np.ndarray, method: Method) -> np.ndarray:
    """U = F'F⁺ (n_groups, m, m)."""
    rows, _ = rows_of(x, method.affine, np.float64)
    some, _ = inverses(rows, x.shape[1], method)
    ahead = rows[:, 1:].transpose(0, 2, 1)
    return (ahead @ some.synthesis * some.weight[:, None]) @ some.analysis.transpose(0, 2, 1)


# -- columns -------------------------------------------------------------------------------------


def rows_of(x: np.ndarray, affine: bool, number: type) -> tuple[np.ndarray, np.ndarray]:
    """[F; f'_last] of every group as rows (n_groups, N + 1, m), and their units 2^exponent."""
    x = x.astype(number)
    _, exponent = np.frexp(np.abs(x).max(axis=(1, 2), initial=0.0))
    if affine:
        exponent = exponent + 2
        rows = np.diff(np.ldexp(x, -exponent[:, None, None]), axis=1)
        finer = np.frexp(np.abs(rows).max(axis=(1, 2), initial=0.0))[1]
        return np.ldexp(rows, -finer[:, None, None]), exponent + finer
    return np.ldexp(x, -exponent[:, None, None]), exponent


def movement(rows: np.ndarray, changes: np.ndarray, affine: bool) -> np.ndarray:
    """What an error is compared with (n_horizons, n_groups): the motion to x_{n+T}, or a step."""
    with np.errstate(over="ignore", invalid="ignore"):
        step = lengths(
            (rows[:, -1] if affine else rows[:, -1] - rows[:, -2]).astype(np.float64), axis=1
        )
        moved = changes if affine else changes - rows[:, -1]
        return np.maximum(lengths(moved.astype(np.float64), axis=2), step)


def predictions(
    rows: np.ndarray, some: Inverse, affine: bool, horizons: Sequence[int]
) -> np.ndarray:
    """(n_horizons, n_groups, m): x_{n+T}, or x_{n+T} - x_n where affine."""
    readout = (rows[:, 1:].transpose(0, 2, 1) @ some.synthesis) * some.weight[:, None]
    analysis = some.analysis.transpose(0, 2, 1)
    step = analysis @ readout
    state = analysis @ rows[:, -1, :, None]
    total, out = np.zeros_like(state), {}
    with np.errstate(over="ignore", invalid="ignore"):
        for t in range(1, max(horizons) + 1):
            total = total + state
            if t in horizons:
                out[t] = (readout @ (total if affine else state))[:, :, 0]
            state = step @ state
        return np.stack([out[t] for t in horizons])


# -- inverses ------------------------------------------------------------------------------------


def inverses(
    rows: np.ndarray,
    n: int,
    method: Method,
    wider: float = 1.0,
    rng: np.random.Generator | None = None,
) -> tuple[Inverse, np.ndarray]:
    """F⁺ of every group, of windows of n snapshots, and the ranks (n_groups,).

    Singular values of F count above ε max(N, 16) of the largest, and as many of them at most as
    scaled columns have above √(ε max(N, 16)), or scaled parameters, where these are fewer, above
    2⁻³³.
    wider: what these tolerances are multiplied with.
    rng: of the rounding of the matrix that a ridge is added to, if it is to be changed by that.
    """
    f = rows[:, :-1].transpose(0, 2, 1)  # (n_groups, m, N)
    if method.ridge > 0.0:
        return regularized(f, rows[:, -1], n, method, rng)
    left, sigma, right = decomposed(f)
    (most,) = ranks(f, sigma, rows[:, -1], n, method, wider)
    return truncated(left, sigma, right, most), most


def truncated(left, sigma, right, rank) -> Inverse:
    """The inverse of the leading ``rank`` (n_groups,) singular values."""
    keep = np.arange(sigma.shape[1]) < rank[:, None]
    weight = np.where(keep, 1.0 / np.where(keep, sigma, 1.0), 0.0)
    return Inverse(left, weight, right)


def ranks(f, sigma, last, n, method, *widths) -> list[np.ndarray]:
    """How many singular values count (n_groups,), for each width of the tolerances."""
    small = f.shape[1] < n - 1  # fewer parameters than snapshots
    tolerance = EPSILON * max(f.shape[1] if small else f.shape[2], 16)
    resolved = 2.0**-33 if small else np.sqrt(tolerance)
    basis, axis = basis_of(f, last, n, method)
    norms = lengths(basis.astype(np.float64), axis=axis, keepdims=True)
    scaled = np.linalg.svd(
        basis.astype(np.float64) / np.where(norms > 0.0, norms, 1.0), compute_uv=False
    )
    out = []
    for wider in widths:
        most = (sigma > wider * tolerance * sigma[:, :1]).sum(axis=1)
        most = np.minimum(most, (scaled > wider * resolved * scaled[:, :1]).sum(axis=1))
        out.append(most if method.rank is None else np.minimum(most, method.rank))
    return out


def other_ranks(rows, n, method, rank) -> Iterator[tuple[np.ndarray, Inverse]]:
    """Groups, and their inverses of another rank: of every one that some cut-off of `WIDER` gives.

    And of those between: where several singular values are near the cut-off, it may pass between
    any two of them.
    """
    f = rows[:, :-1].transpose(0, 2, 1)
    parts = decomposed(f)
    found = np.stack([rank, *ranks(f, parts[1], rows[:, -1], n, method, *WIDER)])
    least, most = found.min(axis=0), found.max(axis=0)
    for some in range(int(least.min()), int(most.max()) + 1):
        at = np.flatnonzero((least <= some) & (some <= most) & (some != rank))
        if at.size:
            own = (part[at] for part in parts)
            yield at, truncated(*own, np.full(len(at), some))


def basis_of(f, last, n, method):
    """What is scaled: [d_1 …] or [x_1, d_1 …], or parameters, reflected; and the axis of one."""
    if f.shape[1] < n - 1:  # fewer parameters than snapshots
        return (f if method.affine else reflected(f, last)), 2
    return (f if method.affine else np.concatenate([f[:, :, :1], np.diff(f, axis=2)], axis=2)), 1


def regularized(f, last, n, method, rng=None):
    """(F_sᵀF_s + λ)⁻¹F_sᵀ of scaled columns, or parameters, λ relative to the mean diagonal.

    rng: draws a change of F_sᵀF_s, of u times the lengths that an entry is a product of.
    """
    groups, m, columns = f.shape
    basis, axis = basis_of(f, last, n, method)
    square = (basis * basis).sum(axis=axis)
    if axis == 2 and not method.affine:  # what reflecting leaves of nothing
        noise = (EPSILON * max(m, 16)) ** 2 * square.sum(axis=1, keepdims=True)
        square = np.where(square > noise, square, 0.0)
        basis = basis * (square > 0.0)[:, :, None]
    _, exponent = np.frexp(square)
    scale = np.where(square > 0.0, np.ldexp(1.0, -(exponent // 2)), 1.0)
    scaled = basis * np.expand_dims(scale, axis)
    mean = (scale * scale * square).mean(axis=1)
    left, sigma, right = decomposed(scaled)
    square = sigma * sigma + (method.ridge * mean)[:, None]
    weight = np.where(sigma > 0.0, sigma / np.where(sigma > 0.0, square, 1.0), 0.0)
    if rng is not None:  # one of both is square: (A + λ + δA)⁻¹ in its basis
        axes = left if axis == 2 else right
        sizes = scale * np.sqrt((basis * basis).sum(axis=axis))
        change = np.tril(rng.normal(size=axes.shape))
        change += np.tril(change, -1).transpose(0, 2, 1)
        change *= 0.5 * EPSILON * sizes[:, :, None] * sizes[:, None, :]
        changed = axes.transpose(0, 2, 1) @ change @ axes
        some = np.where(square > 0.0, square, 1.0)
        changed[:, np.arange(some.shape[1]), np.arange(some.shape[1])] += some
        axes = axes @ np.linalg.inv(changed) * some[:, None, :]
        left, right = (axes, right) if axis == 2 else (left, axes)
    if axis == 2:
        left = left * scale[:, :, None]
        left = left if method.affine else reflected(left, last)
    else:
        right = right * scale[:, :, None]
        if not method.affine:  # from [x_1, d_1 …] to [x_1, x_2 …]
            right[:, :-1] -= right[:, 1:].copy()
    return Inverse(left, weight, right), np.full(groups, min(m, columns))


def reflected(columns: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Columns (n_groups, m, k) in coordinates whose axis p is ``last`` (n_groups, m).

    p: the first of its largest entries.
    """
    _, exponent = np.frexp(np.abs(last).max(axis=1))
    v = np.ldexp(last, -exponent[:, None])  # so that squares are in range
    norm = np.sqrt((v * v).sum(axis=1))
    at = np.arange(len(v)), np.abs(v).argmax(axis=1)
    v[at] += np.where(v[at] < 0.0, -norm, norm)
    square = (v * v).sum(axis=1)
    along = (v[:, None] @ columns)[:, 0] * (2.0 / np.where(square == 0.0, np.inf, square))[:, None]
    return columns - v[:, :, None] * along[:, None, :]


def decomposed(f: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """F = left diag(sigma) rightᵀ of (n_groups, m, N), largest first; right is (n_groups, N, k)."""
    if f.dtype == np.float64:
        left, sigma, right = np.linalg.svd(f, full_matrices=False)
        return left, sigma, right.transpose(0, 2, 1)
    if f.shape[1] < f.shape[2]:
        right, sigma, left = decomposed(f.transpose(0, 2, 1))
        return left, sigma, right
    return rotated(f)


def rotated(f: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`decomposed` for m >= N by one-sided Jacobi rotations, to the precision of its dtype."""
    groups, _, n = f.shape
    columns = f.transpose(0, 2, 1).copy()  # one column a row
    turn = np.zeros((groups, n, n), dtype=f.dtype)
    turn[:, np.arange(n), np.arange(n)] = 1.0
    least = 4.0 * np.finfo(f.dtype).eps
    for _ in range(40):
        done = True
        for p, q in rounds(n):
            a, b = columns[:, p], columns[:, q]
            aa, bb, ab = (a * a).sum(axis=2), (b * b).sum(axis=2), (a * b).sum(axis=2)
            turning = np.abs(ab) > least * np.sqrt(aa * bb)
            if not turning.any():
                continue
            done = False
            zeta = (bb - aa) / np.where(turning, 2.0 * ab, 1.0)
            t = np.copysign(1.0, zeta) / (np.abs(zeta) + np.sqrt(1.0 + zeta * zeta))
            t = np.where(turning, t, 0.0)
            c = (1.0 / np.sqrt(1.0 + t * t))[:, :, None]
            s = c * t[:, :, None]
            columns[:, p], columns[:, q] = c * a - s * b, s * a + c * b
            a, b = turn[:, p], turn[:, q]
            turn[:, p], turn[:, q] = c * a - s * b, s * a + c * b
        if done:
            break
    sigma = np.sqrt((columns * columns).sum(axis=2))
    order = np.argsort(-sigma, axis=1, kind="stable")
    sigma = np.take_along_axis(sigma, order, axis=1)
    left = np.take_along_axis(columns, order[:, :, None], axis=1)
    left = left / np.where(sigma > 0.0, sigma, 1.0)[:, :, None]
    right = np.take_along_axis(turn, order[:, :, None], axis=1)
    return left.transpose(0, 2, 1), sigma, right.transpose(0, 2, 1)


@lru_cache(maxsize=64)
def rounds(n: int) -> list[tuple[list[int], list[int]]]:
    """All pairs of n columns, in rounds of pairs that have no column in common."""
    players = list(range(n + n % 2))
    half, out = len(players) // 2, []
    for _ in players[1:]:
        pairs = zip(players[:half], players[::-1][:half], strict=True)
        pairs = [pair for pair in pairs if max(pair) < n]
        out.append(([a for a, _ in pairs], [b for _, b in pairs]))
        players = [players[0], players[-1], *players[1:-1]]
    return out
