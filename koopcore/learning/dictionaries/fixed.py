"""Dictionaries with nothing to learn, for plain EDMD: monomials and radial basis functions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import combinations_with_replacement
from math import comb, frexp, ldexp

import numpy as np

from koopcore.learning.checks import finite_array, positive, truth, whole
from koopcore.learning.dictionaries.protocol import Pullback
from koopcore.types import FloatArray

_MOST = 1_000_000  # features; K would have as many rows and columns


class _Fixed(ABC):
    """No parameters: the pullback is empty."""

    n_parameters = 0

    def initial(self, rng: np.random.Generator) -> FloatArray:
        return np.zeros(0)

    @abstractmethod
    def features(self, parameters: FloatArray, states: FloatArray) -> FloatArray:
        """ψ of every row."""

    def linearized(self, parameters: FloatArray, states: FloatArray) -> tuple[FloatArray, Pullback]:
        return self.features(parameters, states), lambda gradient: np.zeros(0)


@dataclass(frozen=True)
class Monomials(_Fixed):
    """All monomials x^α with 1 ≤ |α| ≤ degree, or from |α| = 0 with ``constant``.

    The states come first among the features (after the constant), by degree, then in lexical
    order. The count is C(n + degree, degree): not for many states or high degrees, whose Gram
    matrix is also ill conditioned beyond |x| = 1 (standardize).
    Source: Williams, Kevrekidis, Rowley 2015, extended dynamic mode decomposition.
    """

    n_states: int
    degree: int = 3
    constant: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "n_states", whole("n_states", self.n_states))
        object.__setattr__(self, "degree", whole("degree", self.degree))
        object.__setattr__(self, "constant", truth("constant", self.constant))
        more, fewer = max(self.n_states, self.degree), min(self.n_states, self.degree)
        count = 1  # C(more + i, i)
        for i in range(1, fewer + 1):
            count = count * (more + i) // i
            if count > _MOST:
                raise ValueError(
                    f"n_states = {self.n_states} and degree = {self.degree} make more than {_MOST} "
                    "monomials; lower the degree, or leave states out"
                )

    @property
    def n_features(self) -> int:
        return comb(self.n_states + self.degree, self.degree) - (not self.constant)

    def exponents(self) -> list[tuple[int, ...]]:
        """Factors of every feature, as state indices with repetition."""
        lowest = 0 if self.constant else 1
        return [
            factors
            for total in range(lowest, self.degree + 1)
            for factors in combinations_with_replacement(range(self.n_states), total)
        ]

    def state_features(self) -> list[int]:
        """The monomials of degree one."""
        first = int(self.constant)
        return list(range(first, first + self.n_states))

    def features(self, parameters: FloatArray, states: FloatArray) -> FloatArray:
        columns: dict[tuple[int, ...], FloatArray] = {(): np.ones(len(states))}
        for factors in self.exponents():
            if factors:  # every shorter product was made before
                shorter = columns.get(factors[:-1])
                last = states[:, factors[-1]]
                columns[factors] = last if shorter is None else shorter * last
        return np.stack([columns[factors] for factors in self.exponents()], axis=1)


@dataclass(frozen=True)
class RadialBasis(_Fixed):
    """ψ_k(x) = exp(-‖x - c_k‖² / 2 width²) around given centres.

    Args:
        centres: (h, n) as nested tuples or an array, in the unit of the (standardized) state.

    Not for many states: centres that cover a volume grow as its dimension's power.

    Source: Williams, Kevrekidis, Rowley 2015.
    """

    centres: tuple[tuple[float, ...], ...]
    width: float = 1.0

    def __post_init__(self) -> None:
        rows = finite_array("centres", self.centres)
        if rows.ndim != 2 or not rows.size:
            raise ValueError(f"centres has shape {rows.shape}; (n_centres, n_states) is needed")
        object.__setattr__(self, "centres", tuple(tuple(map(float, row)) for row in rows))
        object.__setattr__(self, "width", positive("width", self.width))

    @property
    def n_states(self) -> int:
        return len(self.centres[0])

    @property
    def n_features(self) -> int:
        return len(self.centres)

    def features(self, parameters: FloatArray, states: FloatArray) -> FloatArray:
        # Distances in a power of two next to the width: neither is too large or small to square,
        # but for distances so far that ψ is 0.
        unit = ldexp(1.0, frexp(self.width)[1] - 1)
        with np.errstate(over="ignore"):
            apart = (states[:, None, :] - np.asarray(self.centres)) / unit  # (M, h, n)
            squares = np.einsum("mhn,mhn->mh", apart, apart)
        return np.exp(squares / (-2.0 * (self.width / unit) ** 2))
