"""Windows that one Gram matrix, or a careless pseudo-inverse, gets wrong: each kind by name."""

from __future__ import annotations

import fuzz
import numpy as np
import oracle
import pytest
from trajectories import WHOLE

import koopcore as kc
from koopcore.operators import GOOD

HORIZONS = (1, 5, 25)
RATES = (0.02, 0.1, 0.3, 0.7, 1.5)


def decays(n, m, rates=RATES, seed=0):
    """Σ_j v_j exp(-rate_j t) about a point."""
    rng = np.random.default_rng(seed)
    powers = np.exp(-np.multiply.outer(np.arange(n), rates))
    return rng.normal(size=m) + powers @ rng.normal(size=(len(rates), m))


def beside(x, n_more, value=0.0):
    """x, and as many more parameters that are always ``value``."""
    return np.hstack([x, np.full((len(x), n_more), value)])


def twice(x, at, times=2):
    """Snapshot ``at`` stands several times."""
    return np.repeat(x, np.where(np.arange(len(x)) == at % len(x), times, 1), axis=0)


def far(n, m, size, seed=0):
    """Two decays at a distance of about ``size`` in every parameter."""
    rng = np.random.default_rng(seed)
    return size * rng.uniform(0.5, 2.0, m) + decays(n, m, (0.1, 0.3), seed)


def falling(n, m, factor):
    """Steps that fall by ``factor`` each, from 1, in directions of their own."""
    steps = np.random.default_rng(0).normal(size=(n - 1, m)) * factor ** np.arange(n - 1)[:, None]
    return np.vstack([np.zeros(m), np.cumsum(steps, axis=0)])


#: name: (snapshots, model, rank)
WINDOWS = {
    "one that moves and 20 that are zero": (beside(decays(9, 1), 20), "linear", None),
    "two that move among 40 zeros": (
        np.hstack([np.zeros((9, 17)), decays(9, 2), np.zeros((9, 23))]),
        "linear",
        None,
    ),
    "five that move and 60 that are zero": (beside(decays(24, 5, RATES[1:4]), 60), "linear", None),
    "three that move and 30 that stay": (
        beside(decays(12, 3, RATES[1:4]), 30, value=7.0),
        "affine",
        None,
    ),
    "one step paused, affine": (twice(decays(8, 32, RATES[:3]), 3), "affine", None),
    "one step paused, linear": (twice(decays(8, 32, RATES[:3]), 3), "linear", None),
    "the first snapshot four times": (twice(decays(9, 40, RATES[1:3]), 0, 4), "linear", None),
    "the last snapshot twice": (twice(decays(9, 40, RATES[1:3]), -1), "linear", None),
    "paused, fewer parameters than snapshots": (
        twice(decays(20, 4, RATES[1:3]), 7, 3),
        "affine",
        None,
    ),
    "1e7 from the origin": (far(11, 24, 1e7), "linear", None),
    "1e8 from the origin, rank 3": (far(11, 24, 1e8), "linear", 3),
    "1e9 from the origin, rank 6": (far(11, 24, 1e9), "linear", 6),
    "1e9 from the origin, small group": (far(16, 3, 1e9), "linear", None),
    "1e8 from the origin, small group, rank 2": (far(16, 5, 1e8, seed=3), "linear", 2),
    "1e6 from the origin, affine": (far(11, 24, 1e6), "affine", None),
    "2^-515 in size": (np.ldexp(decays(11, 5, (0.1, 0.3)), -515), "affine", None),
    "2^-540 in size, linear": (np.ldexp(decays(11, 5, (0.1, 0.3)), -540), "linear", None),
    "2^-1000 in size, many parameters": (
        np.ldexp(decays(7, 30, (0.1, 0.3)), -1000),
        "affine",
        None,
    ),
    "2^700 in size": (np.ldexp(decays(7, 30, (0.1, 0.3)), 700), "linear", None),
    "2^-530 in size beside numbers that stay": (
        beside(np.ldexp(decays(9, 20, (0.1, 0.3)), -530), 6, value=3.0),
        "affine",
        None,
    ),
    "come down to 1e-265 of the first snapshot": (
        np.outer(np.exp(-36.0 * np.arange(18)), [1.0, -0.3, 0.7, 0.2]),
        "linear",
        None,
    ),
    "a newest snapshot that begins with -0": (
        np.where(np.arange(20)[:, None] + np.arange(4) == 19, -0.0, decays(20, 4, RATES[1:3])),
        "linear",
        None,
    ),
    "steps that fall a hundredfold": (falling(7, 30, 0.01), "affine", None),
    "the leading two of steps that fall a thousandfold": (falling(8, 30, 1e-3), "affine", 2),
    "steps that fall to 1e-10 after a jump, in small parameters beside a large one": (
        fuzz.drawn(fuzz.Batch("fast", "jump", 4, 100)).x[15],
        "linear",
        None,
    ),
    "parameters from 1e-1 to 1e-12 whose rest, after pivoting, is long and along the others": (
        fuzz.drawn(fuzz.Batch("growing", "graded", 20024, 250)).x[47],
        "linear",
        None,
    ),
    "float32 parameters from 1e-1 to 1e-10, the first of them among the smallest": (
        fuzz.drawn(fuzz.Batch("oscillating", "graded", 40021, 250)).x[178],
        "linear",
        None,
    ),
}


