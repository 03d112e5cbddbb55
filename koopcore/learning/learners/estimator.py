"""What every learner is, in scikit-learn's conventions: settings, data in, operator and score out.

scikit-learn itself is imported only where it asks, which it then has been.
"""

from __future__ import annotations

import sys
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from koopcore.backends import backend_for
from koopcore.learning.checks import finite_array, not_negative, whole
from koopcore.learning.dictionaries.protocol import Dictionary, check_dictionary
from koopcore.learning.learned_operator import LearnedOperator, Readout, check_readout, fit_readout
from koopcore.learning.learners.divergence import Point, check_finite, check_sizes, recover
from koopcore.learning.learners.history import Criterion, History
from koopcore.learning.learners.step_sizes import StepK, StepW, check_step
from koopcore.learning.objective import exact_operator
from koopcore.learning.trajectories import (
    Scaled,
    Trajectories,
    pairs,
    samples,
    scaled,
    separate,
)
from koopcore.types import FloatArray


@dataclass(eq=False, repr=False)
class Learner:
    """The settings that every learner has, and predictions once it has learned.

    A learner's ``__init__`` only stores its settings, under their names; ``fit`` checks them and
    sets ``operator_`` (a `LearnedOperator`) and ``history_``. So `sklearn.base.clone`, pickle,
    Pipeline, GridSearchCV (with a splitter that keeps the order, such as TimeSeriesSplit) and
    cross_val_score work, and a dictionary's own settings are parameters too:
    ``set_params(dictionary__degree=3)``.

    Args:
        dictionary: ψ.
        n_iterations: T.
        readout: "auto", "least-squares" or "state-inclusive".
        standardize: learn on (x - mean) / standard deviation.
        ridge: Tikhonov term of exact solves for K, relative.
        polish: solve for K exactly once more, at the best θ: the small singular directions of
            ψ, which gradient steps of 1/L_K hardly move, then fit too.
        random_state: seed of θ.
        progress: a bar on standard error.

    K starts at the identity.
    """

    dictionary: Dictionary
    _: KW_ONLY
    n_iterations: int = 500
    readout: Readout = "auto"
    standardize: bool = False
    ridge: float = 0.0
    polish: bool = False
    random_state: int | np.random.Generator | None = 0
    progress: bool = False
    operator_: LearnedOperator = field(init=False)
    history_: History = field(init=False)

    @classmethod
    def _names(cls) -> list[str]:
        return [setting.name for setting in fields(cls) if setting.init]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The settings by name; ``deep``: the dictionary's own too, as ``dictionary__degree``."""
        settings = {name: getattr(self, name) for name in self._names()}
        own = getattr(self.dictionary, "__dataclass_fields__", {}) if deep else {}
        for name, setting in own.items():
            if setting.init:
                settings[f"dictionary__{name}"] = getattr(self.dictionary, name)
        return settings

    def set_params(self, **params: Any) -> Any:
        """Change arguments of ``__init__``; ValueError for a name it does not have.

        ``dictionary__name`` is a setting of the dictionary, of which a changed copy is made.
        """
        if "dictionary" in params:  # first: the other parameters may be of the new one
            self.dictionary = params["dictionary"]
        known = self.get_params()
        within = {}
        for name, value in params.items():
            if name not in known:
                raise ValueError(
                    f"{name!r} is no parameter of {type(self).__name__}; {', '.join(known)} are"
                )
            if name in self._names():
                setattr(self, name, value)
            else:
                within[name.removeprefix("dictionary__")] = value
        if within:
            self.dictionary = replace(self.dictionary, **within)  # type: ignore[type-var]
        return self

    @property
    def n_features_in_(self) -> int:
        """Width of the states that were learned from."""
        return len(self._learned().shift)

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn may expect: several outputs, no target, real dense finite data."""
        from sklearn.utils import InputTags, Tags, TargetTags

        return Tags(
            estimator_type=None,
            target_tags=TargetTags(required=False),
            transformer_tags=None,
            classifier_tags=None,
            regressor_tags=None,
            input_tags=InputTags(three_d_array=True),
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self._changed())})"

    def _changed(self) -> list[tuple[str, Any]]:
        """Settings that differ from their defaults."""
        return [
            (setting.name, getattr(self, setting.name))
            for setting in fields(self)
            if setting.init and getattr(self, setting.name) is not setting.default
        ]

    def predict(
        self, x0: npt.ArrayLike, n_steps: int = 1, u: npt.ArrayLike | None = None
    ) -> FloatArray:
        """States 1 … n_steps after x_0 from x_0 alone; see `LearnedOperator.predict`."""
        return self._learned().predict(x0, n_steps, u)

    def score(
        self, X: Trajectories, y: Trajectories | None = None, u: Trajectories | None = None
    ) -> float:
        """R² of one-step prediction of the states, over all pairs; 1 is exact, 0 their mean.

        Args:
            y: the state after every row of X; None: the rows of X follow each other.
            u: inputs, where the operator was learned with some.
        """
        learned = self._learned()
        data = pairs(X, len(learned.shift), y)
        inputs = samples(data, u, None).inputs[data.current]
        true = data.states[data.following]
        with np.errstate(over="ignore", invalid="ignore"):
            features = learned.features(data.states[data.current])
            ahead = learned.states(learned.ahead(features, inputs))
            spread = float(np.sum((true - true.mean(axis=0)) ** 2))
            error = float(np.sum((ahead - true) ** 2))
        if not spread:
            return float("nan")
        return 1.0 - error / spread if np.isfinite(error) else -float("inf")

    def transform(self, X: Trajectories) -> list[FloatArray]:
        """ψ of every trajectory, as a list of (length, h)."""
        learned = self._learned()
        return [learned.features(x) for x in separate(X)]

    def _learned(self) -> LearnedOperator:
        if not hasattr(self, "operator_"):
            message = f"this {type(self).__name__} has not learned yet; call fit(X)"
            exceptions = sys.modules.get("sklearn.exceptions")
            kind = AttributeError if exceptions is None else exceptions.NotFittedError
            raise kind(message)
        return self.operator_

    def _check(self) -> None:
        """Raise for settings that cannot work, before any work."""
        whole("n_iterations", self.n_iterations)
        check_dictionary("dictionary", self.dictionary)
        check_readout(self.readout, self.dictionary)
        not_negative("ridge", self.ridge)
        if self.polish:
            backend_for("cpu")  # what solves for K; raises where KOOPCORE_BACKEND is none

    def _begin(
        self,
        X: Trajectories,
        initial: tuple[npt.ArrayLike, npt.ArrayLike] | None,
        y: Trajectories | None = None,
    ) -> tuple[Scaled, Point]:
        """The data in the units that are learned in, and (θ, K) to start from.

        y: None, or the state after every row of X.
        """
        problem = scaled(pairs(X, self.dictionary.n_states, y), self.standardize)
        start, states = self._start(initial), problem.data.states
        with np.errstate(over="ignore", invalid="ignore"):
            features = self.dictionary.features(start[0], states)
        check_sizes(largest(features), largest(states), self._takes_gradients())
        return problem, start

    def _takes_gradients(self) -> bool:
        """Whether K or θ are learned by gradient steps."""
        return True

    def _start(self, initial: tuple[npt.ArrayLike, npt.ArrayLike] | None) -> Point:
        """(θ, K) to start from: copies of what was given, or random θ and the identity."""
        h, p = self.dictionary.n_features, self.dictionary.n_parameters
        if initial is None:
            return self.dictionary.initial(np.random.default_rng(self.random_state)), np.eye(h)
        theta = finite_array("θ of initial", initial[0])
        k = finite_array("K of initial", initial[1])
        if (theta.shape, k.shape) != ((p,), (h, h)):
            raise ValueError(
                f"initial has shapes {theta.shape}, {k.shape}; the dictionary needs θ {(p,)} and "
                f"K {(h, h)}"
            )
        return theta, k

    def _conclude(
        self, problem: Scaled, start: Point, iterate: Point, steps: str, delay: int = 0
    ) -> None:
        """Set ``operator_`` from the best iterate; ``fit`` calls it last.

        steps: where learning ended and by which steps, for the warning if it diverged; then the
        start may be better than the iterate.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            if self.history_.stopped == "diverged":
                iterate = recover(
                    self.history_, self.dictionary, problem.data, start, iterate, steps, delay
                )
            self.operator_ = self._assembled(problem, iterate)

    def _assembled(self, problem: Scaled, iterate: Point) -> LearnedOperator:
        """The operator of an iterate: K solved for once more with ``polish``, and the read-out.

        Raises FloatingPointError where it is not finite.
        """
        parameters, operator = iterate
        data = problem.data
        features = self.dictionary.features(parameters, data.states)
        if self.polish:
            operator = exact_operator(features, data, self.ridge)
        check_finite(features, data, operator)
        readout = check_readout(self.readout, self.dictionary)
        return LearnedOperator(
            self.dictionary,
            parameters,
            operator,
            fit_readout(self.dictionary, features, data.states, readout),
            problem.shift,
            problem.scale,
        )


