"""Cholesky factors in natural order and their triangular solves, WIDTH groups side by side.

A = L Lᵀ of (wide, wide) lane arrays, left-looking by blocks of four columns. A becomes N, the
negative of L below its diagonal, so that solves only ever add, beside 1 / diag L. `factor` says
which groups' pivots break down, and carries these along with pivots of one: they are left to
pseudo_inverse.py. No lane looks at another.
"""

from __future__ import annotations

from koopcore.backends.numba.lanes import add_tile
from koopcore.backends.numba.runtime import inner
from koopcore.backends.numba.simd import WIDTH, constant, fma, load, sqrt, store, where_less


@inner
def factor(a, n, wide, tolerance, reciprocal, work):
    """Overwrite the lower triangle of ``a`` by N, and set reciprocal = 1 / diag L.

    Gives a vector of ones, and zeros where a pivot of the first n is no more than the tolerance's
    share of its diagonal; the columns past n are of the identity. work: 5 wide.
    """
    one, zero = constant(1.0), constant(0.0)
    alive = one
    for i in range(wide):  # the pivots' bounds
        store(work, (4 * wide + i) * WIDTH, constant(tolerance) * load(a, i * (wide + 1) * WIDTH))
    for k in range(0, wide, 4):
        for c in range(4):
            for j in range(k):
                store(work, (c * wide + j) * WIDTH, -load(a, ((k + c) * wide + j) * WIDTH))
        for i in range(k, wide, 4):
            add_tile(a, i * wide, wide, 1, work, 0, wide, 1, k, a, i * wide + k, wide)
        for c in range(k, k + 4):
            row = (c * wide + k) * WIDTH
            pivot, bound = load(a, (c * wide + c) * WIDTH), load(work, (4 * wide + c) * WIDTH)
            if c < n:
                alive = where_less(bound, pivot, alive, zero)
            pivot = where_less(bound, pivot, pivot, one)
            inverse = one / pivot
            store(a, (c * wide + c) * WIDTH, pivot)
            store(reciprocal, c * WIDTH, inverse)
            for r in range(c + 1, k + 4):
                row = r * wide
                share = -load(a, (row + c) * WIDTH) * inverse
                for b in range(c + 1, r + 1):
                    place = (row + b) * WIDTH
                    other = load(a, (b * wide + c) * WIDTH)
                    store(a, place, fma(share, other, load(a, place)))
        r0, r1 = sqrt(load(reciprocal, k * WIDTH)), sqrt(load(reciprocal, (k + 1) * WIDTH))
        r2, r3 = sqrt(load(reciprocal, (k + 2) * WIDTH)), sqrt(load(reciprocal, (k + 3) * WIDTH))
        store(reciprocal, k * WIDTH, r0)
        store(reciprocal, (k + 1) * WIDTH, r1)
        store(reciprocal, (k + 2) * WIDTH, r2)
        store(reciprocal, (k + 3) * WIDTH, r3)
        for c in range(3):
            root = load(reciprocal, (k + c) * WIDTH)
            for r in range(c + 1, 4):
                place = ((k + r) * wide + k + c) * WIDTH
                store(a, place, -load(a, place) * root)
        low = k + 4  # the rows below, times L_kk⁻ᵀ
        substitute(a, wide, k, reciprocal, a, low * wide + k, 1, wide, wide - low, True)
    return alive


