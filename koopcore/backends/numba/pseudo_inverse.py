"""V with V Vᵀ = A⁺ for one group of any rank, vectors along the rows of its matrices.

Matrices are flat arrays whose rows are ``wide`` apart, a multiple of WIDTH, with zeros at the end.
A factor L stands by columns, as rows over the parameters in their natural places.
"""

from __future__ import annotations

import numpy as np

from koopcore.backends.numba.runtime import inner, making
from koopcore.backends.numba.simd import WIDTH, constant, fill, fma, load, store

SWEEPS = 30  # of Jacobi rotations; convergence is quadratic and takes six to ten


@inner
def padded(n):
    """n, up to a multiple of WIDTH."""
    return (n + WIDTH - 1) // WIDTH * WIDTH


@inner
def add_rows(target, at, wide, sign, weights, first, hop, rows, low, high):
    """Row at ``at`` += sign Σ_{low<=c<high} weights[first + c hop] rows[c]."""
    plus = constant(sign)
    for i in range(0, wide, WIDTH):
        total = load(target, at + i)
        for c in range(low, high):
            total = fma(plus * fill(weights, first + c * hop), load(rows, c * wide + i), total)
        store(target, at + i, total)


@making
def whiten(a, n, scale, cap, raw, breakdown, tolerance, v):
    """Write V (n, r) of the scaled (n, n) matrix ``a`` and give r, and cond(F).

    Factors in natural order unless a pivot is no more than ``breakdown`` of its diagonal, then with
    pivoting. The caller may know that it is: ``breakdown`` is infinite.
    """
    wide = padded(n)
    factor = np.zeros(n * wide)
    order = np.empty(n, dtype=np.int64)
    rank = cholesky(a, n, True, breakdown, factor, order)
    if rank < n:
        rank = cholesky(a, n, False, tolerance, factor, order)
    for i in range(n * wide):
        v[i] = 0.0
    if rank == 0:
        return 0, np.inf
    largest = smallest = factor[order[0]]
    for k in range(rank):
        pivot = factor[k * wide + order[k]]
        largest, smallest = max(largest, pivot), min(smallest, pivot)
    if cap < rank:
        truncate(factor, n, scale, rank, cap, raw, v)
    else:
        invert(factor, order, n, scale, rank, v)
    return min(cap, rank), largest / smallest


@making
def cholesky(a, n, natural, tolerance, factor, order):
    """A = L Lᵀ as far as its pivots go: the rank, and the parameter of every pivot in ``order``.

    In natural order, while a pivot is more than the tolerance's share of its diagonal; or by
    diagonal pivoting, while it is more than that of the largest.
    """
    wide = padded(n)
    rest = np.zeros(wide)
    largest = 0.0
    for i in range(n):
        rest[i] = a[i * wide + i]
        if not rest[i] <= largest:
            largest = rest[i]
    for k in range(n):
        j = k
        if not natural:
            j = 0
            for i in range(n):
                if rest[i] > rest[j]:
                    j = i
                elif rest[i] != rest[i]:  # nan ends the factorization
                    return k
        if not rest[j] > tolerance * (a[j * wide + j] if natural else largest):
            return k
        order[k] = j
        root = np.sqrt(rest[j])
        row = k * wide
        for i in range(wide):
            factor[row + i] = a[j * wide + i]
        add_rows(factor, row, wide, -1.0, factor, j, wide, factor, 0, k)
        inverse = constant(1.0 / root)
        for i in range(0, wide, WIDTH):
            entry = load(factor, row + i) * inverse
            store(factor, row + i, entry)
            store(rest, i, load(rest, i) - entry * entry)
        for c in range(k):
            factor[row + order[c]] = 0.0  # but for rounding
        factor[row + j] = root
        for c in range(k + 1):
            rest[order[c]] = -np.inf
    return n


