"""V with V Vᵀ = A⁺ for one group of any rank, vectors along the rows of its matrices.

Matrices are flat arrays whose rows are ``wide`` apart, a multiple of WIDTH, with zeros at the end.
A factor L stands by columns, as rows over the parameters in their natural places. Mirrors `whiten`
and `truncate` of reference.py, and csrc/algorithms/whiten.h and jacobi.h.
"""

from __future__ import annotations

import numpy as np

from koopcore.backends.numba.runtime import inner, making
from koopcore.backends.numba.simd import WIDTH, constant, fill, fma, load, store

SWEEPS = 30  # of Jacobi rotations; convergence is quadratic and takes six to ten
PIVOT_RANGE = 0.25  # of the largest: diagonals scaled by powers of two are within this


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


@inner
def scale_row(rows, at, wide, factor):
    """A row *= factor."""
    times = constant(factor)
    for i in range(at, at + wide, WIDTH):
        store(rows, i, load(rows, i) * times)


@inner
def row_product(x, p, y, q, count):
    """⟨x[p : p + count], y[q : q + count]⟩."""
    total = 0.0
    for i in range(count):
        total += x[p + i] * y[q + i]
    return total


@making
def whiten(a, n, scale, cap, raw, breakdown, tolerance, v):
    """Write V (n, r) of the scaled (n, n) matrix ``a`` and give r, and cond(F).

    Factors in natural order unless a pivot is no more than ``breakdown`` of its diagonal, then with
    pivoting. The caller may know that it is: ``breakdown`` is infinite.
    """
    wide = padded(n)
    factor = np.zeros(n * wide)
    order = np.empty(n, dtype=np.int64)
    rank = natural_cholesky(a, n, breakdown, factor, order)
    natural = rank == n
    if not natural:
        rank = pivoted_cholesky(a, n, scale, tolerance, factor, order)
    for i in range(n * wide):
        v[i] = 0.0
    if rank == 0:
        return 0, np.inf
    largest = smallest = factor[order[0]]
    for k in range(rank):
        pivot = factor[k * wide + order[k]]
        largest, smallest = max(largest, pivot), min(smallest, pivot)
    condition = largest / smallest
    inverse = np.zeros(rank * wide)
    right_inverse(factor, rank, n, inverse)
    if natural and cap == n:
        put_columns(inverse, n, n, scale, v)
        return n, condition
    square, rank = truncate(factor, inverse, rank, n, scale, cap, raw, tolerance, v)
    return rank, max(condition, np.sqrt(square / max(rank, 1)))


@inner
def put_columns(rows, rank, n, scale, v):
    """Columns of V = S rows."""
    wide = padded(n)
    for k in range(rank):
        for i in range(n):
            v[i * wide + k] = rows[k * wide + i] * scale[i]


@making
def natural_cholesky(a, n, tolerance, factor, order):
    """A = L Lᵀ in natural order, while a pivot is more than ``tolerance`` of its diagonal."""
    wide = padded(n)
    for k in range(n):
        row = k * wide
        for i in range(wide):
            factor[row + i] = a[k * wide + i]
        add_rows(factor, row, wide, -1.0, factor, k, wide, factor, 0, k)
        pivot = factor[row + k]
        if not pivot > tolerance * a[k * wide + k]:
            return k
        order[k] = k
        scale_row(factor, row, wide, 1.0 / np.sqrt(pivot))
        for i in range(k):
            factor[row + i] = 0.0  # but for rounding
    return n


@making
def pivoted_cholesky(a, n, scale, tolerance, factor, order):
    """A = L Lᵀ by diagonal pivoting: the rank, and the parameter of every pivot in ``order``.

    Pivots are above ``tolerance`` of the largest diagonal entry. Of those within PIVOT_RANGE of the
    largest, the one that is largest without its scale comes first, and a row in which only noise
    is left takes no part in pivots smaller than its noise: see reference.py.
    """
    wide = padded(n)
    rest = np.zeros(wide)
    greatest = 0.0
    for i in range(n):
        rest[i] = a[i * wide + i]
        greatest = max(greatest, rest[i])
    noise = tolerance * greatest
    for k in range(n):
        near = 0.0
        for i in range(n):
            near = max(near, rest[i])
        near = max(PIVOT_RANGE * near, noise)
        j, most = -1, 0.0
        for i in range(n):
            own = np.sqrt(rest[i]) / scale[i] if rest[i] > near else 0.0
            if own > most:
                j, most = i, own
        if j < 0:
            return k
        order[k] = j
        root = np.sqrt(rest[j])
        row = k * wide
        for i in range(wide):
            factor[row + i] = a[j * wide + i]
        add_rows(factor, row, wide, -1.0, factor, j, wide, factor, 0, k)
        scale_row(factor, row, wide, 1.0 / root)
        for i in range(n):
            if not rest[i] > noise and np.sqrt(noise) / scale[i] > most:
                factor[row + i] = 0.0
        for c in range(k):
            factor[row + order[c]] = 0.0  # but for rounding
        factor[row + j] = root
        for i in range(n):
            rest[i] -= factor[row + i] * factor[row + i]
        for c in range(k + 1):
            rest[order[c]] = -np.inf
    return n


