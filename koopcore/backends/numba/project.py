"""Dense fits and rollouts: K = VᵀHV and z = Vᵀg with V Vᵀ = A⁺; K^{T-1} z and Σ_{j<T} Kʲ z.

`project_range` takes WIDTH groups side by side, V = L⁻ᵀ by Cholesky in natural order; the groups
that break down there, and those of any rank, are taken one by one by `project_any_range`.

The rollout mirrors csrc/algorithms/dense_rollout.h. With p_T = K^{T-1} z and s_T = Σ_{j<T} Kʲ z,
both advance by b = 2^l steps at once: p_{T+b} = K^b p_T, s_{T+b} = K^b s_T + s_b, and
s_{2b} = s_b + K^b s_b. The powers K^b, level l of a ladder, are made only as far as the next
horizon repays them. The file mirrors csrc/cpu/project.cpp.
"""

from __future__ import annotations

import numpy as np

from koopcore.backends.numba.lanes import (
    apply,
    copy,
    lane_array,
    power_of_two_scale,
    square,
    take_lanes,
)
from koopcore.backends.numba.natural import (
    condition_of,
    factor,
    solve_left,
    solve_right,
    solve_vector,
)
from koopcore.backends.numba.pseudo_inverse import add_rows, padded, whiten
from koopcore.backends.numba.runtime import inner, kernel, making
from koopcore.backends.numba.simd import WIDTH, constant, load, store

SQUARING = 0.6  # of the time of as many steps as the operator has rows: its products are tiled


@kernel
def project_range(matrices, n, ridge, tolerance, low, high, result):
    """Groups low .. high - 1; matrices: (memory, origin, strides) of A, H (n_groups, n, n), and g.

    A group that breaks down is left with rank -1 and nothing else.
    """
    a, h, g = matrices
    operator, whitener, start, ranks, condition = result
    wide = (n + 3) // 4 * 4  # an identity stands in the corner
    matrix, k, v = lane_array(wide * wide), lane_array(wide * wide), lane_array(wide * wide)
    scale, reciprocal, z = lane_array(wide), lane_array(wide), lane_array(wide)
    work = lane_array(5 * wide)
    alive, conditions = lane_array(1), lane_array(1)
    for first in range(low, high, WIDTH):
        take_matrices(a, n, wide, first, high, matrix)
        equilibrate(matrix, n, wide, ridge, scale)
        store(alive, 0, factor(matrix, n, wide, tolerance, reciprocal, work))
        store(conditions, 0, condition_of(reciprocal, n))
        take_matrices(h, n, wide, first, high, k)
        scale_matrix(k, n, wide, scale)
        solve_right(matrix, wide, reciprocal, k)
        solve_left(matrix, wide, reciprocal, k, 0)
        set_diagonal(v, wide, scale)
        solve_right(matrix, wide, reciprocal, v)
        take_vectors(g, n, first, high, z)
        for i in range(n):
            store(z, i * WIDTH, load(z, i * WIDTH) * load(scale, i * WIDTH))
        solve_vector(matrix, wide, reciprocal, z, 0)
        for lane in range(min(WIDTH, high - first)):
            group = first + lane
            if alive[lane] == 0.0:
                ranks[group] = -1
                continue
            put_matrix(k, n, wide, lane, operator[group])
            put_matrix(v, n, wide, lane, whitener[group])
            for i in range(n):
                start[group, i] = z[i * WIDTH + lane]
            ranks[group], condition[group] = n, conditions[lane]


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
def put_matrix(matrix, n, wide, lane, out):
    """out (n, n) = one lane."""
    for i in range(n):
        for j in range(n):
            out[i, j] = matrix[(i * wide + j) * WIDTH + lane]


@inner
def equilibrate(matrix, n, wide, ridge, scale):
    """Scale to diagonals in [1/2, 2), and add the ridge times their mean; 1 in the corner."""
    for i in range(wide):
        store(scale, i * WIDTH, load(matrix, i * (wide + 1) * WIDTH))
    power_of_two_scale(scale, scale)
    scale_matrix(matrix, n, wide, scale)
    trace = constant(0.0)
    for i in range(n):
        trace = trace + load(matrix, i * (wide + 1) * WIDTH)
    shift = trace * constant(ridge / n)
    for i in range(n):
        place = i * (wide + 1) * WIDTH
        store(matrix, place, load(matrix, place) + shift)
    for i in range(n, wide):
        store(matrix, i * (wide + 1) * WIDTH, constant(1.0))


