"""V with V Vᵀ = A⁺ for one group of deficient or truncated rank; project.py has the usual case."""

from __future__ import annotations

import numpy as np

from koopcore.backends.numba_kernels.compiled import inner

SWEEPS = 30  # of Jacobi rotations; convergence is quadratic and takes six to ten


@inner
def whiten(a, scale, cap, raw, tolerance, v):
    """Write V (N, r) of the scaled (N, N) matrix ``a`` and give r, and cond(F)."""
    n = len(a)
    factor = np.zeros((n, n))
    order = np.empty(n, dtype=np.int64)
    rank = pivoted_cholesky(a, tolerance, factor, order)
    for i in range(n):
        for j in range(n):
            v[i, j] = 0.0
    if rank == 0:
        return 0, np.inf
    largest, smallest = factor[0, 0], factor[0, 0]
    for k in range(rank):
        largest, smallest = max(largest, factor[k, k]), min(smallest, factor[k, k])
    if cap < rank:
        truncate(factor, order, scale, rank, cap, raw, v)
    else:
        invert(factor, order, scale, rank, v)
    return min(cap, rank), largest / smallest


@inner
def pivoted_cholesky(a, tolerance, factor, order):
    """Diagonally pivoted a[p, p] = L Lᵀ stopped at the noise; the rank."""
    n = len(a)
    rest = np.empty(n)
    largest = 0.0
    for i in range(n):
        order[i] = i
        rest[i] = a[i, i]
        if not rest[i] <= largest:
            largest = rest[i]
    noise = tolerance * largest
    for k in range(n):
        j = k
        for i in range(k, n):
            if rest[i] > rest[j] or rest[i] != rest[i]:  # nan ends the factorization
                j = i
                if rest[i] != rest[i]:
                    break
        if not rest[j] > noise:
            return k
        order[k], order[j] = order[j], order[k]
        rest[k], rest[j] = rest[j], rest[k]
        for c in range(k):
            factor[k, c], factor[j, c] = factor[j, c], factor[k, c]
        pivot = np.sqrt(rest[k])
        factor[k, k] = pivot
        for i in range(k + 1, n):
            entry = a[order[i], order[k]]
            for c in range(k):
                entry -= factor[i, c] * factor[k, c]
            entry /= pivot
            factor[i, k] = entry
            rest[i] -= entry * entry
    return n


@inner
def invert(factor, order, scale, rank, v):
    """V = L (LᵀL)⁻¹ through L = unit·D, whose columns the pivoting leaves well conditioned."""
    n = len(factor)
    normal = np.zeros((rank, rank))
    for i in range(rank):  # the Cholesky factor of unitᵀ unit
        for j in range(i + 1):
            total = 0.0
            for k in range(i, n):
                total += factor[k, i] / factor[i, i] * (factor[k, j] / factor[j, j])
            for c in range(j):
                total -= normal[i, c] * normal[j, c]
            normal[i, j] = np.sqrt(total) if i == j else total / normal[j, j]
    y = np.empty(rank)
    for k in range(n):
        for i in range(rank):
            total = factor[k, i] / factor[i, i] if i <= k else 0.0
            for c in range(i):
                total -= normal[i, c] * y[c]
            y[i] = total / normal[i, i]
        for i in range(rank - 1, -1, -1):
            total = y[i]
            for c in range(i + 1, rank):
                total -= normal[c, i] * y[c]
            y[i] = total / normal[i, i]
            v[order[k], i] = y[i] / factor[i, i] * scale[order[k]]


@inner
def truncate(factor, order, scale, rank, cap, raw, v):
    """V from the leading singular values of F = Q R, R = Lᵀ unscaled: one-sided Jacobi on its rows.

    ``raw`` moves R from [x_1, d_1, …] to [x_1, x_2, …] by running sums, and V back.
    """
    n = len(factor)
    r = np.zeros((rank, n))
    for i in range(n):
        for q in range(min(i + 1, rank)):
            r[q, order[i]] = factor[i, q] / scale[order[i]]
    if raw:
        for q in range(rank):
            for i in range(1, n):
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
            v[i, c] = r[best, i] / square[best]
        square[best] = -1.0
    if raw:
        for c in range(cap):
            for i in range(n - 2, -1, -1):
                v[i, c] += v[i + 1, c]


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
                a, b, c = row_product(r, p, p), row_product(r, q, q), row_product(r, p, q)
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
