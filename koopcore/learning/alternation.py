"""The iterations of Algorithm 1: an operator step, then a dictionary step, each by one rule."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from koopcore.learning.dictionaries.one_layer import Dictionary, OneLayer, Pullback
from koopcore.learning.exact_step import exact_operator
from koopcore.learning.objective import errors, feature_gradient, operator_gradient, value
from koopcore.learning.step_sizes import (
    Backtracking,
    StepK,
    StepW,
    lemma_w,
    lipschitz_k,
    scheduled,
)
from koopcore.learning.trajectories import Pairs
from koopcore.types import FloatArray


class Iterate(NamedTuple):
    """(θ_t, K_{t+1}), F there, and what the iteration used."""

    parameters: FloatArray
    operator: FloatArray
    value: float
    gradient_k: float  # ‖∇_K F(θ_t, K_t)‖; zero for the exact step
    gradient_w: float  # ‖∇_W F(θ_t, K_{t+1})‖
    step_k: float
    step_w: float

    def recorded(self) -> tuple[float, float, float, float, float]:
        """What `History.add` takes."""
        return self[2:]


class Alternation:
    """Gauss-Seidel iterations on fixed data; the rules are those of `AlternatingLearner`."""

    def __init__(
        self,
        dictionary: Dictionary,
        data: Pairs,
        k_step: str,
        step_k: StepK,
        step_w: StepW,
        ridge: float,
    ) -> None:
        if step_w == "lemma" and not isinstance(dictionary, OneLayer):
            raise ValueError("step_w='lemma' is a bound for OneLayer alone; use 'backtracking'")
        self.dictionary, self.data, self.ridge = dictionary, data, ridge
        self.k_step, self.step_k, self.step_w = k_step, step_k, step_w
        self._power: FloatArray | None = None  # last dominant eigenvector, where the next starts
        self._search = Backtracking()

    def iterates(
        self, parameters: FloatArray, operator: FloatArray, n_iterations: int
    ) -> Iterator[tuple[int, Iterate]]:
        """(t, iterate) for t = 0 … n_iterations - 1. A diverging run yields infinities."""
        data = self.data
        features, pullback = self.dictionary.linearized(parameters, data.states)
        error = errors(features, data, operator)
        for t in range(n_iterations):
            with np.errstate(over="ignore", invalid="ignore"):
                operator, slope_k, used_k = self._operator_step(features, error, operator, t)
                error = errors(features, data, operator)
                f = value(error)
                back = error @ operator
                slope = pullback(feature_gradient(data, error, back, len(features)))
                norm = float(np.linalg.norm(slope))
                step = self._dictionary_step(operator, t, norm)
                moved, ahead, ahead_error = self._moved(parameters, operator, step * slope)
                if self.step_w == "backtracking" and norm:
                    while not self._search.accepts(value(ahead_error), f, norm * norm):
                        if not self._search.shrink():
                            step, moved = 0.0, parameters
                            ahead, ahead_error = (features, pullback), error
                            self._search = Backtracking()
                            break
                        step = self._search.step
                        moved, ahead, ahead_error = self._moved(parameters, operator, step * slope)
                    else:
                        self._search.grow()
            yield t, Iterate(parameters, operator, f, slope_k, norm, used_k, step)
            parameters, (features, pullback), error = moved, ahead, ahead_error

    def _moved(
        self, parameters: FloatArray, operator: FloatArray, way: FloatArray
    ) -> tuple[FloatArray, tuple[FloatArray, Pullback], FloatArray]:
        """θ - way, the dictionary linearized there, and the errors under the same K."""
        moved = parameters - way
        ahead = self.dictionary.linearized(moved, self.data.states)
        return moved, ahead, errors(ahead[0], self.data, operator)

    def _operator_step(
        self, features: FloatArray, error: FloatArray, operator: FloatArray, t: int
    ) -> tuple[FloatArray, float, float]:
        """The new K, ‖∇_K‖ at the old one, and the step."""
        if self.k_step == "exact":
            return exact_operator(features, self.data, self.ridge), 0.0, np.nan
        slope = operator_gradient(features, self.data, error)
        if isinstance(self.step_k, str):
            constant, self._power = lipschitz_k(features[self.data.current], self._power, 1e-6)
            step = 1.0 / constant if constant else 0.0
        else:
            step = scheduled(self.step_k, t)
        return operator - step * slope, float(np.linalg.norm(slope)), step

    def _dictionary_step(self, operator: FloatArray, t: int, norm: float) -> float:
        """The step that is taken, or tried first."""
        if not self.dictionary.n_parameters or not norm:
            return 0.0
        if self.step_w == "backtracking":
            return self._search.step
        if isinstance(self.step_w, str):
            assert isinstance(self.dictionary, OneLayer)
            return 1.0 / lemma_w(self.dictionary, operator, self.data)
        return scheduled(self.step_w, t)
