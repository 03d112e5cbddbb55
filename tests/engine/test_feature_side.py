"""Groups of fewer parameters than snapshots: moments, reflection, long windows, truncation."""

import numpy as np
import pytest
from trajectories import NAMES, WHOLE, by_operator, generic, movement, operator_of, spiral

import koopcore as kc
from koopcore.backends import backend_for
from koopcore.backends.protocol import Snapshots
from koopcore.backends.reflection import reflect, unreflect

U = 2.0**-53


def householder(last):
    """H with H last = -sign(last_1) ‖last‖ e_1, written out."""
    v = np.array(last, dtype=np.longdouble)
    v[0] += np.copysign(np.sqrt(v @ v), v[0])
    return np.eye(len(v)) - 2 * np.outer(v, v) / (v @ v)


# -- the reflection -------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [1, 2, 11])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_reflection_is_householders(m, sign):
    rows = generic(9, m, seed=m)
    rows[-1, 0] = sign * abs(rows[-1, 0])
    got = reflect(rows, rows[-1])
    np.testing.assert_allclose(got, rows @ householder(rows[-1]).astype(float), atol=1e-13)
    expected = np.zeros(m)
    expected[0] = -sign * np.linalg.norm(rows[-1])
    np.testing.assert_allclose(got[-1], expected, atol=1e-15 * abs(expected[0]))
    np.testing.assert_allclose(unreflect(got, rows[-1]), rows, atol=1e-13)


def test_reflection_of_many_groups_and_of_nothing():
    rows, last = np.ones((3, 4, 2)), np.array([[1.0, 2.0], [0.0, 0.0], [-1.0, 0.0]])
    together = reflect(rows, last)
    for group in range(3):
        np.testing.assert_array_equal(together[group], reflect(rows[group], last[group]))
    np.testing.assert_array_equal(together[1], rows[1])  # nothing to stand on: as it is


def test_reflection_keeps_the_digits_of_the_motion():
    """Far from the origin, coordinates across the position are small, with small errors."""
    point = np.array([3e5, -4e5, 1e5])
    motion = np.random.default_rng(0).normal(size=(6, 3)) * 1e-3
    got = reflect(point + motion, point + motion[-1])
    exact = (point + motion).astype(np.longdouble)
    # Rounding of a motion of 1e-2 at most is seen, not of a position of 5e5.
    across = ((exact - exact[-1]) @ householder(exact[-1]))[:, 1:].astype(float)
    np.testing.assert_allclose(got[:, 1:], across, atol=20 * U * 1e-2)


# -- moments --------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("m", [1, 2, 3, 11])
def test_moments_are_sums_over_the_window(backend, dtype, affine, m):
    n, stops = 40, [40, 31, 3]
    size = 4 * m + 3
    part = kc.Partition.groups(size, [range(m), range(m + 1, 3 * m + 1, 2), range(3 * m + 3, size)])
    x = generic(n, size, seed=m).astype(dtype)
    order = (np.arange(n) + 7) % n
    ring = np.empty_like(x)
    ring[order] = x
    got = backend_for("cpu", backend).feature_gram(Snapshots(ring, order), part, affine, stops)
    assert got.shape == (3, 3, 2, m, m)
    for group in range(3):
        rows = x[:, part.indices(group)].astype(np.longdouble)
        rows = np.diff(rows, axis=0) if affine else rows @ householder(rows[-1])
        for i, stop in enumerate(stops):
            f, ahead = rows[: stop - 1 - affine], rows[1 : stop - affine]
            # n products, each of numbers with a few roundings.
            bound = (n + 8 * m + 16) * U * np.abs(rows).max() ** 2 * len(f)
            assert np.abs(got[i, group, 0] - f.T @ f).max() <= bound
            assert np.abs(got[i, group, 1] - ahead.T @ f).max() <= bound


# -- fits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", WHOLE)
@pytest.mark.parametrize("model", ["linear", "affine"])
@pytest.mark.parametrize("m", [2, 11])
def test_ten_thousand_snapshots(model, m, backend):
    """The windows of Dogra & Redman: nodes of 2 and 11 weights, a snapshot an iteration."""
    groups = 5
    rates = 1.0 - np.logspace(-5, -3, 3)
    rng = np.random.default_rng(m)
    t = np.arange(12_000)
    motion = np.power.outer(rates, t).T @ rng.normal(size=(3, groups * m))
    clean = rng.normal(size=groups * m) + motion
    x = clean[:10_000].astype(np.float32)
    part = kc.Partition.groups(groups * m, [range(i * m, (i + 1) * m) for i in range(groups)])
    ops = kc.fit(x, part, model, backend=backend)
    got = ops.predict([500, 2_000])
    assert np.isfinite(got).all()
    assert (ops.status == 0).all()
    assert (ops.rank <= m).all()
    if m == 11:  # two weights do not determine three motions
        error = np.linalg.norm(got - clean[[10_499, 11_999]], axis=1)
        # float32 snapshots: 6e-8 of rounding a step, averaged over 10,000 of them.
        assert (error <= 0.05 * movement(clean[9_999:])).all()