@inner
def scale_matrix(matrix, n, wide, scale):
    """Entry i, j times scale_i scale_j."""
    for i in range(n):
        s = load(scale, i * WIDTH)
        for j in range(n):
            place = (i * wide + j) * WIDTH
            store(matrix, place, load(matrix, place) * s * load(scale, j * WIDTH))


@inner
def set_diagonal(matrix, wide, diagonal):
    """The matrix = diag(diagonal)."""
    for i in range(wide * wide):
        store(matrix, i * WIDTH, constant(0.0))
    for i in range(wide):
        store(matrix, i * (wide + 1) * WIDTH, load(diagonal, i * WIDTH))


@kernel
def project_any_range(matrices, n, cap, ridge, raw, tolerances, groups, low, high, result):
    """groups[low : high] of matrices as `project_range` has them.

    tolerances: of `whiten`, for the natural order and for pivoting.
    """
    a, h, g = matrices
    operator, whitener, start, ranks, condition = result
    wide = padded(n)
    matrix, ahead, v, k = (
        np.zeros(n * wide),
        np.zeros(n * wide),
        np.zeros(n * wide),
        np.zeros(n * wide),
    )
    scale, diagonal, z, begin = np.empty(n), np.empty(n), np.empty(n), np.zeros(wide)
    for i in range(low, high):
        group = groups[i]
        take_matrix(a, group, n, wide, matrix)
        take_matrix(h, group, n, wide, ahead)
        memory, origin, (across, down) = g
        for j in range(n):
            diagonal[j] = matrix[j * (wide + 1)]
            z[j] = memory[origin + group * across + j * down]
        power_of_two_scale(diagonal, scale)
        trace = 0.0
        for j in range(n):
            for c in range(n):
                matrix[j * wide + c] *= scale[j] * scale[c]
            trace += matrix[j * (wide + 1)]
        for j in range(n):
            matrix[j * (wide + 1)] += ridge * trace / n
        ranks[group], condition[group] = whiten(matrix, n, scale, cap, raw, *tolerances, v)
        conjugate(ahead, v, n, matrix, k)
        project_vector(v, z, n, begin)
        for j in range(n):
            start[group, j] = begin[j]
            for c in range(n):
                operator[group, j, c] = k[j * wide + c]
                whitener[group, j, c] = v[j * wide + c]


@inner
def take_matrix(source, group, n, wide, matrix):
    """One matrix of (memory, origin, strides)."""
    memory, origin, (across, down, along) = source
    for i in range(n):
        place = origin + group * across + i * down
        for j in range(n):
            matrix[i * wide + j] = memory[place]
            place += along


@inner
def conjugate(h, v, n, readout, k):
    """readout = H V and k = VᵀHV."""
    wide = padded(n)
    for i in range(n * wide):
        readout[i] = k[i] = 0.0
    for i in range(n):
        add_rows(readout, i * wide, wide, 1.0, h, i * wide, 1, v, 0, n)
    for i in range(n):
        add_rows(k, i * wide, wide, 1.0, v, i, wide, readout, 0, n)


@inner
def project_vector(v, x, n, out):
    """out = Vᵀ x."""
    wide = padded(n)
    for i in range(wide):
        out[i] = 0.0
    add_rows(out, 0, wide, 1.0, x, 0, 1, v, 0, n)


@making
def refit_lane(moments, scale, most, lane, tolerance, fit):
    """One lane of feature_fit.py that broke down: gives its rank, at most ``most``, and condition.

    fit: lanes of E V, K, Vᵀ newest, Vᵀ before, and V if that is wanted, for the newest column and
    the one before. Products with the zeros past the rank are made too: they carry a nan on.
    """
    m, in_lanes, wide = moments.m, moments.wide, padded(moments.m)
    square, motion, newest = moments.square, moments.motion, moments.f
    before = moments.frame[3 * in_lanes * WIDTH :]
    a, h, v, k = np.zeros(m * wide), np.zeros(m * wide), np.zeros(m * wide), np.zeros(m * wide)
    s, x, y, start = np.empty(m), np.empty(m), np.empty(m), np.empty(wide)
    end = np.empty(wide)
    for i in range(m):
        s[i] = scale[i * WIDTH + lane]
        x[i], y[i] = newest[i * WIDTH + lane], before[i * WIDTH + lane]
    for i in range(m):
        for j in range(m):
            entry = square[(max(i, j) * in_lanes + min(i, j)) * WIDTH + lane]
            a[i * wide + j] = entry * s[i] * s[j]
            h[i * wide + j] = entry + motion[(i * in_lanes + j) * WIDTH + lane]
    rank, condition = whiten(a, m, s, most, False, np.inf, tolerance, v)
    conjugate(h, v, m, a, k)
    project_vector(v, x, m, start)
    project_vector(v, y, m, end)
    readout, operator, ahead, behind, whitener = fit
    for i in range(m):
        ahead[i * WIDTH + lane], behind[i * WIDTH + lane] = start[i], end[i]
        for j in range(m):
            place, to = i * wide + j, (i * in_lanes + j) * WIDTH + lane
            readout[to], operator[to] = a[place], k[place]
            if len(whitener) > 0:
                whitener[to] = v[place]
    return rank, condition


