"""The times of pandas' and xarray's rows: whether they are evenly spaced, and how they go on."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

JITTER = 0.05
"""Steps that differ by less than this share of their mean count as equal: times are rounded."""


class UnevenTimeWarning(UserWarning):
    """Rows are not equally far apart in time, which a decomposition takes them to be."""


def warn_if_uneven(index: Any, name: str, stacklevel: int) -> None:
    """Warn where an index of times or numbers has gaps, uneven steps, or runs backwards."""
    places = numbers_of(index)
    if places is None or len(places) < 2:
        return
    steps = np.diff(places)
    if (steps < 0).all():
        what = f"runs backwards, from {index[0]} to {index[-1]}: sort it, X.sort_index()"
    elif step_of(index) is None:
        usual = float(np.median(steps))
        k = int(np.argmax(np.abs(steps - usual)))
        what = (
            f"is not evenly spaced: from {index[k]} to {index[k + 1]} (rows {k} and {k + 1}) is "
            f"{abs(steps[k] / usual) if usual else np.inf:.3g} times the usual step. Resample or "
            "interpolate it, fit the parts as a list of trajectories, or drop an index that is no "
            "time: X.reset_index(drop=True)"
        )
    else:
        return
    warnings.warn(
        f"the index of {name} {what}. Rows were taken to be one step apart",
        UnevenTimeWarning,
        stacklevel=stacklevel,
    )


def continued(index: Any, steps: Sequence[int]) -> Any:
    """The labels ``steps`` rows after the last of a pandas index, or None where none follow."""
    import pandas

    step = step_of(index)
    if step is None:
        return None
    try:
        if isinstance(step, pandas.offsets.BaseOffset) and not isinstance(step, pandas.Timedelta):
            later = pandas.date_range(index[-1], periods=max(steps) + 1, freq=step)
            return later[list(steps)].rename(index.name)
        if isinstance(index, pandas.PeriodIndex):
            return pandas.PeriodIndex([index[-1] + step * k for k in steps], name=index.name)
        last = index[-1]
        if not hasattr(index, "asi8"):
            last = float(last) if index.dtype.kind == "f" else int(last)
        return pandas.Index([last + step * k for k in steps], name=index.name)
    except (OverflowError, ValueError, MemoryError):  # beyond the dates that there are
        return None


def step_of(index: Any) -> Any:
    """From one label to the next, or None where that varies, or they are neither time nor number.

    An offset of the calendar (months, business days) where the index follows one.
    """
    import pandas

    places = numbers_of(index)
    if places is None or len(places) < 2:
        return None
    if isinstance(index, pandas.DatetimeIndex) and index.freq is not None:
        return index.freq
    steps = np.diff(places)
    mean = steps.mean()
    if mean > 0 and np.abs(steps - mean).max() <= JITTER * mean:
        if isinstance(index, (pandas.DatetimeIndex, pandas.TimedeltaIndex)):
            return (index[-1] - index[0]) / (len(index) - 1)
        exact = steps[0] == mean
        return int(mean) if exact and index.dtype.kind not in "f" else float(mean)
    if isinstance(index, pandas.DatetimeIndex) and len(index) >= 3 and index.is_unique:
        with warnings.catch_warnings():  # of what it will return, which is taken either way
            warnings.simplefilter("ignore")
            name = pandas.infer_freq(index)
        return None if name is None else pandas.tseries.frequencies.to_offset(name)
    return None


def numbers_of(index: Any) -> Any:
    """Where the labels lie beside the first; None for those that are no time nor number."""
    import pandas

    if isinstance(index, (pandas.DatetimeIndex, pandas.TimedeltaIndex, pandas.PeriodIndex)):
        return None if index.hasnans else (index.asi8 - index.asi8[:1]).astype(np.float64)
    if isinstance(index, pandas.MultiIndex) or index.dtype.kind not in "iuf":
        return None
    return index.to_numpy(dtype=np.float64)
