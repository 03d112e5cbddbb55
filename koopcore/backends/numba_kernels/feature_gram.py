"""C = FFᵀ and E = F'Fᵀ of small groups, WIDTH groups side by side, streaming over the snapshots."""

from __future__ import annotations

import numpy as np

from koopcore.backends.numba_kernels.compiled import inner, kernel
from koopcore.backends.numba_kernels.lanes import add_multiple, copy, dot
from koopcore.backends.numba_kernels.simd import WIDTH, constant, fma, load, store

CHUNK = 32  # snapshots held at a time, so that memory does not grow with the window


@kernel
def feature_range(
    memory, rows, step, pointer, start, length, stride, m, affine, stops, low, high, out
):
    """Groups low .. high - 1 of ``out`` (n_stops, n_groups, 2, m, m); ``stops`` ascend.

    A snapshot of WIDTH groups is a lane array of ``wide`` vectors, m and zeros up to a multiple of
    four; the sums C and E - C are (wide, wide) lane arrays.
    """
    wide = (m + 3) // 4 * 4
    f = np.zeros((CHUNK + 1) * wide * WIDTH)
    last = np.zeros(wide * WIDTH)
    normal = np.zeros(wide * WIDTH)
    square = np.empty(wide * wide * WIDTH)
    motion = np.empty(wide * wide * WIDTH)
    places = np.empty(m * WIDTH, dtype=np.int64)
    before = np.zeros(wide * WIDTH)
    columns = len(rows) - affine  # f_0 … f_{columns-1}
    for first in range(low, high, WIDTH):
        place_lanes(step, pointer, start, length, stride, first, high, places)
        take_snapshot(memory, rows[len(rows) - 1], places, last, 0)
        factor = reflection(last, m, normal)
        for j in range(wide * wide):
            store(square, j * WIDTH, constant(0.0))
            store(motion, j * WIDTH, constant(0.0))
        if affine:
            take_snapshot(memory, rows[0], places, before, 0)
        take_column(memory, rows, 0, places, affine, last, normal, factor, before, f, 0, m)
        done = 0
        for i in range(len(stops)):
            stop = min(stops[i] - 1 - affine, columns - 1)
            while done < stop:
                count = min(CHUNK, stop - done)
                for k in range(1, count + 1):
                    take_column(
                        memory,
                        rows,
                        done + k,
                        places,
                        affine,
                        last,
                        normal,
                        factor,
                        before,
                        f,
                        k * wide,
                        m,
                    )
                add_chunk(f, wide, count, square, motion)
                copy(f, count * wide, f, 0, wide)
                done += count
            for lane in range(min(WIDTH, high - first)):
                put_matrices(square, motion, m, wide, lane, out[i, first + lane])


@inner
def place_lanes(step, pointer, start, length, stride, first, stop, places):
    """Where parameter i of lane l stands in a snapshot; lanes past ``stop`` repeat the last."""
    for lane in range(WIDTH):
        group = min(first + lane, stop - 1)
        i = lane
        for segment in range(pointer[group], pointer[group + 1]):
            for j in range(length[segment]):
                places[i] = (start[segment] + j * stride[segment]) * step
                i += WIDTH


@inner
def take_snapshot(memory, row, places, lanes, at):
    """One snapshot of all lanes."""
    for i in range(len(places)):
        lanes[at + i] = memory[row + places[i]]


@inner
def reflection(last, m, normal):
    """Set v = last ± ‖last‖ e_1 and give 2 / vᵀv, zero where v is: H = I - 2 v vᵀ / vᵀv."""
    scratch = np.empty(WIDTH)
    for i in range(m):
        store(normal, i * WIDTH, load(last, i * WIDTH))
    store(scratch, 0, dot(last, 0, last, 0, m))
    for lane in range(WIDTH):
        normal[lane] += np.copysign(np.sqrt(scratch[lane]), last[lane])
    store(scratch, 0, dot(normal, 0, normal, 0, m))
    for lane in range(WIDTH):
        scratch[lane] = 0.0 if scratch[lane] == 0.0 else 2.0 / scratch[lane]
    return load(scratch, 0)


@inner
def take_column(memory, rows, k, places, affine, last, normal, factor, before, f, at, m):
    """f_k: the difference d_{k+1}, or H(x - last) + H last with H last = -(v - last)."""
    if affine:
        take_snapshot(memory, rows[k + 1], places, f, at * WIDTH)
        for i in range(m):
            x = load(f, (at + i) * WIDTH)
            store(f, (at + i) * WIDTH, x - load(before, i * WIDTH))
            store(before, i * WIDTH, x)
        return
    take_snapshot(memory, rows[k], places, f, at * WIDTH)
    for i in range(m):
        store(f, (at + i) * WIDTH, load(f, (at + i) * WIDTH) - load(last, i * WIDTH))
    along = factor * dot(f, at, normal, 0, m)
    add_multiple(f, at, -along, normal, 0, m)
    store(f, at * WIDTH, load(f, at * WIDTH) - (load(normal, 0) - load(last, 0)))


@inner
def add_chunk(f, wide, count, square, motion):
    """Add Σ_k f_k f_kᵀ, its lower tiles, and Σ_k (f_{k+1} - f_k) f_kᵀ; tiles are 2x4."""
    for i in range(0, wide, 2):
        for j in range(0, wide, 4):
            if j <= i:
                add_tile(f, wide, count, i, j, False, square)
            add_tile(f, wide, count, i, j, True, motion)


@inner
def add_tile(f, wide, count, i, j, ahead, sums):
    """Rows i, i + 1 and columns j .. j + 3 of one of the sums."""
    p, q = (i * wide + j) * WIDTH, ((i + 1) * wide + j) * WIDTH
    p0, p1 = load(sums, p), load(sums, p + WIDTH)
    p2, p3 = load(sums, p + 2 * WIDTH), load(sums, p + 3 * WIDTH)
    q0, q1 = load(sums, q), load(sums, q + WIDTH)
    q2, q3 = load(sums, q + 2 * WIDTH), load(sums, q + 3 * WIDTH)
    for k in range(count):
        at = k * wide * WIDTH
        x, y = load(f, at + i * WIDTH), load(f, at + (i + 1) * WIDTH)
        if ahead:
            after = at + (wide + i) * WIDTH
            x, y = load(f, after) - x, load(f, after + WIDTH) - y
        at += j * WIDTH
        z = load(f, at)
        p0, q0 = fma(x, z, p0), fma(y, z, q0)
        z = load(f, at + WIDTH)
        p1, q1 = fma(x, z, p1), fma(y, z, q1)
        z = load(f, at + 2 * WIDTH)
        p2, q2 = fma(x, z, p2), fma(y, z, q2)
        z = load(f, at + 3 * WIDTH)
        p3, q3 = fma(x, z, p3), fma(y, z, q3)
    store(sums, p, p0)
    store(sums, p + WIDTH, p1)
    store(sums, p + 2 * WIDTH, p2)
    store(sums, p + 3 * WIDTH, p3)
    store(sums, q, q0)
    store(sums, q + WIDTH, q1)
    store(sums, q + 2 * WIDTH, q2)
    store(sums, q + 3 * WIDTH, q3)


@inner
def put_matrices(square, motion, m, wide, lane, out):
    """C, both triangles from the lower one, and E = C + motion."""
    for i in range(m):
        for j in range(m):
            row, column = max(i, j), min(i, j)
            entry = square[(row * wide + column) * WIDTH + lane]
            out[0, i, j] = entry
            out[1, i, j] = entry + motion[(i * wide + j) * WIDTH + lane]
