"""Windows of one series, all decomposed at once."""

from __future__ import annotations

from typing import Any

from koopcore.dmd.checks import check_whole
from koopcore.dmd.estimator import DMD
from koopcore.dmd.optimized import OptimizedDMD
from koopcore.dmd.series import read


def sliding(X: Any, window: int, step: int = 1, estimator: Any = None, **settings: Any) -> Any:
    """Decompose the windows of a series: system k of the result is X[k step : k step + window].

    Args:
        X: (time, features).
        window: snapshots of each.
        step: from one window to the next.
        estimator: a `DMD` or `OptimizedDMD`, fitted in place; None makes ``DMD(**settings)``.

    Returns the fitted estimator, whose attributes have one row for each of the
    (time - window) // step + 1 windows. X is read where it lies: windows are views of it.
    Raises TypeError or ValueError for several systems, or a window longer than the series.

    Cost: that of a batch of as many systems. Not for one window that grows, or one that a stream
    fills: see `DMD.partial_fit`.
    """
    if estimator is None:
        estimator = DMD(**settings)
    elif settings:
        raise TypeError(f"settings {sorted(settings)} are of the estimator that was given")
    if not isinstance(estimator, (DMD, OptimizedDMD)):
        raise TypeError(
            f"estimator is a {type(estimator).__name__}; a DMD or OptimizedDMD is needed"
        )
    window, step = check_whole("window", window, 2), check_whole("step", step, 1)
    series = read(X)
    series.warn_if_uneven()
    if series.kind.systems or series.kind.trajectories:
        raise ValueError(f"sliding takes one series (time, features), not {series.array.shape}")
    n = int(series.array.shape[1])
    if window > n:
        raise ValueError(f"window is {window}; the series has {n} snapshots")
    return estimator.fit_windows(series, window, step)
