"""Eigenvalues and eigenvectors of thousands of small matrices, without LAPACK's overhead.

LAPACK takes 10 µs for the eigenvalues of a 4 x 4 matrix and 28 µs for a symmetric one of 15 rows,
several times what the arithmetic needs. Up to `SMALL` rows the textbooks' algorithms are compiled
here, one matrix after the other in several threads; larger ones go to LAPACK.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from koopcore.backends.numba.runtime import equal_ends, inner, kernel, spread
from koopcore.backends.protocol import Backend
from koopcore.types import FloatArray, IntArray

ComplexArray = npt.NDArray[np.complex128]

SMALL = 24  # rows; beyond, LAPACK's blocks pay for its overhead
LARGE = 48  # the same for symmetric matrices

EXTRA = 4  # vectors iterated beside those that are wanted
ROUNDS = 12  # of four products each, before the whole decomposition is cheaper
CLOSE = 1e-11  # residual over the largest eigenvalue
WEAK = 1e-2  # the same over the eigenvalue itself, which may be weaker than that


def eig(matrices: npt.NDArray[Any], ranks: IntArray) -> tuple[ComplexArray, ComplexArray]:
    """λ (S, r) and unit eigenvectors W (S, r, r) of the leading (ranks[s], ranks[s]) blocks.

    Sorted by falling |λ|. λ past a rank is NaN, and its vectors are zero. Of real matrices the
    eigenvalues and vectors come in exactly conjugate pairs. Matrices that are not finite have none.
    Source: Francis 1961; Golub & Van Loan, Matrix Computations, section 7.5.
    """
    count, width = matrices.shape[:2]
    values = np.full((count, width), np.nan, dtype=np.complex128)
    vectors = np.zeros((count, width, width), dtype=np.complex128)
    ranks = np.where(np.isfinite(matrices).all(axis=(1, 2)), ranks, 0)
    if width <= SMALL:
        full = np.ascontiguousarray(matrices, dtype=np.complex128)
        real = matrices.dtype.kind == "f"
        ends = equal_ends(count, 60.0 * width**3)
        spread(lambda low, high: _eig_range(full, ranks, low, high, real, values, vectors), ends)
        return values, vectors
    for rank in np.unique(ranks[ranks > 0]):
        at = np.flatnonzero(ranks == rank)
        some, full = np.linalg.eig(matrices[at, :rank, :rank])
        order = np.argsort(-np.abs(some), axis=1, kind="stable")
        values[at, :rank] = np.take_along_axis(some, order, 1)
        vectors[at, :rank, :rank] = np.take_along_axis(full, order[:, None], 2)
    return values, vectors


def eigh(matrices: npt.NDArray[Any]) -> tuple[FloatArray, npt.NDArray[Any]]:
    """Eigenvalues (S, n), falling, and orthonormal eigenvectors (S, n, n) of Hermitian matrices.

    Source: Householder's tridiagonal form and implicit QL steps (Golub & Van Loan, section 8.3).
    """
    count, width = matrices.shape[:2]
    if width > LARGE or matrices.dtype.kind == "c":
        values, vectors = np.linalg.eigh(matrices)
        return values[:, ::-1], vectors[:, :, ::-1]
    values = np.empty((count, width))
    vectors = np.empty((count, width, width))
    full = np.ascontiguousarray(matrices, dtype=np.float64)
    ends = equal_ends(count, 10.0 * width**3)
    spread(lambda low, high: _eigh_range(full, low, high, values, vectors), ends)
    return values, vectors


def leading(
    matrices: npt.NDArray[Any], count: int, on: Backend | None = None
) -> tuple[FloatArray, npt.NDArray[Any]]:
    """The ``count`` largest eigenvalues (S, count), falling, and eigenvectors (S, n, count).

    Subspace iteration with Rayleigh-Ritz; systems that do not settle (eigenvalues without a gap,
    as of noise) are decomposed as a whole. Source: Golub & Van Loan, section 8.2.4.
    on: what may iterate all of them at once.
    """
    n = matrices.shape[1]
    width = count + EXTRA
    if n <= max(16, 3 * width):
        values, vectors = eigh(matrices)
        return values[:, :count], vectors[:, :, :count]
    native = None if on is None else on.leading(matrices, count)
    if native is not None:
        values, vectors, settled = native
        left = np.flatnonzero(~settled)
        if left.size:
            full, some = eigh(matrices[left])
            values[left], vectors[left] = full[:, :count], some[:, :, :count]
        return values, vectors
    values = np.empty((len(matrices), count))
    vectors = np.empty((len(matrices), n, count), dtype=matrices.dtype)
    size = np.einsum("sii->s", matrices).real
    scale = np.where(size > 0.0, size, 1.0)
    at = np.arange(len(matrices))
    rest = matrices / scale[:, None, None]
    y: npt.NDArray[Any] = rest @ np.random.default_rng(0).standard_normal((n, width))
    for _ in range(ROUNDS):
        for _ in range(2):
            y = np.linalg.qr(rest @ (rest @ y))[0]
        image = rest @ y
        ritz, turn = eigh(hermitian(y.conj().swapaxes(1, 2) @ image))
        y, image = y @ turn, image @ turn
        error = np.abs(image[:, :, :count] - y[:, :, :count] * ritz[:, None, :count]).max(axis=1)
        first = np.maximum(ritz[:, :1], np.finfo(float).tiny)
        near = np.minimum(CLOSE * first, WEAK * np.abs(ritz[:, :count]))
        fine = (error <= np.maximum(near, 4.0 * n * np.finfo(float).eps * first)).all(axis=1)
        done = at[fine]
        values[done] = ritz[fine, :count] * scale[done, None]
        vectors[done] = y[fine][:, :, :count]
        at, rest, y = at[~fine], rest[~fine], y[~fine]
        if not at.size:
            return values, vectors
    full, some = eigh(matrices[at])
    values[at], vectors[at] = full[:, :count], some[:, :, :count]
    return values, vectors


def hermitian(matrices: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The nearest Hermitian matrices."""
    return 0.5 * (matrices + matrices.conj().swapaxes(1, 2))