@dataclass(eq=False, repr=False)
class SynchronousLearner(Learner):
    """The settings of learners whose iterates each belong to one moment, so that F is known there.

    Args:
        k_step: "gradient" (the paper's) or "exact" (variable projection, the engine's solve).
        step_k: "lipschitz" (1/L_K, power iteration), a number, or `Diminishing`.
        step_w: "backtracking" (Armijo: F falls in every iteration), a number, or `Diminishing`.
        track: keep the iterate of the smallest "gradient" E = ‖∇_K‖² + ‖∇_W‖² or of the
            smallest "objective" F.
    """

    _: KW_ONLY
    k_step: Literal["gradient", "exact"] = "gradient"
    step_k: StepK = "lipschitz"
    step_w: StepW = "backtracking"
    track: Criterion = "gradient"

    _searches: ClassVar[tuple[str, ...]] = ("backtracking",)  # the words that step_w may be

    def _steps(self) -> str:
        """The steps as they were set, for messages."""
        return f"step_k={self.step_k!r}, step_w={self.step_w!r}"

    def _takes_gradients(self) -> bool:
        return self.k_step == "gradient" or self.dictionary.n_parameters > 0

    def _check(self) -> None:
        super()._check()
        if self.k_step not in ("gradient", "exact"):
            raise ValueError(f"k_step is {self.k_step!r}; 'gradient' or 'exact' is needed")
        if self.k_step == "exact":
            backend_for("cpu")
        check_step("step_k", self.step_k, ("lipschitz",))
        check_step("step_w", self.step_w, self._searches)
        if self.track not in ("gradient", "objective"):
            raise ValueError(f"track is {self.track!r}; 'gradient' or 'objective' is needed")


def largest(array: FloatArray) -> float:
    """The largest magnitude; NaN where there is one."""
    return float(np.abs(array).max())
