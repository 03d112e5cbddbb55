"""What does an iteration of operator learning cost, against point by point, workers, size?

    python benchmarks/bench_learning.py points   # the same algorithm written point by point
    python benchmarks/bench_learning.py workers  # time and bytes per iteration on 1, 2, 4, 7 ranks
    python benchmarks/bench_learning.py scaling  # points, features, states
    python benchmarks/bench_learning.py seconds  # 500 iterations on Van der Pol, 3 dimensions
    python benchmarks/bench_learning.py exact    # the exact step beside NumPy's solve
    python benchmarks/bench_learning.py float32  # 10^5 points, 600 features: torch in float32

Each prints one JSON object, and checks its results against each other before it prints a time.
"""

import json
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np
from point_by_point import simultaneous_step_by_points

from koopcore.lab.problems import glycolysis, van_der_pol
from koopcore.lab.stopwatch import in_turns
from koopcore.learning import (
    AlternatingLearner,
    Blocks,
    DistributedLearner,
    Layered,
    OneLayer,
    simultaneous_step,
)
from koopcore.learning.objective import exact_operator, gradient
from koopcore.learning.trajectories import pairs

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
            dictionary = Blocks((OneLayer(1, given["features"], bias=None),) * given["states"])
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
        "3 tanh, gradient, step 0.23": (
            OneLayer(2, 3, bias=None),
            {"step_k": 0.23, "step_w": 0.23},
        ),
        "3 tanh, gradient, 1/L_K, backtracking": (OneLayer(2, 3, bias=None), {}),
        "3 logistic, exact K": (OneLayer(2, 3, "logistic", 0.3, bias=None), {"k_step": "exact"}),
    }.items():
        dictionary, settings = given
        result[name] = in_turns(
            [lambda d=dictionary, s=settings: AlternatingLearner(d, **s).fit(train)], rounds=5
        )[0]
    return result


def exact() -> dict[str, Any]:
    """K by the exact step, and by NumPy's solve of the same normal equations; 1,000 points."""
    rows = {}
    for h in (100, 300, 600):
        rng = np.random.default_rng(h)
        data = pairs(rng.standard_normal((1001, 20)))
        layer = OneLayer(20, h, scale=0.2)
        features = layer.features(layer.initial(rng), data.states)

        def numpy_solve(psi: np.ndarray = features) -> Any:
            now, ahead = psi[:-1], psi[1:]
            return np.linalg.solve(now.T @ now, now.T @ ahead).T

        ours, theirs = exact_operator(features, data), numpy_solve()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6 * np.abs(theirs).max())
        both = in_turns([lambda f=features, d=data: exact_operator(f, d), numpy_solve], rounds=7)
        rows[str(h)] = {"seconds": both[0], "numpy": both[1], "ratio": both[0] / both[1]}
    return rows


def float32() -> dict[str, Any]:
    """Seconds and memory of a gradient iteration, each in a process of its own, in turns."""
    rows: dict[str, Any] = {}
    for _ in range(3):
        for name in ITERATIONS:
            command = [sys.executable, __file__, "--iteration", name]
            answer = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            best = rows.setdefault(name, answer)
            rows[name] = min(best, answer, key=lambda row: row["seconds"])
    base = rows["NumPy float64"]
    for row in rows.values():
        row["times as fast"] = base["seconds"] / row["seconds"]
        row["of its memory"] = row["megabytes"] / base["megabytes"]
    f = [row["objective"] for row in rows.values()]
    np.testing.assert_allclose(f, f[0], rtol=1e-5)
    return {"points": 100_000, "features": 600, "rows": rows}


ITERATIONS = {
    "NumPy float64": None,
    "torch float64": "float64",
    "torch float32": "float32",
}


def one_iteration(name: str) -> dict[str, Any]:
    """F and both gradients at one point: of K and θ, all points; the peak beside the states."""
    rng = np.random.default_rng(0)
    layer, h = OneLayer(20, 600, scale=0.2), 600
    data = pairs(rng.standard_normal((100_001, 20)))
    theta, k = layer.initial(rng), np.eye(h) + rng.standard_normal((h, h)) / h
    dtype = ITERATIONS[name]
    if dtype is None:
        work = lambda: gradient(layer, theta, k, data).value  # noqa: E731
    else:
        from koopcore.learning import MinibatchLearner
        from koopcore.learning.learners.minibatches import Work

        learner = MinibatchLearner(layer, k_step="gradient", dtype=dtype)
        torch_work = Work(learner, data, theta, k)
        work = lambda: torch_work.gradient()[0]  # noqa: E731
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    value = work()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds": seconds,
        "megabytes": (peak - before) / 1024,
        "objective": value,
    }


QUESTIONS = {f.__name__: f for f in (points, workers, scaling, seconds, exact, float32)}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--iteration"]:
        print(json.dumps(one_iteration(sys.argv[2])))
        sys.exit()
    if len(sys.argv) != 2 or sys.argv[1] not in QUESTIONS:
        sys.exit(f"one of {', '.join(QUESTIONS)} is needed")
    started = time.strftime("%Y-%m-%d")
    command = f"python benchmarks/bench_learning.py {sys.argv[1]}"
    answer = QUESTIONS[sys.argv[1]]()
    print(json.dumps({"command": command, "date": started, **answer}, indent=1))
