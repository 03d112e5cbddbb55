"""K = VᵀHV and z = Vᵀg of groups of any rank, one by one; project.py has the usual case."""

from __future__ import annotations

import numpy as np

from koopcore.backends.numba_kernels.compiled import inner, kernel
from koopcore.backends.numba_kernels.lanes import power_of_two_scale
from koopcore.backends.numba_kernels.pseudo_inverse import whiten


@kernel
def project_any_range(a, h, g, n, cap, ridge, raw, tolerance, groups, low, high, result):
    """groups[low : high]; a, h and g are (memory, origin, strides) of (n_groups, n, n)."""
    operator, whitener, start, ranks, condition = result
    for i in range(low, high):
        group = groups[i]
        ranks[group], condition[group] = project_one(
            a,
            h,
            g,
            n,
            cap,
            ridge,
            raw,
            tolerance,
            group,
            operator[group],
            whitener[group],
            start[group],
        )


@inner
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
    for i in range(n):
        start[i] = 0.0
        for j in range(n):
            operator[i, j] = 0.0
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
