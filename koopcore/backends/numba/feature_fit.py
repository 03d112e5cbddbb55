"""The whole fit of WIDTH small groups while their matrices are in the cache, and their endpoints.

What feature_gram, project, rollout_dense and the read-out do one after the other; mirrors
csrc/cpu/feature_fit.cpp.
"""

from __future__ import annotations

import numpy as np

from koopcore.backends.numba.features import (
    IN_A_ROW,
    accumulate,
    batch,
    begin,
    moments,
    take_snapshot,
    unreflect,
)
from koopcore.backends.numba.lanes import apply, copy, lane_array, power_of_two_scale
from koopcore.backends.numba.natural import (
    condition_of,
    diagonal_of_inverse,
    factor,
    greatest_diagonal,
    solve_left,
    solve_right,
    solve_vector,
)
from koopcore.backends.numba.project import (
    advance,
    climb,
    most_levels,
    put_matrix,
    refit_lane,
    set_diagonal,
    worthwhile_levels,
)
from koopcore.backends.numba.runtime import inner, kernel
from koopcore.backends.numba.simd import (
    WIDTH,
    absolute,
    clip,
    constant,
    fma,
    load,
    sqrt,
    store,
    where_at_most,
    where_less,
)
from koopcore.backends.numba.views import Target, Window
from koopcore.backends.protocol import WEIGHT_LIMIT
from koopcore.partition.segments import Segments

BATCHES = 8  # whose sums stay in the second cache
SURE_OF_RANK = 4.0  # diagonal pivoting must find full rank by this factor to be left out


