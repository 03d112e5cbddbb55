"""Companion coefficients by Cholesky in time order, WIDTH groups side by side."""

from __future__ import annotations

import numpy as np

from koopcore.backends.numba.compiled import inner, kernel, making
from koopcore.backends.numba.lanes import (
    add_multiple,
    dot,
    power_of_two_scale,
    take_lanes,
)
from koopcore.backends.numba.rollout import convolve, recur, to_basis
from koopcore.backends.numba.simd import WIDTH, constant, fma, load, sqrt, store
from koopcore.backends.protocol import WEIGHT_LIMIT


@kernel
def solve_range(gram, n, affine, holdout, tolerance, low, high, at, result):
    """Groups low .. high - 1 of ``gram``; ``result`` is a Companion, written from group ``at`` on.

    The factor of WIDTH groups is a square lane array: row i, column j at (i rows + j) WIDTH.
    """
    rows = n - affine
    columns = rows - 1
    g = np.empty(gram.shape[1] * WIDTH)
    scale = np.empty(rows * WIDTH)
    factor = np.empty(rows * rows * WIDTH)
    inverse = np.empty(rows * WIDTH)
    rank = np.empty(WIDTH, dtype=np.int64)
    a = np.empty(columns * WIDTH)
    error = np.empty(WIDTH)
    for first in range(low, high, WIDTH):
        take_lanes(gram, first, high, g)
        for i in range(rows):  # the diagonal, for the moment
            k = i + affine
            store(inverse, i * WIDTH, load(g, (k * (k + 1) // 2 + k) * WIDTH))
        power_of_two_scale(inverse, scale)
        cholesky(g, affine, rows, scale, tolerance, factor, inverse, rank)
        recurrence(factor, inverse, scale, rows, columns, affine, a)
        for lane in range(min(WIDTH, high - first)):
            put_fit(
                factor, inverse, scale, a, rows, rank[lane], lane, at + first - low + lane, result
            )
        if 0 < holdout < columns:
            kept = columns - holdout
            recurrence(factor, inverse, scale, rows, kept, affine, a)
            hindcast(g, a, kept, n, affine, holdout, error)
            for lane in range(min(WIDTH, high - first)):
                if rank[lane] == columns:
                    result[4][at + first - low + lane] = error[lane]


@making
def cholesky(g, affine, rows, scale, tolerance, factor, inverse, rank):
    """L of the scaled Gram matrix column by column, 1 / diag L, and the rank of every lane.

    A lane whose pivot broke down is carried along: what it holds from then on is never read. The
    last row is the right-hand side, its pivot the squared residual; negative ones are rounding.
    """
    columns = rows - 1
    pivots = np.empty(WIDTH)
    for lane in range(WIDTH):
        rank[lane] = columns
    for k in range(rows):
        at = (k + affine) * (k + affine + 1) // 2 + affine
        sk = load(scale, k * WIDTH)
        entry = load(g, (at + k) * WIDTH) * sk * sk
        pivot = entry - dot(factor, k * rows, factor, k * rows, k)
        store(pivots, 0, pivot)
        store(inverse, k * WIDTH, entry)
        for lane in range(WIDTH):
            if k < columns:
                if rank[lane] == columns and not (
                    pivots[lane] > tolerance * inverse[k * WIDTH + lane]
                ):
                    rank[lane] = k
            elif pivots[lane] < 0.0:
                pivots[lane] = 0.0
        root = sqrt(load(pivots, 0))
        reciprocal = constant(1.0) / root
        store(factor, (k * rows + k) * WIDTH, root)
        store(inverse, k * WIDTH, reciprocal)
        for i in range(k + 1, rows):
            at = (i + affine) * (i + affine + 1) // 2 + affine
            entry = load(g, (at + k) * WIDTH) * sk * load(scale, i * WIDTH)
            entry = entry - dot(factor, i * rows, factor, k * rows, k)
            store(factor, (i * rows + k) * WIDTH, entry * reciprocal)


@inner
def recurrence(factor, inverse, scale, rows, k, affine, a):
    """Coefficients of column k on the k columns before it, on snapshots or on differences."""
    for i in range(k):
        store(a, i * WIDTH, load(factor, (k * rows + i) * WIDTH))
    for i in range(k - 1, -1, -1):
        y = load(a, i * WIDTH) * load(inverse, i * WIDTH)
        store(a, i * WIDTH, y)
        add_multiple(a, 0, -y, factor, i * rows, i)
    unscale = constant(1.0) / load(scale, k * WIDTH)
    for i in range(k):
        store(a, i * WIDTH, load(a, i * WIDTH) * load(scale, i * WIDTH) * unscale)
    if not affine:  # from [x_1, d_1 …] to [x_1, x_2 …]
        for i in range(k - 1):
            store(a, i * WIDTH, load(a, i * WIDTH) - load(a, (i + 1) * WIDTH))
        store(a, (k - 1) * WIDTH, load(a, (k - 1) * WIDTH) + constant(1.0))


@inner
def put_fit(factor, inverse, scale, a, rows, rank, lane, group, result):
    """Write one lane, as far as its rank allows."""
    coefficients, ranks, residual, condition, hindcast_error = result
    columns = rows - 1
    ranks[group] = rank
    hindcast_error[group] = np.nan
    if rank < columns:
        for i in range(columns):
            coefficients[group, i] = 0.0
        residual[group] = 0.0
        condition[group] = np.inf
        return
    largest = smallest = factor[lane]
    for i in range(columns):
        diagonal = factor[(i * rows + i) * WIDTH + lane]
        largest, smallest = max(largest, diagonal), min(smallest, diagonal)
        coefficients[group, i] = a[i * WIDTH + lane]
    condition[group] = largest / smallest
    corner = (columns * rows + columns) * WIDTH + lane
    residual[group] = factor[corner] / scale[columns * WIDTH + lane]


@making
def hindcast(g, a, kept, n, affine, holdout, error):
    """‖B w - x_n‖ / ‖x_n - x_{n-holdout}‖ of the held-out fit, from G = BᵀB."""
    sequence = np.empty((kept + holdout + 1) * WIDTH)
    sums = np.empty((kept + holdout + 1) * WIDTH)
    power = np.empty(kept * WIDTH)
    w = np.zeros(n * WIDTH)
    recur(a, kept, holdout, sequence, sums)
    convolve(a, kept, sums if affine else sequence, holdout, power)
    to_basis(power, power, kept, affine, w)
    tame(w, n - holdout)
    square = movement = constant(0.0)
    for i in range(n):
        difference = load(w, i * WIDTH) - constant(1.0)
        store(w, i * WIDTH, difference)
        row = i * (i + 1) // 2
        diagonal = load(g, (row + i) * WIDTH)
        product = fma(constant(0.5) * difference, diagonal, dot(g, row, w, 0, i))
        square = fma(difference + difference, product, square)
        if i >= n - holdout:
            movement = movement + diagonal
            for j in range(n - holdout, i):
                entry = load(g, (row + j) * WIDTH)
                movement = movement + (entry + entry)
    squares, movements = power, w  # both are done
    store(squares, 0, square)
    store(movements, 0, movement)
    for lane in range(WIDTH):
        if movements[lane] > 0.0:
            positive = 0.0 if squares[lane] < 0.0 else squares[lane]
            error[lane] = np.sqrt(positive / movements[lane])
        else:
            error[lane] = 0.0


@inner
def tame(w, count):
    """A divergent hindcast counts as no motion at all, as in the rollout."""
    for lane in range(WIDTH):
        largest = 0.0
        for i in range(count):
            size = abs(w[i * WIDTH + lane])
            if not size <= largest:
                largest = size
        if not largest <= WEIGHT_LIMIT:
            for i in range(count):
                w[i * WIDTH + lane] = 1.0
