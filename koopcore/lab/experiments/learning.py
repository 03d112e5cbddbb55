"""What the experiments of Liu, Ding, Chen, Yeung 2020 share: seeds, errors, rates, colours."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from koopcore.learning import (
    AlternatingLearner,
    Dictionary,
    DistributedLearner,
    History,
    LearnedOperator,
    Monomials,
    prediction_errors,
)
from koopcore.learning.learned_operator import relative
from koopcore.types import FloatArray

FIRST_SEED = 1000
"""Seeds from here on are for results: no setting was chosen with any of them."""

ERRORS = ("one_step_features", "multi_step_features", "one_step_states", "multi_step_states")

TRUE, KOOPMAN = "#2f6db3", "#e0662c"
"""Colours of true and predicted curves."""


def timed(learner: AlternatingLearner | DistributedLearner, train: FloatArray) -> float:
    """Seconds of wall-clock time that ``fit`` took."""
    start = time.perf_counter()
    learner.fit(train)
    return time.perf_counter() - start


def state_errors(learned: LearnedOperator, test: FloatArray) -> dict[str, float]:
    """The errors named in `ERRORS`, as fractions."""
    return dict(vars(prediction_errors(learned, test)))


def without_learning(
    dictionary: Dictionary,
    train: FloatArray,
    test: FloatArray,
    seeds: Sequence[int],
    standardize: bool = False,
) -> dict[str, float]:
    """Median errors of the states with random θ and one exact K: what learning is to improve."""
    runs = []
    for seed in seeds:
        learner = AlternatingLearner(
            dictionary, k_step="exact", n_iterations=1, standardize=standardize, random_state=seed
        ).fit(train)
        runs.append(state_errors(learner.operator_, test))
    return {name: float(np.median([run[name] for run in runs])) for name in runs[0]}


def delay_dmd(train: FloatArray, test: FloatArray, depth: int) -> dict[str, float]:
    """Errors of the states by least squares on ``depth`` states in a row, from those before x_0.

    With the constant, as many features as ``1 + depth n``. test: its first row is the last of
    ``train``, whose end are the states before it.
    """
    n = train.shape[1]
    learner = AlternatingLearner(
        Monomials(n * depth, 1, constant=True), k_step="exact", n_iterations=1, standardize=True
    ).fit(delayed(train, depth))
    learned, rows = learner.operator_, delayed(np.concatenate([train[-depth:-1], test]), depth)
    ahead = learned.states(learned.features(rows[:-1]) @ learned.operator.T)[:, :n]
    many = learned.predict(rows[0], len(test) - 1)[:, :n]
    return {
        "one_step_states": relative(ahead, test[1:]),
        "multi_step_states": relative(many, test[1:]),
    }


def delayed(states: FloatArray, depth: int) -> FloatArray:
    """Rows [x_k, x_{k-1}, …] of ``depth`` states each: (length - depth + 1, depth n)."""
    length = len(states) - depth + 1
    return np.hstack(
        [states[depth - 1 - back : depth - 1 - back + length] for back in range(depth)]
    )


def percent(fraction: float) -> str:
    """A fraction as per cent to three digits; "diverged" from 1000 % on."""
    return f"{100.0 * fraction:.3g} %" if np.isfinite(fraction) and fraction < 10.0 else "diverged"


def least_criterion(history: History) -> FloatArray:
    """min_{t <= T} E_t for T = 1, 2, …, as the paper states its rates: (n_iterations,)."""
    return np.minimum.accumulate(history.criterion)


def fitted_slope(least: FloatArray, first: int = 10, points: int = 60) -> float:
    """Slope of log(min E) against log T by least squares, at ``points`` T from ``first`` on.

    The T are evenly spaced on the log axis, so that the many late iterations do not decide alone;
    the first ten, where E still remembers the start, are left out. Raises ValueError for too few.
    """
    if len(least) < 2 * first:
        raise ValueError(f"{len(least)} iterations; a slope from T = {first} needs {2 * first}")
    spaced = np.unique(np.geomspace(first, len(least), points).astype(np.int64))
    return float(np.polyfit(np.log(spaced), np.log(least[spaced - 1]), 1)[0])
