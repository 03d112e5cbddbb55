"""Small groups of equal size m: C = FFᵀ and E = F'Fᵀ, WIDTH groups side by side; and copies.

The snapshots stream by once. One of WIDTH groups is a lane array of ``wide`` vectors: m, and zeros
up to a multiple of four. The sums C, of which the tiles on and below the diagonal, and E - C are
(wide, wide). Mirrors csrc/cpu/features.cpp and accumulate.h.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from koopcore.backends.numba.combine import clip_number
from koopcore.backends.numba.lanes import add_multiple, add_tile, copy, dot, lane_array
from koopcore.backends.numba.runtime import inner, kernel, making
from koopcore.backends.numba.simd import WIDTH, constant, fetch, gather, load, store
from koopcore.backends.numba.views import Target, Window
from koopcore.partition.segments import Segments

CHUNK = 16  # snapshots held at a time: few enough for the first cache
IN_A_ROW = 128  # columns summed before they are added to the others: see csrc/cpu/accumulate.h
AHEAD = 12  # snapshots, in long windows: as many as come before memory answers
LINE = 8  # numbers at most of a cache line
FRAME = 5  # parts of a frame, each of ``wide`` vectors


class Moments(NamedTuple):
    """The sums of WIDTH groups on their way through the window; all but sizes are lane arrays.

    Or those of several batches of WIDTH groups, one behind the other.
    """

    m: int
    wide: int
    affine: int
    columns: Any  # (m,) int64: the parameters of every lane
    places: Any  # (m,) int64: where they stand in a snapshot
    frame: Any  # last snapshot, v, previous snapshot or H last, previous column; 2 / vᵀv
    f: Any  # the columns of a chunk and one more, then the changes from each to the next
    square: Any  # (wide, wide) C
    motion: Any  # (wide, wide) E - C
    some: Any  # (2, wide, wide) the newest terms of both, of a long window


@making
def moments(m, affine, batches):
    """Room for them."""
    wide = (m + 3) // 4 * 4
    return Moments(
        m,
        wide,
        affine,
        np.empty(batches * m * WIDTH, dtype=np.int64),
        np.empty(batches * m * WIDTH, dtype=np.int64),
        lane_array(batches * FRAME * wide),
        lane_array(batches * (2 * CHUNK + 1) * wide),
        lane_array(batches * wide * wide),
        lane_array(batches * wide * wide),
        lane_array(batches * 2 * wide * wide),
    )


@making
def batch(x, b):
    """Those of one batch."""
    wide = x.wide
    return Moments(
        x.m,
        wide,
        x.affine,
        share(x.columns, b, x.m),
        share(x.places, b, x.m),
        share(x.frame, b, FRAME * wide),
        share(x.f, b, (2 * CHUNK + 1) * wide),
        share(x.square, b, wide * wide),
        share(x.motion, b, wide * wide),
        share(x.some, b, 2 * wide * wide),
    )


@making
def share(lanes, b, count):
    """The ``count`` vectors of one batch."""
    return lanes[b * count * WIDTH : (b + 1) * count * WIDTH]


@kernel
def feature_range(window, segments, m, affine, stops, low, high, out):
    """Groups low .. high - 1 of ``out`` (n_stops, n_groups, 2, m, m); ``stops`` ascend."""
    w, s = Window(*window), Segments(*segments)
    x = moments(m, affine, 1)
    for first in range(low, high, WIDTH):
        begin(w, s, first, high, x)
        done = 0
        for i in range(len(stops)):
            stop = min(stops[i] - 1, len(w.rows) - 1) - affine
            accumulate(w, done, stop, x)
            done = max(done, stop)
            for lane in range(min(WIDTH, high - first)):
                put_moments(x, lane, out[i, first + lane])


@inner
def begin(w, s, first, stop, x):
    """The groups from ``first`` on: their frame, sums of nothing, and the first column in ``f``.

    Lanes past ``stop`` repeat the last group, so that they cannot diverge.
    """
    for lane in range(WIDTH):
        group = min(first + lane, stop - 1)
        i = lane
        for segment in range(s.group_ptr[group], s.group_ptr[group + 1]):
            column = s.start[segment]
            for _ in range(s.length[segment]):
                x.columns[i] = column
                x.places[i] = column * w.step
                column += s.stride[segment]
                i += WIDTH
    take_snapshot(w, len(w.rows) - 1, x, x.frame, 0)
    if x.affine:
        take_snapshot(w, 0, x, x.frame, 2 * x.wide)
    else:
        reflection(x.frame, x.m, x.wide)
    for i in range(x.wide * x.wide):
        store(x.square, i * WIDTH, constant(0.0))
        store(x.motion, i * WIDTH, constant(0.0))
    take_column(w, 0, x, 0)


@inner
def take_snapshot(w, k, x, lanes, at):
    """Snapshot k of all lanes."""
    for i in range(x.m):
        store(lanes, (at + i) * WIDTH, gather(w.memory, w.rows[k], x.places, i * WIDTH))


@inner
def reflection(frame, m, wide):
    """v = last ± ‖last‖ e_p in a unit of its own, H last = ∓‖last‖ e_p, 2 / vᵀv: H = I - 2vvᵀ/vᵀv.

    p: the first of the largest entries; 2 / vᵀv is zero where v is. The unit is a power of two that
    keeps squares in range.
    """
    number = 4 * wide * WIDTH
    for i in range(wide):
        store(frame, (2 * wide + i) * WIDTH, constant(0.0))
    for lane in range(WIDTH):
        most, pivot = 0.0, lane
        for i in range(lane, m * WIDTH, WIDTH):
            if abs(frame[i]) > most:
                most, pivot = abs(frame[i]), i
        _, exponent = math.frexp(most)
        unit = math.ldexp(1.0, -min(max(exponent, -1000), 1000))
        square = 0.0
        for i in range(lane, m * WIDTH, WIDTH):
            v = frame[i] * unit
            frame[wide * WIDTH + i] = v
            square += v * v
        norm = np.sqrt(square) if frame[pivot] >= 0.0 else -np.sqrt(square)
        frame[wide * WIDTH + pivot] += norm
        frame[2 * wide * WIDTH + pivot] = -norm / unit
    store(frame, number, dot(frame, wide, frame, wide, m))
    for lane in range(number, number + WIDTH):
        frame[lane] = 0.0 if frame[lane] == 0.0 else 2.0 / frame[lane]


@inner
def unreflect(frame, m, wide, y, at):
    """y = H y."""
    along = load(frame, 4 * wide * WIDTH) * dot(y, at, frame, wide, m)
    add_multiple(y, at, -along, frame, wide, m)


@inner
def take_column(w, k, x, at):
    """f_k: the difference d_{k+1}, or H(x - last) + H last with H last = ∓‖last‖ e_p."""
    frame, f, wide = x.frame, x.f, x.wide
    if x.affine:
        for i in range(x.m):
            value = gather(w.memory, w.rows[k + 1], x.places, i * WIDTH)
            store(f, (at + i) * WIDTH, value - load(frame, (2 * wide + i) * WIDTH))
            store(frame, (2 * wide + i) * WIDTH, value)
        return
    for i in range(x.m):
        value = gather(w.memory, w.rows[k], x.places, i * WIDTH)
        store(f, (at + i) * WIDTH, value - load(frame, i * WIDTH))
    unreflect(frame, x.m, wide, f, at)
    add_multiple(f, at, constant(1.0), frame, 2 * wide, x.m)


@inner
def fetch_snapshot(w, k, x):
    """Ask for snapshot k of all lanes; nothing where the window ends before."""
    if k < len(w.rows):
        for lane in range(WIDTH):
            for i in range(lane, x.m * WIDTH, LINE * WIDTH):
                fetch(w.memory, w.rows[k] + x.places[i])
            fetch(w.memory, w.rows[k] + x.places[(x.m - 1) * WIDTH + lane])


@inner
def accumulate(w, done, stop, x):
    """Add the columns done .. stop - 1 to the sums; column ``stop`` comes to stand first in ``f``.

    The column before it goes into the frame.
    """
    f, wide = x.f, x.wide
    change, matrix = (CHUNK + 1) * wide, wide * wide
    in_blocks = len(w.rows) > IN_A_ROW
    squares = x.some if in_blocks else x.square
    motions, at_motion = (x.some, matrix) if in_blocks else (x.motion, 0)
    while done < stop:
        count = min(CHUNK, stop - done)
        if in_blocks:
            count = min(count, IN_A_ROW - done % IN_A_ROW)
        for k in range(count):
            if in_blocks:
                fetch_snapshot(w, done + k + AHEAD, x)
            at = k * wide
            take_column(w, done + k + 1, x, at + wide)
            for i in range(at, at + x.m):
                step = load(f, (i + wide) * WIDTH) - load(f, i * WIDTH)
                store(f, (change + i) * WIDTH, step)
        for i in range(0, wide, 4):
            for j in range(0, wide, 4):
                place = i * wide + j
                if j <= i:
                    add_tile(f, i, 1, wide, f, j, 1, wide, count, squares, place, wide)
                place += at_motion
                add_tile(f, change + i, 1, wide, f, j, 1, wide, count, motions, place, wide)
        copy(f, (count - 1) * wide, x.frame, 3 * wide, wide)
        copy(f, count * wide, f, 0, wide)
        done += count
        if in_blocks and (done == stop or done % IN_A_ROW == 0):
            add_multiple(x.square, 0, constant(1.0), x.some, 0, matrix)
            add_multiple(x.motion, 0, constant(1.0), x.some, matrix, matrix)
            for i in range(2 * matrix):
                store(x.some, i * WIDTH, constant(0.0))


@inner
def put_moments(x, lane, out):
    """C, both triangles from the lower one, and E = C + motion."""
    for i in range(x.m):
        for j in range(x.m):
            row, column = max(i, j), min(i, j)
            entry = x.square[(row * x.wide + column) * WIDTH + lane]
            out[0, i, j] = entry
            out[1, i, j] = entry + x.motion[(i * x.wide + j) * WIDTH + lane]


@kernel
def gather_range(window, segments, low, high, out):
    """Groups low .. high - 1 of ``out`` (n_rows, n_groups, m), as float64."""
    w, s = Window(*window), Segments(*segments)
    for i in range(len(w.rows)):
        for group in range(low, high):
            column = 0
            for segment in range(s.group_ptr[group], s.group_ptr[group + 1]):
                place = w.rows[i] + s.start[segment] * w.step
                for _ in range(s.length[segment]):
                    out[i, group, column] = w.memory[place]
                    place += s.stride[segment] * w.step
                    column += 1


@kernel
def scatter_range(values, segments, low, high, target):
    """The way back: values (n_rows, n_groups, m), clipped; nan stays nan."""
    s, t = Segments(*segments), Target(*target)
    for i in range(len(t.rows)):
        for group in range(low, high):
            column = 0
            for segment in range(s.group_ptr[group], s.group_ptr[group + 1]):
                place = t.rows[i] + s.start[segment] * t.step
                for _ in range(s.length[segment]):
                    t.memory[place] = clip_number(values[i, group, column], t.limit)
                    place += s.stride[segment] * t.step
                    column += 1
