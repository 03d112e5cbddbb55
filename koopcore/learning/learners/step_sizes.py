"""Step sizes: by search, diminishing, and from Lipschitz constants, computed or of Lemma 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from koopcore.learning.checks import positive
from koopcore.learning.dictionaries.activations import activation
from koopcore.learning.dictionaries.one_layer import OneLayer
from koopcore.learning.dictionaries.protocol import Dictionary
from koopcore.learning.objective import gradient
from koopcore.learning.trajectories import Pairs
from koopcore.types import FloatArray

POWERS = 30  # a Rayleigh quotient within some percent of λ_max; the factor 2 of 2/L covers it


@dataclass(frozen=True)
class Diminishing:
    """η_t = first / (t + 1), t = 0, 1, …: min E ≤ c / log T (Theorem 2 of the paper).

    Not for speed: the steps sum to log T, so the last iterations hardly move.
    """

    first: float

    def __post_init__(self) -> None:
        positive("first", self.first)

    def at(self, iteration: int) -> float:
        """η of iteration ``iteration``, counted from 0."""
        return self.first / (iteration + 1)


StepK: TypeAlias = Literal["lipschitz"] | float | Diminishing
StepW: TypeAlias = Literal["backtracking", "lemma"] | float | Diminishing


def scheduled(step: float | Diminishing, iteration: int) -> float:
    """The step of an iteration, constant or diminishing."""
    return step.at(iteration) if isinstance(step, Diminishing) else step


class Backtracking:
    """The step of W by search: halved where F falls too little, and tried larger next time.

    It doubles until a step fails for the first time, then grows by a tenth per step: a growth of
    1.5 made every third step fail, which costs a forward pass, or on several workers an iteration.
    """

    _SMALLEST = 1e-18  # below it W stays where it is: rounding hides any decrease

    def __init__(self) -> None:
        self.step, self._growth = 1.0, 2.0

    def accepts(self, value: float, before: float, squares: float) -> bool:
        """Armijo's rule: F fell by half of η‖∇‖², as it does for every η below 1/L."""
        return value <= before - 0.5 * self.step * squares

    def grow(self) -> None:
        """After a step that was taken."""
        self.step *= self._growth

    def shrink(self) -> bool:
        """After a step that failed; False where no smaller one is worth a trial."""
        self.step *= 0.5
        self._growth = 1.1
        return self.step >= self._SMALLEST


def check_step(name: str, step: object, words: tuple[str, ...]) -> None:
    """Raise unless ``step`` is one of the words, a positive number, or Diminishing."""
    if isinstance(step, Diminishing) or (isinstance(step, str) and step in words):
        return
    number = isinstance(step, (int, float, np.floating)) and not isinstance(step, bool)
    if number and 0.0 < float(step) < np.inf:  # type: ignore[arg-type]
        return
    accepted = ", ".join([*map(repr, words), "a number > 0"])
    raise ValueError(f"{name} is {step!r}; {accepted} or Diminishing(...) is needed")


def lipschitz_k(
    features: FloatArray,
    start: FloatArray | None = None,
    tolerance: float = 1e-10,
    most: int = 1000,
) -> tuple[float, FloatArray]:
    """L_K = (2/N) λ_max(Σ ψψᵀ), the exact Lipschitz constant of ∇_K F, and its eigenvector.

    Args:
        features: ψ(x_n), (N, h). Power iteration from ``start``, the eigenvector of the
            previous iterate where there is one, until the Rayleigh quotient moves by less than
            ``tolerance`` relative. It approaches L_K from below: a step of 1/L_K leaves a
            factor of 2 to 2/L_K.

    Cost: 4 N h flops per power, two or three of them from a warm start.
    """
    h = features.shape[1]
    vector = np.full(h, h**-0.5) if start is None else start
    previous = 0.0
    for _ in range(most):
        product = features.T @ (features @ vector)
        norm = float(np.linalg.norm(product))
        if norm == 0.0:
            # A start orthogonal to all features; only zero features are orthogonal to this one.
            if previous == 0.0 and features.any():
                vector = features[np.abs(features).sum(axis=1).argmax()]
                vector = vector / np.linalg.norm(vector)
                previous = np.inf
                continue
            break
        vector = product / norm
        if abs(norm - previous) <= tolerance * norm:
            previous = norm
            break
        previous = norm
    return 2.0 * (previous if np.isfinite(previous) else 0.0) / len(features), vector


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
        slopes = gradient(dictionary, z[:p], z[p:].reshape(operator.shape), data)
        return np.concatenate([slopes.parameters, slopes.operator.reshape(-1)])

    # ε balances truncation, O(ε), and the rounding of the gradients, O(1e-16 / ε).
    epsilon = 1e-7 * (1.0 + float(np.linalg.norm(point)))
    here, size = slope(point), 0.0
    direction = np.random.default_rng(0).standard_normal(len(point))
    for _ in range(POWERS):
        direction /= np.linalg.norm(direction)
        direction = (slope(point + epsilon * direction) - here) / epsilon
        size = float(np.linalg.norm(direction))
        if size == 0.0:
            break
    return size


def lemma_k(dictionary: OneLayer) -> float:
    """The bound L_K ≤ 2 h², with h² = n_features · b0² ≥ ‖ψ‖² (Lemma 1)."""
    b0, _, _ = activation(dictionary.activation).bounds
    return 2.0 * dictionary.n_features * b0**2


def lemma_w(dictionary: OneLayer, operator: FloatArray, pairs: Pairs) -> float:
    """The bound on L_W, the Lipschitz constant of ∇_W F(·, K), of Lemma 1:

        (2/N) Σ { b1²(‖x_{n+1}‖ + κ‖x_n‖)² + b2 (1+κ) h (‖x_{n+1}‖² + κ‖x_n‖²) },  κ = ‖K‖_2

    with h = b0 √n_features ≥ ‖ψ‖; a bias is a weight of a state that is always 1.
    operator: K (n_features, n_features). About ten times too large
    in practice: steps of 1/L_W are safe for every W, and slow; backtracking is the default.
    Only for `OneLayer`; other dictionaries have no such constant here.
    """
    b0, b1, b2 = activation(dictionary.activation).bounds
    kappa = float(np.linalg.norm(operator, 2))
    h = b0 * dictionary.n_features**0.5
    norms = np.linalg.norm(pairs.states, axis=1)
    if dictionary.bias is not None:
        norms = np.hypot(norms, 1.0)
    now, ahead = norms[pairs.current], norms[pairs.following]
    terms = b1**2 * (ahead + kappa * now) ** 2
    terms = terms + b2 * (1.0 + kappa) * h * (ahead**2 + kappa * now**2)
    return 2.0 * float(terms.mean())
