"""``model="auto"``: each kind of motion gets the model that continues it, by hindcast."""

from typing import NamedTuple

import numpy as np
import pytest
from trajectories import WHOLE, by_operator, generic, movement, spiral

import koopcore as kc
from koopcore.fitted.selection import Candidate, best_of, candidates

N = 17


def line(m):
    rng = np.random.default_rng(m)
    return rng.normal(size=m) + np.outer(np.arange(N), rng.normal(size=m))


def damped(m, offset):
    return by_operator(spiral(0.4, 0.97, m), np.ones(m), N, offset=offset)


def fit_auto(x, backend, **options):
    m = x.shape[1]
    return kc.fit(x, kc.Partition.groups(m, [range(m)]), "auto", backend=backend, **options)


# -- which are tried ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "rank", "ridge", "models", "ridges"),
    [
        (2, None, 0.0, {"trend", "linear"}, {0.0, 1e-9, 1e-5}),
        (3, None, 0.0, {"trend", "linear", "affine"}, {0.0, 1e-9, 1e-5}),
        (17, None, 1e-3, {"trend", "linear", "affine"}, {0.0, 1e-3}),
        (17, 3, 0.0, {"trend", "linear", "affine"}, {0.0}),
        (17, 3, 1e-3, {"trend", "linear", "affine"}, {0.0, 1e-3}),
    ],
)
def test_candidates_of_a_window(n, rank, ridge, models, ridges):
    tried = candidates(n, rank, ridge)
    assert {c.model for c in tried} == models
    assert {c.ridge for c in tried} == ridges
    assert tried[0] == Candidate("trend", 0.0)  # what wins where nothing can be told apart
    assert len(set(tried)) == len(tried)


# -- which wins -----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", WHOLE)
@pytest.mark.parametrize("m", [5, 60])
@pytest.mark.parametrize(
    ("made", "chosen"),
    [
        (line, {"trend"}),
        (lambda m: damped(m, 4.0), {"affine"}),
        # With a constant or without it, the increments obey U too: both may win, the trend not.
        (lambda m: damped(m, 0.0), {"linear", "affine"}),
        (lambda m: np.ones((N, m)), {"trend"}),
        (lambda m: np.zeros((N, m)), {"trend"}),
    ],
    ids=["straight line", "affine", "linear", "constant", "zero"],
)
def test_the_model_that_continues_the_motion_is_chosen(made, chosen, m, backend):
    ops = fit_auto(made(m), backend)
    assert set(ops.model.tolist()) <= chosen
    assert ops.hindcast_error[0] < 1e-6


@pytest.mark.parametrize("backend", WHOLE)
def test_growth_without_a_fixed_point_is_linear(backend):
    """x_{k+1} = U x_k with N - 2 directions: the differences alone do not determine U."""
    n, m = 5, 40
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(m, 3)))[0].T
    x = np.power.outer([1.3, 0.7, -0.5], np.arange(n)).T @ basis
    ops = fit_auto(x, backend)
    assert ops.model.tolist() == ["linear"]
    np.testing.assert_allclose(
        ops.predict(1), (1.3**n * basis[0] + 0.7**n * basis[1] + (-0.5) ** n * basis[2]), atol=1e-6
    )


@pytest.mark.parametrize("backend", WHOLE)
@pytest.mark.parametrize("m", [8, 60])
def test_every_group_gets_its_own_best(m, backend):
    x = np.hstack([line(m), damped(m, 4.0), np.ones((N, m)), line(m) * 2])
    part = kc.Partition.groups(4 * m, [range(i * m, (i + 1) * m) for i in range(4)])
    ops = kc.fit(x, part, "auto", backend=backend)
    assert ops.model.tolist() == ["trend", "affine", "trend", "trend"]
    for group, columns in enumerate(np.split(np.arange(4 * m), 4)):
        alone = fit_auto(x[:, columns], backend)
        # Another array, with other strides: sums in another order, times κ² of up to 1e6.
        np.testing.assert_allclose(ops.predict(5)[columns], alone.predict(5), rtol=1e-8)
        assert ops.rank[group] == alone.rank[0]


@pytest.mark.parametrize("backend", WHOLE)
@pytest.mark.parametrize("m", [6, 60])
def test_the_choice_has_the_least_hindcast_error(m, backend):
    rng = np.random.default_rng(1)
    for seed, x in enumerate([generic(N, m, 5), damped(m, 1.0) + 1e-3 * rng.normal(size=(N, m))]):
        best = fit_auto(x, backend).hindcast_error[0]
        part = kc.Partition.groups(m, [range(m)])
        errors = [
            kc.fit(x, part, c.model, ridge=c.ridge, backend=backend).hindcast_error[0]
            for c in candidates(N, None, 0.0)
        ]
        assert best == pytest.approx(min(errors), rel=1e-12, abs=1e-8), seed


