"""Glycolysis: the reference state, the rates term by term, and what a worker's share can learn."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from koopcore.lab.problems.glycolysis import (
    NAMES,
    PERIOD,
    REFERENCE,
    X0,
    paper_split,
    rates,
    trajectory,
)


def test_the_reference_state_at_ten_minutes_is_met():
    states = trajectory(2.0, 6)
    # The reference was integrated at rtol 1e-10; its own error over 8.6 periods is of order 1e-7.
    np.testing.assert_allclose(states[-1], REFERENCE, rtol=1e-6)
    np.testing.assert_allclose(states[0], X0, rtol=1e-15)  # the solver interpolates there too


def test_another_stiff_solver_agrees():
    solved = solve_ivp(lambda _, x: rates(x), (0.0, 1.0), X0, "Radau", rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(trajectory(0.5, 3)[-1], solved.y[:, -1], rtol=1e-6)


def test_rates_are_those_of_the_reactions():
    rng = np.random.default_rng(0)
    for _ in range(20):
        x = dict(zip(NAMES, rng.uniform(0.05, 3.0, 7), strict=True))
        v1 = 100 * x["S1"] * x["A3"] / (1 + (x["A3"] / 0.52) ** 4)
        v2, v3 = 6 * x["S2"] * (1 - x["N2"]), 16 * x["S3"] * (4 - x["A3"])
        v4, v5, v6 = 100 * x["S4"] * x["N2"], 1.28 * x["A3"], 12 * x["S2"] * x["N2"]
        v7, flow = 1.8 * x["S5"], 13 * (x["S4"] - x["S5"])
        expected = {
            "S1": 2.5 - v1,
            "S2": 2 * v1 - v2 - v6,
            "S3": v2 - v3,
            "S4": v3 - v4 - flow,
            "N2": v2 - v4 - v6,
            "A3": -2 * v1 + 2 * v3 - v5,
            "S5": 0.1 * flow - v7,
        }
        actual = rates(np.array([x[name] for name in NAMES]))
        np.testing.assert_allclose(actual, [expected[name] for name in NAMES], rtol=1e-12)


def test_the_limit_cycle_has_the_known_period():
    late = trajectory(0.001, 6000, start=6.0)[:, 0]
    mean = late.mean()
    up = np.flatnonzero((late[:-1] < mean) & (late[1:] >= mean))
    assert np.diff(up).mean() * 0.001 == pytest.approx(PERIOD, abs=2e-3)  # published to 3 decimals


def test_the_paper_split_is_600_and_400():
    parts = paper_split()
    assert parts.train.shape == (600, 7)
    assert parts.test.shape == (401, 7)
    assert (parts.train > 0.0).all()  # concentrations
    np.testing.assert_array_equal(parts.train[-1], parts.test[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dt": -0.1}, "dt is -0.1"),
        ({"start": np.nan}, "start is nan"),
        ({"n_points": 1}, "n_points is 1"),
        ({"x0": (1.0, 2.0)}, "x0 has 2 numbers; 7 are needed: S1, S2"),
    ],
)
def test_arguments_out_of_range_say_what_is_accepted(settings, message):
    with pytest.raises(ValueError, match=message):
        trajectory(**settings)
