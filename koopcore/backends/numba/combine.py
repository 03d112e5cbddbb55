"""Predictions x_n + B(w - 1) of all horizons: the snapshots pass once for every four horizons."""

from __future__ import annotations

import numpy as np

from koopcore.backends.numba.runtime import inner, kernel
from koopcore.backends.numba.simd import WIDTH, clip, constant, fill, fma, load, store
from koopcore.backends.numba.views import Pieces, Target, Window


@kernel
def combine_range(window, pieces, low, high, weights, base, target):
    """Pieces low .. high - 1, with the weights (n_horizons, n_groups, n) of their owner.

    The weights begin with those of group ``base``.
    """
    w, p, t = Window(*window), Pieces(*pieces), Target(*target)
    horizons, n = weights.shape[0], weights.shape[2]
    moves = np.empty((horizons, n))  # w - 1
    flat = moves.reshape(-1)
    for piece in range(low, high):
        for i in range(horizons):
            for k in range(n):
                moves[i, k] = weights[i, p.owner[piece] - base, k] - 1.0
        for segment in range(p.pointer[piece], p.pointer[piece + 1]):
            count, hop, hop_out = (
                p.length[segment],
                p.stride[segment] * w.step,
                p.stride[segment] * t.step,
            )
            first, place = p.start[segment] * w.step, p.start[segment] * t.step
            done = 0
            if hop == 1 and hop_out == 1:
                done = count // WIDTH * WIDTH
                i = 0
                while i + 4 <= horizons:
                    combine_four(w, first, done, flat, n, t, i, place)
                    i += 4
                while i < horizons:
                    combine_one(w, first, done, flat, n, t, i, place)
                    i += 1
            for column in range(done, count):
                combine_column(w, first + column * hop, moves, t, place + column * hop_out)


@inner
def combine_one(w, first, count, moves, n, t, i, place):
    """Horizon i, three vectors of columns at a time so that their sums overlap."""
    memory, rows, at, target = w.memory, w.rows, i * n, t.rows[i] + place
    done = 0
    bound = constant(t.limit)
    while done + 3 * WIDTH <= count:
        move = fill(moves, at)
        x0 = load(memory, rows[0] + first + done)
        x1 = load(memory, rows[0] + first + done + WIDTH)
        x2 = load(memory, rows[0] + first + done + 2 * WIDTH)
        y0, y1, y2 = move * x0, move * x1, move * x2
        for k in range(1, n):
            move = fill(moves, at + k)
            here = rows[k] + first + done
            z0, z1 = load(memory, here), load(memory, here + WIDTH)
            z2 = load(memory, here + 2 * WIDTH)
            y0, y1 = fma(move, z0 - x0, y0), fma(move, z1 - x1, y1)
            y2 = fma(move, z2 - x2, y2)
            x0, x1, x2 = z0, z1, z2
        store(t.memory, target + done, clip(x0 + y0, bound))
        store(t.memory, target + done + WIDTH, clip(x1 + y1, bound))
        store(t.memory, target + done + 2 * WIDTH, clip(x2 + y2, bound))
        done += 3 * WIDTH
    while done < count:
        x = load(memory, rows[0] + first + done)
        y = fill(moves, at) * x
        for k in range(1, n):
            z = load(memory, rows[k] + first + done)
            y = fma(fill(moves, at + k), z - x, y)
            x = z
        store(t.memory, target + done, clip(x + y, bound))
        done += WIDTH


@inner
def combine_four(w, first, count, moves, n, t, i, place):
    """Horizons i .. i + 3 from one pass over the snapshots."""
    memory, rows, out = w.memory, w.rows, t.memory
    m0, m1, m2, m3 = i * n, (i + 1) * n, (i + 2) * n, (i + 3) * n
    bound = constant(t.limit)
    for done in range(0, count, WIDTH):
        x = load(memory, rows[0] + first + done)
        y0, y1 = fill(moves, m0) * x, fill(moves, m1) * x
        y2, y3 = fill(moves, m2) * x, fill(moves, m3) * x
        for k in range(1, n):
            z = load(memory, rows[k] + first + done)
            d = z - x
            y0, y1 = fma(fill(moves, m0 + k), d, y0), fma(fill(moves, m1 + k), d, y1)
            y2, y3 = fma(fill(moves, m2 + k), d, y2), fma(fill(moves, m3 + k), d, y3)
            x = z
        here = place + done
        store(out, t.rows[i] + here, clip(x + y0, bound))
        store(out, t.rows[i + 1] + here, clip(x + y1, bound))
        store(out, t.rows[i + 2] + here, clip(x + y2, bound))
        store(out, t.rows[i + 3] + here, clip(x + y3, bound))


@inner
def combine_column(w, first, moves, t, place):
    """One parameter, at any stride."""
    for i in range(len(t.rows)):
        x = np.float64(w.memory[w.rows[0] + first])
        y = moves[i, 0] * x
        for k in range(1, len(w.rows)):
            z = np.float64(w.memory[w.rows[k] + first])
            y += moves[i, k] * (z - x)
            x = z
        t.memory[t.rows[i] + place] = clip_number(x + y, t.limit)


@inner
def clip_number(value, limit):
    """The nearest number in ±limit; nan stays nan."""
    if value > limit:
        return limit
    if value < -limit:
        return -limit
    return value