@kernel
def _eigh_range(matrices, low, high, values, vectors):
    """Matrices low .. high - 1; eigenvectors in columns, by falling eigenvalue."""
    n = matrices.shape[1]
    rows = np.empty((n, n))  # rows of the transposed eigenvectors: neighbours in memory
    d, e, order = np.empty(n), np.empty(n + 1), np.empty(n, dtype=np.int64)
    a, work = np.empty((n, n)), np.empty(n)
    for s in range(low, high):
        a[:] = matrices[s]
        symmetric(a, rows, d, e, work)
        for k in range(n):  # insertion sort
            j = k
            while j > 0 and d[order[j - 1]] < d[k]:
                order[j] = order[j - 1]
                j -= 1
            order[j] = k
        for k in range(n):
            values[s, k] = d[order[k]]
            for i in range(n):
                vectors[s, i, k] = rows[order[k], i]


@inner
def symmetric(a, q, d, e, work):
    """Eigenvalues d, and eigenvectors in the rows of q, of the symmetric a, which is destroyed."""
    n = a.shape[0]
    for i in range(n):
        for j in range(n):
            q[i, j] = 1.0 if i == j else 0.0
    # Reflections from below: a <- H a H, of which the row k keeps only its last two entries.
    for k in range(n - 2):
        size = 0.0
        for j in range(k + 2, n):
            size += a[k, j] * a[k, j]
        head = a[k, k + 1]
        d[k] = a[k, k]
        if size == 0.0:
            e[k + 1] = head
            for j in range(k + 1, n):
                a[k, j] = 0.0  # no reflection to undo
            continue
        length = np.sqrt(size + head * head)
        if head < 0.0:
            length = -length
        e[k + 1] = -length
        a[k, k + 1] = head + length
        scale = 1.0 / np.sqrt(0.5 * (size + a[k, k + 1] * a[k, k + 1]))
        for j in range(k + 1, n):
            a[k, j] *= scale  # v, with H = 1 - v vᵀ
        for i in range(k + 2, n + 1):
            e[i] = 0.0
        for j in range(k + 1, n):  # rows of the symmetric a: sums that the compiler vectorizes
            factor = a[k, j]
            for i in range(k + 1, n):
                e[i + 1] += factor * a[j, i]
        inner_product = 0.0
        for i in range(k + 1, n):
            inner_product += e[i + 1] * a[k, i]
        half = 0.5 * inner_product
        for i in range(k + 1, n):
            e[i + 1] -= half * a[k, i]
        for i in range(k + 1, n):
            left, right = e[i + 1], a[k, i]
            for j in range(k + 1, n):
                a[i, j] -= left * a[k, j] + right * e[j + 1]
        # e[k + 1] is final; those behind it are overwritten by the next steps.
    if n > 1:
        d[n - 2] = a[n - 2, n - 2]
        e[n - 1] = a[n - 2, n - 1]
    d[n - 1] = a[n - 1, n - 1]
    # The product of the reflections, from the last one on, so that it grows from one corner.
    for k in range(n - 3, -1, -1):
        for j in range(k + 1, n):
            work[j] = 0.0
        for i in range(k + 1, n):
            factor = a[k, i]
            for j in range(k + 1, n):
                work[j] += factor * q[i, j]
        for i in range(k + 1, n):
            factor = a[k, i]
            for j in range(k + 1, n):
                q[i, j] -= factor * work[j]
    for i in range(n):
        for j in range(i):
            q[i, j], q[j, i] = q[j, i], q[i, j]
    # QL steps on the tridiagonal (d, e[1:]); q's rows are rotated as they go along.
    for i in range(1, n):
        e[i - 1] = e[i]
    e[n - 1] = 0.0
    for low in range(n):
        for _ in range(60):
            high = low
            while high < n - 1:
                near = abs(d[high]) + abs(d[high + 1])
                if abs(e[high]) <= 2.0**-53 * near:
                    break
                high += 1
            if high == low:
                break
            g = (d[low + 1] - d[low]) / (2.0 * e[low])
            r = np.sqrt(g * g + 1.0)
            g = d[high] - d[low] + e[low] / (g + (r if g >= 0.0 else -r))
            sine = cosine = 1.0
            p = 0.0
            early = False
            for i in range(high - 1, low - 1, -1):
                f, b = sine * e[i], cosine * e[i]
                r = np.sqrt(f * f + g * g)
                e[i + 1] = r
                if r == 0.0:
                    d[i + 1] -= p
                    e[high] = 0.0
                    early = True
                    break
                over = 1.0 / r
                sine, cosine = f * over, g * over
                g = d[i + 1] - p
                r = (d[i] - g) * sine + 2.0 * cosine * b
                p = sine * r
                d[i + 1] = g + p
                g = cosine * r - b
                for k in range(n):
                    upper, lower = q[i + 1, k], q[i, k]
                    q[i + 1, k] = sine * lower + cosine * upper
                    q[i, k] = cosine * lower - sine * upper
            if early:
                continue
            d[low] -= p
            e[low] = g
            e[high] = 0.0