@inner
def substitute(n, wide, k, reciprocal, b, at, hop, step, count, negate):
    """L_kk⁻¹ of the diagonal block times ``count`` vectors of four numbers of B.

    Entry c of vector i stands at ``at + c hop + i step``.
    """
    n10 = load(n, ((k + 1) * wide + k) * WIDTH)
    n20 = load(n, ((k + 2) * wide + k) * WIDTH)
    n21 = load(n, ((k + 2) * wide + k + 1) * WIDTH)
    n30 = load(n, ((k + 3) * wide + k) * WIDTH)
    n31 = load(n, ((k + 3) * wide + k + 1) * WIDTH)
    n32 = load(n, ((k + 3) * wide + k + 2) * WIDTH)
    r0, r1 = load(reciprocal, k * WIDTH), load(reciprocal, (k + 1) * WIDTH)
    r2, r3 = load(reciprocal, (k + 2) * WIDTH), load(reciprocal, (k + 3) * WIDTH)
    sign = constant(-1.0 if negate else 1.0)
    hop *= WIDTH
    for i in range(count):
        place = (at + i * step) * WIDTH
        x0 = load(b, place) * r0
        x1 = fma(n10, x0, load(b, place + hop)) * r1
        x2 = fma(n21, x1, fma(n20, x0, load(b, place + 2 * hop))) * r2
        x3 = fma(n30, x0, load(b, place + 3 * hop))
        x3 = fma(n32, x2, fma(n31, x1, x3)) * r3
        store(b, place, x0 * sign)
        store(b, place + hop, x1 * sign)
        store(b, place + 2 * hop, x2 * sign)
        store(b, place + 3 * hop, x3 * sign)


@inner
def solve_right(n, wide, reciprocal, b):
    """B = B L⁻ᵀ."""
    for k in range(0, wide, 4):
        for i in range(0, wide, 4):
            add_tile(b, i * wide, wide, 1, n, k * wide, wide, 1, k, b, i * wide + k, wide)
        substitute(n, wide, k, reciprocal, b, k, 1, wide, wide, False)


@inner
def solve_left(n, wide, reciprocal, b, at):
    """B = L⁻¹ B, with B (wide, wide) at ``at``."""
    for k in range(0, wide, 4):
        for j in range(0, wide, 4):
            place = at + k * wide + j
            add_tile(n, k * wide, wide, 1, b, at + j, 1, wide, k, b, place, wide)
        substitute(n, wide, k, reciprocal, b, at + k * wide, wide, 1, wide, False)


@inner
def solve_vector(n, wide, reciprocal, x, at):
    """x = L⁻¹ x, with x (wide) at ``at``."""
    for c in range(wide):
        y = load(x, (at + c) * WIDTH) * load(reciprocal, c * WIDTH)
        store(x, (at + c) * WIDTH, y)
        for r in range(c + 1, wide):
            place = (at + r) * WIDTH
            store(x, place, fma(load(n, (r * wide + c) * WIDTH), y, load(x, place)))


@inner
def diagonal_of_inverse(n, wide, reciprocal, count, scale, space):
    """The diagonal of A⁻¹ = L⁻ᵀ L⁻¹: its greatest entry, and the sum of it times scale².

    ``space`` (wide, wide) receives L⁻¹. Diagonal pivoting's pivots fall, and its last one is the
    inverse of such an entry: it ends no lower than one over the greatest.
    """
    for i in range(wide):
        for j in range(wide):
            store(space, (i * wide + j) * WIDTH, constant(1.0 if i == j else 0.0))
    solve_left(n, wide, reciprocal, space, 0)
    greatest = unscaled = constant(0.0)
    for j in range(count):
        total = constant(0.0)
        for i in range(j, count):
            entry = load(space, (i * wide + j) * WIDTH)
            total = fma(entry, entry, total)
        greatest = where_less(greatest, total, total, greatest)
        s = load(scale, j * WIDTH)
        unscaled = fma(total * s, s, unscaled)
    return greatest, unscaled


@inner
def greatest_diagonal(a, wide, count):
    greatest = load(a, 0)
    for i in range(1, count):
        entry = load(a, i * (wide + 1) * WIDTH)
        greatest = where_less(greatest, entry, entry, greatest)
    return greatest


@inner
def condition_of(reciprocal, count):
    """max diag L / min diag L."""
    largest = smallest = load(reciprocal, 0)
    for i in range(1, count):
        r = load(reciprocal, i * WIDTH)
        largest = where_less(largest, r, r, largest)
        smallest = where_less(r, smallest, r, smallest)
    return largest / smallest
