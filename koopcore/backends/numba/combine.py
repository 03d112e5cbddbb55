"""Predictions x_n + B(w - 1) of all horizons: the snapshots pass once for every four horizons."""

from __future__ import annotations

import numpy as np

from koopcore.backends.numba.compiled import inner, kernel
from koopcore.backends.numba.simd import WIDTH, clip, constant, fill, fma, load, store


@kernel
def combine_range(
    memory,
    rows,
    step,
    pointer,
    start,
    length,
    stride,
    owner,
    low,
    high,
    weights,
    base,
    out,
    out_rows,
    out_step,
    limit,
):
    """Pieces low .. high - 1, with the weights (n_horizons, n_groups, n) of their owner.

    The weights begin with those of group ``base``.

    Snapshot k has parameter p at ``memory[rows[k] + p step]``, horizon i at
    ``out[out_rows[i] + p out_step]``.
    """
    horizons, n = weights.shape[0], weights.shape[2]
    shift = np.empty((horizons, n))
    flat = shift.reshape(-1)
    for piece in range(low, high):
        for i in range(horizons):
            for k in range(n):
                shift[i, k] = weights[i, owner[piece] - base, k] - 1.0
        for segment in range(pointer[piece], pointer[piece + 1]):
            count, hop = length[segment], stride[segment] * step
            first, target = start[segment] * step, start[segment] * out_step
            out_hop = stride[segment] * out_step
            done = 0
            if hop == 1 and out_hop == 1:
                done = count // WIDTH * WIDTH
                i = 0
                while i + 4 <= horizons:
                    combine_four(
                        memory, rows, first, done, flat, i * n, n, out, out_rows[i:], target, limit
                    )
                    i += 4
                while i < horizons:
                    combine_one(
                        memory, rows, first, done, flat, i * n, n, out, out_rows[i] + target, limit
                    )
                    i += 1
            for column in range(done, count):
                combine_column(
                    memory,
                    rows,
                    first + column * hop,
                    shift,
                    out,
                    out_rows,
                    target + column * out_hop,
                    limit,
                )


@inner
def combine_one(memory, rows, first, count, shift, at, n, out, target, limit):
    """One horizon, three vectors of columns at a time so that their sums overlap."""
    done = 0
    bound = constant(limit)
    while done + 3 * WIDTH <= count:
        w = fill(shift, at)
        x0 = load(memory, rows[0] + first + done)
        x1 = load(memory, rows[0] + first + done + WIDTH)
        x2 = load(memory, rows[0] + first + done + 2 * WIDTH)
        y0, y1, y2 = w * x0, w * x1, w * x2
        for k in range(1, n):
            w = fill(shift, at + k)
            place = rows[k] + first + done
            z0, z1, z2 = (
                load(memory, place),
                load(memory, place + WIDTH),
                load(memory, place + 2 * WIDTH),
            )
            y0, y1, y2 = fma(w, z0 - x0, y0), fma(w, z1 - x1, y1), fma(w, z2 - x2, y2)
            x0, x1, x2 = z0, z1, z2
        store(out, target + done, clip(x0 + y0, bound))
        store(out, target + done + WIDTH, clip(x1 + y1, bound))
        store(out, target + done + 2 * WIDTH, clip(x2 + y2, bound))
        done += 3 * WIDTH
    while done < count:
        x = load(memory, rows[0] + first + done)
        y = fill(shift, at) * x
        for k in range(1, n):
            z = load(memory, rows[k] + first + done)
            y = fma(fill(shift, at + k), z - x, y)
            x = z
        store(out, target + done, clip(x + y, bound))
        done += WIDTH


@inner
def combine_four(memory, rows, first, count, shift, at, n, out, out_rows, target, limit):
    """Four horizons from one pass over the snapshots."""
    bound = constant(limit)
    for done in range(0, count, WIDTH):
        x = load(memory, rows[0] + first + done)
        y0, y1 = fill(shift, at) * x, fill(shift, at + n) * x
        y2, y3 = fill(shift, at + 2 * n) * x, fill(shift, at + 3 * n) * x
        for k in range(1, n):
            z = load(memory, rows[k] + first + done)
            d = z - x
            y0, y1 = fma(fill(shift, at + k), d, y0), fma(fill(shift, at + n + k), d, y1)
            y2, y3 = (
                fma(fill(shift, at + 2 * n + k), d, y2),
                fma(fill(shift, at + 3 * n + k), d, y3),
            )
            x = z
        place = target + done
        store(out, out_rows[0] + place, clip(x + y0, bound))
        store(out, out_rows[1] + place, clip(x + y1, bound))
        store(out, out_rows[2] + place, clip(x + y2, bound))
        store(out, out_rows[3] + place, clip(x + y3, bound))


@inner
def combine_column(memory, rows, place, shift, out, out_rows, target, limit):
    """One parameter, at any stride."""
    for i in range(len(out_rows)):
        x = np.float64(memory[rows[0] + place])
        y = shift[i, 0] * x
        for k in range(1, len(rows)):
            z = np.float64(memory[rows[k] + place])
            y += shift[i, k] * (z - x)
            x = z
        value = x + y
        if value > limit:  # written out because nan must stay nan
            value = limit
        elif value < -limit:
            value = -limit
        out[out_rows[i] + target] = value
