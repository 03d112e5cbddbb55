"""Rollout of companion models: one scalar recurrence, and one convolution for every horizon.

With S the companion matrix of a and c_T = S^{T-1} a, let s_t be the last entry of c_t, s_0 = 1 and
s_t = 0 before. Then s_t = Σ_q a_q s_{t-N+q}, and (c_T)_i = Σ_{j≤i} a_{i-j} s_{T-1-j}: a step costs
N multiplications and one store, and the vector is formed only where a horizon asks for it. The sum
of c_1 … c_T is the same convolution with the running sums of s.
"""

from __future__ import annotations

import numpy as np

from koopcore.backends.numba.compiled import inner, kernel
from koopcore.backends.numba.lanes import dot, take_lanes
from koopcore.backends.numba.polynomial import long_rollout
from koopcore.backends.numba.simd import WIDTH, constant, load, store
from koopcore.backends.protocol import WEIGHT_LIMIT

DIRECT_STEPS = 1024  # beyond this horizon x^T mod p is squared instead


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
        largest = 0.0
        for i in range(n):
            size = abs(w[i * WIDTH + lane])
            if not size <= largest:  # nan too
                largest = size
        if largest <= WEIGHT_LIMIT:
            for i in range(n):
                weights[first + lane, i] = w[i * WIDTH + lane]
            now = start = 0.0
            for i in range(columns):
                now += power[i * WIDTH + lane] ** 2
                start += a[i * WIDTH + lane] ** 2
            growth[first + lane] = np.sqrt(now) / np.sqrt(start)
        else:
            for i in range(n):
                weights[first + lane, i] = 1.0
            growth[first + lane] = np.inf
