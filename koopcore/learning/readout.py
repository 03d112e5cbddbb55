"""How states are read out of features, x ≈ C ψ(x): picked where they are, or by least squares."""

from __future__ import annotations

import numpy as np

from koopcore.learning.dictionaries.blocks import Blocks
from koopcore.learning.dictionaries.fixed import Monomials
from koopcore.learning.dictionaries.one_layer import Dictionary
from koopcore.learning.dictionaries.state_inclusive import StateInclusive
from koopcore.types import FloatArray

READOUTS = ("auto", "least-squares", "state-inclusive")
_CUTOFF = 1e-9  # relative singular value below which features count as dependent


def state_places(dictionary: Dictionary) -> list[int] | None:
    """Which feature is which state, or None where the dictionary does not contain the state."""
    if isinstance(dictionary, StateInclusive):
        return list(range(dictionary.n_states))
    if isinstance(dictionary, Monomials):
        first = int(dictionary.constant)
        return list(range(first, first + dictionary.n_states))
    if not isinstance(dictionary, Blocks):
        return None
    places = [0] * dictionary.n_states
    for one, own, at in zip(
        dictionary.dictionaries, dictionary.states, dictionary.feature_slices(), strict=True
    ):
        inner = state_places(one)
        if inner is None:
            return None
        for state, place in zip(own, inner, strict=True):
            places[state] = at.start + place
    return places


def check_readout(kind: str, dictionary: Dictionary) -> str:
    """The read-out's name, "auto" resolved; ValueError if the dictionary cannot have it."""
    if kind not in READOUTS:
        raise ValueError(f"readout is {kind!r}; one of {', '.join(map(repr, READOUTS))} is needed")
    inclusive = state_places(dictionary) is not None
    if kind == "auto":
        return "state-inclusive" if inclusive else "least-squares"
    if kind == "state-inclusive" and not inclusive:
        raise ValueError(
            f"readout='state-inclusive' needs the state among the features; wrap the dictionary "
            f"(of every block) as StateInclusive(...), not {dictionary!r}"
        )
    return kind


def fit_readout(
    dictionary: Dictionary, features: FloatArray, states: FloatArray, kind: str
) -> FloatArray:
    """C (n, h): ones at the states' own features, or least squares of states on features.

    Least squares leaves out directions of the features below 1e-9 of the strongest: nearly
    collinear features would be read with huge weights of both signs, which a prediction's small
    errors do not survive.
    """
    places = state_places(dictionary) if kind == "state-inclusive" else None
    if places is not None:
        chosen = np.zeros((dictionary.n_states, dictionary.n_features))
        chosen[np.arange(len(places)), places] = 1.0
        return chosen
    solved = np.linalg.lstsq(features, states, rcond=_CUTOFF)[0]
    return np.ascontiguousarray(solved.T)
