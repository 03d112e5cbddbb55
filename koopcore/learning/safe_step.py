"""After steps that diverged: the step that would have been safe, and the warning that says so."""

from __future__ import annotations

import warnings
from typing import TypeAlias

import numpy as np

from koopcore.learning.dictionaries.one_layer import Dictionary
from koopcore.learning.history import DivergenceWarning, History
from koopcore.learning.objective import gradient
from koopcore.learning.trajectories import Pairs
from koopcore.types import FloatArray

Point: TypeAlias = tuple[FloatArray, FloatArray]  # (θ, K)

_POWERS = 30  # a Rayleigh quotient within some percent of λ_max; the factor 2 of 2/L covers it


def joint_lipschitz(
    dictionary: Dictionary, parameters: FloatArray, operator: FloatArray, data: Pairs
) -> float:
    """L of the joint gradient (∇_θ F, ∇_K F) near one (θ, K): |λ|_max of its Hessian.

    Power iteration on differences of gradients, (∇F(z + εv) - ∇F(z)) / ε, from a fixed random v.
    Joint steps below 2/L descend near (θ, K); L may be larger elsewhere.
    Cost: 31 gradients. Not in every iteration: backtracking costs one forward pass.
    """
    p = len(parameters)
    point = np.concatenate([parameters, operator.reshape(-1)])

    def slope(z: FloatArray) -> FloatArray:
        found = gradient(dictionary, z[:p], z[p:].reshape(operator.shape), data)
        return np.concatenate([found.parameters, found.operator.reshape(-1)])

    # ε balances truncation, O(ε), and the rounding of the gradients, O(1e-16 / ε).
    epsilon = 1e-7 * (1.0 + float(np.linalg.norm(point)))
    here, size = slope(point), 0.0
    direction = np.random.default_rng(0).standard_normal(len(point))
    for _ in range(_POWERS):
        direction /= np.linalg.norm(direction)
        direction = (slope(point + epsilon * direction) - here) / epsilon
        size = float(np.linalg.norm(direction))
        if size == 0.0:
            break
    return size


def last_good(
    history: History, dictionary: Dictionary, data: Pairs, start: Point, kept: Point
) -> Point:
    """The kept iterate, or the start where even that iterate has a larger F: (θ, K)."""
    with np.errstate(over="ignore", invalid="ignore"):
        values = [gradient(dictionary, *point, data).value for point in (start, kept)]
    if values[1] <= values[0]:
        return kept
    history.best = -1
    return start


def warn_of_divergence(
    history: History,
    dictionary: Dictionary,
    data: Pairs,
    start: Point,
    kept: Point,
    what: str,
    delay: int = 0,
) -> None:
    """Note in ``history`` that learning diverged and the step that is safe, and warn.

    kept: of `last_good`, so that descent from the start passes both; the steeper of them counts.
    what: where it diverged and by which steps. delay: of messages; the safe step is divided by
    1 + delay.
    """
    steepest = max(joint_lipschitz(dictionary, *point, data) for point in (start, kept))
    history.stopped = "diverged"
    history.safe_step = 1.0 / (steepest * (1 + delay)) if steepest else float("inf")
    reason = "1/L of the joint gradient" + (f", over 1 + delay = {1 + delay}" if delay else "")
    found = "the start" if kept is start else f"iterate {history.best}"
    warnings.warn(
        f"learning diverged {what}; {found} was kept. step_k = step_w = {history.safe_step:.3g} "
        f"would be safe ({reason})",
        DivergenceWarning,
        stacklevel=3,
    )
