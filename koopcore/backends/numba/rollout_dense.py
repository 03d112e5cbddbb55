"""Rollout of dense operators, K^{T-1} z and Σ_{j<T} Kʲ z, WIDTH groups side by side.

Mirrors csrc/algorithms/dense_rollout.h. With p_T = K^{T-1} z and s_T = Σ_{j<T} Kʲ z, both advance
by b = 2^l steps at once: p_{T+b} = K^b p_T, s_{T+b} = K^b s_T + s_b, and s_{2b} = s_b + K^b s_b.
The powers K^b, level l of a ladder, are made only as far as the next horizon repays them.
"""

from __future__ import annotations

import numpy as np

from koopcore.backends.numba.compiled import inner, kernel
from koopcore.backends.numba.lanes import copy, lane_array, take_lanes
from koopcore.backends.numba.simd import WIDTH
from koopcore.backends.numba.tiles import apply, square

SQUARING = 0.6  # of the time of as many steps as the operator has rows: its products are tiled


@kernel
def dense_range(operator, start, affine, horizons, places, low, high, states, growth):
    """Groups low .. high - 1; ``horizons`` ascend, the i-th is row ``places[i]`` of the results.

    operator: (n_groups, r, r); start: (n_groups, r).
    """
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
