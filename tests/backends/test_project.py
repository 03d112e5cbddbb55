"""project of every backend: pseudo-inverse, ridge and truncation against numpy.linalg."""

from functools import cache

import numpy as np
import pytest
from backend_cases import OTHERS, REFERENCE, U, close, invariants
from trajectories import operator_of, smooth

from koopcore.backends.reference import PIVOT_RANGE, pivoted_cholesky, power_of_two_scale, whiten


def gram_of(f):
    return f.T @ f


def full_rank(n, seed):
    return np.random.default_rng(seed).normal(size=(n + 20, n))


def deficient(n, r, seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n + 20, r)) @ rng.normal(size=(r, n))


def badly_scaled(n, seed):
    return full_rank(n, seed) * np.logspace(-6, 6, n)


CASES = {
    "one column": (full_rank(1, 0), 1),
    "full rank": (full_rank(7, 1), 7),
    "rank 3 of 7": (deficient(7, 3, 2), 3),
    "rank 1 of 12": (deficient(12, 1, 3), 1),
    "rank 6 of 7": (deficient(7, 6, 4), 6),
    "columns of all sizes": (badly_scaled(8, 5), 8),
    "nothing": (np.zeros((20, 5)), 0),
    "some columns zero": (full_rank(6, 6) * [1, 0, 1, 0, 1, 1], 4),
}