@pytest.mark.parametrize("backend", WHOLE)
def test_noise_is_met_with_a_ridge(backend):
    """Many noisy windows: those that take a regularized model predict better than unregularized."""
    rng = np.random.default_rng(2)
    m, groups = 60, 30
    t = np.arange(N + 6)
    clean = np.power.outer([0.99, 0.9], t).T @ rng.normal(size=(2, groups * m))
    x = clean[:N] + 1e-3 * rng.normal(size=(N, groups * m))
    part = kc.Partition.groups(groups * m, [range(i * m, (i + 1) * m) for i in range(groups)])

    def errors(ops):
        return np.linalg.norm((ops.predict(6) - clean[-1]).reshape(groups, m), axis=1)

    chosen = errors(kc.fit(x, part, "auto", backend=backend))
    plain = errors(kc.fit(x, part, "affine", backend=backend))
    assert np.median(chosen) < np.median(plain)
    assert np.median(chosen) < 0.5 * movement(clean[N - 1 :]) / np.sqrt(groups)


@pytest.mark.parametrize("backend", WHOLE)
@pytest.mark.parametrize("m", [1, 5, 40])
@pytest.mark.parametrize("n", [2, 3, 4])
def test_windows_too_short_to_tell_are_extrapolated_straight(n, m, backend):
    x = generic(n, m)
    ops = fit_auto(x, backend)
    assert np.isfinite(ops.predict([1, 50])).all()
    if n == 2:
        assert ops.model.tolist() == ["trend"]
        assert np.isnan(ops.hindcast_error).all()


@pytest.mark.parametrize("options", [{"rank": 2}, {"ridge": 1e-3}])
def test_a_given_rank_or_ridge_stays(options):
    x = damped(60, 4.0)
    part = kc.Partition.groups(60, [range(60)])
    ops = fit_auto(x, "reference", **options)
    same = kc.fit(x, part, str(ops.model[0]), backend="reference", **options)
    np.testing.assert_array_equal(ops.predict(3), same.predict(3))


def test_a_mode_that_would_have_been_below_rounding_when_the_window_began_is_chosen_last():
    class Fit(NamedTuple):
        groups: np.ndarray
        hindcast: np.ndarray
        rates: np.ndarray  # growth a step
        model = "affine"

        def growth(self, horizons, backend):
            return self.rates ** np.array(horizons, dtype=float)[:, None]

        def select(self, keep):
            return Fit(*(field[keep] for field in self))

    groups = np.array([2, 5, 7, 8])
    plain = Fit(groups, np.array([0.1, 0.1, 0.1, np.nan]), np.ones(4))
    better = Fit(
        groups, np.array([0.01, 0.01, np.nan, 0.01]), np.array([1.003, 1.004, 1.0, np.inf])
    )
    by_plain, by_better = best_of([[plain], [better]], groups, 10_000, None, None)
    assert by_plain.groups.tolist() == [5, 7, 8]
    assert by_better.groups.tolist() == [2]
    assert best_of([[plain], [better]], groups, 1000, None, None)[0].groups.tolist() == [7, 8]


@pytest.mark.parametrize("backend", ["native_cpu", "reference"])
@pytest.mark.parametrize(("m", "unit"), [(20, 1.0), (3, 1.0), (20, 1e200), (3, 1e200)])
def test_a_window_that_rests_at_its_end_has_no_hindcast_and_no_trend(backend, m, unit):
    """0 by a movement of 0 says nothing: it was taken for the best of all answers."""
    rng = np.random.default_rng(m)
    x = unit * 0.8 ** np.arange(9.0)[:, None, None] * rng.normal(size=(3, m))
    x[-2:, :2] = x[-3, :2]  # a quarter of the steps; the third group goes on
    x[:, 1] = x[0, 1]  # never moved
    x = x.reshape(9, 3 * m)
    part = kc.Partition.groups(3 * m, [range(g * m, (g + 1) * m) for g in range(3)])
    ops = kc.fit(x, part, "auto", backend=backend)
    assert np.isnan(ops.hindcast_error).tolist() == [True, False, False]
    assert ops.hindcast_error[1] == 0.0
    assert ops.model[0] == "affine"
    np.testing.assert_allclose(ops.predict(50)[: 2 * m], x[-1, : 2 * m], rtol=1e-12)
    for model in ("trend", "affine", "linear"):
        error = kc.fit(x, part, model, backend=backend).hindcast_error
        assert np.isnan(error[0])
        assert error[1] == 0.0
        assert error[2] >= 0.0
