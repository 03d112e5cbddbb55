"""K = VᵀHV and z = Vᵀg with V Vᵀ = A⁺ by pivoted Cholesky, WIDTH groups side by side.

At full rank V = P L⁻ᵀ is triangular up to the order of the pivots, and so is every product; the
groups of lower rank and those to be truncated go one by one through pseudo_inverse.py.
"""

from __future__ import annotations

import numpy as np

from koopcore.backends.numba_kernels.compiled import kernel
from koopcore.backends.numba_kernels.lanes import add_multiple, dot, power_of_two_scale
from koopcore.backends.numba_kernels.pseudo_inverse import whiten
from koopcore.backends.numba_kernels.simd import WIDTH, constant, load, sqrt, store


@kernel
def project_range(a, h, g, n, cap, ridge, raw, tolerance, low, high, result):
    """Groups low .. high - 1; a, h and g are (memory, origin, strides) of (n_groups, n, n)."""
    operator, whitener, start, ranks, condition = result
    matrix = np.empty(n * n * WIDTH)
    scale = np.empty(n * WIDTH)
    factor = np.zeros(n * n * WIDTH)
    inverse = np.zeros(n * n * WIDTH)
    product = np.empty(n * n * WIDTH)
    order = np.empty(n * WIDTH, dtype=np.int64)
    rank = np.empty(WIDTH, dtype=np.int64)
    z = np.empty(n * WIDTH)
    for first in range(low, high, WIDTH):
        take_scaled(a, n, first, high, ridge, matrix, scale)
        pivoted_cholesky(matrix, n, tolerance, factor, order, rank)
        if cap >= n and rank.max() == n:
            invert(factor, n, inverse)
            take_permuted(h, g, n, first, high, order, scale, matrix, z)
            congruence(inverse, matrix, n, product)
            for i in range(n - 1, -1, -1):
                store(z, i * WIDTH, dot(inverse, i * n, z, 0, i + 1))
        for lane in range(min(WIDTH, high - first)):
            group = first + lane
            if cap >= n and rank[lane] == n:
                largest = smallest = factor[lane]
                for i in range(n):
                    pivot = factor[(i * n + i) * WIDTH + lane]
                    largest, smallest = max(largest, pivot), min(smallest, pivot)
                    start[group, i] = z[i * WIDTH + lane]
                    row = order[i * WIDTH + lane]
                    weight = scale[row * WIDTH + lane]
                    for j in range(n):
                        operator[group, i, j] = product[(i * n + j) * WIDTH + lane]
                        whitener[group, row, j] = weight * inverse[(j * n + i) * WIDTH + lane]
                ranks[group], condition[group] = n, largest / smallest
            else:
                ranks[group], condition[group] = project_one(
                    a, h, g, n, cap, ridge, raw, tolerance, group,
                    operator[group], whitener[group], start[group]
                )


@kernel
def take_scaled(a, n, first, stop, ridge, matrix, scale):
    """Equilibrated matrices with the ridge added; lanes past ``stop`` repeat the last group."""
    memory, origin, (across, down, along) = a
    diagonal = np.empty(n * WIDTH)
    for lane in range(WIDTH):
        corner = origin + min(first + lane, stop - 1) * across
        for i in range(n):
            for j in range(n):
                matrix[(i * n + j) * WIDTH + lane] = memory[corner + i * down + j * along]
            diagonal[i * WIDTH + lane] = matrix[(i * n + i) * WIDTH + lane]
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


@kernel
def pivoted_cholesky(matrix, n, tolerance, factor, order, rank):
    """a[p, p] = L Lᵀ; a lane whose pivots fall to the noise is carried along, and never read."""
    rest = np.empty(n * WIDTH)
    column = np.empty(n * WIDTH)
    noise = np.zeros(WIDTH)
    rank[:] = n
    for i in range(n):
        for lane in range(WIDTH):
            entry = matrix[(i * n + i) * WIDTH + lane]
            rest[i * WIDTH + lane] = entry
            order[i * WIDTH + lane] = i
            if not entry <= noise[lane]:
                noise[lane] = entry
    for lane in range(WIDTH):
        noise[lane] *= tolerance
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


@kernel
def swap(array, i, j):
    """Exchange two numbers."""
    array[i], array[j] = array[j], array[i]


@kernel
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


@kernel
def take_permuted(h, g, n, first, stop, order, scale, matrix, z):
    """H and g equilibrated like A, in the order of its pivots."""
    memory, origin, (across, down, along) = h
    vectors, vector_origin, (vector_across, vector_down) = g
    for lane in range(WIDTH):
        group = min(first + lane, stop - 1)
        corner = origin + group * across
        for i in range(n):
            row = order[i * WIDTH + lane]
            weight = scale[row * WIDTH + lane]
            z[i * WIDTH + lane] = weight * vectors[
                vector_origin + group * vector_across + row * vector_down]
            for j in range(n):
                column = order[j * WIDTH + lane]
                entry = memory[corner + row * down + column * along]
                matrix[(i * n + j) * WIDTH + lane] = entry * weight * scale[column * WIDTH + lane]


@kernel
def congruence(inverse, h, n, product):
    """product = W H Wᵀ for the lower triangular W; ``h`` becomes H Wᵀ."""
    for i in range(n):
        for c in range(n - 1, -1, -1):
            store(h, (i * n + c) * WIDTH, dot(h, i * n, inverse, c * n, c + 1))
    for i in range(n):
        for c in range(n):
            store(product, (i * n + c) * WIDTH, constant(0.0))
        for k in range(i + 1):
            add_multiple(product, i * n, load(inverse, (i * n + k) * WIDTH), h, k * n, n)


@kernel
def project_one(a, h, g, n, cap, ridge, raw, tolerance, group, operator, whitener, start):
    """One group of any rank: rank and condition."""
    memory, origin, (across, down, along) = a
    matrix = np.empty((n, n))
    scale = np.empty(n)
    diagonal = np.empty(n)
    corner = origin + group * across
    for i in range(n):
        diagonal[i] = memory[corner + i * (down + along)]
    power_of_two_scale(diagonal, scale)
    trace = 0.0
    for i in range(n):
        for j in range(n):
            matrix[i, j] = memory[corner + i * down + j * along] * scale[i] * scale[j]
        trace += matrix[i, i]
    for i in range(n):
        matrix[i, i] += ridge * trace / n
    rank, condition = whiten(matrix, scale, cap, raw, tolerance, whitener)
    memory, origin, (across, down, along) = h
    vectors, vector_origin, (vector_across, vector_down) = g
    corner = origin + group * across
    operator[:, :] = 0.0
    start[:] = 0.0
    for i in range(n):
        entry = vectors[vector_origin + group * vector_across + i * vector_down]
        for c in range(rank):
            start[c] += whitener[i, c] * entry
            total = 0.0  # (H V)_ic, then its share of VᵀHV
            for j in range(n):
                total += memory[corner + i * down + j * along] * whitener[j, c]
            for q in range(rank):
                operator[q, c] += whitener[i, q] * total
    return rank, condition
