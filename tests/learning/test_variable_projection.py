"""Variable projection: its gradients, what it reaches, horizons, bounds, inputs, and bad input."""

import numpy as np
import pytest
from learning_cases import rotation

from koopcore.lab.problems.flows import duffing, lorenz63
from koopcore.learning import (
    AlternatingLearner,
    Monomials,
    OneLayer,
    StateInclusive,
    VariableProjectionLearner,
    load,
    save,
)
from koopcore.learning.learners.rollouts import Windows, bounded, excess, spectral_radius
from koopcore.learning.learners.variable_projection import Projection
from koopcore.learning.trajectories import pairs, samples

DICTIONARY = StateInclusive(OneLayer(2, 4), constant=True)


def several(count=3, length=20, seed=0):
    return list(duffing().trajectories(count, length, np.random.default_rng(seed)))


def controlled(length=80, seed=0):
    """x⁺ = A x + B u, y = D x."""
    rng = np.random.default_rng(seed)
    a, b = np.array([[0.9, 0.2], [-0.1, 0.8]]), np.array([[0.5], [1.0]])
    u, x = rng.standard_normal((length, 1)), np.zeros((length, 2))
    for k in range(length - 1):
        x[k + 1] = a @ x[k] + b @ u[k]
    return x, u, x @ np.array([[1.0], [2.0]]), a, b


SOME = StateInclusive(OneLayer(2, 4), constant=True, states=1)


@pytest.mark.parametrize(
    ("dictionary", "horizon", "with_inputs", "radius"),
    [
        (DICTIONARY, 1, True, None),
        (DICTIONARY, 6, False, 0.9),
        (DICTIONARY, 7, True, None),
        (SOME, 4, True, None),
    ],
)
def test_the_gradient_is_that_of_differences_through_the_exact_k(
    dictionary, horizon, with_inputs, radius
):
    rng = np.random.default_rng(1)
    x = several()
    u = [rng.standard_normal((20, 2)) for _ in x] if with_inputs else None
    weights = [rng.uniform(0.5, 2.0, 20) for _ in x]
    objective = Projection(
        dictionary,
        samples(pairs(x, 2), u, weights),
        horizon,
        1e-6,
        np.array([1.0, 2.0][: len(dictionary.state_features())]),
        0.3,
        1e-3,
        radius,
    )
    theta = dictionary.initial(rng)
    _, slope = objective.value_and_gradient(theta)
    step = 1e-6
    numeric = [
        (
            objective.value_and_gradient(theta + step * unit)[0]
            - objective.value_and_gradient(theta - step * unit)[0]
        )
        / (2.0 * step)
        for unit in np.eye(len(theta))
    ]
    # Central differences: truncation 1e-12 and rounding 1e-16/1e-6 of values of size 1 to 20, the
    # more where a penalty multiplies both.
    np.testing.assert_allclose(slope, numeric, rtol=0, atol=2e-6 * np.abs(slope).max())


def test_f_falls_where_steps_at_a_fixed_k_cannot_follow():
    x = several(10, 60)
    dictionary = StateInclusive(OneLayer(2, 8), constant=True)
    learner = VariableProjectionLearner(dictionary, n_iterations=60, standardize=False).fit(x)
    alternating = AlternatingLearner(
        dictionary, k_step="exact", track="objective", n_iterations=60
    ).fit(x)
    reached = min(learner.history_.objective)
    # Measured 1e3 to 1e5 times less, by the seed.
    assert reached < 0.02 * min(alternating.history_.objective)
    assert learner.history_.objective[learner.history_.best] == reached
    falls = np.diff(learner.history_.objective)
    assert (falls <= 0.0).all()  # a line search at the exact K never lets F rise


