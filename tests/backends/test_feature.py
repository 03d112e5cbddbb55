"""The feature side of every backend: reflection, moments, fits, endpoints, deficient groups."""

from functools import cache

import numpy as np
import pytest
from backend_cases import DTYPES, OTHERS, REFERENCE, U, close, covered, decays, invariants, walks
from trajectories import generic

from koopcore.backends.composed import feature_stops
from koopcore.backends.protocol import Ahead
from koopcore.backends.reflection import reflect, unreflect
from koopcore.partition.partition import Partition

BOTH = pytest.mark.parametrize("affine", [False, True], ids=["linear", "affine"])
others = pytest.mark.parametrize("backend", OTHERS, indirect=True)
DIAGNOSTICS = ("rank", "condition", "residual", "hindcast")


def alike(groups, m):
    """Groups of m: contiguous, strided, and of two segments, as weights and a bias, in turn."""
    spans = np.arange(groups * 2 * m).reshape(groups, 2 * m)
    kinds = [lambda s: s[:m], lambda s: s[::2], lambda s: np.append(s[: m - 1], s[-1])]
    return Partition.groups(
        groups * 2 * m + 3, [kinds[g % 3](span) for g, span in enumerate(spans)]
    )


# -- the reflection -------------------------------------------------------------------------------


def householder(last):
    """H with H last = -sign(last_p) ‖last‖ e_p, p the first of its largest entries, written out."""
    v = np.array(last, dtype=np.longdouble)
    p = np.abs(v).argmax()
    v[p] += np.copysign(np.sqrt(v @ v), v[p])
    square = v @ v
    return np.eye(len(v)) - (2 * np.outer(v, v) / square if square else 0.0)


@pytest.mark.parametrize("m", [1, 2, 11])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_reflection_is_householders(m, sign):
    rows = generic(9, m, seed=m)
    p = np.abs(rows[-1]).argmax()
    rows[-1, p] = sign * abs(rows[-1, p])
    got = reflect(rows, rows[-1])
    np.testing.assert_allclose(got, rows @ householder(rows[-1]).astype(float), atol=1e-13)
    expected = np.zeros(m)
    expected[p] = -sign * np.linalg.norm(rows[-1])
    np.testing.assert_allclose(got[-1], expected, atol=1e-15 * abs(expected[p]))
    np.testing.assert_allclose(unreflect(got, rows[-1]), rows, atol=1e-13)


def test_reflection_keeps_small_parameters_apart_from_large_ones():
    """Every coordinate but that of the position has the digits of its own parameter."""
    sizes = 10.0 ** np.array([-12.0, -3.0, 0.0, -8.0, -5.0])
    rows = generic(9, 5, seed=1) * sizes
    rows[-1] = sizes
    got = reflect(rows, rows[-1])
    exact = rows.astype(np.longdouble) @ householder(rows[-1])
    others = np.arange(5) != 2
    assert (np.abs(got - exact)[:, others] < 32 * U * sizes[others]).all()
    order = np.array([3, 0, 4, 1, 2])
    again = reflect(rows[:, order], rows[-1, order])
    assert (np.abs(again - got[:, order]) < 32 * U * sizes[order]).all()


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
    across = ((exact - exact[-1]) @ householder(exact[-1])).astype(float)
    others = [0, 2]  # the position is along the second
    np.testing.assert_allclose(got[:, others], across[:, others], atol=20 * U * 1e-2)


# -- moments --------------------------------------------------------------------------------------


