"""Numbers that get out of hand: steps that are too long, and data too large or small to square."""

from __future__ import annotations

import warnings
from typing import TypeAlias

import numpy as np

from koopcore.learning.dictionaries.protocol import Dictionary
from koopcore.learning.learners.history import History
from koopcore.learning.learners.step_sizes import joint_lipschitz
from koopcore.learning.objective import errors, objective, value
from koopcore.learning.trajectories import Pairs
from koopcore.types import FloatArray

Point: TypeAlias = tuple[FloatArray, FloatArray]
"""(θ, K)."""

REMEDY = "learn with standardize=True, or divide the data by their size"

_RUNAWAY = 1e6  # F this far above its first value is divergence, before it overflows


class DivergenceWarning(UserWarning):
    """The steps were too long; the last good iterate was kept."""


def diverges(value: float, history: History) -> bool:
    """Whether F is not finite any more, or has run away from its first value."""
    return runs_away(value, history.objective[0] if len(history) else value)


def runs_away(value: float, first: float) -> bool:
    """Whether F is not finite, or far above its first value."""
    within = value <= max(_RUNAWAY * first, 1e-300)  # not where either is NaN
    return not (within and np.isfinite(value))


def recover(
    history: History,
    dictionary: Dictionary,
    data: Pairs,
    start: Point,
    iterate: Point,
    steps: str,
    delay: int,
) -> Point:
    """After steps that diverged: the good (θ, K) to go back to, noted and warned of.

    iterate: the best before learning diverged; the start is better where F was never lower.
    steps: where it diverged and by which steps. delay: of messages, in iterations; the safe step is
    divided by 1 + delay. The safe step is for a descent from the start through the good point, so
    the steeper of them counts. To be called by what ``fit`` calls. Raises FloatingPointError where
    not even the start is good: F or its curvature there is not finite.
    """
    before, after = (objective(dictionary, *point, data) for point in (start, iterate))
    if after <= before:
        good, name, f = iterate, f"iterate {history.best}", after
    else:
        good, name, f = start, "the start", before
        history.best = -1
    steepest = max(joint_lipschitz(dictionary, *point, data) for point in (start, good))
    if not (np.isfinite(f) and np.isfinite(steepest)):
        raise lost(steps, before)
    warn_of_divergence(history, steps, name, steepest, delay, stacklevel=5)
    return good


def lost(steps: str, before: float) -> FloatingPointError:
    """The error where not even the start is good; before: F there."""
    return FloatingPointError(
        f"learning diverged {steps}, and cannot go back to its start, where F is {before:.3g}: "
        f"{REMEDY}, or start from smaller numbers"
    )


def warn_of_divergence(
    history: History, steps: str, name: str, steepest: float, delay: int, stacklevel: int
) -> None:
    """Note the safe step and warn of it. name: what was kept. steepest: L. stacklevel: from here
    to whoever called ``fit``.
    """
    history.safe_step = 1.0 / (steepest * (1 + delay)) if steepest else float("inf")
    reason = "1/L of the joint gradient" + (f", over 1 + delay = {1 + delay}" if delay else "")
    warnings.warn(
        f"learning diverged {steps}; {name} was kept. step_k = step_w = {history.safe_step:.3g} "
        f"would be safe ({reason})",
        DivergenceWarning,
        stacklevel=stacklevel,
    )


def check_sizes(largest_feature: float, largest_state: float, learns: bool) -> None:
    """Raise ValueError for data that float64 cannot hold the squares of, before any work.

    The largest magnitudes of ψ at the start and of the (standardized) states. learns: whether the
    dictionary or K take gradient steps; then ‖∇F‖² has fourth powers, else F has squares.
    """
    if not np.isfinite(largest_feature):
        raise ValueError(
            f"a feature of the data is {largest_feature} at the start; {REMEDY}, or choose a "
            "dictionary that is finite there"
        )
    if largest_feature == 0.0:
        raise ValueError(
            "all features of the data are 0 at the start, from where nothing is learned; choose "
            "another start, or features that reach the data"
        )
    most = 1e75 if learns else 1e150
    largest = max(largest_feature, largest_state) if learns else largest_feature
    if largest > most or largest_feature < 1.0 / most:
        raise ValueError(
            f"features of the data reach {largest_feature:.3g} and states {largest_state:.3g} at "
            f"the start; learning squares them, which float64 can hold from {1.0 / most:g} to "
            f"{most:g}: {REMEDY}"
        )


def check_finite(features: FloatArray, data: Pairs, operator: FloatArray) -> float:
    """F; FloatingPointError unless it is finite, as it is only where ψ and K are."""
    f = value(errors(features, data, operator))
    if not np.isfinite(f):
        raise FloatingPointError(
            f"what was learned is not finite, its F is {f}: {REMEDY}, take shorter steps, or leave "
            "polish away"
        )
    return f