def test_a_horizon_predicts_far_better_than_f_does():
    flow, rng = lorenz63(), np.random.default_rng(0)
    x, test = flow.trajectories(10, 61, rng), flow.trajectories(20, 41, rng)
    dictionary = StateInclusive(OneLayer(3, 10, scale=0.6), constant=True)
    errors = {}
    for horizon in (1, 30):
        learner = VariableProjectionLearner(
            dictionary, horizon=horizon, n_iterations=60, spectral_radius=1.0
        ).fit(x)
        missed = np.linalg.norm(learner.predict(test[:, 0], 40) - test[:, 1:], axis=(1, 2))
        errors[horizon] = float(np.median(missed))
        assert np.abs(learner.operator_.eigenvalues()).max() <= 1.0
    assert errors[30] < 0.9 * errors[1]


@pytest.mark.parametrize("m", [0, 2])
def test_predictions_are_steps_of_k_one_by_one(m):
    rng = np.random.default_rng(2)
    k, b = rng.standard_normal((5, 5)) / 3.0, rng.standard_normal((5, m))
    psi, u = rng.standard_normal((3, 5)), rng.standard_normal((3, 6, m))
    true, weights = rng.standard_normal((3, 6, 2)), rng.random((3, 2))
    missed, features = [], psi
    for t in range(6):
        features = features @ k.T + u[:, t] @ b.T
        missed.append(features[:, [3, 0]] - true[:, t])
    expected = np.mean([np.sum(weights * e**2, axis=1) for e in missed])
    windows = Windows(np.arange(3), u, true, weights)
    value, _ = windows.value(psi, np.hstack([k, b]), np.array([3, 0]))
    assert value == pytest.approx(expected, rel=1e-13)


def test_without_a_ridge_k_is_what_predicts_better():
    x = several(6, 40)
    learner = VariableProjectionLearner(
        DICTIONARY, horizon=10, n_iterations=8, standardize=False, one_step_weight=1.0
    ).fit(x)
    part = samples(pairs(x, 2), None, None)
    judge = learner._projection(part, 10, learner.ridge_)
    theta, k = learner.operator_.parameters, learner.operator_.operator
    value, _, ridged = judge.last(theta)
    assert judge.value(DICTIONARY.features(theta, part.data.states), k) <= value
    # K with the ridge 1e-10 is next to it.
    np.testing.assert_allclose(k, ridged, rtol=0, atol=1e-2 * np.abs(k).max())


def test_a_bias_learns_what_odd_features_cannot():
    x = np.linspace(-1.0, 1.0, 41)[:, None]
    left = {}
    for bias in (None, 1.0):
        dictionary = StateInclusive(OneLayer(1, 8, bias=bias))
        learner = VariableProjectionLearner(dictionary, n_iterations=1, standardize=False).fit(
            x, x**2
        )
        ahead = learner.predict(x, 1)[:, 0]
        left[bias] = np.linalg.norm(ahead - x**2) / np.linalg.norm(x**2)
    assert left[None] > 0.9  # odd functions are orthogonal to an even one
    assert left[1.0] < 1e-3


def test_the_bound_moves_eigenvalues_onto_the_circle_and_no_others():
    rng = np.random.default_rng(0)
    k = rng.standard_normal((6, 6)) / 2.0
    features = rng.standard_normal((50, 6)) @ rng.standard_normal((6, 6))
    before = np.sort(np.abs(np.linalg.eigvals(k)))
    after = np.sort(np.abs(np.linalg.eigvals(bounded(k, features.T @ features, 0.8))))
    np.testing.assert_allclose(after, np.minimum(before, 0.8), rtol=0, atol=1e-12)
    over, _ = excess(k, 0.8)
    assert over == pytest.approx(float((np.maximum(before - 0.8, 0.0) ** 2).sum()))


def test_a_bound_below_what_the_data_allow_says_so():
    turning = rotation(80, 0.3, 1.0)
    learner = VariableProjectionLearner(Monomials(2, 1), spectral_radius=0.5)
    with pytest.raises(
        ValueError, match=r"spectral_radius is 0.5, below what the data allow: K ha"
    ):
        learner.fit(turning)
    learner.set_params(spectral_radius=0.99).fit(turning)
    assert spectral_radius(learner.operator_.operator) <= 0.99


