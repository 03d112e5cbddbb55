"""A dictionary of several layers, σ(W_L … σ(W_1 x + b_1) … + b_L), differentiated by hand."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np

from koopcore.learning.checks import not_negative, whole
from koopcore.learning.dictionaries.activations import activation
from koopcore.learning.dictionaries.protocol import Pullback
from koopcore.types import FloatArray


@dataclass(frozen=True)
class Layered:
    """ψ(x) = σ(W_L … σ(W_1 x + b_1) … + b_L), the deep dictionary of one worker.

    Args:
        n_states: n.
        widths: of the layers, the last is h.
        bias, scale: standard deviations of the first biases, and of W_l times √fan_in.

    θ holds b_1, W_1 (fan_in, fan_out), b_2, W_2, …. Leading axes of θ (…, p) and states (…, M, n)
    are a batch: equal blocks run as one.

    Cost of a linearization: 6 M Σ fan_in·fan_out flops. Not for networks with other structure:
    `TorchDictionary` takes any module, at torch's price per call.
    """

    n_states: int
    widths: tuple[int, ...]
    activation: str = "tanh"
    bias: float = 0.5
    scale: float = 1.0
    batched: ClassVar[bool] = True

    def __post_init__(self) -> None:
        activation(self.activation)
        object.__setattr__(self, "n_states", whole("n_states", self.n_states))
        widths = (whole(f"widths[{layer}]", width) for layer, width in enumerate(self.widths))
        object.__setattr__(self, "widths", tuple(widths))
        if not self.widths:
            raise ValueError("widths is empty; at least one layer is needed, such as (15, 15, 15)")
        object.__setattr__(self, "bias", not_negative("bias", self.bias))
        object.__setattr__(self, "scale", not_negative("scale", self.scale))

    @property
    def n_features(self) -> int:
        return self.widths[-1]

    @property
    def n_parameters(self) -> int:
        return sum((fan_in + 1) * fan_out for fan_in, fan_out in self._shapes())

    def initial(self, rng: np.random.Generator) -> FloatArray:
        parts = []
        for fan_in, fan_out in self._shapes():
            parts.append(self.bias * rng.standard_normal(fan_out))
            spread = self.scale / np.sqrt(fan_in)
            parts.append(spread * rng.standard_normal(fan_in * fan_out))
        return np.concatenate(parts)

    def features(self, parameters: FloatArray, states: FloatArray) -> FloatArray:
        return self._forward(parameters, states)[-1]

    def linearized(self, parameters: FloatArray, states: FloatArray) -> tuple[FloatArray, Pullback]:
        tape = self._forward(parameters, states)
        slope = activation(self.activation).slope
        weights = [weight for _, weight in self._layers(parameters)]

        def pullback(gradient: FloatArray) -> FloatArray:
            result = np.empty_like(parameters)
            into = self._layers(result)
            for layer in range(len(weights) - 1, -1, -1):
                gradient = gradient * slope(tape[layer + 1])
                bias, weight = into[layer]
                bias[...] = gradient.sum(axis=-2, keepdims=True)
                np.matmul(tape[layer].swapaxes(-1, -2), gradient, out=weight)
                if layer:
                    gradient = gradient @ weights[layer].swapaxes(-1, -2)
            return result

        return tape[-1], pullback

    def _forward(self, parameters: FloatArray, states: FloatArray) -> list[FloatArray]:
        """Inputs of every layer, and the features last."""
        value = activation(self.activation).value
        tape = [states]
        for bias, weight in self._layers(parameters):
            inner = tape[-1] @ weight
            inner += bias
            tape.append(value(inner))
        return tape

    def _layers(self, parameters: FloatArray) -> list[tuple[FloatArray, FloatArray]]:
        """(b (…, 1, out), W (…, in, out)) of every layer, as views of θ (…, p)."""
        batch = parameters.shape[:-1]
        layers = []
        start = 0
        for fan_in, fan_out in self._shapes():
            middle, stop = start + fan_out, start + fan_out * (fan_in + 1)
            layers.append(
                (
                    parameters[..., start:middle].reshape(*batch, 1, fan_out),
                    parameters[..., middle:stop].reshape(*batch, fan_in, fan_out),
                )
            )
            start = stop
        return layers

    def _shapes(self) -> list[tuple[int, int]]:
        return list(pairwise((self.n_states, *self.widths)))
