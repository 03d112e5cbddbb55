"""What a learner records: F, both gradient norms and steps per iteration; the optimal tracker."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from koopcore.types import FloatArray

TRACKED = ("gradient", "objective")
_RUNAWAY = 1e6  # F this far above its first value is divergence, before it overflows


class DivergenceWarning(UserWarning):
    """The steps were too long; the last good iterate was kept."""


@dataclass
class History:
    """One entry per iteration t, and why learning stopped.

    objective: F. gradient_k, gradient_w: ‖∇_K‖_F and ‖∇_W‖. step_k, step_w: η used. The criterion
    of the paper is E = ‖∇_K‖² + ‖∇_W‖².
    """

    objective: list[float] = field(default_factory=list)
    gradient_k: list[float] = field(default_factory=list)
    gradient_w: list[float] = field(default_factory=list)
    step_k: list[float] = field(default_factory=list)
    step_w: list[float] = field(default_factory=list)
    stopped: str = "iterations"  # or "tolerance", "callback", "diverged"
    best: int = -1  # the iteration whose iterate was kept
    safe_step: float = float("nan")  # where learning diverged: 1/L of the joint gradient

    def add(self, value: float, k: float, w: float, step_k: float, step_w: float) -> None:
        """Append one iteration."""
        self.objective.append(value)
        self.gradient_k.append(k)
        self.gradient_w.append(w)
        self.step_k.append(step_k)
        self.step_w.append(step_w)

    @property
    def criterion(self) -> FloatArray:
        """E of every iteration."""
        return np.square(self.gradient_k) + np.square(self.gradient_w)

    def __len__(self) -> int:
        return len(self.objective)


@dataclass
class Tracker:
    """Keeps (θ, K) of the smallest E, or of the smallest F (``by="objective"``)."""

    by: str
    parameters: FloatArray  # of the start, until an iterate is offered
    operator: FloatArray
    least: float = float("inf")
    iteration: int = -1

    def offer(
        self, iteration: int, value: float, e: float, parameters: FloatArray, operator: FloatArray
    ) -> None:
        """Keep the iterate if it is the best so far; arrays are kept by reference, not copied."""
        score = e if self.by == "gradient" else value
        if score < self.least:
            self.least, self.iteration = score, iteration
            self.parameters, self.operator = parameters, operator


def check_tracked(track: str) -> None:
    """Raise ValueError for an unknown criterion."""
    if track not in TRACKED:
        raise ValueError(f"track is {track!r}; one of {', '.join(map(repr, TRACKED))} is needed")


def diverges(value: float, history: History) -> bool:
    """Whether F is not finite any more, or has run away from its first value."""
    first = history.objective[0] if len(history) else value
    return not value <= max(_RUNAWAY * first, 1e-300)  # also where either is NaN