@kernel
def feature_fit_range(
    window, segments, m, affine, holdout, tolerances, ahead, target, low, high, result
):
    """Groups low .. high - 1 of ``result``, a FeatureSolved with its Projection spread out.

    Its last array takes diag C (n_groups, m), or has no columns. ahead: ascending horizons; target:
    with a row for each of them. The matrices of ``result`` may have no groups: then they are not
    wanted. BATCHES of WIDTH groups take turns over rows of a long window, so that rows are read in
    their order.
    """
    w, s, t = Window(*window), Segments(*segments), Target(*target)
    ranks, conditions, residual, hindcast, operators, whiteners, starts, readouts, squares = result
    n, shorter = len(w.rows), len(w.rows) - holdout
    held_out = 0 < holdout and shorter - 1 - affine >= 1
    wanted = len(operators) > 0
    wide = (m + 3) // 4 * 4
    together = min((high - low + WIDTH - 1) // WIDTH, BATCHES if n > IN_A_ROW else 1)
    batches = moments(m, affine, together)
    most = most_levels(ahead, m)
    if held_out:
        most = max(most, worthwhile_levels(holdout - 1, m, 0))
    a, readout = lane_array(wide * wide), lane_array(wide * wide)
    v = lane_array(wide * wide if wanted else 0)
    ladder, sums = lane_array((most + 1) * wide * wide), lane_array((most + 1) * wide)
    scale, reciprocal = lane_array(wide), lane_array(wide)
    work = lane_array(5 * wide)
    state, y, zero = lane_array(3 * wide), lane_array(2 * wide), lane_array(wide)
    rank, numbers = np.empty(WIDTH, dtype=np.int64), lane_array(3)
    for base in range(low, high, WIDTH * together):
        count = min(together, (high - base + WIDTH - 1) // WIDTH)
        for b in range(count):
            begin(w, s, base + b * WIDTH, high, batch(batches, b))
        done = 0
        for turn in range(0 if held_out else 1, 2):
            stop = (n if turn else shorter) - 1 - affine
            while done < stop:  # rows that stay in the cache while they pass all batches
                until = min(stop, (done // IN_A_ROW + 1) * IN_A_ROW)
                for b in range(count):
                    accumulate(w, done, until, batch(batches, b))
                done = until
            for b in range(count):
                first = base + b * WIDTH
                lanes = min(WIDTH, high - first)
                x = batch(batches, b)
                f, frame = x.f, x.frame
                copy(f, 0, sums, 0, wide)
                copy(frame, 3 * wide, y, 0, wide)
                unpack(x, scale, a, readout)
                least = constant(SURE_OF_RANK * tolerances[1]) * greatest_diagonal(a, wide, m)
                alive = factor(a, m, wide, tolerances[0], reciprocal, work)
                greatest, unscaled = diagonal_of_inverse(a, wide, reciprocal, m, scale, ladder)
                alive = where_less(least * greatest, constant(1.0), alive, constant(0.0))
                # σ_1/σ_m of F is at most the root of this: no value is near the cut-off.
                values = constant(tolerances[1] ** 2) * trace(x.square, wide, m) * unscaled
                alive = where_less(values, constant(1.0), alive, constant(0.0))
                solve_right(a, wide, reciprocal, readout)
                scaled_rows(readout, wide, scale, ladder)
                solve_left(a, wide, reciprocal, ladder, 0)
                start_vector(a, m, wide, scale, reciprocal, sums)
                start_vector(a, m, wide, scale, reciprocal, y)
                if wanted:
                    set_diagonal(v, wide, scale)
                    solve_right(a, wide, reciprocal, v)
                store(numbers, 0, condition_of(reciprocal, m))
                store(numbers, 2 * WIDTH, alive)
                for lane in range(lanes):
                    rank[lane] = m
                    # With fewer columns than parameters the rank is theirs, whatever rounding adds.
                    if numbers[2 * WIDTH + lane] == 0.0 or stop < m:
                        fit = readout, ladder, sums, y, v
                        rank[lane], numbers[lane] = refit_lane(
                            x, scale, min(m, stop), lane, tolerances[1], fit
                        )
                if not turn:
                    levels = worthwhile_levels(holdout - 1, m, 0)
                    climb(ladder, sums, wide, 0, levels, affine)
                    copy(sums, 0, state, 0, wide)
                    plus = sums if affine else zero
                    advance(ladder, wide, holdout - 1, levels, state, plus, wide if affine else 0)
                    apply(readout, 0, wide, state, 0, zero, 0, 2 * wide)
                    take_snapshot(w, shorter - 1, x, y, 0)
                    store(numbers, WIDTH, missed(state, 2 * wide, y, frame, m, wide, affine))
                    for lane in range(lanes):
                        hindcast[first + lane] = numbers[WIDTH + lane]
                    continue
                apply(readout, 0, wide, y, 0, zero, 0, wide)
                store(numbers, 2 * WIDTH, norm_of_difference(y, wide, f, 0, m))
                for lane in range(lanes):
                    group = first + lane
                    ranks[group], conditions[group] = rank[lane], numbers[lane]
                    residual[group] = numbers[2 * WIDTH + lane]
                    if not held_out:
                        hindcast[group] = np.nan
                    for i in range(squares.shape[1]):
                        squares[group, i] = x.square[i * (wide + 1) * WIDTH + lane]
                    if wanted:
                        put_matrix(ladder, m, wide, lane, operators[group])
                        put_matrix(v, m, wide, lane, whiteners[group])
                        put_matrix(readout, m, wide, lane, readouts[group])
                        for i in range(m):
                            starts[group, i] = sums[i * WIDTH + lane]
                copy(sums, 0, state, 0, wide)
                reached, have = 1, 0
                for i in range(len(ahead)):
                    gap = ahead[i] - reached
                    levels = min(worthwhile_levels(gap, m, have), most)
                    climb(ladder, sums, wide, have, levels, affine)
                    have, reached = max(have, levels), ahead[i]
                    plus = sums if affine else zero
                    advance(ladder, wide, gap, levels, state, plus, wide if affine else 0)
                    write_endpoint(state, readout, zero, x, lanes, t, i)


@inner
def trace(a, wide, count):
    """Σ a_ii."""
    total = constant(0.0)
    for i in range(count):
        total = total + load(a, i * (wide + 1) * WIDTH)
    return total


@inner
def unpack(x, scale, a, h):
    """a = S C S, its lower triangle, and h = E S, with S of powers of two; 1 in a's corner."""
    square, motion, m, wide = x.square, x.motion, x.m, x.wide
    for i in range(wide):
        store(scale, i * WIDTH, load(square, i * (wide + 1) * WIDTH))
    power_of_two_scale(scale, scale)
    for i in range(wide):
        s = load(scale, i * WIDTH)
        for j in range(i + 1):
            place, across = (i * wide + j) * WIDTH, (j * wide + i) * WIDTH
            t = load(scale, j * WIDTH)
            entry = load(square, place)
            store(a, place, entry * s * t)
            store(h, across, (entry + load(motion, across)) * s)
            store(h, place, (entry + load(motion, place)) * t)
    for i in range(m, wide):
        store(a, i * (wide + 1) * WIDTH, constant(1.0))


@inner
def scaled_rows(source, wide, scale, target):
    """target = S source."""
    for i in range(wide):
        s = load(scale, i * WIDTH)
        for j in range(i * wide, (i + 1) * wide):
            store(target, j * WIDTH, load(source, j * WIDTH) * s)


@inner
def start_vector(n, m, wide, scale, reciprocal, x):
    """x = Vᵀ x = L⁻¹ S x."""
    for i in range(m):
        store(x, i * WIDTH, load(x, i * WIDTH) * load(scale, i * WIDTH))
    solve_vector(n, wide, reciprocal, x, 0)


@inner
def norm_of_difference(x, at, y, at_y, m):
    """‖x - y‖."""
    total = constant(0.0)
    for i in range(m):
        error = load(x, (at + i) * WIDTH) - load(y, (at_y + i) * WIDTH)
        total = fma(error, error, total)
    return sqrt(total)


@inner
def missed(predicted, at, held, frame, m, wide, affine):
    """‖prediction of x_n - x_n‖ / ‖x_n - x_{n-holdout}‖, zero where nothing moved; spoils ``held``.

    What is predicted is the movement, or H x_n in the reflected coordinates.
    """
    movement = norm_of_difference(held, 0, frame, 0, m)
    for i in range(m):
        place = i * WIDTH
        if affine:
            store(held, place, load(frame, place) - load(held, place))
        else:
            store(held, place, load(frame, (2 * wide + i) * WIDTH))
    error = norm_of_difference(predicted, at, held, 0, m)
    return where_less(constant(0.0), movement, error / movement, constant(0.0))


@inner
def write_endpoint(state, readout, zero, x, count, t, horizon):
    """One horizon of ``count`` lanes: last + E V s, or H E V s; the last snapshot where s diverged.

    state: s, and 2 wide of scratch.
    """
    m, wide, frame, at = x.m, x.wide, x.frame, 2 * x.wide
    apply(readout, 0, wide, state, 0, zero, 0, at)
    if not x.affine:
        unreflect(frame, m, wide, state, at)
    diverged, bound = constant(0.0), constant(WEIGHT_LIMIT)
    for i in range(m):
        size = absolute(load(state, i * WIDTH))
        diverged = where_at_most(size, bound, diverged, constant(1.0))  # nan has too
    half, top = constant(0.5), constant(t.limit)
    for i in range(m):
        last = load(frame, i * WIDTH)
        value = load(state, (at + i) * WIDTH)
        if x.affine:
            value = value + last
        store(state, (at + i) * WIDTH, clip(where_at_most(half, diverged, last, value), top))
    for lane in range(count):
        for i in range(lane, m * WIDTH, WIDTH):
            t.memory[t.rows[horizon] + x.columns[i] * t.step] = state[at * WIDTH + i]
