"""Companion fits and rollouts, WIDTH groups side by side; mirrors csrc/cpu/solve.cpp.

The fit is a Cholesky factorization in time order. Rollout: one scalar recurrence, and one
convolution for every horizon. With S the companion matrix of a and c_T = S^{T-1} a, let s_t be the
last entry of c_t, s_0 = 1 and s_t = 0 before. Then s_t = Σ_q a_q s_{t-N+q}, and
(c_T)_i = Σ_{j≤i} a_{i-j} s_{T-1-j}: a step costs N multiplications and one store, and the vector is
formed only where a horizon asks for it. The sum of c_1 … c_T is the same convolution with the
running sums of s.

Long horizons: x^T and 1 + x + … + x^{T-1} modulo p(x) = x^N - Σ a_i x^i, by squaring. Entry i of a
vector then stands for x^i; the companion matrix multiplies by x, and a itself is x^N mod p.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from koopcore.backends.numba.lanes import add_multiple, copy, dot, power_of_two_scale, take_lanes
from koopcore.backends.numba.runtime import inner, kernel, making
from koopcore.backends.numba.simd import WIDTH, constant, fma, load, sqrt, store, where_less
from koopcore.backends.protocol import LEAST_EIGENVALUE, SQUARES, WEIGHT_LIMIT

DIRECT_STEPS = 1024  # beyond this horizon x^T mod p is squared instead


class Factor(NamedTuple):
    """L of the scaled Gram matrices of WIDTH groups, without their first row where ``affine``."""

    rows: int
    affine: int
    scale: Any  # (rows)
    lower: Any  # (rows, rows) L
    inverse: Any  # (rows) 1 / diag L


@kernel
def solve_range(gram, model, low, high, at, result):
    """Groups low .. high - 1 of ``gram``; ``result`` is a Companion, written from group ``at`` on.

    model: n, affine, holdout, the tolerance of pivots, and of squared distances (`near_cut_off`).
    """
    n, affine, holdout, tolerance, floor = model
    rows = n - affine
    columns = rows - 1
    g = np.empty(gram.shape[1] * WIDTH)
    of = Factor(
        rows,
        affine,
        np.empty(rows * WIDTH),
        np.empty(rows * rows * WIDTH),
        np.empty(rows * WIDTH),
    )
    rank = np.empty(WIDTH, dtype=np.int64)
    a = np.empty(columns * WIDTH)
    error = np.empty(WIDTH)
    for first in range(low, high, WIDTH):
        take_lanes(gram, first, high, g)
        for i in range(rows):  # the diagonal, for the moment
            k = i + affine
            store(of.inverse, i * WIDTH, load(g, (k * (k + 1) // 2 + k) * WIDTH))
        power_of_two_scale(of.inverse, of.scale)
        cholesky(g, of, tolerance, rank)
        if columns > 0:
            check_rank(g, of, floor, rank, a)
        recurrence(of, columns, a)
        for lane in range(min(WIDTH, high - first)):
            put_fit(of, a, rank[lane], lane, at + first - low + lane, result)
        if 0 < holdout < columns:
            recurrence(of, columns - holdout, a)
            hindcast(g, a, columns - holdout, n, affine, holdout, error)
            for lane in range(min(WIDTH, high - first)):
                if rank[lane] == columns:
                    result[4][at + first - low + lane] = error[lane]


@making
def cholesky(g, of, tolerance, rank):
    """L of the scaled Gram matrix column by column, 1 / diag L, and the rank of every lane.

    A lane whose pivot broke down is carried along: what it holds from then on is never read. The
    last row is the right-hand side, its pivot the squared residual; negative ones are rounding.
    """
    rows, affine, scale, factor, inverse = of
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


@making
def check_rank(g, of, share, rank, z):
    """Full rank that may be rounding, or is near the cut-off of F, or of squares out of range.

    Mirrors `sure_of_rank` in reference.py. The smallest eigenvalue of L Lᵀ is at most columns/‖z‖²
    with Lᵀ z = (±1, …, ±1), signs by which z grows. z: (columns).
    """
    rows, affine, scale, factor, inverse = of
    columns = rows - 1
    for lane in range(WIDTH):
        total = 0.0
        for i in range(columns):
            k = i + affine
            total += g[(k * (k + 1) // 2 + k) * WIDTH + lane]
        k = columns + affine
        newest = g[(k * (k + 1) // 2 + k) * WIDTH + lane]
        sure = SQUARES[0] < total < SQUARES[1] and newest < SQUARES[1]
        floor = share * total
        for i in range(columns):
            pivot = factor[(i * rows + i) * WIDTH + lane]
            distance = pivot / scale[i * WIDTH + lane]
            sure = sure and distance * distance > floor
        if not sure:
            rank[lane] = min(rank[lane], columns - 1)
    for i in range(columns * WIDTH):
        z[i] = 0.0
    square = constant(0.0)
    for i in range(columns - 1, -1, -1):
        y = load(z, i * WIDTH)
        y = where_less(y, constant(0.0), y - constant(1.0), y + constant(1.0))
        y = y * load(inverse, i * WIDTH)
        square = fma(y, y, square)
        add_multiple(z, 0, -y, factor, i * rows, i)
    store(z, 0, square)
    for lane in range(WIDTH):
        if not columns > LEAST_EIGENVALUE * z[lane]:
            rank[lane] = min(rank[lane], columns - 1)


@inner
def recurrence(of, k, a):
    """Coefficients of column k on the k columns before it, on snapshots or on differences."""
    rows, affine, scale, factor, inverse = of
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
def put_fit(of, a, rank, lane, group, result):
    """Write one lane, as far as its rank allows."""
    rows, _, scale, factor, _ = of
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
def hindcast(g, a, columns, n, affine, holdout, error):
    """‖B w - x_n‖ / ‖x_n - x_{n-holdout}‖ of the held-out fit, from G = BᵀB.

    A fit that diverged counts as no motion at all, as in the rollout.
    """
    sequence = np.empty((columns + holdout + 1) * WIDTH)
    sums = np.empty((columns + holdout + 1) * WIDTH)
    power = np.empty(columns * WIDTH)
    w = np.zeros(n * WIDTH)
    recur(a, columns, holdout, sequence, sums)
    convolve(a, columns, sums if affine else sequence, holdout, power)
    to_basis(power, power, columns, affine, w)
    for lane in range(WIDTH):
        if diverged(w, n - holdout, lane):
            for i in range(n - holdout):
                w[i * WIDTH + lane] = 1.0
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


@kernel
def rollout_range(coefficients, affine, horizons, low, high, weights, growth):
    """Groups low .. high - 1 of weights (n_horizons, n_groups, n) and growth (…, n_groups)."""
    columns = coefficients.shape[1]
    longest = 0
    for horizon in horizons:
        if longest < horizon <= DIRECT_STEPS:
            longest = horizon
    a = np.empty(columns * WIDTH)
    sequence = np.empty((columns + longest + 1) * WIDTH)
    sums = np.empty((columns + longest + 1) * WIDTH)
    power = np.empty(columns * WIDTH)
    total = np.empty(columns * WIDTH)
    w = np.empty((columns + 1 + affine) * WIDTH)
    scratch = np.empty(4 * columns * WIDTH)
    for first in range(low, high, WIDTH):
        take_lanes(coefficients, first, high, a)
        recur(a, columns, longest, sequence, sums)
        for i in range(len(horizons)):
            if horizons[i] <= DIRECT_STEPS:
                convolve(a, columns, sequence, horizons[i], power)
                if affine:
                    convolve(a, columns, sums, horizons[i], total)
            else:
                long_rollout(a, columns, horizons[i], power, total, scratch)
            to_basis(power, total, columns, affine, w)
            put_weights(w, a, power, columns, first, high, weights[i], growth[i])


@inner
def recur(a, columns, steps, sequence, sums):
    """s_t and Σ_{u≤t} s_u for t = -columns .. steps - 1, at index columns + t."""
    for i in range(columns):
        store(sequence, i * WIDTH, constant(0.0))
        store(sums, i * WIDTH, constant(0.0))
    running = constant(1.0)
    store(sequence, columns * WIDTH, running)
    store(sums, columns * WIDTH, running)
    for t in range(1, steps):
        s = dot(a, 0, sequence, t, columns)
        running = running + s
        store(sequence, (columns + t) * WIDTH, s)
        store(sums, (columns + t) * WIDTH, running)


@inner
def convolve(a, columns, sequence, horizon, out):
    """out_i = Σ_{j≤i} a_{i-j} s_{T-1-j}."""
    newest = columns + horizon - 1
    for i in range(columns):
        store(out, i * WIDTH, dot(a, 0, sequence, newest - i, i + 1))


@inner
def to_basis(power, total, columns, affine, w):
    """Weights on [x_1, d_1, …] from c_T on [x_2 … x_n], or from Σ c on [d_2 … d_{n-1}]."""
    if affine:
        store(w, 0, constant(1.0))
        store(w, WIDTH, constant(1.0))
        for i in range(columns):
            store(w, (2 + i) * WIDTH, constant(1.0) + load(total, i * WIDTH))
    else:
        running = constant(0.0)
        for i in range(columns - 1, -1, -1):
            running = running + load(power, i * WIDTH)
            store(w, (1 + i) * WIDTH, running)
        store(w, 0, running)


@inner
def put_weights(w, a, power, columns, first, stop, weights, growth):
    """Write the lanes' weights and ‖c_T‖ / ‖a‖; 1 and infinity where the rollout diverged."""
    n = weights.shape[1]
    for lane in range(min(WIDTH, stop - first)):
        if diverged(w, n, lane):
            for i in range(n):
                weights[first + lane, i] = 1.0
            growth[first + lane] = np.inf
            continue
        for i in range(n):
            weights[first + lane, i] = w[i * WIDTH + lane]
        now = start = 0.0
        for i in range(columns):
            now += power[i * WIDTH + lane] ** 2
            start += a[i * WIDTH + lane] ** 2
        growth[first + lane] = np.sqrt(now) / np.sqrt(start)


