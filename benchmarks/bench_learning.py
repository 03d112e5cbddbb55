"""What does an iteration of operator learning cost, against point by point, workers, size, peers?

    python benchmarks/bench_learning.py points   # the same algorithm written point by point
    python benchmarks/bench_learning.py workers  # time and bytes per iteration on 1, 2, 4, 7 ranks
    python benchmarks/bench_learning.py peers    # PyDMD's and pykoopman's EDMD, where installed
    python benchmarks/bench_learning.py scaling  # points, features, states
    python benchmarks/bench_learning.py seconds  # 500 iterations on Van der Pol, 3 dimensions

Each prints one JSON object, and checks its results against each other before it prints a time.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from point_by_point import simultaneous_step_by_points

from koopcore.learning import (
    AlternatingLearner,
    Blocks,
    DistributedLearner,
    Layered,
    Monomials,
    OneLayer,
    simultaneous_step,
)
from koopcore.learning.trajectories import pairs
from koopcore.problems import glycolysis, van_der_pol
from koopcore.problems.stopwatch import in_turns

PAPER_BLOCKS = Blocks((Layered(1, (15, 15, 15)),) * 7)
STEP = 0.02


def scaled_glycolysis() -> np.ndarray:
    train = glycolysis.paper_split().train
    return (train - train.mean(axis=0)) / train.std(axis=0)


def points() -> dict[str, Any]:
    """One iteration of Algorithm 2's step: all points at once, and one point after another."""
    data = pairs(scaled_glycolysis())
    theta = PAPER_BLOCKS.initial(np.random.default_rng(0))
    k = np.eye(PAPER_BLOCKS.n_features)

    def batched() -> Any:
        return simultaneous_step(PAPER_BLOCKS, theta, k, data, STEP, STEP)

    def one_by_one() -> Any:
        return simultaneous_step_by_points(PAPER_BLOCKS, theta, k, data.states, STEP)

    for ours, theirs in zip(batched()[:2], one_by_one(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-11)  # sums of 600, other order
    fast, slow = in_turns([batched, one_by_one], rounds=5)
    fast = in_turns([batched], rounds=51)[0]
    return {
        "seconds_per_iteration": fast,
        "point_by_point": slow,
        "ratio": slow / fast,
        "10,000 iterations": {"batched_s": 1e4 * fast, "point_by_point_s": 1e4 * slow},
    }


def workers() -> dict[str, Any]:
    """Seconds and bytes per iteration and rank."""
    rows: dict[str, Any] = {}
    reference = None
    for count in (1, 2, 4, 7):
        learner = DistributedLearner(
            PAPER_BLOCKS, workers=count, n_iterations=150, step_k=STEP, step_w=STEP
        ).fit(scaled_glycolysis())
        k = learner.operator_.operator
        reference = k if reference is None else reference
        np.testing.assert_allclose(k, reference, rtol=0, atol=1e-12)
        rows[str(count)] = {
            "seconds_per_iteration": max(t.seconds / t.iterations for t in learner.traffic_),
            "bytes_received_per_rank": [
                (t.gathered + t.exchanged) // t.iterations for t in learner.traffic_
            ],
            "bytes_sent_per_rank": [t.sent // t.iterations for t in learner.traffic_],
        }
    return rows


def peers() -> dict[str, Any]:
    """EDMD with the same monomials on the same points: error of 1 and 200 steps, and time."""
    result: dict[str, Any] = {}
    for mu in (0.2, 1.0):
        parts = van_der_pol.paper_split(mu)
        rows: dict[str, Any] = {}
        for name, fit in _edmd_fits().items():
            try:
                step = fit(parts.train)
            except ImportError as error:
                rows[name] = {"missing": str(error)}
                continue
            ahead = np.vstack([step(x, 1) for x in parts.test[:-1]])
            many = step(parts.test[0], len(parts.test) - 1)
            seconds = in_turns([lambda fit=fit, x=parts.train: fit(x)], rounds=11)[0]
            rows[name] = {
                "one_step": _relative(ahead, parts.test[1:]),
                "multi_step": _relative(many, parts.test[1:]),
                "fit_seconds": seconds,
            }
        result[str(mu)] = rows
    return result


def _edmd_fits() -> dict[str, Callable[[np.ndarray], Any]]:
    def ours(x: np.ndarray) -> Any:
        learner = AlternatingLearner(Monomials(2, 5), k_step="exact", n_iterations=1).fit(x)
        return lambda x0, n: learner.predict(x0, n)

    def learned(x: np.ndarray) -> Any:
        from koopcore.learning import StateInclusive

        learner = AlternatingLearner(
            StateInclusive(OneLayer(2, 16)), k_step="exact", track="objective"
        ).fit(x)
        return lambda x0, n: learner.predict(x0, n)

    def pykoopman(x: np.ndarray) -> Any:
        import pykoopman as pk

        # Its own Polynomial does not work with current scikit-learn: the same monomials, from us.
        lift = Monomials(2, 5)
        model = pk.Koopman(observables=pk.observables.Identity(), regressor=pk.regression.EDMD())
        model.fit(lift.features(np.zeros(0), x))

        def step(x0: np.ndarray, n: int) -> np.ndarray:
            lifted = lift.features(np.zeros(0), x0[None])[0]
            return np.asarray(model.simulate(lifted, n_steps=n)).reshape(n, -1)[:, :2].real

        return step

    def pydmd(x: np.ndarray) -> Any:
        from pydmd import EDMD

        model = EDMD(svd_rank=20, kernel_metric="poly", kernel_params={"degree": 5, "coef0": 1.0})
        model.fit(x[:-1].T, x[1:].T)
        values, modes, functions = model.eigs, model.modes, model.eigenfunctions

        def step(x0: np.ndarray, n: int) -> np.ndarray:
            start = np.asarray(functions(x0)).reshape(-1)
            powers = values[None, :] ** np.arange(1, n + 1)[:, None]
            return ((powers * start) @ modes.T).real

        return step

    return {
        "koopcore, monomials of degree 5": ours,
        "koopcore, state + 16 tanh learned in 500 iterations": learned,
        "pykoopman EDMD, the same monomials": pykoopman,
        "PyDMD EDMD, polynomial kernel of degree 5, rank 20": pydmd,
    }


def scaling() -> dict[str, Any]:
    """Seconds per iteration of `simultaneous_step`: one number varied at a time."""
    base = {"points": 2000, "features": 15, "states": 8}
    varied = {
        "points": (500, 1000, 2000, 4000, 8000, 16000),
        "features": (4, 8, 15, 30, 60),
        "states": (2, 4, 8, 16, 32),
    }
    rng = np.random.default_rng(0)
    result: dict[str, Any] = {}
    for name, sizes in varied.items():
        rows = {}
        for size in sizes:
            given = {**base, name: size}
            dictionary = Blocks((OneLayer(1, given["features"]),) * given["states"])
            data = pairs(rng.standard_normal((given["points"], given["states"])))
            theta, k = dictionary.initial(rng), np.eye(dictionary.n_features)
            rows[str(size)] = in_turns(
                [
                    lambda d=dictionary, t=theta, k=k, p=data: simultaneous_step(
                        d, t, k, p, 0.1, 0.1
                    )
                ],
                rounds=7,
            )[0]
        x, y = np.log([float(s) for s in rows]), np.log(list(rows.values()))
        result[name] = {
            "seconds": rows,
            "power_over_last_3": float(np.polyfit(x[-3:], y[-3:], 1)[0]),
        }
    return {"base": base, **result}


def seconds() -> dict[str, Any]:
    """500 iterations on 400 points."""
    train = van_der_pol.paper_split().train
    result = {}
    for name, given in {
        "3 tanh, gradient, step 0.23": (OneLayer(2, 3), {"step_k": 0.23, "step_w": 0.23}),
        "3 tanh, gradient, 1/L_K, backtracking": (OneLayer(2, 3), {}),
        "3 logistic, exact K": (OneLayer(2, 3, "logistic", 0.3), {"k_step": "exact"}),
    }.items():
        dictionary, settings = given
        result[name] = in_turns(
            [lambda d=dictionary, s=settings: AlternatingLearner(d, **s).fit(train)], rounds=5
        )[0]
    return result


def _relative(predicted: np.ndarray, true: np.ndarray) -> float:
    return float(np.linalg.norm(predicted - true) / np.linalg.norm(true))


QUESTIONS = {f.__name__: f for f in (points, workers, peers, scaling, seconds)}

if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in QUESTIONS:
        sys.exit(f"one of {', '.join(QUESTIONS)} is needed")
    started = time.strftime("%Y-%m-%d")
    command = f"python benchmarks/bench_learning.py {sys.argv[1]}"
    answer = QUESTIONS[sys.argv[1]]()
    print(json.dumps({"command": command, "date": started, **answer}, indent=1))
