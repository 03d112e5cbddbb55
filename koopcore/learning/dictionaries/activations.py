"""The activations σ of one-layer dictionaries, with the derivatives and bounds that steps need."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from koopcore.types import FloatArray


class Activation(NamedTuple):
    """σ, its derivative as a function of the output y = σ(z), and bounds on three derivatives."""

    value: Callable[[FloatArray], FloatArray]
    slope: Callable[[FloatArray], FloatArray]  # σ'(z) from y, so that z need not be kept
    bounds: tuple[float, float, float]  # b0, b1, b2 of |σ|, |σ'|, |σ''|


def _logistic(z: FloatArray) -> FloatArray:
    return 0.5 + 0.5 * np.tanh(0.5 * z)  # exp(-z) would overflow


ACTIVATIONS = {
    "tanh": Activation(np.tanh, lambda y: 1.0 - y * y, (1.0, 1.0, 4.0 / 27.0**0.5)),
    "logistic": Activation(_logistic, lambda y: y * (1.0 - y), (1.0, 0.25, 1.0 / 108.0**0.5)),
    "arctan": Activation(np.arctan, lambda y: np.cos(y) ** 2, (np.pi / 2.0, 1.0, 27.0**0.5 / 8.0)),
}


def activation(name: str) -> Activation:
    """The activation called ``name``: "tanh", "logistic" or "arctan"; ValueError otherwise."""
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ValueError(f"activation is {name!r}; one of {', '.join(map(repr, ACTIVATIONS))}")
    return ACTIVATIONS[name]
