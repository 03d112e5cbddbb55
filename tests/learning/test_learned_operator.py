"""What a learned operator predicts, its spectrum, and what it refuses."""

import warnings

import numpy as np
import pytest
from learning_cases import rotation

from koopcore.lab.problems.van_der_pol import trajectory
from koopcore.learning import (
    AlternatingLearner,
    LearnedOperator,
    Monomials,
    OneLayer,
    StateInclusive,
    prediction_errors,
)


@pytest.mark.parametrize("standardize", [False, True])
def test_predictions_iterate_the_operator_from_the_first_state_alone(standardize):
    x = rotation(80) + np.array([5.0 * standardize, 0.0])
    learner = AlternatingLearner(
        StateInclusive(OneLayer(2, 2, bias=None)),
        k_step="exact",
        n_iterations=3,
        standardize=standardize,
    ).fit(x[:50])
    if not standardize:
        # Linear and state-inclusive: exact but for the Gram's rounding over 30 steps.
        np.testing.assert_allclose(learner.predict(x[49], 30), x[50:], rtol=0, atol=1e-6)
    batch = learner.predict(x[:3], 4)
    assert batch.shape == (3, 4, 2)
    np.testing.assert_allclose(batch[1], learner.predict(x[1], 4), rtol=1e-12)
    np.testing.assert_allclose(learner.predict(x[0], 1), learner.predict(x[0], 4)[:1], rtol=1e-12)


def test_the_spectrum_is_that_of_k_and_modes_rebuild_the_state():
    x = rotation()
    learned = AlternatingLearner(Monomials(2, 2), k_step="exact", n_iterations=1).fit(x).operator_
    turn = 0.98 * np.exp(0.3j)
    expected = [turn, turn.conjugate(), turn**2, (turn**2).conjugate(), abs(turn) ** 2]
    actual = learned.eigenvalues()
    for value in expected:
        assert np.abs(actual - value).min() < 1e-9  # the Gram's rounding
    np.testing.assert_allclose(learned.growth_rates(0.5)[:2], np.log(0.98) / 0.5, atol=1e-9)
    assert np.abs(learned.frequencies(0.5)).max() == pytest.approx(0.6 / (2 * np.pi * 0.5))
    values, vectors = np.linalg.eig(learned.operator)
    amplitudes = np.linalg.solve(vectors, learned.features(x[0])[0])
    order = np.argsort(-np.abs(values), kind="stable")
    rebuilt = learned.modes() @ amplitudes[order]
    np.testing.assert_allclose(rebuilt, x[0], rtol=0, atol=1e-12)


def test_errors_of_a_diverged_prediction_are_infinite_not_nan():
    x = trajectory(n_points=300)
    learner = AlternatingLearner(OneLayer(2, 3, bias=None), n_iterations=2).fit(x)
    wild = learner.operator_.__class__(**{**vars(learner.operator_), "operator": 1e9 * np.eye(3)})
    assert prediction_errors(wild, x).multi_step_features == np.inf


def test_predictions_refuse_what_they_cannot_start_from():
    learner = AlternatingLearner(OneLayer(2, 3, bias=None), n_iterations=2)
    with pytest.raises(AttributeError, match=r"call fit\(X\)"):
        learner.predict([1.0, 0.0])
    learner.fit(rotation())
    for x0, steps, message in (
        ([1.0], 3, "shape"),
        ([np.inf, 0.0], 3, "not finite"),
        ([1.0, 0.0], 0, "n_steps is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            learner.predict(x0, steps)
    with pytest.raises(ValueError, match="'speed' is no parameter"):
        learner.set_params(speed=3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"operator": np.eye(2)}, ValueError, r"operator has shape \(2, 2\), .* needs \(3, 3\)"),
        ({"parameters": np.zeros((3, 2))}, ValueError, r"parameters has shape \(3, 2\)"),
        ({"readout": np.full((2, 3), np.nan)}, ValueError, "readout is not finite"),
        ({"operator": np.eye(3, dtype=np.float32)}, TypeError, "operator is no array of float64"),
        ({"operator": np.eye(3).tolist()}, TypeError, "operator is no array of float64"),
        ({"scale": np.array([1.0, 0.0])}, ValueError, "scale has numbers that are not > 0"),
    ],
)
def test_an_operator_of_parts_that_do_not_fit_cannot_be_made(change, error, message):
    learned = (
        AlternatingLearner(OneLayer(2, 3, bias=None), n_iterations=2).fit(rotation()).operator_
    )
    with pytest.raises(error, match=message):
        LearnedOperator(**{**vars(learned), **change})


def test_a_start_whose_features_are_not_finite_is_refused():
    learner = AlternatingLearner(Monomials(2, 2), k_step="exact", n_iterations=1).fit(rotation())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="x0 is so far from the data"):
            learner.predict([1e200, 1e200], 2)
        assert learner.score(rotation() * 1e200) == -np.inf


def test_an_operator_is_shown_in_a_line():
    learned = AlternatingLearner(Monomials(2, 2), k_step="exact", n_iterations=1)
    shown = repr(learned.fit(rotation()).operator_)
    assert shown.startswith("<LearnedOperator: 5 features of 2 states; Monomials(")
    assert len(shown) < 150