@pytest.mark.parametrize("backend", WHOLE)
@pytest.mark.parametrize(("x", "model", "rank"), WINDOWS.values(), ids=WINDOWS)
def test_the_answer_is_that_of_a_singular_value_decomposition(x, model, rank, backend):
    method = oracle.Method(model == "affine", rank)
    due = oracle.answer(x[None], method, HORIZONS)
    doubt = oracle.spread(x[None], method, HORIZONS)[:, 0]
    assert doubt.max() < 0.1, "there is no right answer to compare with"
    part = kc.Partition.groups(x.shape[1], [range(x.shape[1])])
    ops = kc.fit(x, part, model, rank, backend=backend)
    assert ops.status.tolist() == [GOOD]
    rows, _ = oracle.rows_of(x[None], method.affine, np.float64)
    cuts = (1.0, *oracle.WIDER)
    assert ops.rank[0] in [oracle.inverses(rows, len(x), method, cut)[1][0] for cut in cuts]
    ahead = kc.fit(x, part, model, rank, backend=backend, horizon=HORIZONS)
    for got in (ops.predict(HORIZONS), ahead.predict(HORIZONS)):
        error = oracle.share(got[:, None] - due.values, due, x.dtype)[:, 0]
        assert (error <= np.maximum(1e-6, 10.0 * doubt)).all(), (error, doubt)
    # The operator's own motion of the last snapshot, and its size.
    u, right = ops.operator(0), oracle.operator(x[None], method)[0]
    unit = np.ldexp(1.0, -int(np.frexp(np.abs(x).max())[1]))
    last = x[-1] * unit if model == "linear" else x[-1] * unit - x[-2] * unit
    step = np.linalg.norm(np.diff(x[-2:] * unit, axis=0))
    room = max(1e-6, 10.0 * doubt[0]) * due.movement[0, 0] * unit + 1e-14 * np.linalg.norm(last)
    assert np.linalg.norm(u @ last - right @ last) <= room + 1e-9 * step
    assert np.linalg.norm(u, 2) == pytest.approx(np.linalg.norm(right, 2), rel=1e-2)


@pytest.mark.parametrize("backend", WHOLE)
def test_parameters_that_do_not_move_change_nothing(backend):
    live = decays(9, 3, RATES[1:3])
    alone = kc.fit(live, kc.Partition.groups(3, [range(3)]), "linear", backend=backend)
    wide = beside(live, 50)
    among = kc.fit(wide, kc.Partition.groups(53, [range(53)]), "linear", backend=backend)
    np.testing.assert_allclose(among.predict(HORIZONS)[:, :3], alone.predict(HORIZONS), rtol=1e-9)
    assert (among.predict(HORIZONS)[:, 3:] == 0.0).all()
    np.testing.assert_allclose(among.operator(0)[:3, :3], alone.operator(0), atol=1e-8)
    np.testing.assert_allclose(among.operator(0)[3:], 0.0, atol=1e-12)


@pytest.mark.parametrize("backend", WHOLE)
@pytest.mark.parametrize("size", [1e-110, 1e75, 1e140])
def test_a_rank_in_any_unit_of_which_squares_are_in_range(size, backend):
    """But not the fourth power: growth by six orders of magnitude along few of nine directions."""
    rates = np.power.outer([1.118, 1.092, 0.9], np.arange(128)).T
    x = size * (rates @ np.random.default_rng(0).normal(size=(3, 9)))
    ops = kc.fit(x, kc.Partition.groups(9, [range(9)]), "affine", rank=8, backend=backend)
    due = oracle.answer(x[None], oracle.Method(True, 8), HORIZONS)
    error = oracle.share(ops.predict(HORIZONS)[:, None] - due.values, due, x.dtype)
    assert error.max() < 1e-6


@pytest.mark.parametrize("backend", WHOLE)
@pytest.mark.parametrize("model", ["linear", "affine"])
@pytest.mark.parametrize("m", [2, 3, 5])
def test_directions_of_a_billionth_are_kept(m, model, backend):
    """Whichever parameter the moments find to be rounding: the first ones were once lost."""
    groups, n, rng = 40, 11, np.random.default_rng(m)
    decay = 0.8 ** np.arange(n)[:, None]
    x = decay * rng.normal(size=(1, groups * m)) + 1e-9 * rng.normal(size=(n, groups * m))
    part = kc.Partition.groups(groups * m, [range(g * m, g * m + m) for g in range(groups)])
    ops = kc.fit(x, part, model, backend=backend)
    np.testing.assert_array_equal(ops.rank, m)
    for g in range(groups):
        own = x[:, part.indices(g)]
        rows = np.diff(own, axis=0) if model == "affine" else own
        due = rows[1:].T @ np.linalg.pinv(rows[:-1].T)
        np.testing.assert_allclose(ops.operator(g), due, atol=1e-5 * np.abs(due).max())
