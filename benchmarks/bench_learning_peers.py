"""How do PyDMD's, pykoopman's and kooplearn's EDMD compare with ours, on the same data and run?

    pip install pydmd pykoopman kooplearn
    python benchmarks/bench_learning_peers.py

Van der Pol: monomials to degree 5, 400 points learned and 200 predicted. Glycolysis: monomials to
degree 2 of standardized states, 600 and 400. Each package gets the same points; the error is that
of the states on the points it has not seen, and the time that of its own ``fit``. A package that is
not installed is named so. Prints JSON.
"""

import json
import sys
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np

from koopcore.lab.experiments.glycolysis import BLOCK
from koopcore.lab.problems import glycolysis, van_der_pol
from koopcore.lab.problems.van_der_pol import Split
from koopcore.lab.stopwatch import in_turns
from koopcore.learning import AlternatingLearner, Blocks, Monomials, OneLayer, StateInclusive

Step = Callable[[np.ndarray, int], np.ndarray]  # (x_0, n) to the n states after it
Fit = Callable[[np.ndarray], Step]


def monomials(degree: int) -> Fit:
    """Ours: EDMD by the exact step."""

    def fit(x: np.ndarray) -> Step:
        dictionary = Monomials(x.shape[1], degree)
        learner = AlternatingLearner(dictionary, k_step="exact", n_iterations=1).fit(x)
        return lambda x0, n: learner.predict(x0, n)

    return fit


def learned(x: np.ndarray) -> Step:
    """Ours: the dictionary learned too."""
    dictionary = StateInclusive(OneLayer(2, 16, scale=0.5, bias=None))
    learner = AlternatingLearner(
        dictionary, k_step="exact", track="objective", random_state=1000
    ).fit(x)
    return lambda x0, n: learner.predict(x0, n)


def learned_blocks(x: np.ndarray) -> Step:
    """Ours: seven blocks that see one state each, as `reproduce glycolysis` learns them."""
    learner = AlternatingLearner(
        Blocks((BLOCK,) * 7), n_iterations=100, track="objective", polish=True, random_state=1000
    ).fit(x)
    return lambda x0, n: learner.predict(x0, n)


def pykoopman(degree: int) -> Fit:
    def fit(x: np.ndarray) -> Step:
        import pykoopman as pk

        # Its own Polynomial does not work with current scikit-learn: the same monomials, from us.
        lift, width = Monomials(x.shape[1], degree), x.shape[1]
        model = pk.Koopman(observables=pk.observables.Identity(), regressor=pk.regression.EDMD())
        model.fit(lift.features(np.zeros(0), x))

        def step(x0: np.ndarray, n: int) -> np.ndarray:
            lifted = lift.features(np.zeros(0), x0[None])[0]
            return np.asarray(model.simulate(lifted, n_steps=n)).reshape(n, -1)[:, :width].real

        return step

    return fit


def pydmd(degree: int) -> Fit:
    def fit(x: np.ndarray) -> Step:
        from pydmd import EDMD

        rank = Monomials(x.shape[1], degree).n_features
        kernel = {"degree": degree, "coef0": 1.0}
        model = EDMD(svd_rank=rank, kernel_metric="poly", kernel_params=kernel)
        model.fit(x[:-1].T, x[1:].T)
        values, modes, functions = model.eigs, model.modes, model.eigenfunctions

        def step(x0: np.ndarray, n: int) -> np.ndarray:
            start = np.asarray(functions(x0)).reshape(-1)
            powers = values[None, :] ** np.arange(1, n + 1)[:, None]
            return ((powers * start) @ modes.T).real

        return step

    return fit


def kooplearn(degree: int) -> Fit:
    def fit(x: np.ndarray) -> Step:
        from kooplearn.linear_model import Ridge

        lift, width = Monomials(x.shape[1], degree), x.shape[1]
        model = Ridge(alpha=1e-12, reduced_rank=False).fit(lift.features(np.zeros(0), x))

        def step(x0: np.ndarray, n: int) -> np.ndarray:
            lifted = lift.features(np.zeros(0), x0[None])
            ahead = []
            for _ in range(n):
                lifted = np.asarray(model.predict(lifted)).reshape(1, -1)
                ahead.append(lifted[0, :width].real)
            return np.array(ahead)

        return step

    return fit


def compared(parts: Split, fits: dict[str, Fit]) -> dict[str, Any]:
    """One-step and multi-step errors of the states, and seconds of a fit."""
    rows: dict[str, Any] = {}
    for name, fit in fits.items():
        try:
            step = fit(parts.train)
        except ImportError as error:
            rows[name] = {"missing": str(error)}
            continue
        ahead = np.vstack([step(x, 1) for x in parts.test[:-1]])
        many = step(parts.test[0], len(parts.test) - 1)
        rows[name] = {
            "one_step": relative(ahead, parts.test[1:]),
            "multi_step": relative(many, parts.test[1:]),
            "fit_seconds": in_turns([lambda fit=fit: fit(parts.train)], rounds=5)[0],
        }
    return rows


def relative(predicted: np.ndarray, true: np.ndarray) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.linalg.norm(predicted - true) / np.linalg.norm(true))


def edmd_peers(degree: int) -> dict[str, Fit]:
    return {
        f"koopcore, monomials of degree {degree}": monomials(degree),
        "pykoopman EDMD, the same monomials": pykoopman(degree),
        "kooplearn Ridge 1e-12, the same monomials": kooplearn(degree),
        f"PyDMD EDMD, polynomial kernel of degree {degree}": pydmd(degree),
    }


def versions() -> dict[str, str]:
    found = {}
    for name in ("koopcore", "pydmd", "pykoopman", "kooplearn", "numpy", "scikit-learn"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def main() -> dict[str, Any]:
    result: dict[str, Any] = {}
    for mu in (0.2, 1.0):
        ours = {"koopcore, state + 16 tanh learned in 500 iterations": learned}
        parts = van_der_pol.paper_split(mu)
        result[f"van der Pol, mu = {mu}"] = compared(parts, {**edmd_peers(5), **ours})
    whole = glycolysis.paper_split()
    mean, spread = whole.train.mean(axis=0), whole.train.std(axis=0)
    scaled = Split((whole.train - mean) / spread, (whole.test - mean) / spread)
    ours = {"koopcore, 7 blocks of 15 learned in 100 iterations": learned_blocks}
    result["glycolysis, standardized"] = compared(scaled, {**edmd_peers(2), **ours})
    return result


if __name__ == "__main__":
    if len(sys.argv) != 1:
        sys.exit("no arguments are taken")
    head = {
        "command": "python benchmarks/bench_learning_peers.py",
        "date": time.strftime("%Y-%m-%d"),
    }
    print(json.dumps({**head, "versions": versions(), **main()}, indent=1))
