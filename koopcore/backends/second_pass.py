"""A second look at the snapshots of groups whose Gram matrix resolves too little of their motion.

A Gram matrix squares cond(F): the smallest directions that it keeps have errors of u·cond². What it
does find is a basis V in which the columns Y = F V are nearly orthonormal; products with Y, taken
from the snapshots, are as accurate as an orthogonal factorization (Cholesky QR twice, Fukaya et al.
2014). The small factors they make are cut at singular values by the same rules as in `project`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from koopcore import arrays
from koopcore.backends.protocol import (
    RESOLVED,
    Backend,
    FeatureSolved,
    Projection,
    Snapshots,
    rank_tolerance,
)
from koopcore.backends.reflection import reflect
from koopcore.partition.partition import Partition
from koopcore.types import FloatArray, IntArray

BLOCK = 2**22  # numbers of snapshots in float64 at once
LONG, LONG_FOR_ITS_GROUPS = 128, 8
"""Windows of so many snapshots, and so many times the parameters of a group, are long."""
UNSURE = {"float32": 2.0**-6, "float64": 2.0**-40}
"""u·cond², the share of its smallest direction that may be wrong in an operator: not more.

Float32 snapshots carry noise that is mostly above what one Gram matrix loses.
"""
UNSURE_OF_RANK = 2.0**-12
"""The same where the rank is not full: what else there is than rounding then is not known."""


SWEEPS = 30
"""Of rotations: they converge in 6 to 10, and the bound only ends bad input."""
VANISHING = 2.0**-30
"""A newest column below this share of the largest, squared, is lost in sums of the others."""


def reach(backend: Backend, snapshots: Snapshots, part: Partition) -> FloatArray:
    """Half the window's movement a step over the newest step (n_groups,), of groups of equal m.

    Not less than 1, which it is of an even motion: what sums lose of the largest steps shows as so
    much more of the newest.
    """
    first, before, last = backend.gather(snapshots, part, [0, -2, -1])
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        moved = np.linalg.norm(last - first, axis=1) / (2.0 * (len(snapshots.order) - 1))
        step = np.linalg.norm(last - before, axis=1)
        return np.where(moved > step, np.minimum(moved / step, 2.0**53), 1.0)


def is_long(n: int, m: int) -> bool:
    """Whether a window of n is long for groups of m: noise alone makes most well conditioned."""
    return n >= max(LONG, LONG_FOR_ITS_GROUPS * m)


def unsure(condition: FloatArray, rank: IntArray, size: int, snapshots: Snapshots) -> IntArray:
    """The groups whose Gram matrices, of ``size``, were not accurate enough for `project`."""
    limit = UNSURE[arrays.dtype_name(snapshots.array)]
    limits = np.where(rank < size, min(limit, UNSURE_OF_RANK), limit)
    return np.flatnonzero(np.isfinite(condition) & (condition**2 * 2.0**-53 > limits))


def patched(first: Projection, groups: IntArray, second: Projection) -> Projection:
    """``first`` with the ``groups`` of ``second`` in place of its own."""
    width = max(first.start.shape[1], second.start.shape[1])
    operator, whitener = _padded(first.operator, 2, width), _padded(first.whitener, 1, width)
    start, rank = _padded(first.start, 1, width), first.rank.copy()
    operator[groups] = _padded(second.operator, 2, width)
    whitener[groups] = _padded(second.whitener, 1, width)
    start[groups] = _padded(second.start, 1, width)
    rank[groups] = second.rank
    return Projection(operator, whitener, start, rank, first.condition)


def replaced(first: FeatureSolved, groups: IntArray, second: FeatureSolved) -> FeatureSolved:
    """The same for fits of the feature side."""
    first.rank[groups] = second.rank
    first.condition[groups] = second.condition
    first.residual[groups] = second.residual
    first.hindcast[groups] = second.hindcast
    if first.projection is None or first.readout is None:
        return first
    assert second.projection is not None
    assert second.readout is not None
    projection = patched(first.projection, groups, second.projection)
    readout = _padded(first.readout, 1, projection.start.shape[1])
    readout[groups] = _padded(second.readout, 1, projection.start.shape[1])
    return first._replace(rank=projection.rank, projection=projection, readout=readout)


# -- snapshot side: R with B = Q R -----------------------------------------------------------------


def products(
    backend: Backend,
    snapshots: Snapshots,
    part: Partition,
    whitener: FloatArray,
    ends: Sequence[int],
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """YᵀB (n_groups, r, n), YᵀY and Yᵀx_k (…, n_ends), Y = B V with V (n_groups, n, r).

    ends: which k. The snapshots themselves have digits that sums of differences have lost, where
    they are far smaller than the first. Cost: one read, 2 P n r multiply-adds.
    """
    groups, n, r = whitener.shape
    across, inner = np.zeros((groups, r, n)), np.zeros((groups, r, r))
    states = np.zeros((groups, r, len(ends)))
    for some, rows in _windows(backend, snapshots, part):
        basis = np.concatenate([rows[:, :1], np.diff(rows, axis=1)], axis=1)
        y = whitener[some].transpose(0, 2, 1) @ basis
        across[some] += y @ basis.transpose(0, 2, 1)
        states[some] += y @ rows[:, ends].transpose(0, 2, 1)
        inner[some] += y @ y.transpose(0, 2, 1)
    return backend.total(across), backend.total(inner), backend.total(states)


def triangular_factor(
    across: FloatArray, inner: FloatArray, states: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """R (n_groups, r, n) with B = Q R + what V does not reach, Q = Y made orthonormal; and Qᵀx_k.

    From `products`.
    """
    turn = _root(inner).transpose(0, 2, 1)
    return turn @ across, turn @ states


def project_factor(
    factor: FloatArray, state: FloatArray, affine: bool, rank: int | None
) -> Projection:
    """`project` of the window whose factor R (n_groups, r, n) in the basis B is given.

    U = Q R'(Q R_F)⁺, from the singular values of R_F: V in the basis of F, K = WᵀR'V, z = Wᵀ state.
    state (n_groups, r): Qᵀx_n; of the affine model it is the newest column of R.
    """
    n = factor.shape[2]
    first = int(affine)
    own, last = factor[:, :, first : n - 1], factor[:, :, n - 1] if affine else state
    columns, ahead = own, factor[:, :, first + 1 :]
    if not affine:
        columns = np.cumsum(own, axis=2)
        ahead = np.cumsum(factor, axis=2)[:, :, 1:]
    # Directions that the first pass took for more than rounding, of columns scaled to unit length.
    tolerance = rank_tolerance(columns.shape[2])
    lengths = np.linalg.norm(own, axis=1, keepdims=True)
    scaled = np.linalg.svd(own / np.where(lengths > 0.0, lengths, 1.0), compute_uv=False) ** 2
    most = (scaled > tolerance * scaled[:, :1]).sum(axis=1)
    most = most if rank is None else np.minimum(most, rank)
    left, inverse, right, ranks = _cut(columns, most, tolerance)
    v = right.transpose(0, 2, 1) * inverse[:, None, :]
    operator = left.transpose(0, 2, 1) @ ahead @ v
    if not affine:
        v = np.cumsum(v[:, ::-1], axis=1)[:, ::-1]
    start = (left.transpose(0, 2, 1) @ last[:, :, None])[:, :, 0] * (inverse > 0.0)
    width = int(ranks.max(initial=0))
    return Projection(
        operator[:, :width, :width],
        np.ascontiguousarray(v[:, :, :width]),
        start[:, :width],
        ranks,
        np.zeros(len(ranks)),
    )


def _windows(
    backend: Backend, snapshots: Snapshots, part: Partition
) -> Iterator[tuple[IntArray, FloatArray]]:
    """(groups, snapshots (n_groups, n, some parameters)) until all of all groups have come."""
    n = len(snapshots.order)
    for m in np.unique(part.sizes):
        same = np.flatnonzero(part.sizes == m)
        together = BLOCK // (n * int(m))
        for low in range(0, len(same), together) if together else ():
            some = same[low : low + together]
            yield some, backend.gather(snapshots, part.subset(some), range(n)).transpose(1, 0, 2)
        for group in () if together else same:
            columns = part.indices(int(group))
            for low in range(0, int(m), BLOCK // n):
                piece = columns[low : low + BLOCK // n]
                rows = arrays.host(snapshots.array[:, piece])[snapshots.order]
                yield np.array([group]), rows.astype(np.float64)[None]


# -- feature side: P and E with F = P Q, F'Qᵀ = E --------------------------------------------------


def first_basis(c: FloatArray) -> tuple[FloatArray, FloatArray]:
    """V (n_groups, m, m) with VᵀFFᵀV near the identity, C = FFᵀ, and an estimate of cond(F).

    Directions down into the noise are there, too: products with Y = FᵀV sort them out.
    """
    _, exponent = np.frexp(np.einsum("gii->gi", c))
    scale = np.ldexp(1.0, -(exponent // 2))
    values, vectors = np.linalg.eigh(c * scale[:, :, None] * scale[:, None, :])
    greatest = values[:, -1:]
    least = np.maximum(values, 2.0**-52 * greatest)
    inverse = np.where(least > 0.0, 1.0 / np.sqrt(np.where(least > 0.0, least, 1.0)), 0.0)
    some = values > rank_tolerance(c.shape[1]) * greatest
    smallest = np.where(some, values, np.inf).min(axis=1)
    with np.errstate(invalid="ignore"):
        condition = np.sqrt(greatest[:, 0] / smallest)
    return vectors * scale[:, :, None] * inverse[:, None, :], np.where(
        some.any(axis=1), condition, np.inf
    )


def feature_projection(
    backend: Backend,
    snapshots: Snapshots,
    part: Partition,
    affine: bool,
    stops: Sequence[int],
    starts: Sequence[FloatArray],
    basis: FloatArray,
    ranks: Sequence[int | None],
) -> list[tuple[Projection, FloatArray]]:
    """For each stop, `project` again and the read-out E V, of groups of equal m.

    basis: `first_basis` of the whole window. The conditions are left to the caller.
    """
    m = int(part.sizes[0])
    n = len(snapshots.order)
    parts: list[list[tuple[Projection, FloatArray]]] = [[] for _ in stops]
    together = max(1, BLOCK // (n * m))
    for low in range(0, part.n_groups, together):
        some = part.numbers[low : low + together]
        rows = backend.gather(snapshots, part.subset(some), range(n)).transpose(1, 0, 2)
        rows = np.diff(rows, axis=1) if affine else reflect(rows, rows[:, -1])
        for i, stop in enumerate(stops):
            f = rows[:, : stop - 1 - affine]
            steps = rows[:, 1 : stop - affine] - f
            parts[i].append(_feature_block(f, steps, basis[some], starts[i][some], ranks[i]))
    return [_joined(blocks) for blocks in parts]


def _feature_block(
    f: FloatArray, steps: FloatArray, basis: FloatArray, start: FloatArray, rank: int | None
) -> tuple[Projection, FloatArray]:
    """Of columns f and their steps (n_groups, N, m), in the basis V of each group."""
    groups, _, m = f.shape
    y = f @ basis
    root = _root(y.transpose(0, 2, 1) @ y)
    y = y @ root
    p = f.transpose(0, 2, 1) @ y  # F = P Qᵀ, (n_groups, m, r)
    e = p + steps.transpose(0, 2, 1) @ y
    # Where no direction of V is left out: V T, and σ_1/σ_m is at most the product of the norms, of
    # F and of its scaled parameters.
    v, readout, ranks = basis @ root, e, np.full(groups, m)
    square, inverse = (f * f).sum(axis=1), (v * v).sum(axis=2)
    far = (square * inverse).sum(axis=1) * RESOLVED < 0.25
    far &= square.sum(axis=1) * inverse.sum(axis=1) * rank_tolerance(m) ** 2 < 1.0
    whole = np.all(np.any(root, axis=1), axis=1) & far
    if rank is not None and rank < m:
        whole[:] = False
    cut = np.flatnonzero(~whole)
    if cut.size:
        lengths = np.sqrt(np.where(square > 0.0, square, 1.0))[cut, :, None]
        scaled = np.linalg.svd(p[cut] / lengths, compute_uv=False) ** 2
        most = (scaled > RESOLVED * scaled[:, :1]).sum(axis=1)
        most = most if rank is None else np.minimum(most, rank)
        v[cut], u, ranks[cut] = _leading(p[cut], most)
        readout[cut] = e[cut] @ u
    across = v.transpose(0, 2, 1)
    begin = (across @ start[:, :, None])[:, :, 0]
    return Projection(across @ readout, v, begin, ranks, np.zeros(groups)), readout


def _leading(p: FloatArray, most: IntArray) -> tuple[FloatArray, FloatArray, IntArray]:
    """V (n_groups, m, m) and U with V Uᵀ the transposed pseudo-inverse of P, and the ranks.

    Of the ``most`` leading singular values above `rank_tolerance`. By one-sided rotations, which
    leave small parameters the digits that they have beside large ones (Demmel & Veselić 1992).
    """
    columns, turn = p.transpose(0, 2, 1).copy(), np.zeros_like(p)  # one column a row
    m = columns.shape[1]
    turn[:, range(m), range(m)] = 1.0
    for _ in range(SWEEPS):
        rotated = False
        for left, right in _pairs(m):
            a, b = columns[:, left], columns[:, right]
            alpha, beta, gamma = (a * a).sum(axis=2), (b * b).sum(axis=2), (a * b).sum(axis=2)
            some = np.abs(gamma) > 2.0**-52 * np.sqrt(alpha) * np.sqrt(beta)
            if not some.any():
                continue
            rotated = True
            zeta = (beta - alpha) / np.where(some, 2.0 * gamma, 1.0)
            t = np.copysign(1.0, zeta) / (np.abs(zeta) + np.sqrt(1.0 + zeta * zeta))
            c = np.where(some, 1.0 / np.sqrt(1.0 + t * t), 1.0)[:, :, None]
            s = np.where(some, t, 0.0)[:, :, None] * c
            columns[:, left], columns[:, right] = c * a - s * b, s * a + c * b
            a, b = turn[:, left], turn[:, right]
            turn[:, left], turn[:, right] = c * a - s * b, s * a + c * b
        if not rotated:
            break
    square = (columns * columns).sum(axis=2)
    order = np.argsort(-square, axis=1, kind="stable")
    square = np.take_along_axis(square, order, axis=1)
    keep = square > rank_tolerance(m) ** 2 * square[:, :1]
    keep &= np.arange(m) < most[:, None]
    inverse = np.where(keep, 1.0 / np.where(keep, square, 1.0), 0.0)
    order = order[:, :, None]
    v = np.take_along_axis(columns, order, axis=1) * inverse[:, :, None]
    u = np.take_along_axis(turn, order, axis=1) * keep[:, :, None]
    return v.transpose(0, 2, 1), u.transpose(0, 2, 1), keep.sum(axis=1)


@lru_cache(maxsize=64)
def _pairs(n: int) -> list[tuple[IntArray, IntArray]]:
    """All pairs of n columns, in rounds of pairs that have no column in common."""
    half = (n + 1) // 2
    players, rounds = np.arange(2 * half), []
    for _ in range(2 * half - 1):
        left, right = players[:half], players[::-1][:half]
        some = np.maximum(left, right) < n
        rounds.append((left[some], right[some]))
        players = np.concatenate([players[:1], players[-1:], players[1:-1]])
    return rounds


def _joined(blocks: list[tuple[Projection, FloatArray]]) -> tuple[Projection, FloatArray]:
    """The blocks of groups one after the other."""
    width = max((p.start.shape[1] for p, _ in blocks), default=0)
    fits = [p for p, _ in blocks]
    projection = Projection(
        np.concatenate([_padded(p.operator, 2, width) for p in fits]),
        np.concatenate([_padded(p.whitener, 1, width) for p in fits]),
        np.concatenate([_padded(p.start, 1, width) for p in fits]),
        np.concatenate([p.rank for p in fits]),
        np.concatenate([p.condition for p in fits]),
    )
    return projection, np.concatenate([_padded(readout, 1, width) for _, readout in blocks])


# -- both ------------------------------------------------------------------------------------------


def _root(a: FloatArray) -> FloatArray:
    """W (n_groups, r, r) with Wᵀ A W = 1 where A is not nothing; A is near the identity."""
    values, vectors = np.linalg.eigh(a)
    least = values[:, -1:] * 2.0**-30  # what is less was rounding in the first pass
    some = values > least
    scale = np.where(some, 1.0 / np.sqrt(np.where(some, values, 1.0)), 0.0)
    return vectors * scale[:, None, :]


def _cut(
    factor: FloatArray, most: IntArray, tolerance: float
) -> tuple[FloatArray, FloatArray, FloatArray, IntArray]:
    """Left vectors, 1/σ or 0, right vectors of (n_groups, r, N), and how many values are kept."""
    left, sigma, right = np.linalg.svd(factor, full_matrices=False)
    keep = sigma > tolerance * sigma[:, :1]
    keep &= np.arange(sigma.shape[1]) < most[:, None]
    inverse = np.where(keep, 1.0 / np.where(keep, sigma, 1.0), 0.0)
    return left, inverse, right, keep.sum(axis=1)


def _padded(values: FloatArray, axes: int, width: int) -> FloatArray:
    """The last ``axes`` axes of ``values`` filled up with zeros to ``width``; a copy."""
    pad = [(0, 0)] * (values.ndim - axes) + [(0, width - n) for n in values.shape[-axes:]]
    return np.pad(values, pad)
