"""What one worker of Algorithms 2 and 3 holds: its blocks, its states, its θ, its rows of K."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from koopcore.learning.dictionaries.blocks import Blocks
from koopcore.learning.dictionaries.protocol import Dictionary
from koopcore.learning.objective import feature_gradient
from koopcore.learning.trajectories import Pairs
from koopcore.types import FloatArray


class Division(NamedTuple):
    """Contiguous runs of blocks, one per worker, in the order of the workers."""

    blocks: Blocks
    runs: tuple[tuple[int, ...], ...]

    def states(self, worker: int) -> list[int]:
        """State columns that a worker sees."""
        return [s for block in self.runs[worker] for s in self.blocks.states[block]]

    def feature_slices(self) -> list[slice]:
        """Where every worker's features stand in ψ."""
        return self._ranges(self.blocks.feature_slices())

    def widths(self) -> list[int]:
        """Features of every worker."""
        return [place.stop - place.start for place in self.feature_slices()]

    def parameter_slices(self) -> list[slice]:
        """Where every worker's parameters stand in θ."""
        return self._ranges(self.blocks.parameter_slices())

    def shares(self, data: Pairs, parameters: FloatArray, operator: FloatArray) -> list[Share]:
        """The whole problem dealt out; no worker receives a column of another's states."""
        columns = [
            np.ascontiguousarray(data.states[:, self.states(worker)])
            for worker in range(len(self.runs))
        ]
        return [
            self.share(worker, data.with_states(part), parameters, operator)
            for worker, part in enumerate(columns)
        ]

    def share(
        self, worker: int, part: Pairs, parameters: FloatArray, operator: FloatArray
    ) -> Share:
        """A worker's share, given the pairs of its own states alone and the whole θ and K."""
        place = self.feature_slices()[worker]
        return Share(
            self.blocks.subset(self.runs[worker]),
            part,
            place,
            parameters[self.parameter_slices()[worker]].copy(),
            np.ascontiguousarray(operator[place]),
        )

    def _ranges(self, places: Sequence[slice]) -> list[slice]:
        return [slice(places[run[0]].start, places[run[-1]].stop) for run in self.runs]


def divide(dictionary: Dictionary, workers: int) -> Division:
    """The blocks dealt out to workers as evenly as they go; ValueError if they do not go round."""
    if not isinstance(dictionary, Blocks):
        raise TypeError(
            f"the dictionary is a {type(dictionary).__name__}; workers need Blocks(...), one "
            "dictionary per part of the state"
        )
    count = len(dictionary.dictionaries)
    if not 1 <= workers <= count:
        raise ValueError(
            f"workers is {workers}, but the dictionary has {count} blocks; every worker needs at "
            f"least one block: use 1..{count} workers"
        )
    runs = tuple(tuple(int(b) for b in run) for run in np.array_split(np.arange(count), workers))
    return Division(dictionary, runs)


class Part(NamedTuple):
    """What one worker holds of an iterate."""

    parameters: FloatArray  # θ_i
    rows: FloatArray  # of K, (h_i, h)


def joined(parts: Sequence[Part]) -> tuple[FloatArray, FloatArray]:
    """The whole θ and K of the parts of all workers, in their order."""
    return (
        np.concatenate([part.parameters for part in parts]),
        np.concatenate([part.rows for part in parts]),
    )


class Share:
    """One worker's data and unknowns, and the local parts of an iteration.

    blocks: its dictionaries on its own state columns, renumbered. data: pairs of those columns.
    place: where its features stand in ψ. rows: its rows of K, (h_i, h); no other worker holds a
    copy of them.
    """

    def __init__(
        self, blocks: Blocks, data: Pairs, place: slice, parameters: FloatArray, rows: FloatArray
    ) -> None:
        self.blocks, self.data, self.place = blocks, data, place
        self.parameters, self.rows = parameters, rows

    def linearize(self) -> FloatArray:
        """ψ_i at all points (M, h_i); remembers how to pull gradients back."""
        features, self._pullback = self.blocks.linearized(self.parameters, self.data.states)
        return features

    def errors(self, features: FloatArray) -> FloatArray:
        """e^i = ψ_i(x_{n+1}) - Σ_j K_ij ψ_j(x_n), (N, h_i), from everybody's features (M, h)."""
        error: FloatArray = features[self.data.following, self.place] - (
            features[self.data.current] @ self.rows.T
        )
        return error

    def row_gradient(self, features: FloatArray, error: FloatArray) -> FloatArray:
        """∇F by the own rows of K, (h_i, h): needs no message beyond the features."""
        return (-2.0 / self.data.n_pairs) * (error.T @ features[self.data.current])

    def parameter_gradient(self, error: FloatArray, back: FloatArray) -> FloatArray:
        """∇F by θ_i, with back = Σ_v K_viᵀ e^v as rows (N, h_i), at the last linearization."""
        return self._pullback(feature_gradient(self.data, error, back))
