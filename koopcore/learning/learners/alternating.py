"""Algorithm 1: the dictionary and the operator learned in turn, on one machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from koopcore.learning.checks import not_negative, nothing_more
from koopcore.learning.dictionaries.one_layer import OneLayer
from koopcore.learning.dictionaries.protocol import Dictionary, Pullback
from koopcore.learning.learners.divergence import Point, diverges
from koopcore.learning.learners.estimator import SynchronousLearner
from koopcore.learning.learners.history import History, Tracker
from koopcore.learning.learners.step_sizes import (
    Backtracking,
    StepK,
    StepW,
    lemma_w,
    lipschitz_k,
    scheduled,
)
from koopcore.learning.objective import (
    errors,
    exact_operator,
    feature_gradient,
    operator_gradient,
    value,
)
from koopcore.learning.progress import counted
from koopcore.learning.trajectories import Pairs, Trajectories
from koopcore.types import FloatArray


@dataclass(eq=False, repr=False)
class AlternatingLearner(SynchronousLearner):
    """Learn ψ and K from trajectories: min F(W, K) = (1/N) Σ ‖ψ(x_{n+1}) - K ψ(x_n)‖².

    Per iteration, Gauss-Seidel (Liu, Ding, Chen, Yeung 2020, Algorithm 1):

        K ← K - η_K ∇_K F(W, K)      or K ← argmin F(W, ·) with k_step="exact"
        W ← W - η_W ∇_W F(W, K)

    and the iterate of the smallest E = ‖∇_K‖² + ‖∇_W‖² is kept (∇_K at the old K, ∇_W at the new:
    what the algorithm computes; E bounds the squared gradient at that iterate while
    η_K ≤ 2/L_K).

    Args:
        dictionary: ψ, any `Dictionary`.
        n_iterations: T.
        k_step: "gradient" (the paper's) or "exact" (variable projection, the engine's solve).
        step_k: "lipschitz" (1/L_K, power iteration), a number, or `Diminishing`.
        step_w: "backtracking" (Armijo: F falls in every iteration), "lemma" (1/L_W of Lemma 1;
            `OneLayer` only), a number, or `Diminishing`.
        readout: "auto", "least-squares" or "state-inclusive".
        standardize: learn on (x - mean) / standard deviation.
        track: keep the smallest "gradient" E or the smallest "objective" F.
        ridge: of the exact step, relative.
        polish: solve for K exactly once more, at the best W: the small singular directions of
            ψ, which gradient steps of 1/L_K hardly move, then fit too.
        tolerance: stop when E ≤ tolerance · E_0.
        random_state: seed of W.
        progress: a bar on standard error.

    K starts at the identity.

    After ``fit``: ``operator_`` (`LearnedOperator`), ``history_`` (`History`).

    Cost per iteration for N pairs, h features: (8 to 10) N h² flops, one linearization and one
    forward pass per trial step. Fixed dictionaries with k_step="exact" are plain EDMD, one step.
    Not for bare σ(Wx) with many iterations: F has its trivial minimum at W = 0 (`OneLayer`).
    """

    _: KW_ONLY
    tolerance: float = 0.0

    _searches: ClassVar[tuple[str, ...]] = ("backtracking", "lemma")

    def fit(
        self,
        X: Trajectories,
        y: Trajectories | None = None,
        *,
        initial: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
        callback: Callable[[int, Iterate], object] | None = None,
        **more: object,
    ) -> AlternatingLearner:
        """Learn from one trajectory (length, n) or several of different lengths, or snapshot pairs.

        Args:
            y: the state after every row of X, of X's shape; None: the rows of X follow each
                other.
            initial: (θ, K) to start from.
            callback: called with the iteration and its iterate; a true answer stops.

        Raises ValueError before any work for data and parameters that cannot work. Steps that
        diverge warn (`DivergenceWarning`), keep the last good iterate and give the step that would
        have been safe, as ``history_.safe_step``.
        """
        nothing_more(self, more)
        self._check()
        problem, start = self._begin(X, initial, y)
        alternation = Alternation(
            self.dictionary, problem.data, self.k_step, self.step_k, self.step_w, self.ridge
        )
        iterate = self._iterate(alternation, start, callback)
        steps = f"in iteration {len(self.history_) - 1} with {self._steps()}"
        self._conclude(problem, start, iterate, steps)
        return self

    def _iterate(
        self,
        alternation: Alternation,
        start: Point,
        callback: Callable[[int, Iterate], object] | None,
    ) -> Point:
        """All iterations, noted in ``history_``; the best iterate."""
        self.history_ = history = History()
        tracker = Tracker(self.track, *start)
        for t, iterate in counted(
            alternation.iterates(*start, self.n_iterations), self.n_iterations, self.progress
        ):
            history.add(
                iterate.value,
                iterate.gradient_k,
                iterate.gradient_w,
                iterate.step_k,
                iterate.step_w,
            )
            # ‖∇‖ = √E: its square may underflow where the norm does not.
            slope = math.hypot(iterate.gradient_k, iterate.gradient_w)
            if not math.isfinite(slope) or diverges(iterate.value, history):
                history.stopped = "diverged"
                break
            tracker.offer(t, iterate.value, slope, iterate.parameters, iterate.operator)
            if callback is not None and callback(t, iterate):
                history.stopped = "callback"
                break
            first = math.hypot(history.gradient_k[0], history.gradient_w[0])
            if slope <= math.sqrt(self.tolerance) * first:
                history.stopped = "tolerance"
                break
        history.best = tracker.iteration
        return tracker.parameters, tracker.operator

    def _check(self) -> None:
        super()._check()
        not_negative("tolerance", self.tolerance)
        if self.step_w == "lemma" and not isinstance(self.dictionary, OneLayer):
            raise ValueError("step_w='lemma' is a bound for OneLayer alone; use 'backtracking'")


class Iterate(NamedTuple):
    """(θ_t, K_{t+1}), F there, and what the iteration used."""

    parameters: FloatArray
    operator: FloatArray
    value: float
    gradient_k: float  # ‖∇_K F(θ_t, K_t)‖; zero for the exact step
    gradient_w: float  # ‖∇_W F(θ_t, K_{t+1})‖
    step_k: float
    step_w: float


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
        self.dictionary, self.data, self.ridge = dictionary, data, ridge
        self.k_step, self.step_k, self.step_w = k_step, step_k, step_w
        self._power: FloatArray | None = None  # last dominant eigenvector, where the next starts
        self._search = Backtracking()

    def iterates(
        self, parameters: FloatArray, operator: FloatArray, n_iterations: int
    ) -> Iterator[tuple[int, Iterate]]:
        """(t, iterate) for t = 0 … n_iterations - 1. A diverging run yields infinities."""
        data = self.data
        with np.errstate(over="ignore", invalid="ignore"):
            features, pullback = self.dictionary.linearized(parameters, data.states)
            error = errors(features, data, operator)
        for t in range(n_iterations):
            with np.errstate(over="ignore", invalid="ignore"):
                operator, slope_k, used_k = self._operator_step(features, error, operator, t)
                error = errors(features, data, operator)
                f = value(error)
                back = error @ operator
                slope = pullback(feature_gradient(data, error, back))
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
