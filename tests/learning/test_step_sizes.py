"""Lipschitz constants that step sizes come from."""

import numpy as np
import pytest

from koopcore.lab.problems.van_der_pol import paper_split
from koopcore.learning import OneLayer, StateInclusive
from koopcore.learning.objective import gradient
from koopcore.learning.step_sizes import joint_lipschitz
from koopcore.learning.trajectories import pairs


def test_the_joint_lipschitz_constant_is_the_largest_curvature():
    data = pairs(paper_split(1.0).train[:60])
    dictionary = StateInclusive(OneLayer(2, 2))
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
