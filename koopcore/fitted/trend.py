"""The straight line through the window's ends: the baseline that an operator has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from koopcore import arrays
from koopcore.backends.composed import relative
from koopcore.backends.protocol import Backend, Snapshots, unpack
from koopcore.fitted.base import GroupFit, norms, relative_error
from koopcore.partition.partition import Partition
from koopcore.types import FloatArray, IntArray


class TrendFit(GroupFit):
    """x_{n+T} = x_n + T (x_n - x_1)/(n - 1): the identity operator, moving at the mean velocity."""

    model = "trend"

    @classmethod
    def of_gram(
        cls, part: Partition, groups: IntArray, gram: FloatArray, n: int, holdout: int
    ) -> TrendFit:
        """Fit from packed Gram matrices (n_groups, n(n+1)/2)."""
        full = unpack(gram, n)
        hindcast = np.full(part.n_groups, np.nan)
        kept = n - holdout
        if kept >= 2:
            error = np.zeros((part.n_groups, n))
            error[:, 1:kept] = holdout / (kept - 1)
            error[:, kept:] = -1.0
            hindcast = relative_error(full, error, holdout)
        step = np.full((1, n), -1.0 / (n - 1))
        step[:, 0] = 0.0
        step[:, -1] += 1.0
        return cls._made(part, groups, norms(full, step), hindcast)

    @classmethod
    def of_values(
        cls, snapshots: Snapshots, part: Partition, groups: IntArray, holdout: int, backend: Backend
    ) -> TrendFit:
        """Fit groups of one size from their first and last snapshots."""
        n = len(snapshots.order)
        kept = n - holdout
        first, held, before, last = backend.gather(snapshots, part, [0, kept - 1, -2, -1])
        hindcast = np.full(part.n_groups, np.nan)
        if kept >= 2:
            predicted = held + (held - first) * (holdout / (kept - 1))
            hindcast = relative(
                np.linalg.norm(predicted - last, axis=1), np.linalg.norm(last - held, axis=1)
            )
        residual = np.linalg.norm(last - before - (last - first) / (n - 1), axis=1)
        return cls._made(part, groups, residual, hindcast)

    @classmethod
    def _made(
        cls, part: Partition, groups: IntArray, residual: FloatArray, hindcast: FloatArray
    ) -> TrendFit:
        ones = np.ones(part.n_groups)
        return cls(part, groups, True, ones.astype(np.int64), residual, ones, hindcast)

    def _moves(self) -> npt.NDArray[np.bool_]:
        return np.asarray(self.residual) > 0.0  # a straight line that rests at its end is a point

    def write(
        self, snapshots: Snapshots, horizons: Sequence[int], out: npt.NDArray[Any], backend: Backend
    ) -> None:
        """Predictions at every horizon into the groups' columns of ``out`` (n_horizons, size)."""
        n = len(snapshots.order)
        weights = np.ones((len(horizons), self.part.n_groups, n))
        weights[:, :, 1:] += (np.asarray(horizons, dtype=np.float64) / (n - 1))[:, None, None]
        backend.combine(snapshots, self.part, weights, out)

    def growth(self, horizons: Sequence[int], backend: Backend) -> FloatArray:
        """Steady motion: 1 at every horizon."""
        return np.ones((len(horizons), self.part.n_groups))

    def eigenvalues(self) -> npt.NDArray[np.complex128]:
        """The one eigenvalue 1, (n_groups, 1)."""
        return np.ones((self.part.n_groups, 1), dtype=np.complex128)

    def modes(self, group: int, snapshots: Snapshots) -> npt.NDArray[Any]:
        """The direction of the mean velocity, (m, 1)."""
        columns = self.part.indices(group)
        ends = snapshots.array[snapshots.order[[0, -1]]][:, columns]
        first, last = arrays.host(ends).astype(np.float64)
        norm = float(np.linalg.norm(last - first))
        return ((last - first) / (norm or 1.0)).astype(np.complex128)[:, None]

    def operator(self, group: int, snapshots: Snapshots) -> FloatArray:
        """The identity (m, m): increments repeat themselves."""
        return np.eye(int(self.part.sizes[group]))
