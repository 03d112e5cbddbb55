"""Rollout of dense operators, K^{T-1} z and Σ_{j<T} Kʲ z, WIDTH groups side by side."""

from __future__ import annotations

import numpy as np

from koopcore.backends.numba_kernels.compiled import kernel
from koopcore.backends.numba_kernels.lanes import add_multiple, dot, take_lanes
from koopcore.backends.numba_kernels.simd import WIDTH, constant, fma, load, store

DIRECT_STEPS = 1024  # beyond this horizon the operator is squared instead


@kernel
def dense_range(operator, start, affine, horizons, places, low, high, states, growth):
    """Groups low .. high - 1; ``horizons`` ascend, the i-th is row ``places[i]`` of the results.

    operator: (n_groups, r r); start: (n_groups, r).
    """
    r = start.shape[1]
    k = np.empty(r * r * WIDTH)
    z = np.empty(r * WIDTH)
    power = np.empty(r * WIDTH)
    total = np.empty(r * WIDTH)
    scratch = np.empty(r * WIDTH)
    squares = np.empty(2 * r * r * WIDTH)
    for first in range(low, high, WIDTH):
        take_lanes(operator, first, high, k)
        take_lanes(start, first, high, z)
        power[:] = z
        total[:] = z
        step = 1
        for i in range(len(horizons)):
            if horizons[i] <= DIRECT_STEPS:
                while step < horizons[i]:
                    multiply(k, 0, power, r, scratch)
                    power, scratch = scratch, power
                    if affine:
                        add_multiple(total, 0, constant(1.0), power, 0, r)
                    step += 1
            else:
                power_by_squaring(k, z, r, horizons[i] - 1, power, total, scratch, squares)
            put_states(z, power, total if affine else power, r, first, high,
                       states[places[i]], growth[places[i]])


@kernel
def multiply(k, at, z, r, out):
    """out = K z, four rows at a time."""
    i = 0
    while i + 4 <= r:
        p0 = p1 = p2 = p3 = constant(0.0)
        row = (at + i * r) * WIDTH
        for j in range(r):
            x = load(z, j * WIDTH)
            place = row + j * WIDTH
            p0 = fma(load(k, place), x, p0)
            p1 = fma(load(k, place + r * WIDTH), x, p1)
            p2 = fma(load(k, place + 2 * r * WIDTH), x, p2)
            p3 = fma(load(k, place + 3 * r * WIDTH), x, p3)
        store(out, i * WIDTH, p0)
        store(out, (i + 1) * WIDTH, p1)
        store(out, (i + 2) * WIDTH, p2)
        store(out, (i + 3) * WIDTH, p3)
        i += 4
    while i < r:
        store(out, i * WIDTH, dot(k, at + i * r, z, 0, r))
        i += 1


@kernel
def power_by_squaring(k, z, r, exponent, power, total, scratch, squares):
    """power = K^e z and total = Σ_{j≤e} Kʲ z, from M = K, K², K⁴, …

    Invariant: total + Σ_{j<e} Mʲ v is the sum that is sought, and power after M^e the power.
    """
    for i in range(r * r):
        store(squares, i * WIDTH, load(k, i * WIDTH))
    power[:] = z
    total[:] = z
    now, after = 0, r * r
    v = np.empty(r * WIDTH)
    multiply(squares, now, z, r, v)
    while exponent > 0:
        if exponent & 1:
            add_multiple(total, 0, constant(1.0), v, 0, r)
            multiply(squares, now, v, r, scratch)
            v[:] = scratch
            multiply(squares, now, power, r, scratch)
            power[:] = scratch
        exponent >>= 1
        if exponent:
            multiply(squares, now, v, r, scratch)
            add_multiple(v, 0, constant(1.0), scratch, 0, r)
            for i in range(r):
                for j in range(r):
                    store(squares, (after + i * r + j) * WIDTH, constant(0.0))
                for j in range(r):
                    entry = load(squares, (now + i * r + j) * WIDTH)
                    add_multiple(squares, after + i * r, entry, squares, now + j * r, r)
            now, after = after, now


@kernel
def put_states(z, power, state, r, first, stop, states, growth):
    """Write the lanes before ``stop``, and ‖K^{T-1} z‖ / ‖z‖."""
    for lane in range(min(WIDTH, stop - first)):
        now = begin = 0.0
        for i in range(r):
            states[first + lane, i] = state[i * WIDTH + lane]
            now += power[i * WIDTH + lane] ** 2
            begin += z[i * WIDTH + lane] ** 2
        growth[first + lane] = np.sqrt(now) / np.sqrt(begin)
