"""What a learner records: F, both gradient norms and steps per iteration; and the best iterate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from koopcore.types import FloatArray

Criterion: TypeAlias = Literal["gradient", "objective"]


@dataclass
class History:
    """One entry per iteration t, and why learning stopped.

    Attributes:
        objective: F.
        gradient_k, gradient_w: ‖∇_K‖_F and ‖∇_W‖.
        step_k, step_w: η used.

    The criterion of the paper is E = ‖∇_K‖² + ‖∇_W‖².
    """

    objective: list[float] = field(default_factory=list)
    gradient_k: list[float] = field(default_factory=list)
    gradient_w: list[float] = field(default_factory=list)
    step_k: list[float] = field(default_factory=list)
    step_w: list[float] = field(default_factory=list)
    stopped: str = "iterations"  # or "tolerance", "callback", "diverged"
    best: int = -1  # the iteration whose iterate is the result; -1: the start
    safe_step: float = float("nan")  # where learning diverged: 1/L of the joint gradient
    validation: list[float] = field(default_factory=list)  # errors of samples held out, if any

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
    """The iterate (θ, K) of the smallest E = ‖∇‖², or of the smallest F (``by="objective"``)."""

    by: Criterion
    parameters: FloatArray  # of the start, until an iterate is offered
    operator: FloatArray
    least: float = float("inf")
    iteration: int = -1

    def offer(
        self,
        iteration: int,
        value: float,
        slope: float,
        parameters: FloatArray,
        operator: FloatArray,
    ) -> None:
        """Keep the iterate if its F or its ‖∇‖ is the least; arrays by reference, not copied."""
        score = slope if self.by == "gradient" else value
        if score < self.least:
            self.least, self.iteration = score, iteration
            self.parameters, self.operator = parameters, operator
