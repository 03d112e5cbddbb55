"""What the experiments of Liu, Ding, Chen, Yeung 2020 share: seeds, errors, rates, colours."""

from __future__ import annotations

import time

import numpy as np

from koopcore.learning import (
    AlternatingLearner,
    DistributedLearner,
    History,
    LearnedOperator,
    prediction_errors,
)
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
