"""native_cpu against the reference: feature-side moments, dense fits and rollouts, copies."""

import numpy as np
import pytest

from koopcore.backends.native_cpu import NativeCpu
from koopcore.backends.protocol import Snapshots
from koopcore.backends.reference import Reference
from koopcore.partition.partition import Partition

reference = Reference()


_cpu = pytest.importorskip(
    "koopcore._native._cpu", reason="the C++ module is not built", exc_type=ImportError
)
native = NativeCpu(_cpu)

GROUPS = 11  # no multiple of any vector width


@pytest.fixture(params=_cpu.supported_isas())
def isa(request):
    _cpu.force_isa(request.param)
    yield request.param
    _cpu.force_isa("")


def nodes(m):
    """Groups of m - 1 contiguous weights and one bias far behind them."""
    weights = (m - 1) * GROUPS
    return Partition.groups(
        weights + GROUPS + 3,
        [
            np.append(np.arange(1 + g * (m - 1), 1 + (g + 1) * (m - 1)), 2 + weights + g)
            for g in range(GROUPS)
        ],
    )


def walks(rng, n, size, dtype):
    array = np.cumsum(rng.normal(size=(n + 2, size)), axis=0) + rng.normal(size=size)
    return Snapshots(array.astype(dtype), (np.arange(n) + 1) % (n + 2))


def relative(got, expected):
    return np.abs(got - expected).max() / max(np.abs(expected).max(), 1e-300)


