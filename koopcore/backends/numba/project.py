"""K = VᵀHV and z = Vᵀg with V Vᵀ = A⁺, V = L⁻ᵀ by Cholesky in natural order, in lanes.

The groups that break down there are left to project_any.py, which takes them one by one.
"""

from __future__ import annotations

from koopcore.backends.numba.compiled import inner, kernel
from koopcore.backends.numba.lanes import lane_array, power_of_two_scale
from koopcore.backends.numba.natural import (
    condition_of,
    factor,
    solve_left,
    solve_right,
    solve_vector,
)
from koopcore.backends.numba.simd import WIDTH, constant, load, store


@kernel
def project_range(a, h, g, n, ridge, tolerance, low, high, result):
    """Groups low .. high - 1; a, h and g are (memory, origin, strides) of (n_groups, n, n).

    A group that breaks down is left with rank -1 and nothing else.
    """
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