@inner
def diverged(w, count, lane):
    """Whether a weight of the lane is past the limit, or nan."""
    largest = 0.0
    for i in range(count):
        size = abs(w[i * WIDTH + lane])
        if not size <= largest:
            largest = size
    return not largest <= WEIGHT_LIMIT


@inner
def long_rollout(a, n, horizon, power, total, scratch):
    """power = a x^{T-1} and total = a (1 + x + … + x^{T-1}) mod p; scratch holds 4 n vectors.

    With P_t = x^t and Q_t = Σ_{j<t} x^j: P_{2t} = P_t², Q_{2t} = Q_t + P_t Q_t, P_{t+1} = x P_t and
    Q_{t+1} = Q_t + P_t. The terms of Q are added, never divided out, so that a root at 1 is no
    singularity. Cost: 4 n² multiplications a doubling.
    """
    p, q = 2 * n, 3 * n  # of scratch; the product stands below them
    for i in range(p, p + 2 * n):
        store(scratch, i * WIDTH, constant(0.0))
    store(scratch, p * WIDTH, constant(1.0))
    bit = 1
    while 2 * bit <= horizon - 1:
        bit *= 2
    while bit:
        multiply(a, n, scratch, p, scratch, q, scratch)
        add_multiple(scratch, q, constant(1.0), scratch, 0, n)
        multiply(a, n, scratch, p, scratch, p, scratch)
        copy(scratch, 0, scratch, p, n)
        if (horizon - 1) & bit:
            add_multiple(scratch, q, constant(1.0), scratch, p, n)
            times_x(a, n, scratch, p)
        bit //= 2
    multiply(a, n, a, 0, scratch, q, scratch)
    copy(scratch, 0, total, 0, n)
    multiply(a, n, a, 0, scratch, p, scratch)
    copy(scratch, 0, power, 0, n)
    add_multiple(total, 0, constant(1.0), power, 0, n)  # the last of the T terms


@inner
def multiply(a, n, u, at_u, v, at_v, product):
    """product[: n] = u v mod p; entries n .. 2n - 2 are scratch."""
    for i in range(2 * n - 1):
        store(product, i * WIDTH, constant(0.0))
    for i in range(n):
        add_multiple(product, i, load(u, (at_u + i) * WIDTH), v, at_v, n)
    for degree in range(2 * n - 2, n - 1, -1):
        add_multiple(product, degree - n, load(product, degree * WIDTH), a, 0, n)


@inner
def times_x(a, n, u, at):
    """u = x u mod p."""
    overflow = load(u, (at + n - 1) * WIDTH)
    for i in range(n - 1, 0, -1):
        below = load(u, (at + i - 1) * WIDTH)
        store(u, (at + i) * WIDTH, fma(overflow, load(a, i * WIDTH), below))
    store(u, at * WIDTH, overflow * load(a, 0))
