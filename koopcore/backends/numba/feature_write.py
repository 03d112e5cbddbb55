"""Predictions of WIDTH small groups from their whitened states, into the parameters' columns."""

from __future__ import annotations

from koopcore.backends.numba.compiled import inner
from koopcore.backends.numba.feature_gram import unreflect
from koopcore.backends.numba.simd import (
    WIDTH,
    absolute,
    clip,
    constant,
    load,
    store,
    where_at_most,
)
from koopcore.backends.numba.tiles import apply
from koopcore.backends.protocol import WEIGHT_LIMIT


@inner
def write_endpoint(
    state,
    readout,
    frame,
    zero,
    m,
    wide,
    affine,
    columns,
    count,
    target,
    row,
    step,
    limit,
):
    """One horizon of ``count`` lanes: parameter p to ``target[row + p step]``, within ±limit.

    last + E V s, or H E V s; a divergent state leaves the last snapshot. state: s, and 2 wide of
    scratch.
    """
    x = 2 * wide
    apply(readout, 0, wide, state, 0, zero, 0, x)
    if not affine:
        unreflect(frame, m, wide, state, x)
    calm, bound = constant(1.0), constant(WEIGHT_LIMIT)
    for i in range(m):
        size = absolute(load(state, i * WIDTH))
        calm = where_at_most(size, bound, calm, constant(0.0))
    half, top = constant(0.5), constant(limit)
    for i in range(m):
        last = load(frame, i * WIDTH)
        value = load(state, (x + i) * WIDTH)
        if affine:
            value = value + last
        store(state, (x + i) * WIDTH, clip(where_at_most(calm, half, last, value), top))
    for lane in range(count):
        for i in range(lane, m * WIDTH, WIDTH):
            target[row + columns[i] * step] = state[x * WIDTH + i]