@making
def right_inverse(rows, rank, n, out):
    """Rows X with ⟨row p of ``rows``, row q of X⟩ = δ_pq, of least norm.

    By Gram-Schmidt, twice over: rows = Tᵀ Q, X = T⁻¹ Q.
    """
    wide = padded(n)
    t, along, inverse = np.zeros(rank * rank), np.zeros(rank), np.zeros(rank)
    for k in range(rank):
        at = k * wide
        for i in range(wide):
            out[at + i] = rows[at + i]
        for _ in range(2):
            for j in range(k):
                along[j] = row_product(out, j * wide, out, at, n)
                t[j * rank + k] += along[j]
            add_rows(out, at, wide, -1.0, along, 0, 1, out, 0, k)
        square = row_product(out, at, out, at, n)
        inverse[k] = 1.0 / np.sqrt(square) if square > 0.0 else 0.0
        scale_row(out, at, wide, inverse[k])
    for k in range(rank - 1, -1, -1):
        add_rows(out, k * wide, wide, -1.0, t, k * rank, 1, out, k + 1, rank)
        scale_row(out, k * wide, wide, inverse[k])


@making
def truncate(factor, inverse, rank, n, scale, cap, raw, tolerance, v):
    """V from the leading singular values of F, F S = Q Lᵀ: gives ‖S⁻¹V‖² and how many there are.

    ``inverse`` is the right inverse of Lᵀ. Values within ``tolerance`` of the largest are zero.
    ``raw`` takes F from [x_1, d_1, …] to [x_1, x_2, …] by running sums, and V back.
    """
    wide = padded(n)
    least_scale = np.inf
    for i in range(n):
        least_scale = min(least_scale, scale[i])
    columns, x = np.zeros(rank * wide), np.zeros(rank * wide)
    turn, square = np.zeros(rank * rank), np.zeros(rank)
    for q in range(rank):
        turn[q * rank + q] = 1.0
        total = 0.0
        for i in range(n):  # F over its largest column
            entry = factor[q * wide + i] * (least_scale / scale[i])
            total = total + entry if raw else entry
            columns[q * wide + i] = total
    right_inverse(columns, rank, n, x)
    bound = row_product(columns, 0, columns, 0, rank * wide) * row_product(x, 0, x, 0, rank * wide)
    count = rank
    if cap < rank or not bound * tolerance * tolerance < 1.0:
        count = leading(columns, turn, rank, n, cap, tolerance, square, x)
    missing = np.zeros(rank)
    total = 0.0
    for k in range(count):
        at = k * wide
        if raw:
            for i in range(n - 2, -1, -1):
                x[at + i] += x[at + i + 1]
        for i in range(n):
            x[at + i] *= least_scale / scale[i]
        # F V = Q u holds to the condition number of F; this makes it hold to that of the scaled
        # columns, which is what the Gram matrix was factored in.
        for q in range(rank):
            missing[q] = turn[k * rank + q] - row_product(factor, q * wide, x, at, n)
        add_rows(x, at, wide, 1.0, missing, 0, 1, inverse, 0, rank)
        total += row_product(x, at, x, at, n)
    put_columns(x, count, n, scale, v)
    return total, count


@making
def leading(columns, turn, rank, n, cap, tolerance, square, x):
    """Rows x_k = r_k/σ_k of the leading singular values, those of ``turn`` with them, in order.

    Gives how many: at most ``cap``, and none within ``tolerance`` of the largest.
    """
    wide = padded(n)
    orthogonalize(columns, turn, rank, n)
    greatest = 0.0
    for q in range(rank):
        square[q] = row_product(columns, q * wide, columns, q * wide, n)
        greatest = max(greatest, square[q])
    turned = turn.copy()
    for k in range(min(cap, rank)):
        best = 0
        for q in range(rank):
            if square[q] > square[best]:
                best = q
        if not square[best] > greatest * tolerance * tolerance:
            return k
        for i in range(n):
            x[k * wide + i] = columns[best * wide + i] / square[best]
        for q in range(rank):
            turn[k * rank + q] = turned[best * rank + q]
        square[best] = -1.0
    return min(cap, rank)


@inner
def orthogonalize(r, turn, rank, n):
    """Rotate rows until they are orthogonal to working precision (Hestenes 1958), ``turn`` too."""
    wide = padded(n)
    for _ in range(SWEEPS):
        rotated = False
        for p in range(rank - 1):
            for q in range(p + 1, rank):
                a = row_product(r, p * wide, r, p * wide, n)
                b = row_product(r, q * wide, r, q * wide, n)
                c = row_product(r, p * wide, r, q * wide, n)
                if not abs(c) > 2.0**-51 * np.sqrt(a) * np.sqrt(b):
                    continue
                rotated = True
                zeta = (b - a) / (2.0 * c)
                t = np.copysign(1.0, zeta) / (abs(zeta) + np.hypot(1.0, zeta))
                cosine = 1.0 / np.hypot(1.0, t)
                sine = cosine * t
                rotate(r, p * wide, q * wide, n, cosine, sine)
                rotate(turn, p * rank, q * rank, rank, cosine, sine)
        if not rotated:
            return


@inner
def rotate(rows, p, q, count, cosine, sine):
    for i in range(count):
        x, y = rows[p + i], rows[q + i]
        rows[p + i], rows[q + i] = cosine * x - sine * y, sine * x + cosine * y
