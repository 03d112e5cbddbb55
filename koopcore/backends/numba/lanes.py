"""WIDTH groups side by side: number i of lane l of a lane array stands at ``i * WIDTH + l``."""

from __future__ import annotations

import numpy as np

from koopcore.backends.numba.compiled import inner, making
from koopcore.backends.numba.simd import WIDTH, constant, fma, load, store


@making
def lane_array(count):
    """``count`` vectors of zeros, from a cache line on: a load that crosses one costs two."""
    memory = np.zeros((count + 1) * WIDTH)
    first = (-memory.ctypes.data >> 3) & (WIDTH - 1)
    return memory[first : first + count * WIDTH]


@inner
def take_lanes(rows, first, stop, lanes):
    """Lane l = rows[first + l]; lanes past ``stop`` repeat the last row, so that they stay tame."""
    for lane in range(WIDTH):
        row = rows[min(first + lane, stop - 1)]
        for i in range(len(row)):
            lanes[i * WIDTH + lane] = row[i]


@inner
def put_lanes(lanes, first, stop, rows):
    """rows[first + l] = lane l, for the rows before ``stop``."""
    for lane in range(min(WIDTH, stop - first)):
        row = rows[first + lane]
        for i in range(len(row)):
            row[i] = lanes[i * WIDTH + lane]


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
