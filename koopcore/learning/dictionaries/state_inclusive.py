"""ψ = [x; φ(x); 1]: a dictionary that contains the state, so that reading it out is exact."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from koopcore.learning.checks import truth, whole
from koopcore.learning.dictionaries.protocol import Dictionary, Pullback, batched, check_dictionary
from koopcore.types import FloatArray


@dataclass(frozen=True)
class StateInclusive:
    """ψ(x) = [x; φ(x)], with the parameters of ``inner``, φ; with ``constant``, [x; φ(x); 1].

    states: how many of the state's n numbers are features, the first ones; None: all. Of a state
    made of several in a row, the newest: φ sees the delays and is learned, instead of them.

    The constant is what an offset needs, a fixed point that is not 0. The first n features are the
    state itself: the read-out is x = ψ_{1:n} without error, and F cannot be made small by making φ
    small. Not for dictionaries that already contain the state, as `Monomials` does: K would not be
    unique.
    """

    inner: Dictionary
    constant: bool = False
    states: int | None = None

    def __post_init__(self) -> None:
        check_dictionary("inner", self.inner)
        object.__setattr__(self, "constant", truth("constant", self.constant))
        if self.states is not None:
            object.__setattr__(self, "states", whole("states", self.states))
            if self.states > self.inner.n_states:
                raise ValueError(
                    f"states is {self.states}, but inner takes {self.inner.n_states} states"
                )

    @property
    def batched(self) -> bool:
        """Whether leading axes of θ and states are a batch."""
        return batched(self.inner)

    @cached_property  # or sizes of nested ones would be counted at every level
    def n_states(self) -> int:
        return self.inner.n_states

    @cached_property
    def n_features(self) -> int:
        return self._shown + self.inner.n_features + self.constant

    @cached_property
    def _shown(self) -> int:
        return self.n_states if self.states is None else self.states

    @cached_property
    def n_parameters(self) -> int:
        return self.inner.n_parameters

    def state_features(self) -> list[int]:
        """The first n, or ``states``."""
        return list(range(self._shown))

    def initial(self, rng: np.random.Generator) -> FloatArray:
        return self.inner.initial(rng)

    def features(self, parameters: FloatArray, states: FloatArray) -> FloatArray:
        return self._joined(states, self.inner.features(parameters, states))

    def linearized(self, parameters: FloatArray, states: FloatArray) -> tuple[FloatArray, Pullback]:
        inner, pullback = self.inner.linearized(parameters, states)
        last = self.n_features - self.constant
        return self._joined(states, inner), lambda gradient: pullback(
            gradient[..., self._shown : last]
        )

    def _joined(self, states: FloatArray, inner: FloatArray) -> FloatArray:
        parts = [states[..., : self._shown], inner]
        if self.constant:
            parts.append(np.ones((*states.shape[:-1], 1)))
        return np.concatenate(parts, axis=-1)
