"""WIDTH groups side by side: number i of lane l of a lane array stands at ``i * WIDTH + l``.

Products of matrices in lane arrays are summed in registers: sixteen products for eight loads. A
matrix is then a lane array whose rows and columns are padded to multiples of four. What a tile
reads stands at any distances, in vectors: of its rows, ``across``, and of its terms, ``along``.
"""

from __future__ import annotations

import numpy as np

from koopcore.backends.numba.runtime import inner, making
from koopcore.backends.numba.simd import WIDTH, constant, fma, load, store


@making
def lane_array(count):
    """``count`` vectors of zeros, from a cache line on: a load that crosses one costs two."""
    memory = np.zeros((count + 1) * WIDTH)
    first = (-memory.ctypes.data >> 3) & (WIDTH - 1)
    return memory[first : first + count * WIDTH]


@inner
def take_lanes(rows, first, stop, lanes):
    """Lane l = rows[first + l]; lanes past ``stop`` repeat the last row: they cannot diverge."""
    for lane in range(WIDTH):
        row = rows[min(first + lane, stop - 1)]
        for i in range(len(row)):
            lanes[i * WIDTH + lane] = row[i]


@inner
def dot(a, at_a, b, at_b, count):
    """Σ a[at_a + i] b[at_b + i], in ascending order, so that the newest number is needed last."""
    total = constant(0.0)
    for i in range(count):
        total = fma(load(a, (at_a + i) * WIDTH), load(b, (at_b + i) * WIDTH), total)
    return total


@inner
def add_multiple(y, at_y, factor, x, at_x, count):
    """y[at_y + i] += factor x[at_x + i]."""
    for i in range(count):
        place = (at_y + i) * WIDTH
        store(y, place, fma(factor, load(x, (at_x + i) * WIDTH), load(y, place)))


@inner
def copy(source, at_source, target, at_target, count):
    """target[at_target + i] = source[at_source + i]."""
    for i in range(count):
        store(target, (at_target + i) * WIDTH, load(source, (at_source + i) * WIDTH))


@inner
def power_of_two_scale(diagonal, scale):
    """s with s² diagonal in [1/2, 2), read off the exponent's bits; 1 where it is zero or nan."""
    bits, s = diagonal.view(np.int64), scale.view(np.int64)
    for i in range(len(diagonal)):
        exponent = ((bits[i] >> 52) & 0x7FF) - 1022
        if diagonal[i] > 0.0:
            s[i] = (1023 - (exponent >> 1)) << 52
        else:
            scale[i] = 1.0


