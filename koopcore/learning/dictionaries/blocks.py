"""Block dictionaries ψ(x) = [ψ_1(x^1); …; ψ_Q(x^Q)] of a state cut into parts (Assumption 3)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from koopcore.learning.checks import whole
from koopcore.learning.dictionaries.protocol import (
    Dictionary,
    Pullback,
    batched,
    check_dictionary,
    state_features,
)
from koopcore.types import FloatArray


@dataclass(frozen=True)
class Blocks:
    """ψ(x) = [ψ_1(x^1); …; ψ_Q(x^Q)], each block with its own dictionary and parameters.

    Args:
        dictionaries: one per block.
        states: the state indices of each block; together they must name every state exactly
            once. Without ``states`` the blocks follow each other.

    θ is the blocks' parameters one after another. Equal blocks of `OneLayer` or `Layered`,
    state-inclusive or not, run as one batch of matrix products.

    Source: Liu, Ding, Chen, Yeung 2020, Assumption 3.
    """

    dictionaries: tuple[Dictionary, ...]
    states: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "dictionaries", tuple(self.dictionaries))
        if not self.dictionaries:
            raise ValueError("dictionaries is empty; one per block is needed")
        for block, dictionary in enumerate(self.dictionaries):
            check_dictionary(f"dictionaries[{block}]", dictionary)
        sizes = [d.n_states for d in self.dictionaries]
        runs = self.states or [range(a, b) for a, b in pairwise(accumulate(sizes, initial=0))]
        parts = tuple(tuple(whole("a state", i, 0) for i in part) for part in runs)
        object.__setattr__(self, "states", parts)
        check_cover(parts, sizes)

    @property
    def n_states(self) -> int:
        return sum(d.n_states for d in self.dictionaries)

    @property
    def n_features(self) -> int:
        return sum(d.n_features for d in self.dictionaries)

    @property
    def n_parameters(self) -> int:
        return sum(d.n_parameters for d in self.dictionaries)

    def feature_slices(self) -> list[slice]:
        """Where each block's features stand in ψ."""
        return _slices([d.n_features for d in self.dictionaries])

    def parameter_slices(self) -> list[slice]:
        """Where each block's parameters stand in θ."""
        return _slices([d.n_parameters for d in self.dictionaries])

    def state_features(self) -> list[int] | None:
        """Where every state stands in ψ, if every block contains all of its states."""
        places = [0] * self.n_states
        for dictionary, states, block in zip(
            self.dictionaries, self.states, self.feature_slices(), strict=True
        ):
            features = state_features(dictionary)
            if features is None or len(features) < len(states):
                return None
            for state, feature in zip(states, features, strict=True):
                places[state] = block.start + feature
        return places

    def subset(self, blocks: Sequence[int]) -> Blocks:
        """Some blocks alone, on the states they name, renumbered in that order."""
        return Blocks(tuple(self.dictionaries[b] for b in blocks))

    def initial(self, rng: np.random.Generator) -> FloatArray:
        return np.concatenate([d.initial(rng) for d in self.dictionaries])

    def features(self, parameters: FloatArray, states: FloatArray) -> FloatArray:
        return self.linearized(parameters, states)[0]

    def linearized(self, parameters: FloatArray, states: FloatArray) -> tuple[FloatArray, Pullback]:
        first = self.dictionaries[0]
        if batched(first) and all(d == first for d in self.dictionaries):
            return self._batched(first, parameters, states)
        runs = [
            d.linearized(parameters[place], states[:, list(part)])
            for d, place, part in zip(
                self.dictionaries, self.parameter_slices(), self.states, strict=True
            )
        ]
        places = self.feature_slices()

        def pullback(gradient: FloatArray) -> FloatArray:
            return np.concatenate(
                [back(gradient[:, at]) for (_, back), at in zip(runs, places, strict=True)]
            )

        return np.concatenate([features for features, _ in runs], axis=1), pullback

    def _batched(
        self, one: Dictionary, parameters: FloatArray, states: FloatArray
    ) -> tuple[FloatArray, Pullback]:
        count, points = len(self.dictionaries), len(states)
        stacked = np.ascontiguousarray(
            states.T[np.asarray(self.states)].swapaxes(-1, -2)
        )  # (Q, M, n_q)
        features, pullback = one.linearized(parameters.reshape(count, -1), stacked)

        def joint(gradient: FloatArray) -> FloatArray:
            blocks = gradient.reshape(points, count, -1).transpose(1, 0, 2)
            return pullback(np.ascontiguousarray(blocks)).reshape(-1)

        return features.transpose(1, 0, 2).reshape(points, -1), joint


def check_cover(parts: Sequence[Sequence[int]], sizes: Sequence[int]) -> None:
    """Raise ValueError unless the parts fit their dictionaries and name each state once."""
    if len(parts) != len(sizes):
        raise ValueError(f"states has {len(parts)} blocks, dictionaries {len(sizes)}; one each")
    for block, (part, size) in enumerate(zip(parts, sizes, strict=True)):
        if len(part) != size:
            raise ValueError(
                f"block {block} has states {part}, but its dictionary takes {size} states"
            )
    named = Counter(state for part in parts for state in part)
    missing = sorted(set(range(named.total())) - set(named))
    twice = sorted(state for state, count in named.items() if count > 1)
    if missing or twice:
        raise ValueError(
            f"the blocks do not cover the {named.total()} states once each: "
            f"missing {missing}, named twice {twice}; give every state to exactly one block"
        )


def _slices(sizes: Sequence[int]) -> list[slice]:
    return [slice(a, b) for a, b in pairwise(accumulate(sizes, initial=0))]