@pytest.mark.parametrize(("f", "rank"), CASES.values(), ids=CASES)
def test_the_whitener_is_a_root_of_the_pseudo_inverse(backend, f, rank):
    n = f.shape[1]
    a = gram_of(f)
    h = np.random.default_rng(0).normal(size=(n, n))
    g = np.random.default_rng(1).normal(size=n)
    got = backend.project(a[None], h[None], g[None], None, 0.0, False)
    assert got.rank.tolist() == [rank]
    v = got.whitener[0]
    assert v.shape[1] >= rank
    assert (v[:, rank:] == 0.0).all()
    # The pseudo-inverse of the columns as they are; of full rank it is the same from scaled ones,
    # which the SVD resolves whatever their sizes. κ² u, with κ of the scaled columns below 1e4.
    scale = power_of_two_scale(np.diag(a)) if rank == n else np.ones(n)
    expected = scale[:, None] * np.linalg.pinv(f * scale, rcond=1e-10)
    inverse = expected @ expected.T
    np.testing.assert_allclose(v @ v.T, inverse, atol=1e-8 * np.abs(inverse).max(initial=0.0))
    np.testing.assert_allclose(got.operator[0], v.T @ h @ v, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(got.start[0], v.T @ g, rtol=1e-10, atol=1e-12)
    whitened = f @ v[:, :rank]
    np.testing.assert_allclose(whitened.T @ whitened, np.eye(rank), atol=1e-8)
    if rank == 0:
        assert got.condition[0] == np.inf
        return
    norms = np.linalg.norm(f, axis=0)
    scaled = f[:, norms > 0] / norms[norms > 0]
    sigma = np.linalg.svd(scaled, compute_uv=False)
    kappa = sigma[0] / sigma[rank - 1]
    # As for solve: between singular values, up to the √2 of power-of-two scales.
    assert kappa / (10 * len(a)) <= got.condition[0] <= 2.0 * kappa * (1 + 1e-6)


def test_groups_of_different_rank_stand_side_by_side(backend):
    fs = [full_rank(6, 1), deficient(6, 2, 2), np.zeros((9, 6)), deficient(6, 4, 3)]
    a = np.stack([gram_of(f) for f in fs])
    together = backend.project(a, a, np.ones((4, 6)), None, 0.0, False)
    assert together.rank.tolist() == [6, 2, 0, 4]
    for group, rank in enumerate([6, 2, 0, 4]):
        one = slice(group, group + 1)
        alone = backend.project(a[one], a[one], np.ones((1, 6)), None, 0.0, False)
        np.testing.assert_array_equal(together.whitener[group, :, :rank], alone.whitener[0])
        np.testing.assert_array_equal(together.operator[group, :rank, :rank], alone.operator[0])
        assert (together.operator[group, rank:] == 0.0).all()
        assert (together.operator[group, :, rank:] == 0.0).all()


def test_a_window_of_zeros_and_no_groups(backend):
    a = np.zeros((11, 4, 4))
    a[2] = np.eye(4)
    got = backend.project(a, a, np.ones((11, 4)), None, 0.0, False)
    assert got.rank.tolist() == [0, 0, 4] + [0] * 8
    assert np.isinf(got.condition[0])
    assert (got.whitener[0] == 0.0).all()
    assert (got.start[0] == 0.0).all()
    nothing = backend.project(a[:1], a[:1], np.ones((1, 4)), None, 0.0, False)
    assert nothing.operator.shape == (1, 0, 0)
    assert nothing.whitener.shape == (1, 4, 0)
    assert backend.project(a[:0], a[:0], np.ones((0, 4)), None, 0.0, False).rank.shape == (0,)


@pytest.mark.parametrize("ridge", [1e-8, 1e-3, 1.0, 100.0])
@pytest.mark.parametrize("f", [full_rank(6, 1), badly_scaled(6, 2), deficient(6, 3, 3)])
def test_a_ridge_is_relative_to_the_mean_scaled_diagonal(backend, ridge, f):
    a = gram_of(f)
    n = len(a)
    got = backend.project(a[None], a[None], np.ones((1, n)), None, ridge, False)
    scale = power_of_two_scale(np.diag(a))
    scaled = a * scale * scale[:, None]
    inverse = np.linalg.inv(scaled + ridge * np.trace(scaled) / n * np.eye(n))
    v = got.whitener[0]
    assert got.rank.tolist() == [n]
    # The condition number of the regularized matrix is at most n/ridge.
    np.testing.assert_allclose(
        v @ v.T / scale / scale[:, None], inverse, rtol=0, atol=1e3 * n / ridge * U * inverse.max()
    )


@pytest.mark.parametrize("rank", [1, 2, 3, 5])
def test_a_rank_keeps_the_leading_singular_values(backend, rank):
    f = full_rank(6, 4) @ np.diag([30.0, 10.0, 3.0, 1.0, 0.5, 0.25])
    a = gram_of(f)
    got = backend.project(a[None], a[None], np.ones((1, 6)), rank, 0.0, False)
    _, sigma, right = np.linalg.svd(f, full_matrices=False)
    expected = right[:rank].T / sigma[:rank] ** 2 @ right[:rank]
    v = got.whitener[0]
    assert got.rank.tolist() == [rank]
    np.testing.assert_allclose(v @ v.T, expected, atol=1e-10)  # κ² u = 1e-11, of numbers near 1


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_rank_counts_singular_values_of_snapshots_not_of_differences(backend, rank):
    """The truncated operator of [x_1, x_2, …] from the Gram matrix of [x_1, d_1, …]."""
    x = np.cumsum(np.random.default_rng(5).normal(size=(8, 30)), axis=0)
    steps = np.diff(x, axis=0)
    f = np.vstack([x[:1], steps[:-1]]).T
    ahead = np.vstack([x[1:2], steps[1:]]).T
    given = (f.T @ f)[None], (f.T @ ahead)[None], (f.T @ x[-1])[None]
    v = backend.project(*given, rank, 0.0, True).whitener[0]
    np.testing.assert_allclose((ahead @ v) @ (f @ v).T, operator_of(x, rank=rank), atol=1e-10)


def test_a_rank_above_the_numerical_one_changes_nothing(backend):
    a = gram_of(deficient(7, 3, 8))[None]
    limited, free = (backend.project(a, a, np.ones((1, 7)), k, 0.0, False) for k in (5, None))
    for name in free._fields:
        np.testing.assert_array_equal(getattr(limited, name), getattr(free, name))


# -- many groups ----------------------------------------------------------------------------------


@cache
def moments(m):
    """A, H and g of 11 groups of random walks, two of them of rank 2: cond(F) is small."""
    rng = np.random.default_rng(m)
    f = np.cumsum(rng.normal(size=(11, m, 3 * m + 6)), axis=2)
    for group in (3, 8) if m > 3 else ():
        f[group] = f[group][:, :2] @ rng.normal(size=(2, f.shape[2]))
    before, after = f[:, :, :-1].transpose(0, 2, 1), f[:, :, 1:]
    return f[:, :, :-1] @ before, after @ before, f[:, :, -1].copy()


@cache
def scaled_moments(m):
    """The same of rows whose sizes span three decades; every third group is of lower rank."""
    rng = np.random.default_rng(m)
    basis = rng.normal(size=(19, m, 3 * m)) * np.logspace(0, -3, m)[:, None]
    for group in range(0, 19, 3) if m > 3 else ():
        basis[group, 1 + group % (m - 1) :] = basis[group, :1]
    basis[1] = 0.0
    ahead = rng.normal(size=(19, m, 3 * m))
    across = basis.transpose(0, 2, 1)
    return basis @ across, basis @ ahead.transpose(0, 2, 1), (basis @ ahead[:, 0, :, None])[:, :, 0]


@cache
def projected(given, m, *options):
    return REFERENCE.project(*given(m), *options)


TRUNCATED = [(1, 0.0), (3, 0.0), (50, 0.0), (1, 1e-3)]
OPTIONS = pytest.mark.parametrize(
    ("rank", "ridge", "raw"),
    [
        (k, ridge, raw)
        for k, ridge in [(None, 0.0), (None, 1e-6), *TRUNCATED]
        for raw in (False, True)
    ],
)


def same_condition(backend, rank, ridge):
    """Whether it is the reference's estimate: that of another order of pivots is another one."""
    if backend.name == "native_cpu":
        return rank is None or ridge == 0.0
    return backend.name == "numba_cpu" or (backend.name == "native_cuda" and ridge == 0.0)


@pytest.mark.parametrize("backend", OTHERS, indirect=True)
@OPTIONS
@pytest.mark.parametrize("m", [1, 2, 3, 5, 8, 11, 17])
def test_many_groups_equal_the_reference(backend, m, rank, ridge, raw):
    a, h, g = moments(m)
    got = backend.project(a, h, g, rank, ridge, raw)
    expected = projected(moments, m, rank, ridge, raw)
    assert np.array_equal(got.rank, expected.rank)
    assert got.whitener.shape == expected.whitener.shape
    for i in range(11):
        # V is determined up to a rotation: compare what it stands for, the pseudo-inverse and two
        # predicted steps H A⁺ H A⁺ g. Errors of cond² m·u; where singular values are dropped, the
        # gap between those and the others comes on top.
        bound = 1e-13 * expected.condition[i] ** 2 * (100.0 if rank in (1, 3) else 1.0)
        made, due = (
            (
                fit.whitener[i] @ fit.whitener[i].T,
                h[i] @ fit.whitener[i] @ fit.start[i],
                h[i] @ fit.whitener[i] @ fit.operator[i] @ fit.start[i],
            )
            for fit in (got, expected)
        )
        for one, other in zip(made, due, strict=True):
            close(one, other, bound)
        if same_condition(backend, rank, ridge):
            assert got.condition[i] == pytest.approx(expected.condition[i], rel=bound)


@pytest.mark.parametrize("backend", OTHERS, indirect=True)
@OPTIONS
@pytest.mark.parametrize("m", [4, 11, 24])
def test_rows_of_all_sizes_equal_the_reference(backend, m, rank, ridge, raw):
    a, h, g = scaled_moments(m)
    both = np.stack([a, h], axis=1)  # views will do
    got = backend.project(both[:, 0], both[:, 1], g, rank, ridge, raw)
    expected = projected(scaled_moments, m, rank, ridge, raw)
    np.testing.assert_array_equal(got.rank, expected.rank)
    assert got.operator.shape == expected.operator.shape
    np.testing.assert_array_equal(np.isinf(got.condition), np.isinf(expected.condition))
    if same_condition(backend, rank, ridge):
        close(got.condition, expected.condition, 1e-6)
    # Singular vectors and pivots in ties may differ in sign and order; these products may not.
    for mine, theirs in zip(invariants(got), invariants(expected), strict=True):
        close(mine, theirs, 1e-6)


# -- inside the reference -------------------------------------------------------------------------


def test_pivoted_cholesky_reproduces_what_it_keeps():
    for f, rank in CASES.values():
        a = gram_of(f)
        scale = power_of_two_scale(np.diag(a))
        scaled = a * scale * scale[:, None]
        factor, order = pivoted_cholesky(scaled, scale)
        assert sorted(order.tolist()) == list(range(len(scaled)))
        if rank:
            # rank_tolerance is 4 n u of the largest diagonal: that much may be left over.
            np.testing.assert_allclose(
                factor @ factor.T, scaled[np.ix_(order, order)], atol=1e-13 * scaled.max()
            )
        pivots = np.diag(factor) ** 2
        # A pivot is the largest that is left, or within PIVOT_RANGE of it.
        assert (pivots[1:] <= pivots[:-1] / PIVOT_RANGE).all()


def test_slow_decay_has_the_rank_of_its_motions():
    """Three exponentials and a fixed point span four directions of any window."""
    x = smooth(20, 65)
    f = np.vstack([x[:1], np.diff(x, axis=0)[:-1]]).T
    whitener, _ = whiten(f.T @ f, None, 0.0, True)
    # The smallest motion's decay beneath the noise may add or hide one.
    assert whitener.shape[1] in (4, 5)
