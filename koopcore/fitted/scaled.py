"""Groups whose squares leave float64: fitted times a power of two, predicted back exactly."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from koopcore import arrays
from koopcore.backends.protocol import Backend, Snapshots
from koopcore.fitted.base import GroupFit
from koopcore.partition.partition import Partition
from koopcore.types import FloatArray, IntArray


@dataclass
class ScaledWindow:
    """A copy of the snapshots of some groups, each group times 2^-exponent.

    Linear models are taken of snapshots and affine ones of differences, so that one or the other
    has its largest number near 1. For affine models parameters that do not move are zero: they have
    no part in the differences, and nothing keeps the others from their unit.
    """

    snapshots: Snapshots  # in float64, the groups one after the other
    part: Partition
    exponent: IntArray  # (n_groups,)

    @classmethod
    def of(cls, snapshots: Snapshots, part: Partition, affine: bool) -> ScaledWindow:
        """Copy the groups of ``part``. Cost: one read, and the memory of a float64 copy."""
        columns = np.concatenate([part.indices(int(g)) for g in part.numbers])
        x = arrays.host(snapshots.array[:, columns])[snapshots.order].astype(np.float64)
        first = np.concatenate([[0], np.cumsum(part.sizes)])
        if affine:
            x[:, (x == x[0]).all(axis=0)] = 0.0
        exponent = 2 + _exponents(x, first)  # differences of numbers below 1/4 do not overflow
        _scale(x, -exponent, first)
        if affine:
            finer = _exponents(np.diff(x, axis=0), first)
            _scale(x, -finer, first)
            exponent = exponent + finer
        own = Partition.groups(len(columns), [slice(*ends) for ends in itertools.pairwise(first)])
        copy: Any = x
        array: Any = snapshots.array
        if not isinstance(array, np.ndarray):
            copy = arrays.memory(array).upload(x)
        return cls(Snapshots(copy, np.arange(len(snapshots.order))), own, exponent)


@dataclass
class ScaledFit(GroupFit):
    """``inner``, a fit of the groups ``positions`` of a `ScaledWindow`, for their own snapshots."""

    inner: Any  # another kind of fit
    window: ScaledWindow
    positions: IntArray  # (n_groups,)

    @classmethod
    def of(
        cls, part: Partition, numbers: IntArray, inner: GroupFit, window: ScaledWindow
    ) -> ScaledFit:
        """Of ``inner``, whose groups are positions in ``window``, in ``part`` and ``numbers``."""
        with np.errstate(over="ignore"):
            residual = np.ldexp(inner.residual, window.exponent[inner.groups])
        return cls(
            part.subset(inner.groups),
            numbers[inner.groups],
            inner.affine,
            inner.rank,
            residual,
            inner.condition,
            inner.hindcast,
            inner,
            window,
            inner.groups,
        )

    def resting(self, snapshots: Snapshots, backend: Backend) -> IntArray:
        """As of every fit; in the unit of the copies."""
        positions: IntArray = self.inner.resting(self.window.snapshots, backend)
        return positions

    @property
    def model(self) -> str:
        name: str = self.inner.model
        return name

    def write(
        self, snapshots: Snapshots, horizons: Sequence[int], out: npt.NDArray[Any], backend: Backend
    ) -> None:
        """Predictions at every horizon into the groups' columns of ``out`` (n_horizons, size)."""
        copy = self.window.snapshots
        predicted = arrays.empty((len(horizons), copy.array.shape[1]), like=copy.array)
        self.inner.write(copy, horizons, predicted, backend)
        sizes = self.part.sizes
        for m in np.unique(sizes):
            same = np.flatnonzero(sizes == m)
            own, scaled = self.part.subset(same), self.window.part.subset(self.positions[same])
            rows = Snapshots(predicted, np.arange(len(horizons)))
            values = backend.gather(rows, scaled, range(len(horizons)))
            exponent = self.window.exponent[self.positions[same]][:, None]
            with np.errstate(over="ignore"):  # clipped to the largest number where it is written
                if self.affine:
                    values = values - backend.gather(copy, scaled, [-1])
                    values = backend.gather(snapshots, own, [-1]) + np.ldexp(values, exponent)
                else:
                    values = np.ldexp(values, exponent)
            backend.scatter(own, values, out)

    def growth(self, horizons: Sequence[int], backend: Backend) -> FloatArray:
        """That of the scaled fit: growth has no unit."""
        growth: FloatArray = self.inner.growth(horizons, backend)
        return growth

    def eigenvalues(self) -> npt.NDArray[np.complex128]:
        """Those of the scaled fit."""
        values: npt.NDArray[np.complex128] = self.inner.eigenvalues()
        return values

    def modes(self, group: int, snapshots: Snapshots) -> npt.NDArray[Any]:
        """Those of the scaled fit, (m, r)."""
        modes: npt.NDArray[Any] = self.inner.modes(group, self.window.snapshots)
        return modes

    def operator(self, group: int, snapshots: Snapshots) -> FloatArray:
        """That of the scaled fit, (m, m): an operator has no unit."""
        matrix: FloatArray = self.inner.operator(group, self.window.snapshots)
        return matrix


def _exponents(x: FloatArray, first: IntArray) -> IntArray:
    """2^exponent is above all numbers of a group's columns; 0 where all are zero."""
    largest = np.maximum.reduceat(np.abs(x).max(axis=0, initial=0.0), first[:-1])
    return np.frexp(largest)[1].astype(np.int64)


def _scale(x: FloatArray, exponent: IntArray, first: IntArray) -> None:
    """Times 2^exponent, a group's columns together; numbers far below the largest become zero."""
    np.ldexp(x, np.repeat(exponent, np.diff(first)), out=x)
