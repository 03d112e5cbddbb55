"""Rates of Algorithm 1 as the paper states them: min over t <= T of E against T."""

from __future__ import annotations

import numpy as np

from koopcore.learning import History
from koopcore.types import FloatArray


def least_criterion(history: History) -> FloatArray:
    """min_{t <= T} E_t for T = 1, 2, …: (n_iterations,)."""
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