@pytest.mark.parametrize("backend", WHOLE)
@pytest.mark.parametrize("side", ["feature", "snapshot"])
@pytest.mark.parametrize("model", ["linear", "affine"])
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_rank_is_that_of_dynamic_mode_decomposition(rank, model, side, backend):
    """``rank=r`` is DMD with svd_rank=r: F⁺ from the r leading singular values of F."""
    x = generic(20, 6, seed=3) if side == "feature" else generic(7, 40, seed=3)
    m = x.shape[1]
    ops = kc.fit(x, kc.Partition.groups(m, [range(m)]), model, rank=rank, backend=backend)
    assert ops.rank.tolist() == [rank]
    u = operator_of(x, model == "affine", rank)
    # Singular values within a factor of 1e3 of each other: κ² u = 1e-10.
    np.testing.assert_allclose(ops.operator(0), u, atol=1e-8 * np.linalg.norm(u))
    step = x[-1] - x[-2]
    expected = x[-1] + u @ step if model == "affine" else u @ x[-1]
    np.testing.assert_allclose(ops.predict(1), expected, atol=1e-8 * np.abs(expected).max())


@pytest.mark.parametrize("backend", WHOLE)
def test_small_groups_keep_what_rank_they_have(backend):
    x = generic(12, 20)
    part = kc.Partition.groups(20, [[0], [1, 2], range(3, 18)])
    assert kc.fit(x, part, "linear", rank=5, backend=backend).rank.tolist() == [1, 2, 5]


@pytest.mark.parametrize("backend", WHOLE)
@pytest.mark.parametrize("model", ["linear", "affine"])
@pytest.mark.parametrize("m", [6, 40])
def test_a_ridge_shrinks_towards_no_motion_and_vanishes_smoothly(model, m, backend):
    x = generic(16, m, seed=9)
    part = kc.Partition.groups(m, [range(m)])
    free = kc.fit(x, part, model, backend=backend).operator(0)
    distance = []
    for ridge in (1e-12, 1e-6, 1e-2, 1e2):
        ops = kc.fit(x, part, model, ridge=ridge, backend=backend)
        assert np.isfinite(ops.predict(100)).all()
        distance.append(np.linalg.norm(ops.operator(0) - free) / np.linalg.norm(free))
    assert distance == sorted(distance)
    assert distance[0] < 1e-7  # κ² of 1e4 times 1e-12
    assert np.linalg.norm(ops.operator(0)) < 0.1 * np.linalg.norm(free)


@pytest.mark.parametrize("backend", WHOLE)
@pytest.mark.parametrize("model", ["linear", "affine"])
def test_both_sides_of_the_boundary_agree(model, backend):
    """m = n - 1 is the last group on the snapshot side, m = n - 2 the first on the other."""
    plane = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 5)))[0].T
    path = by_operator(spiral(0.3, 0.98, 5), np.ones(5), 13) @ plane
    path = path if model == "linear" else path + 5.0
    for n in (7, 8, 9, 10):
        ops = kc.fit(path[:n], kc.Partition.groups(6, [range(6)]), model, backend=backend)
        # Five directions of motion, the slowest 0.98 and the fastest 0.125 a step: cond(F) of 1e5,
        # and those that matter have their digits.
        np.testing.assert_allclose(ops.predict(3), path[n + 2], atol=1e-6)


@pytest.mark.parametrize("backend", WHOLE)
@pytest.mark.parametrize("model", ["linear", "affine"])
def test_float64_snapshots_of_small_groups_are_refined(model, backend):
    """Motions of 1e-7 beside those of 1 survive, although the moments hold their squares."""
    rates = np.array([0.99, 0.9, 0.8])
    t = np.arange(43)
    basis = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))[0][:3]
    path = (np.power.outer(rates, t).T * [1.0, 1e-3, 1e-6]) @ basis
    path = path if model == "linear" else path + 2.0
    ops = kc.fit(path[:33], kc.Partition.groups(4, [range(4)]), model, backend=backend)
    got = ops.eigenvalues()[0].real
    np.testing.assert_allclose(got[:3], rates, rtol=1e-3)
    np.testing.assert_allclose(ops.predict(10), path[-1], atol=1e-9)
