"""Rollout of dense operators, K^{T-1} z and Σ_{j<T} Kʲ z, WIDTH groups side by side."""

from __future__ import annotations

import numpy as np

from koopcore.backends.numba_kernels.compiled import inner, kernel
from koopcore.backends.numba_kernels.lanes import add_multiple, copy, take_lanes
from koopcore.backends.numba_kernels.simd import WIDTH, constant, fma, load, store

DIRECT_STEPS = 1024  # beyond this horizon the operator is squared all the way
SQUARINGS = 3  # at most, for a nearer horizon: few enough that powers round like single steps


@kernel
def dense_range(operator, start, affine, horizons, places, low, high, states, growth):
    """Groups low .. high - 1; ``horizons`` ascend, the i-th is row ``places[i]`` of the results.

    operator: (n_groups, r r); start: (n_groups, r). Near horizons are stepped to one after the
    other, or, where that takes fewer products, reached one by one with a power of the operator.
    """
    r = start.shape[1]
    wide = (r + 3) // 4 * 4  # rows of zeros, so that products need no remainder
    state = np.zeros(5 * wide * WIDTH)  # z, power, total and two more, as `leap` has them
    k = np.zeros(2 * wide * r * WIDTH)
    steps, squarings = plan(horizons, r, affine)
    total = 2 * wide
    for first in range(low, high, WIDTH):
        power, scratch = wide, 4 * wide
        take_lanes(start, first, high, state)
        take_lanes(operator, first, high, k)
        copy(state, 0, state, power, r)
        copy(state, 0, state, total, r)
        done = 1
        for i in range(len(horizons)):
            far = horizons[i] > DIRECT_STEPS
            if far or not steps:
                power, scratch = wide, 4 * wide
                take_lanes(operator, first, high, k)
                leap(k, wide, r, horizons[i] - 1, 64 if far else squarings, affine, state)
            else:
                while done < horizons[i]:
                    multiply(k, 0, wide, r, state, power, scratch)
                    power, scratch = scratch, power
                    if affine:
                        add_multiple(state, total, constant(1.0), state, power, r)
                    done += 1
            put_states(
                state,
                power,
                total if affine else power,
                r,
                first,
                high,
                states[places[i]],
                growth[places[i]],
            )


@inner
def plan(horizons, r, affine):
    """Whether to step through the near horizons, and how often to square K otherwise."""
    chains = 2 if affine else 1
    stepping = best = 0
    chosen = 0
    for squarings in range(SQUARINGS + 1):
        cost = 0
        for horizon in horizons:
            if horizon <= DIRECT_STEPS:
                stepping = max(stepping, horizon)
                cost += squarings * (r + chains) + (chains * horizon >> squarings)
        if squarings == 0 or cost < best:
            best, chosen = cost, squarings
    return stepping <= best, chosen


@inner
def multiply(k, at, wide, r, x, source, target):
    """target = K source, four rows at a time."""
    for i in range(0, wide, 4):
        p0 = p1 = p2 = p3 = constant(0.0)
        row = (at + i * r) * WIDTH
        for j in range(r):
            y = load(x, (source + j) * WIDTH)
            place = row + j * WIDTH
            p0 = fma(load(k, place), y, p0)
            p1 = fma(load(k, place + r * WIDTH), y, p1)
            p2 = fma(load(k, place + 2 * r * WIDTH), y, p2)
            p3 = fma(load(k, place + 3 * r * WIDTH), y, p3)
        store(x, (target + i) * WIDTH, p0)
        store(x, (target + i + 1) * WIDTH, p1)
        store(x, (target + i + 2) * WIDTH, p2)
        store(x, (target + i + 3) * WIDTH, p3)


@inner
def leap(k, wide, r, exponent, squarings, affine, state):
    """power = K^e z and total = Σ_{j≤e} Kʲ z from M = K, K², K⁴, …, then steps of the last M.

    Invariant: total + Σ_{j<e} Mʲ v is the sum that is sought, and M^e power the power.
    """
    z, power, total, v, scratch = 0, wide, 2 * wide, 3 * wide, 4 * wide
    now, after = 0, wide * r
    copy(state, z, state, power, r)
    copy(state, z, state, total, r)
    multiply(k, now, wide, r, state, z, v)
    while exponent > 0:
        repeat = exponent if squarings == 0 else exponent & 1
        for _ in range(repeat):
            multiply(k, now, wide, r, state, power, scratch)
            copy(state, scratch, state, power, r)
            if affine:
                add_multiple(state, total, constant(1.0), state, v, r)
                multiply(k, now, wide, r, state, v, scratch)
                copy(state, scratch, state, v, r)
        exponent = 0 if squarings == 0 else exponent >> 1
        if exponent:
            squarings -= 1
            multiply(k, now, wide, r, state, v, scratch)
            add_multiple(state, v, constant(1.0), state, scratch, r)
            square(k, now, after, r)
            now, after = after, now


@inner
def square(k, now, after, r):
    """The matrix at ``after`` = that at ``now``, squared."""
    for i in range(r):
        for j in range(0, r, 4):
            used = min(4, r - j)
            p0 = p1 = p2 = p3 = constant(0.0)
            for c in range(r):
                x = load(k, (now + i * r + c) * WIDTH)
                row = (now + c * r + j) * WIDTH  # reads past a row's end, never past the padding
                p0 = fma(x, load(k, row), p0)
                p1 = fma(x, load(k, row + WIDTH), p1)
                p2 = fma(x, load(k, row + 2 * WIDTH), p2)
                p3 = fma(x, load(k, row + 3 * WIDTH), p3)
            place = (after + i * r + j) * WIDTH
            store(k, place, p0)
            if used > 1:
                store(k, place + WIDTH, p1)
            if used > 2:
                store(k, place + 2 * WIDTH, p2)
            if used > 3:
                store(k, place + 3 * WIDTH, p3)


@inner
def put_states(x, power, state, r, first, stop, states, growth):
    """Write the lanes before ``stop``, and ‖K^{T-1} z‖ / ‖z‖."""
    for lane in range(min(WIDTH, stop - first)):
        now = begin = 0.0
        for i in range(r):
            states[first + lane, i] = x[(state + i) * WIDTH + lane]
            now += x[(power + i) * WIDTH + lane] ** 2
            begin += x[i * WIDTH + lane] ** 2
        growth[first + lane] = np.sqrt(now) / np.sqrt(begin)
