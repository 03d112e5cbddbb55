"""`fit(horizon=…)`: endpoints made with the fit are those of fit and predict, bit for bit.

But for groups of one parameter, which native code predicts in closed form then: a power of a number
by squaring, rounded otherwise than in the group's unit.
"""

import numpy as np
import pytest
from trajectories import NAMES, smooth

import koopcore as kc

BACKENDS = NAMES
HORIZONS = [7, 100, 3]

PARTITIONS = {
    "small groups of one size, more than fill the lanes": [11] * 19,
    "lanes of one group each": [65] * 9,
    "both sides, ragged": [2, 65, 11, 300, 7, 7, 1],
    "a group in parts beside small ones": [40_000, 3, 40],
}


def partition(sizes, size):
    ends = np.cumsum(sizes)
    return kc.Partition.groups(
        size, [range(end - m, end) for end, m in zip(ends, sizes, strict=True)]
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("model", ["affine", "linear", "auto"])
@pytest.mark.parametrize("sizes", PARTITIONS.values(), ids=PARTITIONS.keys())
def test_they_are_what_predict_gives_afterwards(sizes, model, dtype, backend):
    if backend == "reference" and sum(sizes) > 10_000:
        sizes = [4_000, *sizes[1:]]
    rng = np.random.default_rng(3)
    size = sum(sizes) + 5  # five parameters in no group
    rows = smooth(9, size, seed=3) + 1e-3 * rng.normal(size=(9, size))  # full rank
    rows = rows.astype(dtype)
    part = partition(sizes, size)
    apart = kc.fit(rows, part, model, backend=backend)
    ahead = kc.fit(rows, part, model, backend=backend, horizon=HORIZONS)
    expected = apart.predict(HORIZONS)
    first = ahead.predict(HORIZONS)
    single = np.repeat(np.array(sizes) == 1, sizes)
    single = np.concatenate([single, np.zeros(size - sum(sizes), dtype=bool)])
    assert np.array_equal(first[:, ~single], expected[:, ~single])
    # A rounding in each of some ten squarings and products; and in storing float32.
    assert np.allclose(first, expected, rtol=16 * np.finfo(dtype).eps, atol=0.0)
    assert np.array_equal(ahead.predict(HORIZONS), expected), "made again once handed out"
    assert np.array_equal(ahead.predict(100), apart.predict(100)), "others as always"
    for name in ("status", "rank", "residual", "condition", "hindcast_error", "model"):
        assert np.array_equal(getattr(ahead, name), getattr(apart, name), equal_nan=name != "model")
    assert np.array_equal(ahead.eigenvalues(), apart.eigenvalues(), equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_was_handed_out_is_the_callers(backend):
    rows = smooth(9, 80, seed=4)
    ops = kc.fit(rows, partition([40, 40], 80), backend=backend, horizon=5)
    first = ops.predict(5)
    kept = first.copy()
    first[:] = np.nan
    assert np.array_equal(ops.predict(5), kept)


@pytest.mark.parametrize("backend", BACKENDS)
def test_groups_without_full_rank_and_in_another_unit_are_predicted_too(backend):
    rows = smooth(9, 160, seed=5).astype(np.float64)
    rows[:, 40:80] = 2.0  # still
    rows[:, 80:120] *= 1e200  # squares overflow
    part = partition([40, 40, 40], 160)
    ops = kc.fit(rows, part, backend=backend, horizon=[4])
    (got,) = ops.predict([4])
    assert np.array_equal(got, kc.fit(rows, part, backend=backend).predict(4))
    assert list(ops.status) == [0, 0, 0]
    assert np.array_equal(got[40:80], rows[-1, 40:80])
    assert not np.array_equal(got[80:120], rows[-1, 80:120])
    assert np.array_equal(got[120:], rows[-1, 120:])


@pytest.mark.parametrize(
    ("horizon", "error"), [(0, ValueError), (2.5, TypeError), ([], ValueError)]
)
def test_a_horizon_that_is_none_is_refused_before_any_work(horizon, error):
    rows = np.full((9, 80), np.nan)  # a fit would complain of these
    with pytest.raises(error, match=r"horizon|T is"):
        kc.fit(rows, partition([40, 40], 80), horizon=horizon)


def test_snapshots_that_are_not_finite_are_named():
    rows = smooth(9, 22, seed=6).astype(np.float32)
    rows[4, 13] = np.inf
    with pytest.raises(ValueError, match=r"group 1.*snapshot 4|snapshot 4.*group 1"):
        kc.fit(rows, partition([11, 11], 22), horizon=3)
