"""The Van der Pol oscillator, ẋ1 = x2, ẋ2 = μ(1 - x1²)x2 - x1: 600 points, 400 to learn from."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.integrate import solve_ivp

from koopcore.types import FloatArray

PERIODS = {0.2: 6.298, 1.0: 6.663}
"""Period of the limit cycle for the two μ used here."""

PAPER = {"one_step": 0.0016, "multi_step": 0.0189, "seconds": 1.08}
"""Errors and time of Liu, Ding, Chen, Yeung 2020; they publish neither μ, dt nor activation."""


class Split(NamedTuple):
    """A trajectory in two parts; ``test`` starts with the last training state, its x_0."""

    train: FloatArray  # (n_train, n)
    test: FloatArray  # (1 + n_predicted, n)


def trajectory(
    mu: float = 0.2, dt: float = 0.1, n_points: int = 600, x0: tuple[float, float] = (2.0, 0.0)
) -> FloatArray:
    """States at 0, dt, …, (n_points - 1) dt from x0: (n_points, 2), float64.

    mu: ≥ 0, dimensionless; dt: dimensionless time > 0. SciPy's LSODA at rtol 1e-11, which turns to
    stiff steps where μ is large; deterministic. Raises ValueError for arguments out of range.
    """
    if not 0.0 <= mu < np.inf:
        raise ValueError(f"mu is {mu}; a finite number >= 0 is needed")
    if not 0.0 < dt < np.inf:
        raise ValueError(f"dt is {dt}; a finite time > 0 is needed")
    if n_points < 2:
        raise ValueError(f"n_points is {n_points}; at least 2 are needed")
    times = np.arange(n_points) * dt
    solved = solve_ivp(
        lambda _, x: (x[1], mu * (1.0 - x[0] * x[0]) * x[1] - x[0]),
        (0.0, times[-1]),
        x0,
        method="LSODA",
        rtol=1e-11,
        atol=1e-12,
        t_eval=times,
    )
    return np.ascontiguousarray(solved.y.T)


def split(states: FloatArray, n_train: int = 400) -> Split:
    """The first n_train states, and the rest behind the last of them."""
    if not 2 <= n_train < len(states):
        raise ValueError(f"n_train is {n_train}; 2..{len(states) - 1} is needed")
    return Split(states[:n_train], states[n_train - 1 :])


def paper_split(mu: float = 0.2, dt: float = 0.1) -> Split:
    """400 points to learn from, 200 to predict, as in the paper."""
    return split(trajectory(mu, dt), 400)
