"""K = VᵀHV and z = Vᵀg with V Vᵀ = A⁺ by pivoted Cholesky, WIDTH groups side by side.

At full rank V = P L⁻ᵀ, triangular up to the order of the pivots. The groups of lower rank, and
those to be truncated, are left to project_any.py, which takes them one by one.
"""

from __future__ import annotations

import numpy as np

from koopcore.backends.numba_kernels.compiled import inner, kernel
from koopcore.backends.numba_kernels.lanes import add_multiple, dot, power_of_two_scale
from koopcore.backends.numba_kernels.simd import WIDTH, constant, fma, load, sqrt, store


@kernel
def project_range(a, h, g, n, ridge, tolerance, low, high, result):
    """Groups low .. high - 1; a, h and g are (memory, origin, strides) of (n_groups, n, n).

    A group of lower rank is left with rank -1 and nothing else.
    """
    operator, whitener, start, ranks, condition = result
    wide = (n + 3) // 4 * 4  # columns of zeros, so that products need no remainder
    matrix = np.zeros(n * wide * WIDTH)
    scale = np.empty(n * WIDTH)
    factor = np.zeros(n * n * WIDTH)
    inverse = np.zeros(n * n * WIDTH)
    v = np.zeros(n * wide * WIDTH)
    product = np.zeros(n * wide * WIDTH)
    order = np.empty(n * WIDTH, dtype=np.int64)
    rank = np.empty(WIDTH, dtype=np.int64)
    z = np.empty(n * WIDTH)
    for first in range(low, high, WIDTH):
        take_matrices(a, n, n, first, high, matrix)
        equilibrate(matrix, n, ridge, scale)
        pivoted_cholesky(matrix, n, tolerance, factor, order, rank)
        invert(factor, n, inverse)
        whiten(inverse, n, wide, order, scale, v)
        take_matrices(h, n, n, first, high, matrix)
        multiply(matrix, n, n, 1, v, wide, product)  # H V
        multiply(v, n, 1, wide, product, wide, matrix)  # VᵀHV
        take_vectors(g, n, first, high, z)
        for lane in range(min(WIDTH, high - first)):
            group = first + lane
            if rank[lane] < n:
                ranks[group] = -1
                continue
            largest = smallest = factor[lane]
            for i in range(n):
                pivot = factor[(i * n + i) * WIDTH + lane]
                largest, smallest = max(largest, pivot), min(smallest, pivot)
                begin = 0.0
                for j in range(n):
                    operator[group, i, j] = matrix[(i * wide + j) * WIDTH + lane]
                    whitener[group, i, j] = v[(i * wide + j) * WIDTH + lane]
                    begin += v[(j * wide + i) * WIDTH + lane] * z[j * WIDTH + lane]
                start[group, i] = begin
            ranks[group], condition[group] = n, largest / smallest


@inner
def take_matrices(source, n, wide, first, stop, matrix):
    """Lane l = matrix first + l; lanes past ``stop`` repeat the last group."""
    memory, origin, (across, down, along) = source
    for lane in range(WIDTH):
        corner = origin + min(first + lane, stop - 1) * across
        for i in range(n):
            for j in range(n):
                matrix[(i * wide + j) * WIDTH + lane] = memory[corner + i * down + j * along]


@inner
def take_vectors(source, n, first, stop, z):
    """Lane l = vector first + l, likewise."""
    memory, origin, (across, down) = source
    for lane in range(WIDTH):
        corner = origin + min(first + lane, stop - 1) * across
        for i in range(n):
            z[i * WIDTH + lane] = memory[corner + i * down]


@inner
def equilibrate(matrix, n, ridge, scale):
    """Scale to diagonals in [1/2, 2), and add the ridge times their mean."""
    diagonal = np.empty(n * WIDTH)
    for i in range(n):
        store(diagonal, i * WIDTH, load(matrix, (i * n + i) * WIDTH))
    power_of_two_scale(diagonal, scale)
    trace = constant(0.0)
    for i in range(n):
        s = load(scale, i * WIDTH)
        for j in range(n):
            place = (i * n + j) * WIDTH
            store(matrix, place, load(matrix, place) * s * load(scale, j * WIDTH))
        trace = trace + load(matrix, (i * n + i) * WIDTH)
    shift = trace * constant(ridge / n)
    for i in range(n):
        place = (i * n + i) * WIDTH
        store(matrix, place, load(matrix, place) + shift)


