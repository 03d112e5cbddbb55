"""Gram matrices G = BᵀB of the difference basis: 4x4 tiles over panels held in the first cache."""

from __future__ import annotations

import numpy as np

from koopcore.backends.numba.runtime import inner, kernel
from koopcore.backends.numba.simd import WIDTH, add_sums, constant, fma, load, store
from koopcore.backends.numba.views import Window
from koopcore.partition.segments import Segments

PANEL = 3072  # float64 numbers in a panel: 24 KiB, beside the accumulators in 32 KiB


@kernel
def gram_range(window, segments, low, high, out):
    """Write groups low .. high - 1 into ``out`` (high - low, n(n+1)/2), packed lower by rows."""
    w, s = Window(*window), Segments(*segments)
    n = len(w.rows)
    blocks = (n + 3) // 4
    columns = max(PANEL // (4 * blocks) // WIDTH, 4) * WIDTH
    panel = np.zeros(4 * blocks * columns)
    sums = np.zeros(8 * blocks * (blocks + 1))
    for group in range(low, high):
        for i in range(0, len(sums), WIDTH):
            store(sums, i, constant(0.0))
        filled = 0
        for segment in range(s.group_ptr[group], s.group_ptr[group + 1]):
            done = 0
            while done < s.length[segment]:
                count = min(columns - filled, s.length[segment] - done)
                first = (s.start[segment] + done * s.stride[segment]) * w.step
                fill_panel(w, first, count, s.stride[segment] * w.step, panel, columns, filled)
                filled += count
                done += count
                if filled == columns:
                    add_panel(panel, columns, columns, blocks, sums)
                    filled = 0
        if filled:
            used = (filled + WIDTH - 1) // WIDTH * WIDTH
            for row in range(n):
                for column in range(filled, used):
                    panel[row * columns + column] = 0.0
            add_panel(panel, columns, used, blocks, sums)
        unpack_tiles(sums, n, out[group - low])


@inner
def fill_panel(w, first, count, hop, panel, columns, at):
    """Columns at .. at + count - 1 of the panel: x_1, then the differences, row by row."""
    n = len(w.rows)
    done = 0
    if hop == 1:
        while done + WIDTH <= count:
            before = load(w.memory, w.rows[0] + first + done)
            store(panel, at + done, before)
            for row in range(1, n):
                x = load(w.memory, w.rows[row] + first + done)
                store(panel, row * columns + at + done, x - before)
                before = x
            done += WIDTH
    for column in range(done, count):
        place = first + column * hop
        last = np.float64(w.memory[w.rows[0] + place])
        panel[at + column] = last
        for row in range(1, n):
            value = np.float64(w.memory[w.rows[row] + place])
            panel[row * columns + at + column] = value - last
            last = value


@inner
def add_panel(panel, columns, used, blocks, sums):
    """Add the panel's inner products, tile after tile of the lower block triangle."""
    at = 0
    for i in range(blocks):
        for j in range(i):
            add_tile(panel, 4 * i * columns, 4 * j * columns, columns, used, sums, at)
            at += 16
        add_tile(panel, 4 * i * columns, 4 * i * columns, columns, used, sums, at)
        at += 16


@inner
def add_tile(panel, a, b, columns, used, sums, at):
    """sums[at + 4 i + j] += ⟨row a + i, row b + j⟩ over the first ``used`` columns."""
    c00 = c01 = c02 = c03 = constant(0.0)
    c10 = c11 = c12 = c13 = constant(0.0)
    c20 = c21 = c22 = c23 = constant(0.0)
    c30 = c31 = c32 = c33 = constant(0.0)
    for k in range(0, used, WIDTH):
        b0 = load(panel, b + k)
        b1 = load(panel, b + columns + k)
        b2 = load(panel, b + 2 * columns + k)
        b3 = load(panel, b + 3 * columns + k)
        x = load(panel, a + k)
        c00, c01, c02, c03 = fma(x, b0, c00), fma(x, b1, c01), fma(x, b2, c02), fma(x, b3, c03)
        x = load(panel, a + columns + k)
        c10, c11, c12, c13 = fma(x, b0, c10), fma(x, b1, c11), fma(x, b2, c12), fma(x, b3, c13)
        x = load(panel, a + 2 * columns + k)
        c20, c21, c22, c23 = fma(x, b0, c20), fma(x, b1, c21), fma(x, b2, c22), fma(x, b3, c23)
        x = load(panel, a + 3 * columns + k)
        c30, c31, c32, c33 = fma(x, b0, c30), fma(x, b1, c31), fma(x, b2, c32), fma(x, b3, c33)
    add_sums(
        sums, at, (c00, c01, c02, c03, c10, c11, c12, c13, c20, c21, c22, c23, c30, c31, c32, c33)
    )


@inner
def unpack_tiles(sums, n, out):
    """Tiles of 4x4 by blocks of rows to the packed lower triangle."""
    at = 0
    for row in range(n):
        block = row // 4
        first = 8 * block * (block + 1) + 4 * (row - 4 * block)
        for column in range(row + 1):
            out[at] = sums[first + 16 * (column // 4) + column % 4]
            at += 1
