"""How a cost grows: the exponent of a power law above a fixed cost, with confidence interval."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class Power(NamedTuple):
    """y = fixed + factor · x^exponent; half_width: of the exponent's 95 % interval.

    unit: of y, fixed and factor.
    """

    exponent: float
    half_width: float
    fixed: float
    factor: float
    points: int
    unit: str = "s"

    def __str__(self) -> str:
        fixed = f"{self.fixed:.2g} {self.unit} + " if self.fixed else ""
        power = f"x^{self.exponent:.2f}±{self.half_width:.2f}"
        return f"{fixed}{self.factor:.2g} {self.unit} · {power}"


def powers_of(
    label: str, x: Sequence[float], seconds: Sequence[float], fixed: bool = True
) -> dict[str, Power]:
    """`fit_power` under a label, or nothing where points are missing for it."""
    if len(x) < (4 if fixed else 3):
        return {}
    return {label: fit_power(x, seconds, fixed)}


def fit_power(x: Sequence[float], seconds: Sequence[float], fixed: bool = True) -> Power:
    """Least squares in log(seconds): every point counts by its relative error.

    x, seconds : positive, at least 3 points (4 with ``fixed``).
    fixed      : whether a cost that does not grow may be part of it (calling, starting threads).
    The interval is Student's, from the scatter about the curve; it says nothing about a curve that
    is no power law, whose scatter is not noise. Raises ValueError for too few or invalid points.
    """
    from scipy import optimize, stats

    xs, ts = np.asarray(x, dtype=float), np.asarray(seconds, dtype=float)
    unknowns = 3 if fixed else 2
    if xs.shape != ts.shape or xs.ndim != 1 or len(xs) < unknowns + 1:
        raise ValueError(
            f"x has shape {xs.shape}, seconds {ts.shape}; {unknowns + 1} points or more are needed"
        )
    if not (np.all(xs > 0) and np.all(ts > 0) and np.all(np.isfinite(xs * ts))):
        raise ValueError("x and seconds must be positive and finite")
    logs, times = np.log(xs), np.log(ts)
    slope, intercept = np.polyfit(logs, times, 1)

    def plain(logs: npt.NDArray[Any], b: float, p: float) -> npt.NDArray[Any]:
        return b + p * logs

    def raised(logs: npt.NDArray[Any], b: float, p: float, a: float) -> npt.NDArray[Any]:
        return np.logaddexp(a, b + p * logs)

    if fixed:
        # The fixed cost starts at half of the least time, the rest through the last point.
        start = (times[-1] - max(slope, 0.1) * logs[-1], max(slope, 0.1), times.min() - np.log(2))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", optimize.OptimizeWarning)
                fitted, covariance = optimize.curve_fit(raised, logs, times, start, maxfev=20_000)
        except (RuntimeError, optimize.OptimizeWarning):  # the points tell of no fixed cost
            return fit_power(x, seconds, fixed=False)
        if not np.all(np.isfinite(covariance)) or np.exp(fitted[2]) < 0.01 * ts.min():
            return fit_power(x, seconds, fixed=False)
    else:
        fitted, covariance = optimize.curve_fit(plain, logs, times, (intercept, slope))
    quantile = stats.t.ppf(0.975, len(xs) - unknowns)
    return Power(
        exponent=float(fitted[1]),
        half_width=float(quantile * np.sqrt(covariance[1, 1])),
        fixed=float(np.exp(fitted[2])) if fixed else 0.0,
        factor=float(np.exp(fitted[0])),
        points=len(xs),
    )
