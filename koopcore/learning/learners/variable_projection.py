"""Variable projection: the dictionary learned by L-BFGS, with the exact K of every trial."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from importlib import import_module
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from koopcore.backends.protocol import rank_tolerance
from koopcore.learning.checks import finite_array, not_negative, positive, whole
from koopcore.learning.dictionaries.protocol import Dictionary, state_features
from koopcore.learning.learned_operator import LearnedOperator, check_readout, fit_readout
from koopcore.learning.learners.divergence import check_finite
from koopcore.learning.learners.estimator import Learner
from koopcore.learning.learners.history import History
from koopcore.learning.learners.rollouts import Windows, bounded, excess, spectral_radius
from koopcore.learning.progress import bar
from koopcore.learning.trajectories import Samples, Scaled, Trajectories, beside, samples
from koopcore.types import FloatArray

RIDGES = tuple(10.0**k for k in range(-10, 1))
"""What ``ridge="validation"`` chooses from."""

_PENALTY = 1e3  # of Σ max(0, |λ| - radius)², beside the logarithm of an error
_WINDOWS = 400  # predictions that are compared in an iteration, about
_LIMIT = 1  # SciPy's status where its iterations or evaluations are used up
_REFINED = 1e-8  # ridges below are solved for with a step of refinement
_WORSE = 50.0  # added to the start's value where a trial's K or prediction is not finite


@dataclass(eq=False, repr=False)
class VariableProjectionLearner(Learner):
    """Learn ψ with K always exact: min over θ of F(θ, K*(θ)), K*(θ) = argmin F(θ, ·), by L-BFGS.

    Every trial of the line search solves for K again, so it sees the F that the step really
    reaches. `AlternatingLearner`'s steps of W hold K fixed, and reach 10⁴ to 10⁶ times larger F in
    the same time. The gradient at a minimum over K is ∂F/∂θ with K held (the envelope theorem).

    Source: Golub & Pereyra 1973; with inputs, Proctor, Brunton, Kutz 2018.

    F does not see whether a prediction of many steps is good: with ``horizon`` H > 1 the objective
    is

        log E_H + one_step_weight · log(E_1 + one_step_tolerance²)

    E_H the mean over steps 1 … H of the squared errors of the *states* predicted by K*(θ) from
    every x_0 that has H states behind it (some 400 of them), E_1 that of one step, both relative
    to the states' variance. Its gradient goes through K*(θ). It is learned for H/9 and H/3 first, a
    quarter of ``n_iterations`` each. Needs the state among the features: `StateInclusive`.

    Args:
        horizon: H; 1 learns F, the paper's objective.
        state_weights: (n,), of the states' squared errors in E_H and E_1; None: all 1.
        spectral_radius: bound on |λ| of K. Eigenvalues beyond are penalized in the objective of a
            horizon, and in the end moved onto the bound; None: no bound. ValueError where the bound
            is below what the data allow: it makes one step worse than predicting no motion.
        ridge: Tikhonov term of K, relative to every feature's own mean square; rounding at least,
            and with a horizon 1e-10, or its gradient is rounding. With "validation", the one of
            `RIDGES` whose predictions of ``horizon`` steps are best on the samples held out, chosen
            at the start and again at the end; use it where there is noise.
        validation: the part of the trajectories held out, from the end; then θ is the iterate that
            predicts them best, and K is solved for with all. 0: the iterate of the least objective.
        tolerance: stop where the objective falls by less, relatively (F) or absolutely (of a
            horizon).

    Other settings are those of every learner; ``polish`` changes nothing here, K is exact.

    After ``fit``: ``operator_``, ``history_`` (the objective and ‖∇‖ per iteration, validation
    errors), ``ridge_`` (the one used). Cost per trial: 6 N h² flops, h³, one linearization, and
    with a horizon 6 S H n h for S = 400 windows. Not where F is all that is asked of many thousand
    points in many features: `MinibatchLearner`. Needs SciPy.
    """

    _: KW_ONLY
    n_iterations: int = 200
    horizon: int = 1
    state_weights: npt.ArrayLike | None = None
    one_step_weight: float = 0.1
    one_step_tolerance: float = 1e-8
    spectral_radius: float | None = None
    ridge: float | Literal["validation"] = 0.0  # type: ignore[assignment]
    validation: float = 0.0
    tolerance: float = 0.0
    standardize: bool = True
    ridge_: float = field(init=False)

    def fit(
        self,
        X: Trajectories,
        y: Trajectories | None = None,
        *,
        u: Trajectories | None = None,
        outputs: Trajectories | None = None,
        sample_weight: Trajectories | None = None,
        initial: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
        callback: Callable[[int, FloatArray], object] | None = None,
    ) -> VariableProjectionLearner:
        """Learn from one trajectory (length, n) or several, or from snapshot pairs X, y.

        Args:
            y: the state after every row of X, of X's shape; None: the rows of X follow each
                other.
            u: inputs (length, m), one row per row of X: x_{n+1} depends on x_n and u_n, and
                ψ(x_{n+1}) ≈ K ψ(x_n) + B u_n is learned.
            outputs: y = h(x), (length, q), read out of ψ by least squares:
                `LearnedOperator.predict_outputs`.
            sample_weight: >= 0 per row, of the pair that begins there.
            initial: (θ, K) to start from, of which K is not used.
            callback: called with the iteration and θ; a true answer stops.

        Raises ValueError before any work for lengths and settings that cannot work, ImportError
        without SciPy.
        """
        self._check()
        problem, (theta, _) = self._begin(X, initial, y)
        whole_set = samples(problem.data, u, sample_weight)
        seen = None if outputs is None else beside("outputs", outputs, problem.data)
        learning, held = whole_set, None
        if self._validation() > 0.0:
            learning, held = whole_set.divided(self._validation())
        self.history_ = History()
        with np.errstate(over="ignore", invalid="ignore"):
            theta = self._learned_parameters(theta, learning, held, callback)
            self._finish(problem, whole_set, theta, seen)
        return self

    def partial_fit(
        self,
        X: Trajectories,
        y: Trajectories | None = None,
        *,
        u: Trajectories | None = None,
        sample_weight: Trajectories | None = None,
    ) -> VariableProjectionLearner:
        """Add more data to what a dictionary without parameters has seen: EDMD of a stream.

        Only Gram matrices are kept, (h + m)² numbers, so that any number of calls give the K of
        all their data at once (to rounding). Trajectories of two calls are not joined. Raises
        TypeError for a dictionary that learns, ValueError for one without the state among its
        features, with ``standardize`` (of what is not all there) and validation.
        """
        self._check()
        if self.dictionary.n_parameters:
            raise TypeError(
                "partial_fit needs a dictionary with nothing to learn, such as Monomials(...), not "
                f"{self.dictionary!r}; MinibatchLearner learns from parts"
            )
        if len(state_features(self.dictionary) or []) < self.dictionary.n_states:
            raise ValueError(
                "partial_fit reads the states out of their own features; wrap the dictionary (of "
                f"every block) as StateInclusive(...), not {self.dictionary!r}"
            )
        if self.standardize or self._validation() > 0.0 or self.horizon > 1:
            raise ValueError("partial_fit needs standardize=False, horizon=1 and no validation")
        problem, (theta, _) = self._begin(X, None, y)
        part = samples(problem.data, u, sample_weight)
        features = self.dictionary.features(theta, part.data.states)
        moments = _Moments.of(features, part)
        before: _Moments | None = getattr(self, "_moments", None)
        if before is not None:
            if before.gram.shape != moments.gram.shape:
                raise ValueError(
                    f"u has {part.inputs.shape[1]} numbers a row, but those before had "
                    f"{len(before.gram) - self.dictionary.n_features}"
                )
            moments = before.plus(moments)
        self._moments = moments
        self.history_ = History(stopped="iterations")
        self.ridge_ = _least(float(self.ridge), len(moments.gram), 1)
        self.operator_ = self._from_moments(theta, moments, problem)
        return self

    def _learned_parameters(
        self,
        theta: FloatArray,
        learning: Samples,
        held: Samples | None,
        callback: Callable[[int, FloatArray], object] | None,
    ) -> FloatArray:
        """θ after all stages; sets ``ridge_`` and writes ``history_``."""
        judge = None if held is None else self._projection(held, self.horizon, 0.0)
        self.ridge_ = self._ridge(theta, learning, judge)
        stages = [
            (self._projection(learning, horizon, self.ridge_), most)
            for horizon, most in _stages(self.horizon, self.n_iterations)
        ]
        if not len(theta):
            return theta
        best = _Best(theta)
        count = 0
        with bar(self.n_iterations, self.progress) as advance:
            for objective, most in stages:

                def listener(theta: FloatArray, objective: Any = objective) -> None:
                    nonlocal count
                    value, slope, operator = objective.last(theta)
                    self.history_.add(value, 0.0, slope, math.nan, math.nan)
                    score = value
                    if judge is not None:
                        score = judge.error(theta, operator)
                        self.history_.validation.append(score)
                    best.offer(score, theta, count)
                    count += 1
                    advance(count)
                    if callback is not None and callback(count - 1, theta):
                        self.history_.stopped = "callback"
                        raise StopIteration

                if judge is None:
                    best.start_stage()  # objectives of two horizons cannot be compared
                else:
                    theta = best.theta
                theta = objective.minimized(theta, most, self.tolerance, listener)
                theta = best.theta if best.score < math.inf else theta
                if self.history_.stopped == "callback":
                    break
        self.history_.best = best.iteration
        if self.ridge == "validation":
            self.ridge_ = self._ridge(best.theta, learning, judge)
        return best.theta

    def _ridge(self, theta: FloatArray, learning: Samples, judge: Projection | None) -> float:
        """The ridge: as set, or the one that predicts the samples held out best."""
        h = self.dictionary.n_features + learning.inputs.shape[1]
        if self.ridge != "validation":
            return _least(float(self.ridge), h, self.horizon)
        assert judge is not None
        features = self.dictionary.features(theta, learning.data.states)
        moments = _Moments.of(features, learning)
        scores = []
        for ridge in RIDGES:
            try:
                scores.append(judge.error(theta, moments.operator(ridge)))
            except np.linalg.LinAlgError:
                scores.append(math.inf)
        return RIDGES[int(np.argmin(scores))]

    def _projection(self, part: Samples, horizon: int, ridge: float) -> Projection:
        return Projection(
            self.dictionary,
            part,
            horizon,
            ridge,
            None if self.state_weights is None else np.asarray(self.state_weights, np.float64),
            self.one_step_weight,
            self.one_step_tolerance,
            self.spectral_radius,
        )

    def _finish(
        self, problem: Scaled, part: Samples, theta: FloatArray, outputs: FloatArray | None
    ) -> None:
        """K of all samples, under the bound if there is one, the read-outs, and ``operator_``."""
        states = part.data.states
        features = self.dictionary.features(theta, states)
        moments = _Moments.of(features, part)
        whole_operator = moments.operator(self.ridge_)
        if self.horizon > 1 and self.ridge == 0.0:
            whole_operator = self._without_ridge(whole_operator, features, part)
        h = self.dictionary.n_features
        operator = np.ascontiguousarray(whole_operator[:, :h])
        inputs = np.ascontiguousarray(whole_operator[:, h:])
        if not part.inputs.shape[1]:
            check_finite(features, part.data, operator)
        elif not np.isfinite(whole_operator).all():
            raise FloatingPointError("what was learned is not finite; standardize the data and u")
        readout = fit_readout(
            self.dictionary, features, states, check_readout(self.readout, self.dictionary)
        )
        if self.spectral_radius is not None:
            operator = self._under_bound(operator, inputs, readout, features, part, moments)
        self.operator_ = LearnedOperator(
            self.dictionary,
            theta,
            operator,
            readout,
            problem.shift,
            problem.scale,
            inputs if inputs.shape[1] else None,
            None if outputs is None else _output_readout(features, outputs, part),
        )

    def _without_ridge(
        self, operator: FloatArray, features: FloatArray, part: Samples
    ) -> FloatArray:
        """[K B] by QR, without the ridge that only the gradient needs, where it is the better one.

        On Duffing its error of one step is a quarter smaller.
        """
        rows, ahead = part.data.current, part.data.following
        root = np.sqrt(part.weights[rows, None])
        now = np.concatenate([features[rows], part.inputs[rows]], axis=1) * root
        size = np.linalg.norm(now, axis=0)
        size[size == 0.0] = 1.0
        q, r = np.linalg.qr(now / size)
        solution = np.linalg.lstsq(r, q.T @ (features[ahead] * root), rcond=None)[0]
        exact: FloatArray = np.ascontiguousarray((solution / size[:, None]).T)
        judge = self._projection(part, self.horizon, 0.0)
        better = judge.value(features, exact) < judge.value(features, operator)
        return exact if better else operator

    def _under_bound(
        self,
        operator: FloatArray,
        inputs: FloatArray,
        readout: FloatArray,
        features: FloatArray,
        part: Samples,
        moments: _Moments,
    ) -> FloatArray:
        """K with its eigenvalues within ``spectral_radius``; ValueError where that cannot be."""
        radius = float(self.spectral_radius or 0.0)
        largest = spectral_radius(operator)
        if largest <= radius:
            return operator
        h = len(operator)
        # Rounding of the eigenvalues of K may lift them over what the Schur form was given.
        for least in (0.0, 1e-12, 1e-9, 1e-6):
            moved = bounded(operator, moments.gram[:h, :h], radius * (1.0 - least))
            if spectral_radius(moved) <= radius:
                break
        data = part.data
        ahead = features[data.current] @ moved.T + part.inputs[data.current] @ inputs.T
        true, before = data.states[data.following], data.states[data.current]
        weights = part.weights[data.current, None]
        missed = float(np.sum(weights * (ahead @ readout.T - true) ** 2))
        motion = float(np.sum(weights * (true - before) ** 2))
        if not missed < motion:
            raise ValueError(
                f"spectral_radius is {radius:g}, below what the data allow: K has {largest:.6g}; "
                f"under the bound one step misses by {math.sqrt(missed / motion):.3g} times "
                "the motion, more than no motion would. Raise spectral_radius, or leave it away"
            )
        return moved

    def _from_moments(
        self, theta: FloatArray, moments: _Moments, problem: Scaled
    ) -> LearnedOperator:
        """The operator of a stream, whose states must be among the features."""
        h = self.dictionary.n_features
        whole_operator = moments.operator(self.ridge_)
        operator, inputs = whole_operator[:, :h], whole_operator[:, h:]
        readout = fit_readout(
            self.dictionary, np.zeros((0, h)), np.zeros((0, 0)), "state-inclusive"
        )
        return LearnedOperator(
            self.dictionary,
            theta,
            np.ascontiguousarray(operator),
            readout,
            problem.shift,
            problem.scale,
            np.ascontiguousarray(inputs) if inputs.shape[1] else None,
        )

    def _validation(self) -> float:
        """The part held out: as set, or a fifth where the ridge needs one."""
        return self.validation or (0.2 if self.ridge == "validation" else 0.0)

    def _takes_gradients(self) -> bool:
        return self.dictionary.n_parameters > 0

    def _check(self) -> None:
        given = self.ridge
        if isinstance(given, str):
            if given != "validation":
                raise ValueError(f"ridge is {given!r}; a number >= 0 or 'validation' is needed")
            self.ridge = 0.0
        try:
            super()._check()
        finally:
            self.ridge = given
        whole("horizon", self.horizon)
        not_negative("tolerance", self.tolerance)
        not_negative("one_step_weight", self.one_step_weight)
        positive("one_step_tolerance", self.one_step_tolerance)
        if not_negative("validation", self.validation) >= 1.0:
            raise ValueError(f"validation is {self.validation}; a part below 1 is needed")
        if self.spectral_radius is not None:
            positive("spectral_radius", self.spectral_radius)
        if self.horizon > 1 and state_features(self.dictionary) is None:
            raise ValueError(
                f"horizon is {self.horizon}, which predicts states: they must be among the "
                f"features; wrap the dictionary (of every block) as StateInclusive(...), not "
                f"{self.dictionary!r}"
            )
        if self.state_weights is not None:
            weights = finite_array("state_weights", self.state_weights)
            count = len(state_features(self.dictionary) or range(self.dictionary.n_states))
            if weights.shape != (count,) or (weights < 0.0).any():
                raise ValueError(
                    f"state_weights has shape {weights.shape}; {count} numbers >= 0 are needed"
                )
            if not weights.any():
                raise ValueError("state_weights are all 0; at least one state must count")
        _scipy_optimize()


class _Moments(NamedTuple):
    """Σ w Φ_nᵀΦ_n and Σ w ψ(x_{n+1})ᵀΦ_n of Φ_n = [ψ(x_n) u_n], and Σ w."""

    gram: FloatArray  # (h + m, h + m)
    cross: FloatArray  # (h, h + m)
    total: float

    @classmethod
    def of(cls, features: FloatArray, part: Samples) -> _Moments:
        data = part.data
        now = np.concatenate([features[data.current], part.inputs[data.current]], axis=1)
        weights = part.weights[data.current]
        heavy = now * weights[:, None]
        return cls(now.T @ heavy, features[data.following].T @ heavy, float(weights.sum()))

    def plus(self, other: _Moments) -> _Moments:
        return _Moments(self.gram + other.gram, self.cross + other.cross, self.total + other.total)

    def operator(self, ridge: float) -> FloatArray:
        """[K B] = cross (gram + ridge · diag gram)⁻¹; LinAlgError where gram is singular still."""
        return _Solver(self.gram, ridge)(self.cross)


class _Solver:
    """M ↦ M (G + ridge · diag G)⁻¹, by Cholesky of the equilibrated matrix."""

    def __init__(self, gram: FloatArray, ridge: float) -> None:
        self._linalg = import_module("scipy.linalg")
        diagonal = np.diag(gram)
        self._scale = np.sqrt(np.where(diagonal > 0.0, diagonal, 1.0))
        scaled = gram / self._scale / self._scale[:, None]
        scaled.flat[:: len(gram) + 1] = 1.0 + ridge  # also of a feature that is 0
        if not np.isfinite(scaled).all():
            raise np.linalg.LinAlgError("features are not finite")
        self._factor = self._linalg.cho_factor(scaled, lower=True, check_finite=False)

    def __call__(self, matrix: FloatArray) -> FloatArray:
        right = (matrix / self._scale).T
        solution = self._linalg.cho_solve(self._factor, right, check_finite=False)
        return np.ascontiguousarray(solution.T) / self._scale


class Projection:
    """The objective of `VariableProjectionLearner` as a function of θ alone, and its gradient."""

    def __init__(
        self,
        dictionary: Dictionary,
        part: Samples,
        horizon: int,
        ridge: float,
        state_weights: FloatArray | None = None,
        one_step_weight: float = 0.0,
        one_step_tolerance: float = 1e-8,
        radius: float | None = None,
    ) -> None:
        self.dictionary, self.part, self.ridge, self.radius = dictionary, part, ridge, radius
        self.horizon = horizon
        self._one_step = one_step_weight, one_step_tolerance**2
        self._last: tuple[FloatArray, float, float, FloatArray] | None = None
        self._first: float | None = None
        # Slices, which copy nothing: pairs across two trajectories are there, and weigh 0.
        data, rows = part.data, np.arange(len(part.data.states))
        if data.lengths:
            self._now, self._ahead = slice(0, len(rows) - 1), slice(1, len(rows))
        else:
            self._now, self._ahead = slice(0, data.n_pairs), slice(data.n_pairs, None)
        weights = np.zeros(len(rows))
        weights[data.current] = part.weights[data.current] / data.n_pairs
        self._weights = weights[self._now, None]
        if horizon > 1:
            self._places = np.asarray(state_features(dictionary), np.intp)
            self._windows = self._compared(horizon, state_weights)
            self._steps = self._compared(1, state_weights)

    def value_and_gradient(self, theta: FloatArray) -> tuple[float, FloatArray]:
        """The objective and ∇_θ; far above the start's where K or a prediction is not finite."""
        try:
            value, slope, operator = self._evaluated(theta)
        except np.linalg.LinAlgError:
            value = math.inf
        if not math.isfinite(value):
            far = _WORSE + (self._first if self._first is not None else 0.0)
            return (far if self.horizon > 1 else _WORSE * far), np.zeros_like(theta)
        if self._first is None:
            self._first = abs(value) if self.horizon == 1 else value
        self._last = theta.copy(), value, float(np.linalg.norm(slope)), operator
        return value, slope

    def last(self, theta: FloatArray) -> tuple[float, float, FloatArray]:
        """Value, ‖∇‖ and [K B] at θ, most often of the last evaluation."""
        if self._last is None or not np.array_equal(self._last[0], theta):
            self.value_and_gradient(theta)
        assert self._last is not None
        return self._last[1:]

    def minimized(
        self,
        theta: FloatArray,
        n_iterations: int,
        tolerance: float,
        listener: Callable[[FloatArray], None],
    ) -> FloatArray:
        """θ after L-BFGS from θ; ``listener`` is told every iterate."""
        left = n_iterations
        try:
            listener(theta)
            while left > 0:
                result = _scipy_optimize().minimize(
                    self.value_and_gradient,
                    theta,
                    jac=True,
                    method="L-BFGS-B",
                    callback=lambda point: listener(np.array(point)),
                    options={
                        "maxiter": left,
                        "maxfun": 3 * left + 20,
                        "maxcor": 30,
                        "ftol": tolerance,
                        "gtol": 0.0,
                    },
                )
                theta, left = np.array(result.x), left - result.nit
                # A search that failed of curvature that is rounding goes on without its memory.
                converged = result.status == 0 and tolerance > 0.0
                if result.status == _LIMIT or converged or result.nit < 2:
                    break
        except StopIteration:
            pass
        return theta

    def error(self, theta: FloatArray, operator: FloatArray) -> float:
        """What is wanted of samples held out: E_H, or F where the horizon is 1, under [K B]."""
        features = self.dictionary.features(theta, self.part.data.states)
        if self.horizon > 1:
            windows = self._windows
            return windows.value(features[windows.rows], operator, self._places)[0]
        data = self.part.data
        now = np.concatenate([features[data.current], self.part.inputs[data.current]], axis=1)
        missed = features[data.following] - now @ operator.T
        # Of features relative to their size, or small features would be good ones.
        size = float(np.sum(np.var(features, axis=0)))
        return float(np.vdot(missed, missed)) / data.n_pairs / size if size else math.inf

    def _evaluated(self, theta: FloatArray) -> tuple[float, FloatArray, FloatArray]:
        """Objective, gradient and [K B]."""
        features, pullback = self.dictionary.linearized(theta, self.part.data.states)
        h, weights = features.shape[1], self._weights
        now, ahead = features[self._now], features[self._ahead]
        if self.part.inputs.shape[1]:
            now = np.concatenate([now, self.part.inputs[self._now]], axis=1)
        heavy = now * weights
        gram, cross = now.T @ heavy, ahead.T @ heavy
        solve = _Solver(gram, self.ridge)
        operator = solve(cross)
        slope = np.zeros_like(features)
        missed = now @ operator.T
        np.subtract(ahead, missed, out=missed)
        if self.horizon == 1:
            pulled = missed * (2.0 * weights)
            # The ridge's term is part of what K minimizes, and of what the envelope holds for.
            columns = np.sum(operator**2, axis=0)
            value = 0.5 * float(np.vdot(missed, pulled))
            value += self.ridge * float(columns @ np.diag(gram))
            slope[self._ahead] = pulled
            slope[self._now] -= pulled @ operator[:, :h]
            slope[self._now] += heavy[:, :h] * (2.0 * self.ridge * columns[:h])
            return value, pullback(slope), operator
        if self.ridge < _REFINED:
            # A step of refinement whose residual is that of the data, not of the Gram matrix, has
            # the accuracy of QR (corrected seminormal equations; Björck 1987).
            operator += solve(missed.T @ heavy - operator * (self.ridge * np.diag(gram)))
            np.subtract(ahead, np.matmul(now, operator.T, out=missed), out=missed)
        value, by_operator = self._states_error(features, operator, slope)
        if not math.isfinite(value):
            return math.inf, np.zeros_like(theta), operator
        # Back through K = cross (gram + ridge diag gram)⁻¹, by what is missed: differences of
        # products with the features themselves would lose its digits.
        by_cross = solve(by_operator)
        pulled = heavy @ by_cross.T
        slope[self._ahead] += pulled
        slope[self._now] += weights * (missed @ by_cross[:, :h]) - pulled @ operator[:, :h]
        by_diagonal = np.einsum("ij,ij->j", operator[:, :h], by_cross[:, :h])
        slope[self._now] -= heavy[:, :h] * (2.0 * self.ridge * by_diagonal)
        return value, pullback(slope), operator

    def value(self, features: FloatArray, operator: FloatArray) -> float:
        """The objective of a horizon under another [K B] than K*(θ)."""
        return self._states_error(features, operator, np.zeros_like(features))[0]

    def _states_error(
        self, features: FloatArray, operator: FloatArray, slope: FloatArray
    ) -> tuple[float, FloatArray]:
        """log E_H + β log(E_1 + ε²) and the penalty; its gradient by [K B], that by ψ added."""
        beta, floor = self._one_step
        total = 0.0
        by_operator = np.zeros_like(operator)
        for windows, weight, least in (
            (self._windows, 1.0, 1e-28),
            (self._steps, beta, floor),
        ):
            if not weight:
                continue
            error, tape = windows.value(features[windows.rows], operator, self._places)
            if not math.isfinite(error):
                return math.inf, by_operator
            total += weight * math.log(error + least)
            back, by_this = windows.gradient(tape, operator)
            factor = weight / (error + least)
            slope[windows.rows] += factor * back
            by_operator += factor * by_this
        if self.radius is not None:
            h = features.shape[1]
            over, by_k = excess(operator[:, :h], self.radius)
            total += _PENALTY * over
            by_operator[:, :h] += _PENALTY * by_k
        return total, by_operator

    def _compared(self, horizon: int, state_weights: FloatArray | None) -> Windows:
        """Windows of a horizon: all single steps, else some `_WINDOWS` spread over the samples."""
        part = self.part
        states = part.data.states[:, : len(self._places)]
        spread = states.var(axis=0)
        of_states = np.ones(len(spread)) if state_weights is None else state_weights
        total = float(of_states @ spread)
        if not total > 0.0:
            raise ValueError("the states that state_weights count never change; nothing is learned")
        if horizon == 1:
            inputs, targets = part.inputs[self._now, None], states[self._ahead, None]
            weights = self._weights * (of_states / total)
            return Windows(self._now, inputs, targets, weights * len(weights))
        rows = part.windows(horizon, 1)
        if not len(rows):
            raise ValueError(
                f"no trajectory has {horizon} states behind one of its states, which horizon = "
                f"{horizon} needs; lower the horizon, or give longer trajectories"
            )
        rows = part.windows(horizon, max(1, len(rows) // _WINDOWS))
        steps = rows[:, None] + np.arange(horizon)
        weights = part.weights[rows, None] * (of_states / total)
        weights *= len(rows) / part.weights[rows].sum()
        return Windows(rows, part.inputs[steps], states[steps + 1], weights)


class _Best:
    """The iterate of the least score."""

    def __init__(self, theta: FloatArray) -> None:
        self.theta, self.score, self.iteration = theta, math.inf, -1

    def start_stage(self) -> None:
        self.score = math.inf

    def offer(self, score: float, theta: FloatArray, iteration: int) -> None:
        if score < self.score:
            self.theta, self.score, self.iteration = theta.copy(), score, iteration


def _stages(horizon: int, n_iterations: int) -> list[tuple[int, int]]:
    """(horizon, iterations) of every stage, short horizons first."""
    if horizon < 9:
        return [(horizon, n_iterations)]
    quarter = max(1, n_iterations // 4)
    return [
        (horizon // 9 + 1, quarter),
        (horizon // 3, quarter),
        (horizon, n_iterations - 2 * quarter),
    ]


def _least(ridge: float, h: int, horizon: int) -> float:
    """At least the rounding of a Gram matrix, below which a Cholesky factor may not exist.

    The gradient of a horizon goes back through the solve: rounding over the ridge is what it
    misses, and below 1e-10 the line search fails of it.
    """
    return max(ridge, 16.0 * rank_tolerance(h) if horizon == 1 else 1e-10)


def _output_readout(features: FloatArray, outputs: FloatArray, part: Samples) -> FloatArray:
    """D (q, h) of y ≈ D ψ(x), least squares over the rows that outputs were given for."""
    rows = slice(None) if part.data.lengths else part.data.current
    root = np.sqrt(np.maximum(part.weights[rows, None], 0.0))
    solution = np.linalg.lstsq(root * features[rows], root * outputs[rows], rcond=1e-9)[0]
    return np.ascontiguousarray(solution.T)


def _scipy_optimize() -> Any:
    try:
        return import_module("scipy.optimize")
    except ImportError as error:
        raise ImportError(
            'variable projection needs SciPy: pip install "koopcore[learning]"'
        ) from error
