"""The one-layer dictionary ψ(x) = σ(Wx + b); without b, the paper's σ(Wx)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from koopcore.learning.checks import not_negative, whole
from koopcore.learning.dictionaries.activations import activation
from koopcore.learning.dictionaries.protocol import Pullback
from koopcore.types import FloatArray


@dataclass(frozen=True)
class OneLayer:
    """ψ(x) = σ(Wx + b); with ``bias=None`` σ(Wx), as in Liu, Ding, Chen, Yeung 2020 (Assumption 2).

    Args:
        n_states, n_features: n and h; θ is W (h, n) by rows, then b (h,).
        activation: "tanh", "logistic" or "arctan".
        scale, bias: W and b start with independent normal entries of these standard deviations;
            choose ``scale`` so that Wx reaches the curved part of σ and not beyond, about
            1/|x|, which is 1/√n for standardized states.
        coordinates: of the state, 0 … n - 1, that the first features start as, nearly linear:
            σ(scale · x_j), without b. Of delays, all but the newest state: learning then starts
            from delay DMD.

    Without b, tanh and arctan are odd: no combination of them is even, such as x². σ(Wx) without a
    constant can be made small by a small W: F = 0 at W = 0 is a minimum that says nothing about
    the system. Prefer `StateInclusive` where the state is to be predicted.

    Cost of a linearization: 4 M h n flops. Leading axes of θ and states are a batch.
    """

    n_states: int
    n_features: int
    activation: str = "tanh"
    scale: float = 1.0
    bias: float | None = 1.0
    coordinates: tuple[int, ...] = ()
    batched: ClassVar[bool] = True

    def __post_init__(self) -> None:
        activation(self.activation)
        object.__setattr__(self, "n_states", whole("n_states", self.n_states))
        object.__setattr__(self, "n_features", whole("n_features", self.n_features))
        object.__setattr__(self, "scale", not_negative("scale", self.scale))
        if self.bias is not None:
            object.__setattr__(self, "bias", not_negative("bias", self.bias))
        places = tuple(whole("a coordinate", place, 0) for place in self.coordinates)
        object.__setattr__(self, "coordinates", places)
        if len(places) > self.n_features or max(places, default=0) >= self.n_states:
            raise ValueError(
                f"coordinates names {len(places)} numbers up to {max(places)}; at most "
                f"{self.n_features} of 0 to {self.n_states - 1} are needed, one for a feature"
            )

    @property
    def n_parameters(self) -> int:
        return self.n_features * (self.n_states + (self.bias is not None))

    def initial(self, rng: np.random.Generator) -> FloatArray:
        weights = self.scale * rng.standard_normal((self.n_features, self.n_states))
        first = len(self.coordinates)
        weights[:first] = 0.0
        weights[range(first), self.coordinates] = self.scale
        if self.bias is None:
            return weights.reshape(-1)
        bias = self.bias * rng.standard_normal(self.n_features)
        bias[:first] = 0.0
        return np.concatenate([weights.reshape(-1), bias])

    def features(self, parameters: FloatArray, states: FloatArray) -> FloatArray:
        inner = states @ self.weights(parameters).swapaxes(-1, -2)
        if self.bias is not None:
            inner += parameters[..., None, -self.n_features :]
        return activation(self.activation).value(inner)

    def linearized(self, parameters: FloatArray, states: FloatArray) -> tuple[FloatArray, Pullback]:
        outputs = self.features(parameters, states)
        slope = activation(self.activation).slope

        def pullback(gradient: FloatArray) -> FloatArray:
            inner = gradient * slope(outputs)
            weights = (inner.swapaxes(-1, -2) @ states).reshape(*parameters.shape[:-1], -1)
            if self.bias is None:
                return weights
            return np.concatenate([weights, inner.sum(axis=-2)], axis=-1)

        return outputs, pullback

    def weights(self, parameters: FloatArray) -> FloatArray:
        """W (…, h, n) as a view of θ (…, p)."""
        entries = parameters[..., : self.n_features * self.n_states]
        return entries.reshape(*parameters.shape[:-1], self.n_features, self.n_states)
