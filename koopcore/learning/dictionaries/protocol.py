"""What a dictionary of observables ψ(x) is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

import numpy as np

from koopcore.types import FloatArray

Pullback: TypeAlias = Callable[[FloatArray], FloatArray]


class Dictionary(Protocol):
    """Observables ψ: R^n → R^h with parameters θ in one float64 vector; it holds no θ itself.

    Dictionaries are immutable descriptions: a learner keeps θ, so that a trial step, a clone or a
    copy on another worker is a vector and not an object.

    Two more members are optional. ``batched = True``: leading axes of θ (…, p) and of states
    (…, M, n) are a batch, so that equal `Blocks` run as one. ``state_features()``: see
    `state_features`.
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


def check_dictionary(name: str, value: object) -> None:
    """Raise TypeError unless ``value`` has what a dictionary must have."""
    members = ("n_states", "n_features", "n_parameters", "initial", "features", "linearized")
    missing = [member for member in members if not hasattr(value, member)]
    if missing:
        raise TypeError(
            f"{name} is a {type(value).__name__}, without {', '.join(missing)}; a dictionary is "
            "needed, such as OneLayer(...)"
        )


def batched(dictionary: Dictionary) -> bool:
    """Whether leading axes of θ and of states are a batch."""
    return bool(getattr(dictionary, "batched", False))


def state_features(dictionary: Dictionary) -> list[int] | None:
    """Which feature is which state: of all states in their order, or of the first of them.

    None where not even the first are features.
    """
    features: Callable[[], list[int] | None] | None = getattr(dictionary, "state_features", None)
    return None if features is None else features()