def test_validation_chooses_a_ridge_and_an_iterate():
    rng = np.random.default_rng(3)
    x = [part + 0.2 * rng.standard_normal(part.shape) for part in several(8, 40)]
    dictionary = StateInclusive(OneLayer(2, 20), constant=True)
    learner = VariableProjectionLearner(
        dictionary, n_iterations=20, horizon=10, ridge="validation"
    ).fit(x)
    history = learner.history_
    assert learner.ridge_ >= 1e-6  # where there is noise, a ridge helps
    assert history.best == int(np.argmin(history.validation))
    alone = VariableProjectionLearner(dictionary, n_iterations=5, validation=0.3).fit(x[0])
    assert len(alone.history_.validation) == len(alone.history_)


def test_inputs_and_outputs_are_found_again(tmp_path):
    x, u, y, a, b = controlled()
    learner = VariableProjectionLearner(Monomials(2, 1), standardize=False)
    learner.fit(x, u=u, outputs=y)
    learned = learner.operator_
    # The ridge of rounding, 6e-14, and condition numbers below 10.
    np.testing.assert_allclose(learned.operator, a, rtol=0, atol=1e-11)
    np.testing.assert_allclose(learned.input_matrix, b, rtol=0, atol=1e-11)
    np.testing.assert_allclose(learner.predict(x[0], 79, u[:-1]), x[1:], rtol=0, atol=1e-9)
    np.testing.assert_allclose(learned.predict_outputs(x[0], 79, u[:-1]), y[1:], atol=1e-9)
    assert learner.score(x, u=u) == pytest.approx(1.0, abs=1e-12)
    back = load(save(learned, tmp_path))
    np.testing.assert_array_equal(back.input_matrix, learned.input_matrix)
    np.testing.assert_array_equal(back.output_readout, learned.output_readout)
    both = learner.predict(x[:2], 3, np.stack([u[:3], u[1:4]]))
    np.testing.assert_allclose(both, [x[1:4], x[2:5]], rtol=0, atol=1e-9)


def test_pairs_in_any_order_are_the_trajectory():
    x = several(1, 60)[0]
    order = np.random.default_rng(0).permutation(59)
    settings = {"n_iterations": 8, "standardize": False}
    along = VariableProjectionLearner(DICTIONARY, **settings).fit(x)
    shuffled = VariableProjectionLearner(DICTIONARY, **settings).fit(x[:-1][order], x[1:][order])
    # The same sums in another order, through eight line searches of a smooth function.
    np.testing.assert_allclose(
        shuffled.history_.objective[:5], along.history_.objective[:5], rtol=1e-6
    )
    alternating = AlternatingLearner(DICTIONARY, n_iterations=5)
    first = alternating.fit(x).history_.objective
    second = alternating.fit(x[:-1][order], x[1:][order]).history_.objective
    np.testing.assert_allclose(second, first, rtol=1e-10)


def test_a_weight_is_a_repetition():
    x = several(1, 40)[0]
    weights = np.ones(40)
    weights[5] = 3.0
    now, ahead = x[:-1], x[1:]
    repeated = [np.concatenate([part, part[5:6], part[5:6]]) for part in (now, ahead)]
    dictionary = Monomials(2, 2)
    heavy = VariableProjectionLearner(dictionary, standardize=False).fit(x, sample_weight=weights)
    often = VariableProjectionLearner(dictionary, standardize=False).fit(*repeated)
    np.testing.assert_allclose(
        heavy.operator_.operator, often.operator_.operator, rtol=0, atol=1e-9
    )


