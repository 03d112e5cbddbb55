"""K = VᵀHV and z = Vᵀg of groups of any rank, one by one; the others go in lanes elsewhere."""

from __future__ import annotations

import numpy as np

from koopcore.backends.numba.compiled import inner, kernel, making
from koopcore.backends.numba.lanes import power_of_two_scale
from koopcore.backends.numba.pseudo_inverse import add_rows, padded, whiten
from koopcore.backends.numba.simd import WIDTH


@kernel
def project_any_range(a, h, g, n, cap, ridge, raw, tolerances, groups, low, high, result):
    """groups[low : high]; a, h and g are (memory, origin, strides) of (n_groups, n, n).

    tolerances: of `whiten`, for the natural order and for pivoting.
    """
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
def refit_lane(square, motion, scale, m, most, lane, tolerance, newest, before, fit):
    """One lane of feature_fit.py that broke down: gives its rank, at most ``most``, and condition.

    square, motion: C and E - C, with scales that are zero for silenced coordinates; newest,
    before: two columns; fit: lanes of E V, K, Vᵀ newest, Vᵀ before, and V if that is kept. Products
    with the zeros past the rank are made too: they carry a nan on.
    """
    in_lanes, wide = (m + 3) // 4 * 4, padded(m)
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
