"""The figures of merit of Koopman training: equivalent steps, success, error ratio."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def equivalent_steps(losses: ArrayLike, reached: ArrayLike) -> Floats:
    """Optimizer steps that ordinary training needs to reach a given loss: ``T^eq`` in steps.

    The first crossing of the loss curve, interpolated linearly between the two steps around it.

    losses  : ``(steps + 1, networks)`` or ``(steps + 1,)``, the loss of ordinary training after
              0, 1, … steps from the point where the prediction starts (``t₂``).
    reached : ``(networks,)`` or scalar, the loss of the predicted network.

    Returns ``(networks,)`` steps in ``[0, steps]``: 0 where the prediction is no better than the
    starting point (or not finite), and ``steps``, a lower bound, where ordinary training never
    gets there within the curve; record beyond the horizon to measure predictions that are better
    than its end.

    The first crossing is the careful choice for a loss that oscillates (Adam): training is given
    credit for its best moment so far. Source: Dogra & Redman, NeurIPS 2020, section 4. Not for
    minibatch losses: smooth the validation loss first.
    """
    curve = np.asarray(losses, np.float64)
    target = np.atleast_1d(np.asarray(reached, np.float64))
    curve = curve.reshape(len(curve), -1)
    if curve.shape[1] != target.shape[0]:
        raise ValueError(
            f"losses has {curve.shape[1]} networks and reached has {target.shape[0]}; they must "
            "be the same"
        )
    result = np.zeros(target.shape)
    for network, goal in enumerate(target):
        column = curve[:, network]
        if not goal < column[0]:  # also a NaN goal
            continue
        below = np.flatnonzero(column <= goal)
        if below.size == 0:
            result[network] = len(column) - 1
            continue
        after = int(below[0])
        upper, lower = column[after - 1], column[after]
        result[network] = after - 1 + (upper - goal) / (upper - lower)
    return result


def error_ratio(predicted: ArrayLike, true: ArrayLike, before: ArrayLike) -> Floats:
    """Median over weights of ``|predicted - true| / |true - before|``, one per network.

    Each argument: ``(networks, n_parameters)``; ``before`` is the last recorded snapshot, ``true``
    what ordinary training makes of it. 1 is what predicting no motion scores. Weights that did not
    move at all are left out; NaN if none moved. Dogra & Redman report 0.0044.
    """
    guess, end, start = (np.asarray(a, np.float64) for a in (predicted, true, before))
    movement = np.abs(end - start)
    ratio = np.full(movement.shape, np.nan)
    np.divide(np.abs(guess - end), movement, out=ratio, where=movement > 0)
    moved = np.isfinite(movement) & (movement > 0)
    kept = (row[keep] for row, keep in zip(ratio, moved, strict=True))
    return np.array([np.median(row) if row.size else np.nan for row in kept])
