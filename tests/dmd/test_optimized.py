"""Optimized DMD: the optimum of its definition, for batches, from starts that find it."""

import warnings

import numpy as np
import pytest
from dmd_cases import damped, farthest, waves
from scipy.optimize import least_squares

from koopcore.dmd import DMD, STATUS, LowerRankWarning, OptimizedDMD


def literal(x, eigenvalues):
    """The optimum near ``eigenvalues`` of ‖X - V(λ) V(λ)⁺ X‖ over λ, by SciPy."""
    t = np.arange(len(x))

    def residual(parts):
        alpha = parts[: len(parts) // 2] + 1j * parts[len(parts) // 2 :]
        v = np.exp(np.outer(t, alpha))
        rest = x - v @ np.linalg.lstsq(v, x, rcond=None)[0]
        return np.concatenate([rest.real.ravel(), rest.imag.ravel()])

    start = np.log(eigenvalues)
    tight = {"xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15}
    found = least_squares(residual, np.concatenate([start.real, start.imag]), **tight).x
    return np.exp(found[: len(start)] + 1j * found[len(start) :])


@pytest.mark.parametrize("standing", [False, True])
def test_it_is_the_least_squares_optimum(standing):
    x, truth = waves(n=40, m=4, noise=0.05, standing=standing, seed=8)
    estimator = OptimizedDMD(4).fit(x[0])
    assert estimator.status_ == 0
    # All four coordinates are kept: the objective is that of the definition.
    assert farthest(literal(x[0], truth[0]), estimator.eigenvalues_) < 1e-6
    v = estimator.eigenvalues_ ** np.arange(40)[:, None]
    rest = x[0] - v @ np.linalg.lstsq(v, x[0].astype(complex), rcond=None)[0]
    assert estimator.error_ == pytest.approx(np.linalg.norm(rest) / np.linalg.norm(x[0]), rel=1e-9)
    np.testing.assert_allclose(estimator.reconstruct(), (x[0] - rest).real, atol=1e-9)


@pytest.mark.parametrize("standing", [False, True])
@pytest.mark.parametrize("shape", [(60, 30), (30, 60)])
def test_all_systems_of_a_batch_are_found_in_noise(shape, standing):
    n, m = shape
    x, truth = waves(40, n, m, noise=0.1, standing=standing, seed=1)
    clean = waves(40, n, m, standing=standing, seed=1)[0]
    optimized = OptimizedDMD(4).fit(x)
    errors = [farthest(a, b) for a, b in zip(truth, optimized.eigenvalues_, strict=True)]
    assert max(errors) < 0.03
    assert (optimized.status_ == 0).all()
    assert optimized.n_iter_.max() < 20
    plain = DMD(4).fit(x)
    worse = [farthest(a, b) for a, b in zip(truth, plain.eigenvalues_, strict=True)]
    assert np.median(errors) < 0.4 * np.median(worse)
    rebuilt = np.linalg.norm(optimized.reconstruct() - clean) / np.linalg.norm(clean)
    assert rebuilt < 0.95 * np.linalg.norm(plain.reconstruct() - clean) / np.linalg.norm(clean)


def test_more_exponentials_than_the_data_have():
    x, eigenvalues = damped()
    with pytest.warns(LowerRankWarning, match="rank=10 was asked for, and 6 of"):
        estimator = OptimizedDMD(10).fit(x)
    assert estimator.rank_ == 6  # of the rest nothing is seen
    assert farthest(eigenvalues, estimator.eigenvalues_) < 1e-7
    noisy = x + 1e-3 * np.random.default_rng(0).standard_normal(x.shape)
    estimator = OptimizedDMD(10).fit(noisy)
    assert np.isfinite(estimator.reconstruct()).all()
    assert np.linalg.norm(estimator.reconstruct() - x) < 0.01 * np.linalg.norm(x)
    assert OptimizedDMD("svht").fit(noisy).rank_ == 6
    assert OptimizedDMD(0.999).fit(noisy).rank_ >= 4


def test_growth_is_bounded():
    t = np.arange(40)[:, None]
    rng = np.random.default_rng(0)
    x = np.exp(0.02 * t) * np.cos(0.4 * t + np.arange(6)) + 0.01 * rng.standard_normal((40, 6))
    free, bounded = OptimizedDMD(2, dt=0.1), OptimizedDMD(2, dt=0.1, max_growth=0.0)
    assert free.fit(x).growth_rates_ == pytest.approx(0.2, rel=0.05)
    assert bounded.fit(x).growth_rates_.max() <= 1e-12
    assert bounded.error_ > free.error_


def test_trials_say_how_sure_the_eigenvalues_are():
    x, truth = waves(20, n=60, m=20, noise=0.1, seed=2)
    estimator = OptimizedDMD(4, n_trials=20, random_state=1).fit(x)
    errors = np.abs(truth[:, :, None] - estimator.eigenvalues_[:, None]).min(axis=2)
    deviation = np.median(estimator.eigenvalues_std_)
    # A trial sees 60 % of the snapshots; its spread about the mean is of the error's size.
    assert 0.3 < deviation / np.median(errors) < 3.0
    again = OptimizedDMD(4, n_trials=20, random_state=1).fit(x)
    np.testing.assert_array_equal(again.eigenvalues_, estimator.eigenvalues_)
    assert np.isnan(OptimizedDMD(4).fit(x).eigenvalues_std_).all()


def test_an_impulse_has_an_eigenvalue_of_zero_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimator = OptimizedDMD(1).fit(np.eye(6)[:, :3])
    assert estimator.status_ == 0
    assert np.abs(estimator.eigenvalues_) < 1e-6
    assert np.abs(estimator.forecast(horizon=2)).max() < 1e-12


def test_a_batch_has_good_and_empty_systems():
    x = waves(3, n=40, m=10)[0]
    x[1] = 0.0
    estimator = OptimizedDMD(4).fit(x)
    assert estimator.status_.tolist() == [0, 1, 0]
    assert "nothing to decompose" in STATUS[1]
    assert estimator.rank_.tolist() == [4, 0, 4]
    np.testing.assert_array_equal(estimator.reconstruct()[1], 0.0)
    np.testing.assert_allclose(estimator.reconstruct()[0], x[0], atol=1e-8)


def test_ends_that_are_not_the_optimum_are_named():
    x, _ = waves(n=40, m=10, noise=0.1)
    estimator = OptimizedDMD(4, n_iterations=1).fit(x[0])
    assert "still on its way" in STATUS[estimator.status_]
    with pytest.raises(ValueError, match="n_iterations is 0"):
        OptimizedDMD(4, n_iterations=0).fit(x[0])
    with pytest.raises(ValueError, match="share is 0"):
        OptimizedDMD(4, share=0.0).fit(x[0])
    with pytest.raises(ValueError, match="a list was given"):
        OptimizedDMD(4).fit([x[0], x[0]])
    with pytest.raises(ValueError, match="4 exponentials need at least 5"):
        OptimizedDMD(4).fit(x[0, :4])
