"""The Van der Pol oscillator learned from 400 states, and 200 more predicted from the last alone.

python examples/van_der_pol.py van-der-pol.png
"""

from __future__ import annotations

import sys

import numpy as np
from scipy.integrate import solve_ivp

from koopcore.learning import (
    AlternatingLearner,
    Monomials,
    OneLayer,
    StateInclusive,
    VariableProjectionLearner,
)

DT, SEEN, AHEAD = 0.1, 400, 200


def states() -> np.ndarray:
    """ẋ = v, v̇ = (1 - x²) v - x from (2, 0): (SEEN + AHEAD, 2)."""
    times = DT * np.arange(SEEN + AHEAD)

    def flow(_: float, x: np.ndarray) -> list[float]:
        return [x[1], (1 - x[0] ** 2) * x[1] - x[0]]

    return solve_ivp(flow, (0, times[-1]), [2, 0], t_eval=times, rtol=1e-10, atol=1e-12).y.T


def main(picture: str | None = None, iterations: int = 100, features: int = 16) -> dict[str, float]:
    """Learn, predict, and compare with as many monomials (EDMD), of which nothing is learned."""
    x = states()
    seen, later = x[:SEEN], x[SEEN - 1 :]
    learned = VariableProjectionLearner(
        StateInclusive(OneLayer(2, features), constant=True),
        horizon=50,
        n_iterations=iterations,
        random_state=0,
    )
    edmd = AlternatingLearner(Monomials(2, 5, constant=True), n_iterations=1, k_step="exact")
    predicted, errors = {}, {}
    for name, learner in (("learned", learned), ("monomials", edmd)):
        predicted[name] = learner.fit(seen).predict(later[0], n_steps=AHEAD)
        miss = np.linalg.norm(predicted[name] - later[1:])
        errors[name] = float(miss / np.linalg.norm(later[1:]))
        print(f"{name:>10}: error of {AHEAD} steps {100 * errors[name]:.1f} %")
    if picture:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 3.4), dpi=110, layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(2.2, 1))
        times = DT * np.arange(AHEAD + 1)
        left.plot(times, later[:, 0], color="#b4bac3", lw=5, label="true")
        right.plot(*later.T, color="#b4bac3", lw=5)
        for name, color in (("monomials", "#2e6f94"), ("learned", "#d4581f")):
            path = np.vstack([later[:1], predicted[name]])
            left.plot(times, path[:, 0], color=color, lw=1.3, label=name)
            right.plot(*path.T, color=color, lw=1.0)
        left.set(xlabel="time ahead", ylabel="x")
        right.set(xlabel="x", ylabel="v")
        left.legend(frameon=False, ncols=3, loc="upper right")
        left.set_ylim(-2.6, 3.4)
        figure.savefig(picture)
    return errors


if __name__ == "__main__":
    main(*sys.argv[1:])
