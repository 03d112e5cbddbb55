"""Yeast glycolysis, 7 species: 1000 points on the way to its limit cycle, 600 to learn from."""

from __future__ import annotations

import numpy as np
from scipy.integrate import solve_ivp

from koopcore.lab.problems.van_der_pol import Split, split
from koopcore.types import FloatArray

NAMES = ("S1", "S2", "S3", "S4", "N2", "A3", "S5")
X0 = (1.187, 0.193, 0.050, 0.115, 0.077, 2.475, 0.077)  # mM
PERIOD = 1.168  # min, of the limit cycle
REFERENCE = (  # mM, at t = 10 min from X0
    0.1698126147881412,
    2.078916714899452,
    0.18110254245585578,
    0.34538305092921046,
    0.17742103024561387,
    0.5268448803994968,
    0.07564325563331287,
)

PAPER = {"one_step": 0.0002, "multi_step": 0.027, "seconds": 400.4}
"""Errors and time of Liu, Ding, Chen, Yeung 2020, 7 workers, 10,000 iterations; dt unpublished."""


def rates(x: FloatArray) -> FloatArray:
    """ẋ (7,) in mM/min of the concentrations x (7,) in mM.

    The model of Ruoff et al. 2003 with the constants of Daniels & Nemenman 2015; stiff, with
    |Re λ| up to 156 /min along the limit cycle.
    """
    s1, s2, s3, s4, n2, a3, s5 = x
    v1 = 100.0 * s1 * a3 / (1.0 + (a3 / 0.52) ** 4)
    v2 = 6.0 * s2 * (1.0 - n2)
    v3 = 16.0 * s3 * (4.0 - a3)
    v4 = 100.0 * s4 * n2
    v6 = 12.0 * s2 * n2
    outflow = 13.0 * (s4 - s5)
    return np.array(
        (
            2.5 - v1,
            2.0 * v1 - v2 - v6,
            v2 - v3,
            v3 - v4 - outflow,
            v2 - v4 - v6,
            -2.0 * v1 + 2.0 * v3 - 1.28 * a3,
            0.1 * outflow - 1.8 * s5,
        )
    )


def trajectory(
    dt: float = 0.01, n_points: int = 1000, x0: tuple[float, ...] = X0, start: float = 0.0
) -> FloatArray:
    """Concentrations at start, start + dt, … from x0 at time 0: (n_points, 7), mM, float64.

    dt, start: minutes. SciPy's LSODA at rtol 1e-11; meets `REFERENCE` to 1e-6 (a test).
    Deterministic. Raises ValueError for arguments out of range.
    """
    if not 0.0 < dt < np.inf:
        raise ValueError(f"dt is {dt}; a finite number of minutes > 0 is needed")
    if not 0.0 <= start < np.inf:
        raise ValueError(f"start is {start}; a finite number of minutes >= 0 is needed")
    if n_points < 2:
        raise ValueError(f"n_points is {n_points}; at least 2 are needed")
    if len(x0) != len(NAMES):
        raise ValueError(f"x0 has {len(x0)} numbers; {len(NAMES)} are needed: {', '.join(NAMES)}")
    times = start + np.arange(n_points) * dt
    solved = solve_ivp(
        lambda _, x: rates(x),
        (0.0, times[-1]),
        x0,
        method="LSODA",
        rtol=1e-11,
        atol=1e-13,
        t_eval=times,
    )
    return np.ascontiguousarray(solved.y.T)


def paper_split(dt: float = 0.01) -> Split:
    """600 points to learn from, 400 to predict, as in the paper."""
    return split(trajectory(dt), 600)