@inner
def size_of(number):
    """|Re| + |Im|: a magnitude within √2, without a root."""
    return abs(number.real) + abs(number.imag)


@inner
def magnitude(number):
    """|number|²."""
    return number.real * number.real + number.imag * number.imag


@inner
def order(values, vectors, s, n):
    """Sort the eigenvalues of matrix s, and their vectors, by falling magnitude."""
    for k in range(1, n):
        j = k
        while j > 0 and magnitude(values[s, j]) > magnitude(values[s, j - 1]):
            values[s, j], values[s, j - 1] = values[s, j - 1], values[s, j]
            for i in range(n):
                vectors[s, i, j], vectors[s, i, j - 1] = vectors[s, i, j - 1], vectors[s, i, j]
            j -= 1


@kernel
def _eig_range(matrices, ranks, low, high, real, values, vectors):
    """Matrices low .. high - 1."""
    width = matrices.shape[1]
    t = np.empty((width, width), dtype=np.complex128)
    z = np.empty((width, width), dtype=np.complex128)
    x = np.empty(width, dtype=np.complex128)
    for s in range(low, high):
        n = ranks[s]
        for i in range(n):
            for j in range(n):
                t[i, j] = matrices[s, i, j]
                z[i, j] = 1.0 if i == j else 0.0
        size = 0.0
        for i in range(n):
            for j in range(n):
                size = max(size, size_of(t[i, j]))
        if size == 0.0:
            size = 1.0
        # Hessenberg form by reflections of columns k below k + 1.
        for k in range(n - 2):
            tail = 0.0
            for i in range(k + 2, n):
                tail += (t[i, k] * np.conj(t[i, k])).real
            if tail == 0.0:
                continue
            head = t[k + 1, k]
            length = np.sqrt(tail + (head * np.conj(head)).real)
            phase = head / abs(head) if abs(head) > 0.0 else 1.0 + 0.0j
            x[k + 1] = head + phase * length
            square = tail + (x[k + 1] * np.conj(x[k + 1])).real
            for i in range(k + 2, n):
                x[i] = t[i, k]
            for j in range(k, n):
                total = 0.0 + 0.0j
                for i in range(k + 1, n):
                    total += np.conj(x[i]) * t[i, j]
                total *= 2.0 / square
                for i in range(k + 1, n):
                    t[i, j] -= x[i] * total
            for i in range(n):
                total = 0.0 + 0.0j
                for j in range(k + 1, n):
                    total += t[i, j] * x[j]
                total *= 2.0 / square
                for j in range(k + 1, n):
                    t[i, j] -= total * np.conj(x[j])
                total = 0.0 + 0.0j
                for j in range(k + 1, n):
                    total += z[i, j] * x[j]
                total *= 2.0 / square
                for j in range(k + 1, n):
                    z[i, j] -= total * np.conj(x[j])
            for i in range(k + 2, n):
                t[i, k] = 0.0
        # QR steps with Wilkinson's shift on the active block first .. last.
        last, steps = n - 1, 0
        while last > 0:
            first = last
            while first > 0:
                near = size_of(t[first, first]) + size_of(t[first - 1, first - 1])
                if size_of(t[first, first - 1]) <= 2.0**-53 * (near if near > 0.0 else size):
                    t[first, first - 1] = 0.0
                    break
                first -= 1
            if first == last:
                last, steps = last - 1, 0
                continue
            steps += 1
            if steps > 60:
                break
            a, b = t[last - 1, last - 1], t[last - 1, last]
            c, d = t[last, last - 1], t[last, last]
            half = 0.5 * (a - d)
            root = np.sqrt(half * half + b * c)
            if (np.conj(half) * root).real < 0.0:
                root = -root
            shift = d if half + root == 0.0 else d - b * c / (half + root)
            if steps % 10 == 0:  # out of a cycle
                shift = d + abs(c)
            for k in range(first, last):
                p = t[first, first] - shift if k == first else t[k, k - 1]
                q = t[k + 1, k] if k == first else t[k + 1, k - 1]
                length = np.sqrt((p * np.conj(p)).real + (q * np.conj(q)).real)
                if length == 0.0:
                    continue
                over = 1.0 / length
                cosine, sine = np.conj(p) * over, np.conj(q) * over
                for j in range(max(k - 1, first), n):
                    above, below = t[k, j], t[k + 1, j]
                    t[k, j] = cosine * above + sine * below
                    t[k + 1, j] = np.conj(cosine) * below - np.conj(sine) * above
                if k > first:
                    t[k + 1, k - 1] = 0.0
                for i in range(min(k + 2, last) + 1):
                    left, right = t[i, k], t[i, k + 1]
                    t[i, k] = np.conj(cosine) * left + np.conj(sine) * right
                    t[i, k + 1] = cosine * right - sine * left
                for i in range(n):
                    left, right = z[i, k], z[i, k + 1]
                    z[i, k] = np.conj(cosine) * left + np.conj(sine) * right
                    z[i, k + 1] = cosine * right - sine * left
        # Eigenvectors of the triangle by back substitution, then of the matrix.
        for k in range(n):
            value = t[k, k]
            values[s, k] = value
            for i in range(n):
                x[i] = 0.0
            x[k] = 1.0
            for i in range(k - 1, -1, -1):
                total = 0.0 + 0.0j
                for j in range(i + 1, k + 1):
                    total += t[i, j] * x[j]
                gap = t[i, i] - value
                if size_of(gap) < 2.0**-53 * size:
                    gap = 2.0**-53 * size + 0.0j
                x[i] = -total * (np.conj(gap) / (gap * np.conj(gap)).real)
            length = 0.0
            for i in range(n):
                total = 0.0 + 0.0j
                for j in range(k + 1):
                    total += z[i, j] * x[j]
                vectors[s, i, k] = total
                length += (total * np.conj(total)).real
            over = 1.0 / np.sqrt(length)
            for i in range(n):
                vectors[s, i, k] *= over
        order(values, vectors, s, n)
        if not real:
            continue
        for k in range(n):  # conjugate pairs, exactly
            x[k] = 0.0
        for k in range(n):
            if x[k] != 0.0:
                continue
            value = values[s, k]
            own, partner = 2.0 * abs(value.imag), k
            for j in range(n):
                if j != k and x[j] == 0.0 and abs(values[s, j] - np.conj(value)) < own:
                    own, partner = abs(values[s, j] - np.conj(value)), j
            x[k] = x[partner] = 1.0
            if partner == k:
                values[s, k] = value.real
                top = 0.0
                turn = 1.0 + 0.0j
                for i in range(n):
                    if abs(vectors[s, i, k]) > top:
                        top = abs(vectors[s, i, k])
                        turn = np.conj(vectors[s, i, k]) / top
                for i in range(n):
                    vectors[s, i, k] = (vectors[s, i, k] * turn).real
            else:
                if value.imag < 0.0:  # the rising phase comes first
                    values[s, k] = np.conj(value)
                    for i in range(n):
                        vectors[s, i, k] = np.conj(vectors[s, i, k])
                values[s, partner] = np.conj(values[s, k])
                for i in range(n):
                    vectors[s, i, partner] = np.conj(vectors[s, i, k])
        order(values, vectors, s, n)  # pairs are next to each other now
