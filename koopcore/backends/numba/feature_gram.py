"""C = FFᵀ and E = F'Fᵀ of small groups, WIDTH groups side by side, streaming over the snapshots.

A snapshot of WIDTH groups is a lane array of ``wide`` vectors: m, and zeros up to a multiple of
four. The sums C, of which the tiles on and below the diagonal, and E - C are (wide, wide).
"""

from __future__ import annotations

import numpy as np

from koopcore.backends.numba.compiled import inner, kernel
from koopcore.backends.numba.lanes import add_multiple, copy, dot, lane_array
from koopcore.backends.numba.simd import WIDTH, constant, gather, load, store
from koopcore.backends.numba.tiles import add_tile

CHUNK = 16  # snapshots held at a time: few enough for the first cache
FRAME = 5  # parts of a frame, each of ``wide`` vectors: last, v, before, previous; and one of 2/vᵀv


@kernel
def feature_range(
    memory, rows, step, pointer, start, length, stride, m, affine, stops, low, high, out
):
    """Groups low .. high - 1 of ``out`` (n_stops, n_groups, 2, m, m); ``stops`` ascend."""
    wide = (m + 3) // 4 * 4
    f = lane_array((2 * CHUNK + 1) * wide)
    frame = lane_array(FRAME * wide)
    square, motion = lane_array(wide * wide), lane_array(wide * wide)
    columns = np.empty(m * WIDTH, dtype=np.int64)
    places = np.empty(m * WIDTH, dtype=np.int64)
    for first in range(low, high, WIDTH):
        place_lanes(step, pointer, start, length, stride, first, high, columns, places)
        begin(memory, rows, places, affine, m, wide, frame, f, square, motion)
        done = 0
        for i in range(len(stops)):
            stop = min(stops[i] - 1, len(rows) - 1) - affine
            accumulate(memory, rows, places, affine, m, wide, done, stop, frame, f, square, motion)
            done = max(done, stop)
            for lane in range(min(WIDTH, high - first)):
                put_matrices(square, motion, m, wide, lane, out[i, first + lane])


@inner
def place_lanes(step, pointer, start, length, stride, first, stop, columns, places):
    """The parameter i of lane l, and where it stands in a snapshot.

    Lanes past ``stop`` repeat the last group, so that they stay tame.
    """
    for lane in range(WIDTH):
        group = min(first + lane, stop - 1)
        i = lane
        for segment in range(pointer[group], pointer[group + 1]):
            column = start[segment]
            for _ in range(length[segment]):
                columns[i] = column
                places[i] = column * step
                column += stride[segment]
                i += WIDTH


@inner
def take_snapshot(memory, row, places, lanes, at, m):
    """One snapshot of all lanes."""
    for i in range(m):
        store(lanes, (at + i) * WIDTH, gather(memory, row, places, i * WIDTH))


@inner
def begin(memory, rows, places, affine, m, wide, frame, f, square, motion):
    """The frame of the reflection, sums of nothing, and the first column f_0 in ``f``."""
    take_snapshot(memory, rows[len(rows) - 1], places, frame, 0, m)
    if affine:
        take_snapshot(memory, rows[0], places, frame, 2 * wide, m)
    else:
        reflection(frame, m, wide)
    for i in range(wide * wide):
        store(square, i * WIDTH, constant(0.0))
        store(motion, i * WIDTH, constant(0.0))
    take_column(memory, rows, 0, places, affine, m, wide, frame, f, 0)


@inner
def reflection(frame, m, wide):
    """v = last ± ‖last‖ e_1 and 2 / vᵀv, zero where v is: H = I - 2 v vᵀ / vᵀv."""
    number = 4 * wide * WIDTH
    copy(frame, 0, frame, wide, m)
    store(frame, number, dot(frame, 0, frame, 0, m))
    for lane in range(WIDTH):
        frame[wide * WIDTH + lane] += np.copysign(np.sqrt(frame[number + lane]), frame[lane])
    store(frame, number, dot(frame, wide, frame, wide, m))
    for lane in range(number, number + WIDTH):
        frame[lane] = 0.0 if frame[lane] == 0.0 else 2.0 / frame[lane]


@inner
def unreflect(frame, m, wide, x, at):
    """x = H x."""
    along = load(frame, 4 * wide * WIDTH) * dot(x, at, frame, wide, m)
    add_multiple(x, at, -along, frame, wide, m)


@inner
def take_column(memory, rows, k, places, affine, m, wide, frame, f, at):
    """f_k: the difference d_{k+1}, or H(x - last) + H last with H last = -(v - last)."""
    if affine:
        for i in range(m):
            x = gather(memory, rows[k + 1], places, i * WIDTH)
            store(f, (at + i) * WIDTH, x - load(frame, (2 * wide + i) * WIDTH))
            store(frame, (2 * wide + i) * WIDTH, x)
        return
    for i in range(m):
        x = gather(memory, rows[k], places, i * WIDTH)
        store(f, (at + i) * WIDTH, x - load(frame, i * WIDTH))
    unreflect(frame, m, wide, f, at)
    store(f, at * WIDTH, load(f, at * WIDTH) - (load(frame, wide * WIDTH) - load(frame, 0)))


@inner
def accumulate(memory, rows, places, affine, m, wide, done, stop, frame, f, square, motion):
    """Add the columns done .. stop - 1 to the sums; column ``stop`` comes to stand first in ``f``.

    The column before it is kept in the frame. f: the columns of a chunk and one more, then the
    changes from each to the next.
    """
    change = (CHUNK + 1) * wide
    while done < stop:
        count = min(CHUNK, stop - done)
        for k in range(count):
            at = k * wide
            take_column(memory, rows, done + k + 1, places, affine, m, wide, frame, f, at + wide)
            for i in range(at, at + m):
                step = load(f, (i + wide) * WIDTH) - load(f, i * WIDTH)
                store(f, (change + i) * WIDTH, step)
        for i in range(0, wide, 4):
            for j in range(0, wide, 4):
                place = i * wide + j
                if j <= i:
                    add_tile(f, i, 1, wide, f, j, 1, wide, count, square, place, wide)
                add_tile(f, change + i, 1, wide, f, j, 1, wide, count, motion, place, wide)
        copy(f, (count - 1) * wide, frame, 3 * wide, wide)
        copy(f, count * wide, f, 0, wide)
        done += count


@inner
def put_matrices(square, motion, m, wide, lane, out):
    """C, both triangles from the lower one, and E = C + motion."""
    for i in range(m):
        for j in range(m):
            row, column = max(i, j), min(i, j)
            entry = square[(row * wide + column) * WIDTH + lane]
            out[0, i, j] = entry
            out[1, i, j] = entry + motion[(i * wide + j) * WIDTH + lane]
