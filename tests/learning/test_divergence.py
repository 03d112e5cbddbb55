"""Results that are not finite are errors, and data at every scale is learned or refused."""

import warnings

import numpy as np
import pytest
import torch
from learning_cases import rotation

from koopcore.learning import (
    AlternatingLearner,
    AsynchronousLearner,
    Blocks,
    DistributedLearner,
    DivergenceWarning,
    History,
    Layered,
    Monomials,
    OneLayer,
    RadialBasis,
    StateInclusive,
    TorchDictionary,
)
from koopcore.learning.learners.divergence import check_finite, diverges
from koopcore.learning.trajectories import pairs

X = rotation()
TWO = Blocks((StateInclusive(OneLayer(1, 2, bias=None)),) * 2)


def on_two_workers(kind, dictionary=TWO, **settings):
    return kind(dictionary, n_iterations=10, step_k=0.1, step_w=0.1, **settings)


LEARNERS = {
    "alternating": AlternatingLearner(TWO, n_iterations=10),
    "exact": AlternatingLearner(TWO, n_iterations=3, k_step="exact"),
    "fixed": AlternatingLearner(Monomials(2, 2), n_iterations=1, k_step="exact"),
    "distributed": on_two_workers(DistributedLearner),
    "asynchronous": on_two_workers(AsynchronousLearner),
}


@pytest.mark.parametrize("scale", [1e200, 1e100, 1e-100, 1e-200])
@pytest.mark.parametrize("name", LEARNERS)
def test_data_whose_squares_float64_cannot_hold_are_refused(name, scale):
    if name == "fixed" and scale == 1e-100:
        scale = 1e-160  # without gradient steps nothing is squared twice
    if name == "asynchronous" and scale == 1e100:
        scale = 1e80
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no NumPy warning instead of, or beside, the error
        with pytest.raises(ValueError, match="standardize=True, or divide"):
            LEARNERS[name].fit(X * scale)


@pytest.mark.parametrize("exponent", [-1000, -600, -3, 5, 600, 1000])
@pytest.mark.parametrize("name", ["alternating", "fixed"])
def test_standardized_learning_does_not_depend_on_the_unit(name, exponent):
    parameters = LEARNERS[name].get_params(deep=False)
    kind = type(LEARNERS[name])
    one = kind(**{**parameters, "standardize": True}).fit(X)
    other = kind(**{**parameters, "standardize": True}).fit(np.ldexp(X, exponent))
    np.testing.assert_array_equal(other.operator_.operator, one.operator_.operator)
    np.testing.assert_array_equal(other.operator_.scale, np.ldexp(one.operator_.scale, exponent))
    ahead = other.predict(np.ldexp(X[5], exponent), 4)
    np.testing.assert_array_equal(ahead, np.ldexp(one.predict(X[5], 4), exponent))


def test_states_that_span_more_than_float64_are_refused():
    with pytest.raises(ValueError, match="span more than float64 holds"):
        AlternatingLearner(TWO, standardize=True).fit([[1e308, -1e308]] * 9 + [[-1e308, 1e308]])


@pytest.mark.parametrize(
    ("dictionary", "message"),
    [
        (TorchDictionary(torch.nn.Softplus(beta=float("nan")), 2), "a feature of the data is nan"),
        (RadialBasis(((1e3, 1e3),)), "all features of the data are 0"),
        (OneLayer(2, 3, scale=0.0, bias=None), "all features of the data are 0"),
    ],
)
def test_features_that_say_nothing_of_the_data_are_refused(dictionary, message):
    with pytest.raises(ValueError, match=message):
        AlternatingLearner(dictionary, k_step="exact", n_iterations=2).fit(X)


@pytest.mark.parametrize("name", ["alternating", "distributed", "asynchronous"])
def test_a_start_without_a_finite_objective_is_an_error(name):
    theta = TWO.initial(np.random.default_rng(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(FloatingPointError, match="cannot go back to its start, where F is inf"):
            LEARNERS[name].fit(X, initial=(theta, np.full((6, 6), 1e200)))


def test_asynchronous_workers_that_run_away_within_the_numbers_are_noticed():
    learner = on_two_workers(AsynchronousLearner, delay=0).set_params(step_k=20.0, n_iterations=8)
    with pytest.warns(DivergenceWarning, match="the start was kept"):
        learner.fit(X)
    assert learner.history_.stopped == "diverged"
    np.testing.assert_array_equal(learner.operator_.operator, np.eye(6))


def test_a_result_is_finite_where_its_objective_is():
    data = pairs(X)
    assert check_finite(X, data, np.eye(2)) > 0.0
    for features, operator in (
        (np.where(X == X[7], np.nan, X), np.eye(2)),
        (np.where(X == X[-1], np.inf, X), np.eye(2)),
        (X * [1.0, 0.0], np.diag([1.0, np.nan])),  # even where the feature is 0
        (X, 1e200 * np.eye(2)),
    ):
        with np.errstate(over="ignore", invalid="ignore"):
            with pytest.raises(FloatingPointError, match="what was learned is not finite"):
                check_finite(features, data, operator)


def test_an_objective_that_overflows_at_once_is_divergence():
    history = History()
    assert diverges(np.inf, history)
    assert diverges(np.nan, history)
    assert not diverges(1e300, history)
    history.add(1.0, 0.0, 0.0, 0.0, 0.0)
    assert not diverges(1e6, history)
    assert diverges(1.1e6, history)


def test_steps_that_diverge_leak_no_warning_of_numpy():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.warns(DivergenceWarning):
            AlternatingLearner(Layered(2, (3, 3)), step_k=1e5, step_w=1e5).fit(X)
