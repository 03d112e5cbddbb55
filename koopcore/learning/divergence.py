"""Steps that were too long: when learning diverges, which iterate is good, which step is safe."""

from __future__ import annotations

import warnings
from typing import TypeAlias

import numpy as np

from koopcore.learning.dictionaries.protocol import Dictionary
from koopcore.learning.history import History
from koopcore.learning.objective import gradient
from koopcore.learning.step_sizes import joint_lipschitz
from koopcore.learning.trajectories import Pairs
from koopcore.types import FloatArray

Point: TypeAlias = tuple[FloatArray, FloatArray]
"""(θ, K)."""

_RUNAWAY = 1e6  # F this far above its first value is divergence, before it overflows


class DivergenceWarning(UserWarning):
    """The steps were too long; the last good iterate was kept."""


def diverges(value: float, history: History) -> bool:
    """Whether F is not finite any more, or has run away from its first value."""
    first = history.objective[0] if len(history) else value
    return not value <= max(_RUNAWAY * first, 1e-300)  # also where either is NaN


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
    the steeper of them counts. To be called by what ``fit`` calls.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        before, after = (gradient(dictionary, *point, data).value for point in (start, iterate))
    if after <= before:
        good, name = iterate, f"iterate {history.best}"
    else:
        good, name = start, "the start"
        history.best = -1
    steepest = max(joint_lipschitz(dictionary, *point, data) for point in (start, good))
    history.safe_step = 1.0 / (steepest * (1 + delay)) if steepest else float("inf")
    reason = "1/L of the joint gradient" + (f", over 1 + delay = {1 + delay}" if delay else "")
    warnings.warn(
        f"learning diverged {steps}; {name} was kept. step_k = step_w = {history.safe_step:.3g} "
        f"would be safe ({reason})",
        DivergenceWarning,
        stacklevel=4,  # whoever called fit
    )
    return good
