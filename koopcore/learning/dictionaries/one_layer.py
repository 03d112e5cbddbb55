"""What a dictionary of observables ψ(x) is, and the one-layer dictionary σ(Wx)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeAlias

import numpy as np

from koopcore.learning.dictionaries.activations import activation
from koopcore.types import FloatArray

Pullback: TypeAlias = Callable[[FloatArray], FloatArray]


class Dictionary(Protocol):
    """Observables ψ: R^n → R^h with parameters θ in one float64 vector; it holds no θ itself.

    Dictionaries are immutable descriptions: a learner keeps θ, so that a trial step, a clone or a
    copy on another worker is a vector and not an object.
    """

    @property
    def n_states(self) -> int:
        """n, the width of a state."""
        ...

    @property
    def n_features(self) -> int:
        """h, the number of observables."""
        ...

    @property
    def n_parameters(self) -> int:
        """Length of θ; 0 for a dictionary with nothing to learn."""
        ...

    def initial(self, rng: np.random.Generator) -> FloatArray:
        """Random θ (n_parameters,) to start from."""
        ...

    def features(self, parameters: FloatArray, states: FloatArray) -> FloatArray:
        """ψ of every row of ``states`` (M, n): (M, h)."""
        ...

    def linearized(self, parameters: FloatArray, states: FloatArray) -> tuple[FloatArray, Pullback]:
        """ψ (M, h), and the function that takes G (M, h) to Σ_m (∂ψ(x_m)/∂θ)ᵀ G_m, (p,)."""
        ...


@dataclass(frozen=True)
class OneLayer:
    """ψ(x) = σ(Wx), the dictionary of Liu, Ding, Chen, Yeung 2020 (Assumption 2).

    n_states, n_features: n and h; θ is W (h, n) by rows. activation: "tanh", "logistic" or
    "arctan". scale: W starts with independent normal entries of this standard deviation; choose
    it so that Wx reaches the curved part of σ and not beyond, about 1/|x|.

    σ(Wx) without a constant can be made small by a small W: F = 0 at W = 0 is a minimum that says
    nothing about the system. Prefer `StateInclusive` where the state is to be predicted.
    Cost of a linearization: 4 M h n flops. Leading axes of θ and states are a batch.
    """

    n_states: int
    n_features: int
    activation: str = "tanh"
    scale: float = 1.0
    batched: ClassVar[bool] = True

    def __post_init__(self) -> None:
        activation(self.activation)
        at_least_one(n_states=self.n_states, n_features=self.n_features)

    @property
    def n_parameters(self) -> int:
        return self.n_features * self.n_states

    def initial(self, rng: np.random.Generator) -> FloatArray:
        return self.scale * rng.standard_normal(self.n_parameters)

    def features(self, parameters: FloatArray, states: FloatArray) -> FloatArray:
        return activation(self.activation).value(states @ self.weights(parameters).swapaxes(-1, -2))

    def linearized(self, parameters: FloatArray, states: FloatArray) -> tuple[FloatArray, Pullback]:
        outputs = self.features(parameters, states)
        slope = activation(self.activation).slope

        def pullback(gradient: FloatArray) -> FloatArray:
            return ((gradient * slope(outputs)).swapaxes(-1, -2) @ states).reshape(parameters.shape)

        return outputs, pullback

    def weights(self, parameters: FloatArray) -> FloatArray:
        """W (…, h, n) as a view of θ (…, p)."""
        return parameters.reshape(*parameters.shape[:-1], self.n_features, self.n_states)


def at_least_one(**sizes: int) -> None:
    """Raise ValueError naming the first size below 1."""
    for name, size in sizes.items():
        if not size >= 1:
            raise ValueError(f"{name} is {size}; at least 1 is needed")