def test_a_stream_of_parts_is_learned_as_all_at_once():
    x, u, _, _, _ = controlled(90)
    stream = VariableProjectionLearner(Monomials(2, 2), standardize=False)
    parts = [slice(0, 30), slice(30, 60), slice(60, 90)]
    for part in parts:
        stream.partial_fit(x[part], u=u[part])
    whole = VariableProjectionLearner(Monomials(2, 2), standardize=False)
    whole.fit([x[part] for part in parts], u=[u[part] for part in parts])
    np.testing.assert_allclose(
        stream.operator_.operator, whole.operator_.operator, rtol=0, atol=1e-9
    )
    with pytest.raises(ValueError, match="u has 0 numbers a row, but those before had 1"):
        stream.partial_fit(x)
    with pytest.raises(TypeError, match="partial_fit needs a dictionary with nothing to learn"):
        VariableProjectionLearner(DICTIONARY, standardize=False).partial_fit(x)


def test_eigenfunctions_and_rates_are_those_of_the_flow():
    dt, rate = 0.1, np.array([-0.3 + 2.0j, -0.3 - 2.0j])
    x = rotation(50, 2.0 * dt, np.exp(-0.3 * dt))
    learned = VariableProjectionLearner(Monomials(2, 1), standardize=False).fit(x).operator_
    np.testing.assert_allclose(np.sort_complex(learned.rates(dt)), np.sort_complex(rate), atol=1e-9)
    values = learned.eigenfunctions(x)
    np.testing.assert_allclose(values[1:], values[:-1] * learned.eigenvalues(), rtol=0, atol=1e-10)
    np.testing.assert_allclose((values @ learned.modes().T).real, x, rtol=0, atol=1e-10)
    generator = learned.generator(dt)
    np.testing.assert_allclose(
        np.sort_complex(np.linalg.eigvals(generator)), np.sort_complex(rate), atol=1e-9
    )


@pytest.mark.parametrize(
    ("settings", "call", "message"),
    [
        ({}, {"u": np.zeros((19, 1))}, r"u has \[19\] rows, the data \[20\]: one row of it"),
        ({}, {"outputs": np.zeros((21, 1))}, r"u has \[21\]|outputs has \[21\] rows"),
        ({}, {"y": np.zeros((19, 2))}, "X has 20 rows of 2 states and Y 19 of 2"),
        ({}, {"y": np.zeros((20, 3))}, "X has 20 rows of 2 states and Y 20 of 3"),
        ({}, {"y": np.zeros(20)}, "has shape"),
        ({}, {"sample_weight": -np.ones(20)}, "sample_weight has numbers below 0"),
        ({"horizon": 30}, {}, "no trajectory has 30 states behind"),
        ({"horizon": 0}, {}, "horizon is 0"),
        ({"ridge": "best"}, {}, "ridge is 'best'; a number >= 0 or 'validation'"),
        ({"validation": 1.5}, {}, "validation is 1.5"),
        ({"state_weights": [1.0]}, {}, r"state_weights has shape \(1,\); 2 numbers"),
        ({"spectral_radius": 0.0}, {}, "spectral_radius is 0.0"),
        ({"dictionary": OneLayer(2, 3), "horizon": 5}, {}, "must be among the features"),
    ],
)
def test_what_cannot_be_learned_says_why(settings, call, message):
    x = several(1)[0]
    learner = VariableProjectionLearner(**{"dictionary": DICTIONARY, **settings})
    with pytest.raises(ValueError, match=message):
        learner.fit(x, **call)
    assert not hasattr(learner, "operator_")


def test_predictions_say_what_inputs_they_need():
    x, u, _, _, _ = controlled()
    learner = VariableProjectionLearner(Monomials(2, 1), standardize=False).fit(x, u=u)
    with pytest.raises(ValueError, match="u is missing; this operator was learned with inputs"):
        learner.predict(x[0], 3)
    with pytest.raises(ValueError, match=r"u has shape \(2, 1\); \(3, 1\) or \(1, 3, 1\)"):
        learner.predict(x[0], 3, u[:2])
    with pytest.raises(ValueError, match="learned without outputs"):
        learner.operator_.predict_outputs(x[0], 3, u[:3])
    without = VariableProjectionLearner(Monomials(2, 1), standardize=False).fit(x)
    with pytest.raises(ValueError, match="learned without inputs"):
        without.predict(x[0], 3, u[:3])