@cache
def moments(m, n, dtype, affine):
    """Snapshots, 11 groups of which one ends at zero, and longdouble moments with their bounds."""
    part, stops = alike(11, m), [n, n - n // 4, 3]
    snapshots = walks(np.random.default_rng(m), n, part.size, dtype)
    snapshots.array[snapshots.order[-1], part.indices(5)] = 0.0  # nothing to be reflected at
    exact = np.empty((3, 11, 2, m, m), dtype=np.longdouble)
    bound = np.empty((3, 11, 1, 1, 1))
    for group in range(11):
        rows = snapshots.array[snapshots.order][:, part.indices(group)].astype(np.longdouble)
        rows = np.diff(rows, axis=0) if affine else rows @ householder(rows[-1])
        for i, stop in enumerate(stops):
            f, ahead = rows[: stop - 1 - affine], rows[1 : stop - affine]
            exact[i, group] = f.T @ f, ahead.T @ f
            # n products, each of numbers with a few roundings.
            bound[i, group] = (n + 8 * m + 16) * U * np.abs(rows).max() ** 2 * len(f)
    return snapshots, part, stops, exact, bound


@pytest.mark.parametrize("dtype", DTYPES)
@BOTH
@pytest.mark.parametrize(
    ("m", "n"),
    [(1, 5), (1, 40), (2, 40), (3, 40), (4, 9), (2, 300), (11, 16), (12, 33), (18, 33), (30, 64)],
)
def test_moments_are_sums_over_the_window(backend, m, n, dtype, affine):
    snapshots, part, stops, exact, bound = moments(m, n, dtype, affine)
    got = backend.feature_gram(snapshots, part, affine, stops)
    assert got.shape == exact.shape
    here = np.arange(11) != 5
    if backend.name != "cupy_cuda" or dtype is np.float32 or affine:
        here[5] = True  # CuPy's zero is a sum of float64 differences, and need not be zero
    assert (np.abs(got - exact) <= bound)[:, here].all()
    # Beside the reference: sums of n products in another order, n·u of the largest entry at most.
    expected = REFERENCE.feature_gram(snapshots, part, affine, stops)
    for i in range(len(stops)):
        for group in np.flatnonzero(here):
            close(got[i, group], expected[i, group], 4 * n * U)


# -- fits -----------------------------------------------------------------------------------------


@cache
def fit(m, n, dtype, affine):
    part = alike(19, m)
    snapshots = decays(n, part.size, m, dtype)
    holdout = max(1, (n - 1) // 4)
    return snapshots, part, holdout, REFERENCE.feature_fit(snapshots, part, affine, holdout)


@others
@BOTH
@pytest.mark.parametrize(
    ("m", "n", "dtype"),
    [(m, n, dtype) for dtype in DTYPES for m, n in ((1, 3), (2, 4), (3, 9), (11, 16), (12, 33))]
    + [(1, 40, np.float32), (4, 8, np.float32), (5, 300, np.float32), (30, 64, np.float32)]
    + [(5, 300, np.float64)],
)
def test_fits_equal_the_reference(backend, m, n, affine, dtype):
    snapshots, part, holdout, expected = fit(m, n, dtype, affine)
    got = backend.feature_fit(snapshots, part, affine, holdout)
    # Condition numbers up to 1e4, squared in the moments: 1e8 times 1e-16, and a hundredfold for
    # the triangular solves and the rollout.
    equals(got, expected, 1e-6)
    moments = backend.feature_gram(snapshots, part, affine, feature_stops(n, affine, holdout))
    again = backend.feature_solve(snapshots, part, affine, holdout, moments, None, 0.0)
    equals(again, expected, 1e-6)


def equals(got, expected, tolerance):
    np.testing.assert_array_equal(got.rank, expected.rank)
    np.testing.assert_allclose(got.residual, expected.residual, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(got.hindcast, expected.hindcast, rtol=tolerance, atol=tolerance)
    assert got.projection is not None
    # V is one of many: what does not depend on the choice is A⁺ = V Vᵀ, and U, K and z through it.
    for one, other in zip(products(got), products(expected), strict=True):
        close(one, other, tolerance)


def products(solved):
    across = solved.projection.whitener.transpose(0, 2, 1)
    return solved.readout @ across, *invariants(solved.projection)


@cache
def ends(m, n, affine, horizons):
    part = alike(17, m)
    snapshots = decays(n, part.size, m, np.float32)
    out = np.full((len(horizons), part.size), np.nan, np.float32)
    REFERENCE.feature_fit(snapshots, part, affine, 2, Ahead(horizons, out))
    return snapshots, part, out


@others
@BOTH
@pytest.mark.parametrize(("m", "n"), [(1, 8), (3, 9), (11, 16)])
@pytest.mark.parametrize(
    "horizons", [(1,), (100,), (7, 1, 2, 3, 7), (1025, 20), tuple(range(1, 12)), (10**6,)], ids=str
)
def test_endpoints_ahead_are_those_of_the_fit(backend, m, n, affine, horizons):
    snapshots, part, expected = ends(m, n, affine, horizons)
    out = np.full((part.size, len(horizons)), np.nan, np.float32).T  # strided, as no snapshots are
    backend.feature_fit(snapshots, part, affine, 2, Ahead(horizons, out))
    np.testing.assert_array_equal(np.isnan(out), np.isnan(expected))
    apart = np.full_like(expected, np.nan)
    solved = backend.feature_fit(snapshots, part, affine, 2)
    fitted = solved.projection, solved.readout
    backend.feature_endpoint(snapshots, part, *fitted, affine, horizons, apart)
    inside = covered(part)
    for i in range(len(horizons)):
        # a hundred steps of operators with roots near 1 carry 1e-6 a hundredfold
        close(out[i, inside], expected[i, inside], 1e-4)
        close(apart[i, inside], expected[i, inside], 1e-4)


def mixed(n, m, groups):
    """Every other group is deficient: still, with still or repeated parameters, or moving once."""
    part = alike(groups, m)
    snapshots = decays(n, part.size, 5, np.float32)
    x = snapshots.array[snapshots.order]
    for group in range(0, groups, 2):
        columns = part.indices(group)
        kind = group // 2 % 4
        if kind == 0:
            x[:, columns] = x[0, columns]
        elif kind == 1:
            x[:, columns[1]] = x[0, columns[1]]
        elif kind == 2:
            x[:, columns[1:]] = x[:, columns[:1]]
        else:
            x[1:, columns] = x[1, columns]
    snapshots.array[snapshots.order] = x
    return snapshots, part


@others
@BOTH
@pytest.mark.parametrize(("m", "n"), [(3, 9), (11, 16)])
def test_deficient_groups_equal_the_reference_and_disturb_no_neighbour(backend, m, n, affine):
    snapshots, part = mixed(n, m, 19)
    out, wanted = (np.full((2, part.size), np.nan, np.float32) for _ in range(2))
    ahead = backend.feature_fit(snapshots, part, affine, 2, Ahead([1, 30], out))
    solved = backend.feature_fit(snapshots, part, affine, 2)
    expected = REFERENCE.feature_fit(snapshots, part, affine, 2, Ahead([1, 30], wanted))
    np.testing.assert_array_equal(solved.rank, expected.rank)
    assert len(set(expected.rank)) > 2  # the table holds what it promises
    close(out[:, part.indices(0)], wanted[:, part.indices(0)], 1e-6)
    inside = covered(part)
    np.testing.assert_array_equal(np.isnan(out), np.isnan(wanted))
    close(out[:, inside], wanted[:, inside], 1e-4)
    # Alone in its vectors, and beside all the others: the same bits, but for the last ones where
    # products of stacks of matrices are NumPy's.
    few_ulps = backend.device == "cuda"
    for group in range(part.n_groups):
        single = np.full((2, part.size), np.nan, np.float32)
        subset = part.subset(np.array([group]))
        alone = backend.feature_fit(snapshots, subset, affine, 2, Ahead([1, 30], single))
        columns = part.indices(group)
        np.testing.assert_allclose(single[:, columns], out[:, columns], rtol=few_ulps * 1e-6)
        for name in DIAGNOSTICS:
            for beside in (ahead, solved):
                due = getattr(beside, name)[group]
                np.testing.assert_allclose(getattr(alone, name)[0], due, rtol=few_ulps * 1e-13)


@BOTH
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_group_that_is_not_finite_says_so(backend, bad, affine):
    part = alike(16, 4)
    for k in (0, 5, 11):
        snapshots = decays(12, part.size, 0, np.float32)
        snapshots.array[snapshots.order[k], part.indices(3)[1]] = bad
        solved = backend.feature_fit(snapshots, part, affine, 2)
        finite = np.isfinite(solved.residual)
        assert not finite[3]
        if backend.name in {"native_cpu", "numba_cpu"}:  # the others leave it to who asks again
            assert finite.sum() == 15
