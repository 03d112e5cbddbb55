"""Flows to learn: their equations against SciPy's integrator, and what their states are."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from koopcore.lab.problems import flows


@pytest.mark.parametrize(
    "flow",
    [flows.duffing(), flows.lorenz63(), flows.lorenz96(), flows.kuramoto()],
    ids=lambda flow: flow.name,
)
def test_trajectories_follow_the_equations(flow):
    x = flow.trajectories(2, 6, np.random.default_rng(0))
    assert x.shape == (2, 6, flow.n_states)
    for part in x:
        exact = solve_ivp(
            lambda _, s: flow.velocity(s), (0.0, 5 * flow.dt), part[0], rtol=1e-10, atol=1e-10
        ).y[:, -1]
        # Order 4 with a tenth of dt: 1e-6 and better, grown by the chaotic ones over five steps.
        np.testing.assert_allclose(part[-1], exact, rtol=0, atol=1e-4)
    again = flow.trajectories(2, 6, np.random.default_rng(0))
    np.testing.assert_array_equal(again, x)


def test_kuramotos_state_stays_on_the_circles():
    x = flows.kuramoto().trajectories(3, 50, np.random.default_rng(1))
    np.testing.assert_allclose(x[..., :20] ** 2 + x[..., 20:] ** 2, 1.0, atol=1e-5)


def test_duffing_ends_in_one_of_two_wells():
    x = flows.duffing().trajectories(20, 200, np.random.default_rng(2))
    ends = np.sign(x[:, -1, 0])
    np.testing.assert_allclose(x[:, -1, 0], ends, atol=0.05)
    assert set(ends) == {-1.0, 1.0}
