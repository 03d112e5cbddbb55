"""The Van der Pol oscillator: its trajectory, the paper's split, and the errors reached."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from koopcore.learning import AlternatingLearner, OneLayer, StateInclusive, prediction_errors
from koopcore.problems.van_der_pol import PERIODS, paper_split, split, trajectory


@pytest.mark.parametrize("mu", PERIODS)
def test_trajectories_agree_with_another_solver(mu: float) -> None:
    states = trajectory(mu, 0.1, 200)
    solved = solve_ivp(
        lambda _, x: [x[1], mu * (1.0 - x[0] ** 2) * x[1] - x[0]],
        (0.0, 20.0),
        (2.0, 0.0),
        method="DOP853",
        rtol=1e-12,
        atol=1e-13,
        t_eval=np.arange(200) * 0.1,
    )
    # rtol 1e-11 per step over some thousand steps.
    np.testing.assert_allclose(states, solved.y.T, rtol=0, atol=1e-8)


@pytest.mark.parametrize(("mu", "period"), PERIODS.items())
def test_the_limit_cycle_has_the_known_period(mu: float, period: float) -> None:
    states = trajectory(mu, 0.001, 130001)
    late = states[60000:, 0]
    up = np.flatnonzero((late[:-1] < 0.0) & (late[1:] >= 0.0))
    # Published to 3 decimals.
    assert np.diff(up).mean() * 0.001 == pytest.approx(period, abs=1e-3)


def test_the_paper_split_starts_predicting_from_the_last_training_state() -> None:
    parts = paper_split(1.0)
    assert parts.train.shape == (400, 2)
    assert parts.test.shape == (201, 2)
    np.testing.assert_array_equal(parts.train[-1], parts.test[0])
    np.testing.assert_array_equal(trajectory(1.0), trajectory(1.0))


@pytest.mark.parametrize(
    ("mu", "features", "scale", "one_step", "multi_step"),
    # Measured medians: 0.026 % and 0.31 %; 0.0002 % and 0.84 %.
    [(0.2, 4, 0.5, 0.0016, 0.0189), (1.0, 24, 1.0, 0.0016, 0.0189)],
)
def test_the_papers_errors_are_reached_in_the_state(
    mu: float, features: int, scale: float, one_step: float, multi_step: float
) -> None:
    parts = paper_split(mu)
    dictionary = StateInclusive(OneLayer(2, features, scale=scale))
    found = []
    for seed in range(10):
        learner = AlternatingLearner(
            dictionary, k_step="exact", track="objective", random_state=seed
        ).fit(parts.train)
        errors = prediction_errors(learner.operator_, parts.test)
        found.append((errors.one_step_states, errors.multi_step_states))
    one, many = np.median(found, axis=0)
    assert one <= one_step
    assert many <= multi_step


def test_three_bare_features_fall_short_in_the_state() -> None:
    # Three real features have one pair of complex eigenvalues: one harmonic. The cycle's third
    # harmonic alone is 5.6 % of the state at μ = 0.2, so a linear read-out must miss 1.89 %.
    parts = paper_split(0.2)
    errors = [
        prediction_errors(
            AlternatingLearner(
                OneLayer(2, 3, scale=0.5), k_step="exact", n_iterations=200, random_state=seed
            )
            .fit(parts.train)
            .operator_,
            parts.test,
        ).multi_step_states
        for seed in range(5)
    ]
    assert min(errors) > 0.0189


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: trajectory(-1.0), "mu is -1.0"),
        (lambda: trajectory(dt=0.0), "dt is 0.0"),
        (lambda: trajectory(n_points=1), "n_points is 1"),
        (lambda: split(trajectory(n_points=9), 9), "n_train is 9; 2..8"),
    ],
)
def test_arguments_out_of_range_say_what_is_accepted(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