@inner
def add_tile(x, at_x, x_across, x_along, y, at_y, y_across, y_along, count, out, at, wide):
    """out_rc += Σ_{k<count} x_rk y_ck for four r and four c; rows of ``out`` are ``wide`` apart."""
    p0, p1 = at * WIDTH, (at + wide) * WIDTH
    p2, p3 = (at + 2 * wide) * WIDTH, (at + 3 * wide) * WIDTH
    c00, c01 = load(out, p0), load(out, p0 + WIDTH)
    c02, c03 = load(out, p0 + 2 * WIDTH), load(out, p0 + 3 * WIDTH)
    c10, c11 = load(out, p1), load(out, p1 + WIDTH)
    c12, c13 = load(out, p1 + 2 * WIDTH), load(out, p1 + 3 * WIDTH)
    c20, c21 = load(out, p2), load(out, p2 + WIDTH)
    c22, c23 = load(out, p2 + 2 * WIDTH), load(out, p2 + 3 * WIDTH)
    c30, c31 = load(out, p3), load(out, p3 + WIDTH)
    c32, c33 = load(out, p3 + 2 * WIDTH), load(out, p3 + 3 * WIDTH)
    i, x_row, x_hop = at_x * WIDTH, x_across * WIDTH, x_along * WIDTH
    j, y_row, y_hop = at_y * WIDTH, y_across * WIDTH, y_along * WIDTH
    for _ in range(count):
        b0, b1 = load(y, j), load(y, j + y_row)
        b2, b3 = load(y, j + 2 * y_row), load(y, j + 3 * y_row)
        a = load(x, i)
        c00, c01, c02, c03 = fma(a, b0, c00), fma(a, b1, c01), fma(a, b2, c02), fma(a, b3, c03)
        a = load(x, i + x_row)
        c10, c11, c12, c13 = fma(a, b0, c10), fma(a, b1, c11), fma(a, b2, c12), fma(a, b3, c13)
        a = load(x, i + 2 * x_row)
        c20, c21, c22, c23 = fma(a, b0, c20), fma(a, b1, c21), fma(a, b2, c22), fma(a, b3, c23)
        a = load(x, i + 3 * x_row)
        c30, c31, c32, c33 = fma(a, b0, c30), fma(a, b1, c31), fma(a, b2, c32), fma(a, b3, c33)
        i += x_hop
        j += y_hop
    store(out, p0, c00)
    store(out, p0 + WIDTH, c01)
    store(out, p0 + 2 * WIDTH, c02)
    store(out, p0 + 3 * WIDTH, c03)
    store(out, p1, c10)
    store(out, p1 + WIDTH, c11)
    store(out, p1 + 2 * WIDTH, c12)
    store(out, p1 + 3 * WIDTH, c13)
    store(out, p2, c20)
    store(out, p2 + WIDTH, c21)
    store(out, p2 + 2 * WIDTH, c22)
    store(out, p2 + 3 * WIDTH, c23)
    store(out, p3, c30)
    store(out, p3 + WIDTH, c31)
    store(out, p3 + 2 * WIDTH, c32)
    store(out, p3 + 3 * WIDTH, c33)


@inner
def square(a, at, wide, out, at_out):
    """The (wide, wide) matrix at ``at_out`` = that at ``at``, squared."""
    for i in range(wide * wide):
        store(out, (at_out + i) * WIDTH, constant(0.0))
    for i in range(0, wide, 4):
        for j in range(0, wide, 4):
            row, place = at + i * wide, at_out + i * wide + j
            add_tile(a, row, wide, 1, a, at + j, 1, wide, wide, out, place, wide)


@inner
def apply(a, at, wide, x, source, plus, at_plus, target):
    """x[target] = plus[at_plus] + A x[source], with A (wide, wide) at ``at``; eight chains."""
    for i in range(0, wide, 4):
        p0, p1 = load(plus, (at_plus + i) * WIDTH), load(plus, (at_plus + i + 1) * WIDTH)
        p2, p3 = load(plus, (at_plus + i + 2) * WIDTH), load(plus, (at_plus + i + 3) * WIDTH)
        q0 = q1 = q2 = q3 = constant(0.0)
        r0 = (at + i * wide) * WIDTH
        r1, r2, r3 = r0 + wide * WIDTH, r0 + 2 * wide * WIDTH, r0 + 3 * wide * WIDTH
        for j in range(source * WIDTH, (source + wide) * WIDTH, 2 * WIDTH):
            y, z = load(x, j), load(x, j + WIDTH)
            p0, q0 = fma(load(a, r0), y, p0), fma(load(a, r0 + WIDTH), z, q0)
            p1, q1 = fma(load(a, r1), y, p1), fma(load(a, r1 + WIDTH), z, q1)
            p2, q2 = fma(load(a, r2), y, p2), fma(load(a, r2 + WIDTH), z, q2)
            p3, q3 = fma(load(a, r3), y, p3), fma(load(a, r3 + WIDTH), z, q3)
            r0, r1 = r0 + 2 * WIDTH, r1 + 2 * WIDTH
            r2, r3 = r2 + 2 * WIDTH, r3 + 2 * WIDTH
        store(x, (target + i) * WIDTH, p0 + q0)
        store(x, (target + i + 1) * WIDTH, p1 + q1)
        store(x, (target + i + 2) * WIDTH, p2 + q2)
        store(x, (target + i + 3) * WIDTH, p3 + q3)