@inner
def pivoted_cholesky(matrix, n, tolerance, factor, order, rank):
    """a[p, p] = L Lᵀ; a lane whose pivots fall to the noise is carried along, and never read."""
    rest = np.empty(n * WIDTH)
    column = np.empty(n * WIDTH)
    noise = np.zeros(WIDTH)
    for i in range(n):
        for lane in range(WIDTH):
            entry = matrix[(i * n + i) * WIDTH + lane]
            rest[i * WIDTH + lane] = entry
            order[i * WIDTH + lane] = i
            if not entry <= noise[lane]:
                noise[lane] = entry
    for lane in range(WIDTH):
        noise[lane] *= tolerance
        rank[lane] = n
    for k in range(n):
        for lane in range(WIDTH):
            j, best = k, rest[k * WIDTH + lane]
            for i in range(k + 1, n):
                if rest[i * WIDTH + lane] > best:
                    j, best = i, rest[i * WIDTH + lane]
            if rank[lane] == n and not best > noise[lane]:
                rank[lane] = k
            if j != k:
                swap(order, k * WIDTH + lane, j * WIDTH + lane)
                swap(rest, k * WIDTH + lane, j * WIDTH + lane)
                for c in range(k):
                    swap(factor, (k * n + c) * WIDTH + lane, (j * n + c) * WIDTH + lane)
            pivot = order[k * WIDTH + lane]
            for i in range(k + 1, n):
                row = order[i * WIDTH + lane]
                column[i * WIDTH + lane] = matrix[(row * n + pivot) * WIDTH + lane]
        root = sqrt(load(rest, k * WIDTH))
        reciprocal = constant(1.0) / root
        store(factor, (k * n + k) * WIDTH, root)
        for i in range(k + 1, n):
            entry = load(column, i * WIDTH) - dot(factor, i * n, factor, k * n, k)
            entry = entry * reciprocal
            store(factor, (i * n + k) * WIDTH, entry)
            store(rest, i * WIDTH, load(rest, i * WIDTH) - entry * entry)


@inner
def swap(array, i, j):
    """Exchange two numbers."""
    array[i], array[j] = array[j], array[i]


@inner
def invert(factor, n, inverse):
    """L⁻¹, row by row; above its diagonal stay the zeros it came with."""
    for i in range(n):
        reciprocal = constant(1.0) / load(factor, (i * n + i) * WIDTH)
        for j in range(i):
            store(inverse, (i * n + j) * WIDTH, constant(0.0))
        for k in range(i):
            entry = -load(factor, (i * n + k) * WIDTH) * reciprocal
            add_multiple(inverse, i * n, entry, inverse, k * n, k + 1)
        store(inverse, (i * n + i) * WIDTH, reciprocal)


@inner
def whiten(inverse, n, wide, order, scale, v):
    """V = P L⁻ᵀ unscaled: row ``order[i]`` is column i of L⁻¹ times the scale of that row."""
    for i in range(n):
        for lane in range(WIDTH):
            row = order[i * WIDTH + lane]
            weight = scale[row * WIDTH + lane]
            for c in range(n):
                v[(row * wide + c) * WIDTH + lane] = inverse[(c * n + i) * WIDTH + lane] * weight


@inner
def multiply(x, n, down, along, y, wide, out):
    """out = X Y, (n, wide) each, in tiles of 2x4; X_ij stands at ``i down + j along``."""
    for i in range(0, n, 2):
        other = min(i + 1, n - 1)  # an odd last row is done twice
        for c in range(0, wide, 4):
            p0 = p1 = p2 = p3 = constant(0.0)
            q0 = q1 = q2 = q3 = constant(0.0)
            for j in range(n):
                p = load(x, (i * down + j * along) * WIDTH)
                q = load(x, (other * down + j * along) * WIDTH)
                place = (j * wide + c) * WIDTH
                r = load(y, place)
                p0, q0 = fma(p, r, p0), fma(q, r, q0)
                r = load(y, place + WIDTH)
                p1, q1 = fma(p, r, p1), fma(q, r, q1)
                r = load(y, place + 2 * WIDTH)
                p2, q2 = fma(p, r, p2), fma(q, r, q2)
                r = load(y, place + 3 * WIDTH)
                p3, q3 = fma(p, r, p3), fma(q, r, q3)
            place = (i * wide + c) * WIDTH
            store(out, place, p0)
            store(out, place + WIDTH, p1)
            store(out, place + 2 * WIDTH, p2)
            store(out, place + 3 * WIDTH, p3)
            place = (other * wide + c) * WIDTH
            store(out, place, q0)
            store(out, place + WIDTH, q1)
            store(out, place + 2 * WIDTH, q2)
            store(out, place + 3 * WIDTH, q3)
