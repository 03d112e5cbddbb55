"""`project`: pseudo-inverse, ridge and truncation against numpy.linalg, on every backend."""

import numpy as np
import pytest
from trajectories import NAMES, operator_of, smooth

from koopcore.backends import backend_for
from koopcore.backends.reference import (
    PIVOT_RANGE,
    Reference,
    pivoted_cholesky,
    power_of_two_scale,
    whiten,
)

reference = Reference()


U = 2.0**-53


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


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize(("f", "rank"), CASES.values(), ids=CASES)
def test_the_whitener_is_a_root_of_the_pseudo_inverse(backend, f, rank):
    n = f.shape[1]
    a = gram_of(f)
    h = np.random.default_rng(0).normal(size=(n, n))
    g = np.random.default_rng(1).normal(size=n)
    got = backend_for("cpu", backend).project(a[None], h[None], g[None], None, 0.0, False)
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


@pytest.mark.parametrize("backend", NAMES)
def test_groups_of_different_rank_stand_side_by_side(backend):
    fs = [full_rank(6, 1), deficient(6, 2, 2), np.zeros((9, 6)), deficient(6, 4, 3)]
    a = np.stack([gram_of(f) for f in fs])
    run = backend_for("cpu", backend).project
    together = run(a, a, np.ones((4, 6)), None, 0.0, False)
    assert together.rank.tolist() == [6, 2, 0, 4]
    for group, rank in enumerate([6, 2, 0, 4]):
        one = slice(group, group + 1)
        alone = run(a[one], a[one], np.ones((1, 6)), None, 0.0, False)
        np.testing.assert_array_equal(together.whitener[group, :, :rank], alone.whitener[0])
        np.testing.assert_array_equal(together.operator[group, :rank, :rank], alone.operator[0])
        assert (together.operator[group, rank:] == 0.0).all()
        assert (together.operator[group, :, rank:] == 0.0).all()


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("ridge", [1e-8, 1e-3, 1.0, 100.0])
@pytest.mark.parametrize("f", [full_rank(6, 1), badly_scaled(6, 2), deficient(6, 3, 3)])
def test_a_ridge_is_relative_to_the_mean_scaled_diagonal(backend, ridge, f):
    a = gram_of(f)
    n = len(a)
    got = backend_for("cpu", backend).project(a[None], a[None], np.ones((1, n)), None, ridge, False)
    scale = power_of_two_scale(np.diag(a))
    scaled = a * scale * scale[:, None]
    inverse = np.linalg.inv(scaled + ridge * np.trace(scaled) / n * np.eye(n))
    v = got.whitener[0]
    assert got.rank.tolist() == [n]
    # The condition number of the regularized matrix is at most n/ridge.
    np.testing.assert_allclose(
        v @ v.T / scale / scale[:, None], inverse, rtol=0, atol=1e3 * n / ridge * U * inverse.max()
    )


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("rank", [1, 2, 3, 5])
def test_a_rank_keeps_the_leading_singular_values(backend, rank):
    f = full_rank(6, 4) @ np.diag([30.0, 10.0, 3.0, 1.0, 0.5, 0.25])
    a = gram_of(f)
    got = backend_for("cpu", backend).project(a[None], a[None], np.ones((1, 6)), rank, 0.0, False)
    left, sigma, right = np.linalg.svd(f, full_matrices=False)
    expected = right[:rank].T / sigma[:rank] ** 2 @ right[:rank]
    v = got.whitener[0]
    assert got.rank.tolist() == [rank]
    np.testing.assert_allclose(v @ v.T, expected, atol=1e-10)  # κ² u = 1e-11, of numbers near 1
    assert left.shape[1] == 6


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_rank_counts_singular_values_of_snapshots_not_of_differences(backend, rank):
    """The truncated operator of [x_1, x_2, …] from the Gram matrix of [x_1, d_1, …]."""
    x = np.cumsum(np.random.default_rng(5).normal(size=(8, 30)), axis=0)
    steps = np.diff(x, axis=0)
    f = np.vstack([x[:1], steps[:-1]]).T
    ahead = np.vstack([x[1:2], steps[1:]]).T
    got = backend_for("cpu", backend).project(
        (f.T @ f)[None], (f.T @ ahead)[None], (f.T @ x[-1])[None], rank, 0.0, True
    )
    v = got.whitener[0]
    np.testing.assert_allclose((ahead @ v) @ (f @ v).T, operator_of(x, rank=rank), atol=1e-10)


@pytest.mark.parametrize("backend", NAMES)
def test_a_rank_above_the_numerical_one_changes_nothing(backend):
    a = gram_of(deficient(7, 3, 8))[None]
    run = backend_for("cpu", backend).project
    limited, free = (run(a, a, np.ones((1, 7)), rank, 0.0, False) for rank in (5, None))
    for name in free._fields:
        np.testing.assert_array_equal(getattr(limited, name), getattr(free, name))


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize(("f", "rank"), CASES.values(), ids=CASES)
def test_the_condition_number_is_of_the_columns_kept(backend, f, rank):
    a = gram_of(f)
    g = np.ones((1, len(a)))
    got = backend_for("cpu", backend).project(a[None], a[None], g, None, 0.0, False)
    if rank == 0:
        assert got.condition[0] == np.inf
        return
    norms = np.linalg.norm(f, axis=0)
    scaled = f[:, norms > 0] / norms[norms > 0]
    sigma = np.linalg.svd(scaled, compute_uv=False)
    kappa = sigma[0] / sigma[rank - 1]
    # As for solve: between singular values, up to the √2 of power-of-two scales.
    assert kappa / (10 * len(a)) <= got.condition[0] <= 2.0 * kappa * (1 + 1e-6)


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
