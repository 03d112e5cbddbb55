"""Algorithm 1: the dictionary and the operator learned in turn, on one machine."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal, TypeAlias

import numpy as np

from koopcore.backends.stages import FloatArray
from koopcore.learning.alternation import Alternation, Iterate
from koopcore.learning.assembly import assemble
from koopcore.learning.dictionary import Dictionary
from koopcore.learning.estimator import Learner, generator, whole
from koopcore.learning.history import DivergenceWarning, History, Tracker, check_tracked
from koopcore.learning.progress import counted
from koopcore.learning.readout import check_readout
from koopcore.learning.step_sizes import Diminishing, check_step, lipschitz_k
from koopcore.learning.trajectories import Pairs, Trajectories, pairs, standardization

StepK: TypeAlias = Literal["lipschitz"] | float | Diminishing
StepW: TypeAlias = Literal["backtracking", "lemma"] | float | Diminishing

_RUNAWAY = 1e6  # F this far above its first value is divergence, before it overflows


class AlternatingLearner(Learner):
    """Learn ψ and K from trajectories: min F(W, K) = (1/N) Σ ‖ψ(x_{n+1}) - K ψ(x_n)‖².

    Per iteration, Gauss-Seidel (Liu, Ding, Chen, Yeung 2020, Algorithm 1):

        K ← K - η_K ∇_K F(W, K)      or K ← argmin F(W, ·) with k_step="exact"
        W ← W - η_W ∇_W F(W, K)

    and the iterate of the smallest E = ‖∇_K‖² + ‖∇_W‖² is kept (∇_K at the old K, ∇_W at the new:
    what the algorithm computes; E bounds the squared gradient at the kept iterate while
    η_K ≤ 2/L_K).

    dictionary: ψ, any `Dictionary`. n_iterations: T. k_step: "gradient" (the paper's) or "exact"
    (variable projection, the engine's solve). step_k: "lipschitz" (1/L_K, power iteration), a
    number, or `Diminishing`. step_w: "backtracking" (Armijo: F falls in every iteration), "lemma"
    (1/L_W of Lemma 1; `OneLayer` only), a number, or `Diminishing`. readout: "auto",
    "least-squares" or "state-inclusive". standardize: learn on (x - mean) / standard deviation.
    track: keep the smallest "gradient" E or the smallest "objective" F. ridge: of the exact step,
    relative. polish: solve for K exactly once more, at the kept W: the small singular directions
    of ψ, which gradient steps of 1/L_K hardly move, then fit too. tolerance: stop when
    E ≤ tolerance · E_0. random_state: seed of W. progress: a bar on standard error. K starts at
    the identity.

    After ``fit``: ``operator_`` (`LearnedOperator`), ``history_`` (`History`).
    Cost per iteration for N pairs, h features: (8 to 10) N h² flops, one linearization and one
    forward pass per trial step. Fixed dictionaries with k_step="exact" are plain EDMD, one step.
    Not for bare σ(Wx) with many iterations: F has its trivial minimum at W = 0 (`OneLayer`).
    """

    def __init__(
        self,
        dictionary: Dictionary,
        *,
        n_iterations: int = 500,
        k_step: Literal["gradient", "exact"] = "gradient",
        step_k: StepK = "lipschitz",
        step_w: StepW = "backtracking",
        readout: str = "auto",
        standardize: bool = False,
        track: Literal["gradient", "objective"] = "gradient",
        ridge: float = 0.0,
        polish: bool = False,
        tolerance: float = 0.0,
        random_state: int | np.random.Generator | None = 0,
        progress: bool = False,
    ) -> None:
        self.dictionary = dictionary
        self.n_iterations = n_iterations
        self.k_step = k_step
        self.step_k = step_k
        self.step_w = step_w
        self.readout = readout
        self.standardize = standardize
        self.track = track
        self.ridge = ridge
        self.polish = polish
        self.tolerance = tolerance
        self.random_state = random_state
        self.progress = progress

    def fit(
        self,
        X: Trajectories,
        y: object = None,
        *,
        initial: tuple[FloatArray, FloatArray] | None = None,
        callback: Callable[[int, Iterate], object] | None = None,
    ) -> AlternatingLearner:
        """Learn from one trajectory (length, n) or several of different lengths.

        initial: (θ, K) to start from. callback: called with the iteration and its iterate; a true
        answer stops. Raises ValueError before any work for data and parameters that cannot work.
        Steps that diverge warn (`DivergenceWarning`), keep the last good iterate and give the step
        that would have been safe, as ``history_.safe_step``.
        """
        self._check()
        data = pairs(X, self.dictionary.n_states)
        shift, scale = standardization(data, self.standardize)
        data = data.with_states((data.states - shift) / scale)
        parameters, operator = initial or self._start()
        alternation = Alternation(
            self.dictionary, data, self.k_step, self.step_k, self.step_w, self.ridge
        )
        tracker, self.history_ = self._iterate(
            alternation, np.array(parameters), np.array(operator), callback
        )
        self.operator_ = assemble(self, data, tracker, shift, scale)
        if self.history_.stopped == "diverged":
            self._warn(data)
        return self

    def _start(self) -> tuple[FloatArray, FloatArray]:
        rng = generator(self.random_state)
        return self.dictionary.initial(rng), np.eye(self.dictionary.n_features)

    def _iterate(
        self,
        alternation: Alternation,
        parameters: FloatArray,
        operator: FloatArray,
        callback: Callable[[int, Iterate], object] | None,
    ) -> tuple[Tracker, History]:
        history = History()
        tracker = Tracker(self.track, parameters=parameters, operator=operator)
        for t, iterate in counted(
            alternation.iterates(parameters, operator, self.n_iterations),
            self.n_iterations,
            self.progress,
        ):
            history.add(*iterate.recorded())
            e = float(history.gradient_k[-1] ** 2 + history.gradient_w[-1] ** 2)
            first = history.objective[0]
            if not (np.isfinite(e) and iterate.value <= max(_RUNAWAY * first, 1e-300)):
                history.stopped = "diverged"
                break
            tracker.offer(t, iterate.value, e, iterate.parameters, iterate.operator)
            if callback is not None and callback(t, iterate):
                history.stopped = "callback"
                break
            if e <= self.tolerance * (history.gradient_k[0] ** 2 + history.gradient_w[0] ** 2):
                history.stopped = "tolerance"
                break
        history.best = tracker.iteration
        return tracker, history

    def _check(self) -> None:
        whole("n_iterations", self.n_iterations)
        if self.k_step not in ("gradient", "exact"):
            raise ValueError(f"k_step is {self.k_step!r}; 'gradient' or 'exact' is needed")
        check_step("step_k", self.step_k, ("lipschitz",))
        check_step("step_w", self.step_w, ("backtracking", "lemma"))
        check_tracked(self.track)
        check_readout(self.readout, self.dictionary)
        for name, number in (("ridge", self.ridge), ("tolerance", self.tolerance)):
            if not 0.0 <= number < np.inf:
                raise ValueError(f"{name} is {number}; a finite number >= 0 is needed")

    def _warn(self, data: Pairs) -> None:
        kept = self.operator_
        features = kept.dictionary.features(kept.parameters, data.states)
        safe = 1.0 / lipschitz_k(features[data.current])[0]
        self.history_.safe_step = safe
        warnings.warn(
            f"learning diverged in iteration {len(self.history_) - 1} with step_k={self.step_k!r}, "
            f"step_w={self.step_w!r}; iterate {self.history_.best} was kept. step_k={safe:.3g} "
            "(1/L_K there) would be safe, and step_w='backtracking' always is",
            DivergenceWarning,
            stacklevel=3,
        )
