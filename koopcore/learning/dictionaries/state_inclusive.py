"""ψ = [x; φ(x); 1]: a dictionary that contains the state, so that reading it out is exact."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from koopcore.learning.checks import truth
from koopcore.learning.dictionaries.protocol import Dictionary, Pullback, batched, check_dictionary
from koopcore.types import FloatArray


@dataclass(frozen=True)
class StateInclusive:
    """ψ(x) = [x; φ(x)], with the parameters of ``inner``, φ; with ``constant``, [x; φ(x); 1].

    The constant is what an offset needs, a fixed point that is not 0. The first n features are the
    state itself: the read-out is x = ψ_{1:n} without error, and F cannot be made small by making φ
    small. Not for dictionaries that already contain the state, as `Monomials` does: K would not be
    unique.
    """

    inner: Dictionary
    constant: bool = False

    def __post_init__(self) -> None:
        check_dictionary("inner", self.inner)
        object.__setattr__(self, "constant", truth("constant", self.constant))

    @property
    def batched(self) -> bool:
        """Whether leading axes of θ and states are a batch."""
        return batched(self.inner)

    @cached_property  # or sizes of nested ones would be counted at every level
    def n_states(self) -> int:
        return self.inner.n_states

    @cached_property
    def n_features(self) -> int:
        return self.inner.n_states + self.inner.n_features + self.constant

    @cached_property
    def n_parameters(self) -> int:
        return self.inner.n_parameters

    def state_features(self) -> list[int]:
        """The first n."""
        return list(range(self.n_states))

    def initial(self, rng: np.random.Generator) -> FloatArray:
        return self.inner.initial(rng)

    def features(self, parameters: FloatArray, states: FloatArray) -> FloatArray:
        return self._joined(states, self.inner.features(parameters, states))

    def linearized(self, parameters: FloatArray, states: FloatArray) -> tuple[FloatArray, Pullback]:
        inner, pullback = self.inner.linearized(parameters, states)
        last = self.n_features - self.constant
        return self._joined(states, inner), lambda gradient: pullback(
            gradient[..., self.n_states : last]
        )

    def _joined(self, states: FloatArray, inner: FloatArray) -> FloatArray:
        parts = [states, inner]
        if self.constant:
            parts.append(np.ones((*states.shape[:-1], 1)))
        return np.concatenate(parts, axis=-1)
