"""F and its gradients against the paper's sums, its curvature, its exact minimum over K."""

import numpy as np
import pytest
from learning_cases import by_points, rotation

from koopcore.backends import backend_for
from koopcore.lab.problems.van_der_pol import paper_split
from koopcore.learning import OneLayer, StateInclusive, objective, simultaneous_step
from koopcore.learning.learners.step_sizes import joint_lipschitz
from koopcore.learning.objective import exact_operator, gradient, solved
from koopcore.learning.trajectories import pairs


@pytest.mark.parametrize("lengths", [(30,), (2,), (12, 2, 7)])
def test_the_gradient_is_the_papers_sum_over_points(lengths):
    rng = np.random.default_rng(0)
    data = [rng.standard_normal((n, 2)) for n in lengths]
    w, k = rng.standard_normal((3, 2)), rng.standard_normal((3, 3))
    value, slope_k, slope_w = by_points(w, k, data)
    actual = gradient(OneLayer(2, 3, bias=None), w.reshape(-1), k, pairs(data))
    # The same sums in another order: rounding of some 30 terms of size 1 to 10.
    np.testing.assert_allclose(actual.value, value, rtol=1e-13)
    np.testing.assert_allclose(actual.operator, slope_k, rtol=0, atol=1e-13)
    np.testing.assert_allclose(actual.parameters.reshape(3, 2), slope_w, rtol=0, atol=1e-13)


def test_a_simultaneous_step_moves_both_from_the_old_point():
    data = pairs(rotation())
    dictionary = OneLayer(2, 3, bias=None)
    theta = dictionary.initial(np.random.default_rng(0))
    k = np.eye(3)
    slopes = gradient(dictionary, theta, k, data)
    moved, moved_k, _ = simultaneous_step(dictionary, theta, k, data, 0.2, 0.1)
    np.testing.assert_array_equal(moved, theta - 0.1 * slopes.parameters)
    np.testing.assert_array_equal(moved_k, k - 0.2 * slopes.operator)


@pytest.mark.parametrize("h", [3, 8])
def test_the_exact_step_is_least_squares(h):
    rng = np.random.default_rng(h)
    data = pairs(rng.standard_normal((50, 2)))
    features = np.tanh(data.states @ rng.standard_normal((2, h)) + rng.standard_normal(h))
    k = exact_operator(features, data)
    expected = np.linalg.lstsq(features[:-1], features[1:], rcond=None)[0].T
    # Gram matrices square the condition, here below 1e3.
    np.testing.assert_allclose(k, expected, rtol=0, atol=1e-9)
    rows = exact_operator(features, data, rows=slice(1, 3))
    np.testing.assert_allclose(rows, k[1:3], rtol=0, atol=1e-12)


def test_dependent_features_do_not_blow_the_exact_step_up():
    data = pairs(rotation())
    x = data.states
    features = np.hstack([x, x @ [[1.0], [1.0]], x])  # rank 2 of 5
    k = exact_operator(features, data)
    # The least-squares solution of least norm; 1e-7 is the square root of the Gram's rounding.
    np.testing.assert_allclose(features[:-1] @ k.T, features[1:], rtol=0, atol=1e-7)
    assert np.linalg.norm(k) < 10.0


@pytest.mark.parametrize("exponents", [(400, -400, 0), (-300, -310, -320), (9, 510, 500)])
def test_the_exact_step_does_not_depend_on_the_units_of_features(exponents):
    data = pairs(rotation())
    features = np.hstack([data.states, data.states[:, :1] ** 2])
    k = exact_operator(features, data)
    powers = np.ldexp(1.0, exponents)
    # Powers of two: not a bit may change, though squares of these features leave float64.
    np.testing.assert_array_equal(
        exact_operator(features * powers, data) * powers / powers[:, None], k
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_exact_step_of_features_that_are_not_finite_is_nan(value):
    data = pairs(rotation())
    features = data.states.copy()
    features[3, 0] = value
    assert np.isnan(exact_operator(features, data)).all()
    assert exact_operator(features, data, rows=slice(1, 2)).shape == (1, 2)


@pytest.mark.parametrize("force", ["option", "environment"])
def test_the_exact_step_is_the_forced_backends(force, monkeypatch):
    backend = backend_for("cpu", "reference")
    calls = []

    def project(*arguments):
        calls.append(arguments)
        return type(backend).project(backend, *arguments)

    monkeypatch.setattr(backend, "project", project)
    if force == "environment":
        monkeypatch.setenv("KOOPCORE_BACKEND", "reference")
    data = pairs(rotation())
    exact_operator(data.states, data, backend="reference" if force == "option" else None)
    assert len(calls) == 1


def test_the_joint_lipschitz_constant_is_the_largest_curvature():
    data = pairs(paper_split(1.0).train[:60])
    dictionary = StateInclusive(OneLayer(2, 2, bias=None))
    rng = np.random.default_rng(3)
    theta, k = dictionary.initial(rng), rng.standard_normal((4, 4))
    point, step = np.concatenate([theta, k.reshape(-1)]), 1e-5

    def slope(z):
        found = gradient(dictionary, z[:4], z[4:].reshape(4, 4), data)
        return np.concatenate([found.parameters, found.operator.reshape(-1)])

    columns = [
        (slope(point + step * unit) - slope(point - step * unit)) / (2.0 * step)
        for unit in np.eye(len(point))
    ]
    largest = np.abs(np.linalg.eigvalsh(np.array(columns))).max()
    # Thirty powers from a random start find a separated eigenvalue to a percent or better.
    assert joint_lipschitz(dictionary, theta, k, data) == pytest.approx(largest, rel=0.01)


@pytest.mark.parametrize(("rank", "ridge"), [(80, 0.0), (50, 0.0), (80, 1e-3), (50, 1e-3)])
def test_lapack_solves_for_what_the_engine_solves_for(rank, ridge, monkeypatch):
    rng = np.random.default_rng(rank)
    mixed = rng.standard_normal((rank, 80)) if rank < 80 else np.eye(80)
    features = rng.standard_normal((300, rank)) @ mixed * np.ldexp(1.0, rng.integers(-9, 9, 80))
    ahead = features @ rng.standard_normal((80, 30)) / 80
    gram, cross = features.T @ features, ahead.T @ features
    by_lapack = solved(gram, cross, ridge)
    monkeypatch.setattr(objective, "_LAPACK_FROM", 81)
    by_engine = solved(gram, cross, ridge)
    scale = np.abs(features @ by_engine.T).max()
    # Condition numbers up to 1e4, squared by the Gram matrix.
    np.testing.assert_allclose(
        features @ by_lapack.T, features @ by_engine.T, rtol=0, atol=1e-7 * scale
    )
    np.testing.assert_allclose(np.linalg.norm(by_lapack), np.linalg.norm(by_engine), rtol=1e-5)
