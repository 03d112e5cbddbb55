"""Algorithm 1: the dictionary and the operator learned in turn, on one machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

import numpy as np

from koopcore.learning.alternation import Alternation, Iterate
from koopcore.learning.assembly import assemble
from koopcore.learning.estimator import SynchronousLearner, not_negative
from koopcore.learning.history import History, Tracker, diverges
from koopcore.learning.progress import counted
from koopcore.learning.safe_step import last_good, warn_of_divergence
from koopcore.learning.trajectories import Trajectories, pairs, scaled
from koopcore.types import FloatArray


@dataclass(eq=False, repr=False)
class AlternatingLearner(SynchronousLearner):
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

    _: KW_ONLY
    tolerance: float = 0.0

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
        made = scaled(pairs(X, self.dictionary.n_states), self.standardize)
        start = self._start(initial)
        alternation = Alternation(
            self.dictionary, made.data, self.k_step, self.step_k, self.step_w, self.ridge
        )
        tracker, self.history_ = self._iterate(alternation, *start, callback)
        kept = tracker.parameters, tracker.operator
        if self.history_.stopped == "diverged":
            kept = last_good(self.history_, self.dictionary, made.data, start, kept)
            where = f"in iteration {len(self.history_) - 1} with {self._steps()}"
            warn_of_divergence(self.history_, self.dictionary, made.data, start, kept, where)
        self.operator_ = assemble(self, made, *kept)
        return self

    def _iterate(
        self,
        alternation: Alternation,
        parameters: FloatArray,
        operator: FloatArray,
        callback: Callable[[int, Iterate], object] | None,
    ) -> tuple[Tracker, History]:
        history = History()
        tracker = Tracker(self.track, parameters, operator)
        for t, iterate in counted(
            alternation.iterates(parameters, operator, self.n_iterations),
            self.n_iterations,
            self.progress,
        ):
            history.add(*iterate.recorded())
            e = float(history.gradient_k[-1] ** 2 + history.gradient_w[-1] ** 2)
            if not np.isfinite(e) or diverges(iterate.value, history):
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
        super()._check()
        self._check_steps(("backtracking", "lemma"))
        not_negative("tolerance", self.tolerance)