@making
def invert(factor, order, n, scale, rank, v):
    """V = L (LᵀL)⁻¹ through L = unit·D, whose columns the pivoting leaves well conditioned.

    Courrieu (2005), Fast computation of Moore-Penrose inverse matrices.
    """
    wide = padded(n)
    unit = np.zeros(n * wide)  # (n, rank)
    y = np.zeros(rank * wide)  # (rank, n)
    for k in range(rank):
        inverse = 1.0 / factor[k * wide + order[k]]
        for i in range(n):
            y[k * wide + i] = unit[i * wide + k] = factor[k * wide + i] * inverse
    normal, lower = np.zeros(rank * wide), np.zeros(rank * wide)
    for k in range(rank):
        add_rows(normal, k * wide, wide, 1.0, unit, k, wide, unit, 0, n)
    for k in range(rank):  # its Cholesky factor
        row = k * wide
        add_rows(normal, row, wide, -1.0, lower, k, wide, lower, 0, k)
        inverse = constant(1.0 / np.sqrt(normal[row + k]))
        for i in range(0, wide, WIDTH):
            store(lower, row + i, load(normal, row + i) * inverse)
    for k in range(rank):
        add_rows(y, k * wide, wide, -1.0, lower, k, wide, y, 0, k)
        divide_row(y, k * wide, wide, lower[k * wide + k])
    for k in range(rank - 1, -1, -1):
        add_rows(y, k * wide, wide, -1.0, lower, k * wide, 1, y, k + 1, rank)
        divide_row(y, k * wide, wide, lower[k * wide + k])
        pivot = factor[k * wide + order[k]]
        for i in range(n):
            v[i * wide + k] = y[k * wide + i] / pivot * scale[i]


@inner
def divide_row(rows, at, wide, divisor):
    """A row /= divisor."""
    inverse = constant(1.0 / divisor)
    for i in range(at, at + wide, WIDTH):
        store(rows, i, load(rows, i) * inverse)


@making
def truncate(factor, n, scale, rank, cap, raw, v):
    """V from the leading singular values of F = Q R, R = Lᵀ unscaled: one-sided Jacobi on its rows.

    ``raw`` moves R from [x_1, d_1, …] to [x_1, x_2, …] by running sums, and V back.
    """
    wide = padded(n)
    r = np.zeros((rank, n))
    for q in range(rank):
        for i in range(n):
            r[q, i] = factor[q * wide + i] / scale[i]
            if raw and i > 0:
                r[q, i] += r[q, i - 1]
    orthogonalize(r)
    square = np.empty(rank)
    for q in range(rank):
        square[q] = row_product(r, q, q)
    for c in range(cap):
        best = 0
        for q in range(rank):
            if square[q] > square[best]:
                best = q
        for i in range(n):
            v[i * wide + c] = r[best, i] / square[best]
        square[best] = -1.0
    if raw:
        for i in range(n - 2, -1, -1):
            for c in range(cap):
                v[i * wide + c] += v[(i + 1) * wide + c]


@inner
def row_product(r, p, q):
    """⟨row p, row q⟩."""
    total = 0.0
    for i in range(r.shape[1]):
        total += r[p, i] * r[q, i]
    return total


@inner
def orthogonalize(r):
    """Rotate rows until they are orthogonal to working precision (Hestenes 1958)."""
    for _ in range(SWEEPS):
        rotated = False
        for p in range(len(r) - 1):
            for q in range(p + 1, len(r)):
                a, b = row_product(r, p, p), row_product(r, q, q)
                c = row_product(r, p, q)
                if not abs(c) > 2.0**-51 * np.sqrt(a) * np.sqrt(b):
                    continue
                rotated = True
                zeta = (b - a) / (2.0 * c)
                t = np.copysign(1.0, zeta) / (abs(zeta) + np.hypot(1.0, zeta))
                cosine = 1.0 / np.hypot(1.0, t)
                sine = cosine * t
                for i in range(r.shape[1]):
                    x, y = r[p, i], r[q, i]
                    r[p, i], r[q, i] = cosine * x - sine * y, sine * x + cosine * y
        if not rotated:
            return