@pytest.mark.parametrize("affine", [False, True], ids=["linear", "affine"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("m", "n"), [(1, 5), (2, 40), (4, 9), (7, 300), (11, 16), (18, 33)])
def test_feature_gram(isa, m, n, dtype, affine):
    rng = np.random.default_rng(m)
    part, stops = nodes(m), [n, n - n // 4, 3]
    snapshots = walks(rng, n, part.size, dtype)
    got = native.feature_gram(snapshots, part, affine, stops)
    expected = reference.feature_gram(snapshots, part, affine, stops)
    assert got.shape == expected.shape
    # Sums of n products in another order: n·u of the largest entry at most.
    for s in range(len(stops)):
        for g in range(GROUPS):
            assert relative(got[s, g], expected[s, g]) < 4 * n * 2.0**-53


def test_reflection_of_a_group_that_ends_at_zero(isa):
    rng = np.random.default_rng(0)
    part = nodes(3)
    snapshots = walks(rng, 12, part.size, np.float64)
    snapshots.array[snapshots.order[-1], part.indices(5)] = 0.0
    got = native.feature_gram(snapshots, part, False, [12])
    assert relative(got, reference.feature_gram(snapshots, part, False, [12])) < 12 * 2.0**-50


def moments(rng, m, deficient):
    """(A, H, g) of random walks; the groups in `deficient` have rank 2."""
    f = np.cumsum(rng.normal(size=(GROUPS, m, 3 * m + 6)), axis=2)
    for group in deficient:
        f[group] = f[group][:, :2] @ rng.normal(size=(2, f.shape[2]))
    h = f[:, :, 1:] @ f[:, :, :-1].transpose(0, 2, 1)
    a = f[:, :, :-1] @ f[:, :, :-1].transpose(0, 2, 1)
    return a, h, f[:, :, -1].copy()


@pytest.mark.parametrize("raw", [False, True], ids=["features", "raw"])
@pytest.mark.parametrize(
    ("rank", "ridge"), [(None, 0.0), (None, 1e-6), (1, 0.0), (3, 0.0), (50, 0.0)]
)
@pytest.mark.parametrize("m", [1, 2, 3, 5, 8, 11, 17])
def test_project(isa, m, rank, ridge, raw):
    rng = np.random.default_rng(m)
    a, h, g = moments(rng, m, [3, 8] if m > 3 else [])
    got = native.project(a, h, g, rank, ridge, raw)
    expected = reference.project(a, h, g, rank, ridge, raw)
    assert np.array_equal(got.rank, expected.rank)
    assert got.whitener.shape == expected.whitener.shape
    for i in range(GROUPS):
        # V is determined up to a rotation: compare what it stands for, the pseudo-inverse and two
        # predicted steps H A⁺ H A⁺ g. Errors of cond² m·u; where singular values are dropped, the
        # gap between the kept and the dropped ones comes on top.
        bound = 1e-13 * expected.condition[i] ** 2 * (100.0 if rank in (1, 3) else 1.0)
        v, w = got.whitener[i], expected.whitener[i]
        assert relative(v @ v.T, w @ w.T) < bound
        steps = [h[i] @ fit.whitener[i] @ fit.start[i] for fit in (got, expected)]
        assert relative(*steps) < bound
        steps = [h[i] @ fit.whitener[i] @ fit.operator[i] @ fit.start[i] for fit in (got, expected)]
        assert relative(*steps) < bound
        assert got.condition[i] == pytest.approx(expected.condition[i], rel=bound)


def test_project_in_a_window_of_zeros(isa):
    a = np.zeros((GROUPS, 4, 4))
    a[2] = np.eye(4)
    got = native.project(a, a, np.ones((GROUPS, 4)), None, 0.0, False)
    assert got.rank.tolist() == [0, 0, 4] + [0] * (GROUPS - 3)
    assert np.isinf(got.condition[0])
    assert (got.whitener[0] == 0.0).all()
    assert (got.start[0] == 0.0).all()
    nothing = native.project(a[:1], a[:1], np.ones((1, 4)), None, 0.0, False)
    assert nothing.operator.shape == (1, 0, 0)
    assert nothing.whitener.shape == (1, 4, 0)


@pytest.mark.parametrize(
    "horizons",
    [[1], [100], [7, 1, 7, 100, 3], list(range(1, 40)), [2000, 10**5]],
    ids=["first", "one", "unsorted", "trajectory", "long"],
)
@pytest.mark.parametrize("affine", [False, True], ids=["linear", "affine"])
@pytest.mark.parametrize("r", [1, 2, 4, 7, 11])
def test_rollout_dense(isa, r, affine, horizons):
    rng = np.random.default_rng(r)
    # Rotations: no state grows or dies, so every horizon is compared at full size.
    operator = np.stack([np.linalg.qr(rng.normal(size=(r, r)))[0] for _ in range(GROUPS)])
    start = rng.normal(size=(GROUPS, r))
    states, growth = native.rollout_dense(operator, start, affine, horizons)
    expected, growths = reference.rollout_dense(operator, start, affine, horizons)
    # A rotation's powers lose r·u each; its sums may grow with the horizon where it has a fixed
    # direction, which the division by the largest state takes out.
    bound = 1e-14 * (max(horizons) + 10)
    for i in range(len(horizons)):
        for g in range(GROUPS):
            scale = max(np.abs(expected[i, g]).max(), np.abs(start[g]).max())
            assert np.abs(states[i, g] - expected[i, g]).max() < bound * scale
    assert growth == pytest.approx(growths, rel=bound)


def test_an_unstable_operator_overflows_quietly(isa):
    operator = np.array([[[2.0, 0.0], [0.0, 0.5]]] * 3)
    states, _ = native.rollout_dense(operator, np.ones((3, 2)), False, [5000])
    assert not np.isfinite(states).all(axis=2).any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gather_and_scatter_are_indexing(isa, dtype):
    rng = np.random.default_rng(1)
    part = nodes(5)
    snapshots = walks(rng, 9, part.size, dtype)
    values = native.gather(snapshots, part, [0, -1, 4])
    index = part.index_matrix(range(GROUPS))
    window = snapshots.array[snapshots.order]
    assert np.array_equal(values, window[[0, -1, 4]][:, index])
    out = np.full((3, part.size), np.nan, dtype)
    native.scatter(part, values, out)
    assert np.array_equal(out[:, index], window[[0, -1, 4]][:, index])
    assert np.isnan(out).sum() == 3 * (part.size - index.size)
    native.scatter(part, np.full_like(values, -1e300), out)
    assert np.isfinite(out[:, index]).all()


BAD = {
    "groups of unequal size": (
        lambda s: native.feature_gram(s, Partition.groups(30, [[1, 2], [3]]), True, [5]),
        "equal size",
    ),
    "stop past the window": (
        lambda s: native.feature_gram(s, Partition.groups(30, [[1], [3]]), True, [9]),
        "stop",
    ),
    "stop too early": (
        lambda s: native.feature_gram(s, Partition.groups(30, [[1], [3]]), True, [2]),
        "stop",
    ),
    "matrices of unequal size": (
        lambda s: native.project(
            np.ones((2, 3, 3)), np.ones((2, 4, 4)), np.ones((2, 3)), None, 0.0, False
        ),
        "shape",
    ),
    "negative ridge": (
        lambda s: native.project(
            np.ones((2, 3, 3)), np.ones((2, 3, 3)), np.ones((2, 3)), None, -1.0, False
        ),
        "ridge",
    ),
    "start of another size": (
        lambda s: native.rollout_dense(np.ones((2, 3, 3)), np.ones((2, 4)), True, [1]),
        "shape",
    ),
    "values of another size": (
        lambda s: native.scatter(
            Partition.groups(30, [[1], [3]]), np.ones((1, 2, 5)), np.ones((1, 30))
        ),
        "values",
    ),
    "out too narrow": (
        lambda s: native.scatter(
            Partition.groups(30, [[1], [29]]), np.ones((1, 2, 1)), np.ones((1, 20))
        ),
        "outside",
    ),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD.keys())
def test_bad_arguments_are_refused_before_any_work(call, message):
    with pytest.raises(ValueError, match=message):
        call(walks(np.random.default_rng(0), 8, 30, np.float32))
