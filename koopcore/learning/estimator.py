"""scikit-learn's conventions for learners, without importing scikit-learn: parameters, predict."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import numpy.typing as npt

from koopcore.backends.stages import FloatArray
from koopcore.learning.learned_operator import LearnedOperator
from koopcore.learning.trajectories import Trajectories, pairs, separate


class Learner:
    """What every learner shares: its parameters, and predictions once it has learned.

    ``__init__`` only stores its arguments, under their names; ``fit`` checks them and sets
    ``operator_`` (a `LearnedOperator`) and ``history_``. So `sklearn.base.clone` and pickle work.
    """

    operator_: LearnedOperator

    @classmethod
    def _names(cls) -> list[str]:
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments of ``__init__`` by name."""
        return {name: getattr(self, name) for name in self._names()}

    def set_params(self, **params: Any) -> Any:
        """Change arguments of ``__init__``; ValueError for a name it does not have."""
        for name, value in params.items():
            if name not in self._names():
                raise ValueError(
                    f"{name!r} is no parameter of {type(self).__name__}; "
                    f"{', '.join(self._names())} are"
                )
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self._shown())})"

    def _shown(self) -> list[tuple[str, Any]]:
        """Parameters that differ from their defaults."""
        defaults = inspect.signature(type(self).__init__).parameters
        return [
            (name, value)
            for name, value in self.get_params().items()
            if value is not defaults[name].default
        ]

    def _learned(self) -> LearnedOperator:
        if not hasattr(self, "operator_"):
            raise AttributeError(f"this {type(self).__name__} has not learned yet; call fit(X)")
        return self.operator_

    def predict(self, x0: npt.ArrayLike, n_steps: int = 1) -> FloatArray:
        """States 1 … n_steps after x_0 from x_0 alone; see `LearnedOperator.predict`."""
        return self._learned().predict(x0, n_steps)

    def score(self, X: Trajectories, y: object = None) -> float:
        """R² of one-step prediction of the states, over all pairs; 1 is exact, 0 their mean."""
        learned = self._learned()
        data = pairs(X, len(learned.shift))
        true = data.states[data.following]
        ahead = learned.states(learned.features(data.states[data.current]) @ learned.operator.T)
        spread = float(np.sum((true - true.mean(axis=0)) ** 2))
        return 1.0 - float(np.sum((ahead - true) ** 2)) / spread if spread else float("nan")

    def transform(self, X: Trajectories) -> list[FloatArray]:
        """ψ of every trajectory, as a list of (length, h)."""
        learned = self._learned()
        return [learned.features(x) for x in separate(X)]


def generator(random_state: int | np.random.Generator | None) -> np.random.Generator:
    """A random generator from a seed, a generator, or the operating system's entropy (None)."""
    return np.random.default_rng(random_state)


def whole(name: str, number: object, least: int = 1) -> int:
    """``number`` as an int >= ``least``, or an error that names it."""
    if isinstance(number, bool) or not isinstance(number, (int, np.integer)):
        raise TypeError(f"{name} is {number!r}; a whole number >= {least} is needed")
    if number < least:
        raise ValueError(f"{name} is {number}; a whole number >= {least} is needed")
    return int(number)
