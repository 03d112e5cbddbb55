"""Fits of groups of fewer parameters than snapshots: long windows, truncation, ridge, float64."""

import numpy as np
import pytest
from trajectories import WHOLE, by_operator, generic, movement, operator_of, smooth, spiral

import koopcore as kc


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
def test_directions_that_are_not_resolved_have_no_eigenvalues(backend):
    """Eight slow decays on eleven parameters, of which sums of 10,000 products show five or six."""
    n, horizon, m = 10_000, 2_500, 11
    windows, t = [], np.arange(n + horizon)
    for seed in range(12):
        rng = np.random.default_rng(seed)
        rates = 10.0 ** rng.uniform(-5.0, -3.5, 8)
        modes = rng.normal(size=(8, m)) * 10.0 ** -rng.uniform(0.0, 3.0, (8, 1))
        windows.append(rng.normal(size=m) + np.exp(-np.outer(t, rates)) @ modes)
    x = np.hstack(windows)
    part = kc.Partition.groups(12 * m, [range(g * m, g * m + m) for g in range(12)])
    ops = kc.fit(x[:n], part, "linear", backend=backend)
    missed = (ops.predict(horizon) - x[-1]).reshape(12, m)
    moved = (x[-1] - x[n - 1]).reshape(12, m)
    assert (np.linalg.norm(missed, axis=1) <= 1e-3 * np.linalg.norm(moved, axis=1)).all()


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
@pytest.mark.parametrize("model", ["linear", "affine"])
@pytest.mark.parametrize("rank", [1, 2, 3, 5])
@pytest.mark.parametrize("n", [8, 90], ids=["snapshot side", "feature side"])
def test_a_rank_under_a_ridge_predicts_by_its_operator(n, rank, model, backend):
    """Deficient windows, which are looked at again: U of predict(1) is that of operator()."""
    x = smooth(n, 70, rates=(0.5, 0.9))
    part = kc.Partition.groups(70, [range(70)])
    ops = kc.fit(x, part, model, rank=rank, ridge=1e-6, backend=backend)
    u, step = ops.operator(0), x[-1] - x[-2]
    expected = x[-1] + u @ step if model == "affine" else u @ x[-1]
    np.testing.assert_allclose(ops.predict(1), expected, atol=1e-6)  # cond(F) of 1e3, squared


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