@kernel
def dense_range(operator, start, affine, ahead, low, high, states, growth):
    """Groups low .. high - 1 of operator (n_groups, r, r) and start (n_groups, r).

    ahead: ascending horizons, and the rows of the results that they are.
    """
    horizons, places = ahead
    r = start.shape[1]
    wide = (r + 3) // 4 * 4  # zeros, so that products need no remainder
    most = most_levels(horizons, r)
    ladder, sums = lane_array((most + 1) * wide * wide), lane_array((most + 1) * wide)
    power, total, zero = lane_array(2 * wide), lane_array(2 * wide), lane_array(wide)
    for first in range(low, high, WIDTH):
        take_lanes(start, first, high, sums)
        for i in range(r):
            take_rows(operator, i, first, high, ladder, i * wide)
        copy(sums, 0, power, 0, wide)
        copy(sums, 0, total, 0, wide)
        reached, have = 1, 0
        for i in range(len(horizons)):
            gap = horizons[i] - reached
            levels = min(worthwhile_levels(gap, r, have), most)
            climb(ladder, sums, wide, have, levels, affine)
            have, reached = max(have, levels), horizons[i]
            advance(ladder, wide, gap, levels, power, zero, 0)
            if affine:
                advance(ladder, wide, gap, levels, total, sums, wide)
            put_states(
                total if affine else power,
                power,
                sums,
                r,
                first,
                high,
                states[places[i]],
                growth[places[i]],
            )


@inner
def worthwhile_levels(gap, size, have):
    """Levels worth having to advance ``gap`` steps, where ``have`` are there already."""
    best, level = 0, 0
    least = np.inf
    while level == 0 or gap >> level > 0:
        cost = float(gap >> level) + level + SQUARING * size * max(level - have, 0)
        if cost < least:
            best, least = level, cost
        level += 1
    return best


@inner
def most_levels(horizons, size):
    """Levels that these ascending horizons take; having some never makes others worthwhile."""
    most, reached = 0, 1
    for horizon in horizons:
        most = max(most, worthwhile_levels(horizon - reached, size, 0))
        reached = horizon
    return most


@inner
def climb(ladder, sums, wide, have, levels, affine):
    """Levels have + 1 .. levels of K^(2^l) and, where ``affine``, of s_(2^l)."""
    matrix = wide * wide
    for level in range(have, levels):
        square(ladder, level * matrix, wide, ladder, (level + 1) * matrix)
        if affine:
            at = level * wide
            apply(ladder, level * matrix, wide, sums, at, sums, at, at + wide)


@inner
def advance(ladder, wide, gap, levels, state, plus, hop):
    """state = K^gap state + plus_gap in steps of 2^l, whose sum stands at ``l hop`` of ``plus``.

    state: 2 wide, of which the second half is scratch.
    """
    here, there = 0, wide
    for level in range(levels, -1, -1):
        while gap >> level > 0:
            apply(ladder, level * wide * wide, wide, state, here, plus, level * hop, there)
            here, there = there, here
            gap -= 1 << level
    if here > 0:
        copy(state, here, state, 0, wide)


@inner
def take_rows(matrices, row, first, stop, lanes, at):
    """Row ``row`` of matrices first, first + 1 … into the lanes, as `take_lanes`."""
    for lane in range(WIDTH):
        group = min(first + lane, stop - 1)
        for j in range(matrices.shape[2]):
            lanes[(at + j) * WIDTH + lane] = matrices[group, row, j]


@inner
def put_states(state, power, start, r, first, stop, states, growth):
    """Write the lanes before ``stop``, and ‖K^{T-1} z‖ / ‖z‖."""
    for lane in range(min(WIDTH, stop - first)):
        now = begin = 0.0
        for i in range(r):
            states[first + lane, i] = state[i * WIDTH + lane]
            now += power[i * WIDTH + lane] ** 2
            begin += start[i * WIDTH + lane] ** 2
        growth[first + lane] = np.sqrt(now) / np.sqrt(begin)
