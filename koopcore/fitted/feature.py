"""Operators of groups with fewer parameters than snapshots: small dense matrices, m < n - 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from koopcore import arrays
from koopcore.backends.protocol import Backend, FeatureSolved, Projection, Snapshots, diverged
from koopcore.backends.reflection import unreflect
from koopcore.fitted.base import GroupFit, sorted_eigenvalues, unit_modes
from koopcore.partition.partition import Partition
from koopcore.types import FloatArray, IntArray


@dataclass
class FeatureFit(GroupFit):
    """U = E C⁺ with C = FFᵀ, E = F'Fᵀ, C⁺ = V Vᵀ, rolled as U^T f = (E V) K^{T-1} (Vᵀf).

    The linear model stands in the coordinates of `reflect`, the affine one in the parameters' own.
    Memory is independent of the number of snapshots: 2 m² + m numbers per group.
    """

    projection: Projection
    readout: FloatArray  # (n_groups, m, r) E V

    @classmethod
    def of(
        cls, part: Partition, groups: IntArray, affine: bool, solved: FeatureSolved
    ) -> FeatureFit:
        """What `feature_fit` or `feature_solve` of a backend returns."""
        assert solved.projection is not None
        assert solved.readout is not None
        return cls(
            part,
            groups,
            affine,
            solved.rank,
            solved.residual,
            solved.condition,
            solved.hindcast,
            solved.projection,
            solved.readout,
        )

    def write(
        self, snapshots: Snapshots, horizons: Sequence[int], out: npt.NDArray[Any], backend: Backend
    ) -> None:
        """Predictions at every horizon into the groups' columns of ``out`` (n_horizons, size)."""
        fitted = self.projection, self.readout
        backend.feature_endpoint(snapshots, self.part, *fitted, self.affine, horizons, out)

    def growth(self, horizons: Sequence[int], backend: Backend) -> FloatArray:
        """Growth of the whitened state (n_horizons, n_groups); infinite where it diverged."""
        states, growth = backend.rollout_dense(
            self.projection.operator, self.projection.start, self.affine, horizons
        )
        return np.where(diverged(states), np.inf, growth)

    def eigenvalues(self) -> npt.NDArray[np.complex128]:
        """Eigenvalues of K, which are the nonzero eigenvalues of U = F'F⁺: (n_groups, r)."""
        return sorted_eigenvalues(self.projection.operator, self.rank)

    def modes(self, group: int, snapshots: Snapshots) -> npt.NDArray[Any]:
        """Eigenvectors of U: E V v for every eigenvector v of K, to unit norm, (m, r)."""
        r = int(self.rank[group])
        values, vectors = np.linalg.eig(self.projection.operator[group, :r, :r])
        columns = self.readout[group, :, :r] @ vectors
        if not self.affine:
            last = self._last(group, snapshots)
            columns = unreflect(columns.real.T, last).T + 1j * unreflect(columns.imag.T, last).T
        return unit_modes(values, columns, r)

    def operator(self, group: int, snapshots: Snapshots) -> FloatArray:
        """U = E V Vᵀ as an (m, m) matrix in the parameters' own coordinates."""
        matrix: FloatArray = self.readout[group] @ self.projection.whitener[group].T
        if self.affine:
            return matrix
        last = self._last(group, snapshots)
        return unreflect(unreflect(matrix, last).T, last).T

    def _last(self, group: int, snapshots: Snapshots) -> FloatArray:
        row = arrays.host(snapshots.array[snapshots.order[-1]])
        return row[self.part.indices(group)].astype(np.float64)


@dataclass
class DeferredFit(GroupFit):
    """Diagnostics of groups whose endpoints were predicted with the fit, without operators.

    For 50,000 groups of 11 parameters operators would be 145 MB to write. The snapshots are read
    again when they are asked for.
    """

    holdout: int

    @classmethod
    def of(
        cls, part: Partition, groups: IntArray, affine: bool, solved: FeatureSolved, holdout: int
    ) -> DeferredFit:
        """What `feature_fit` leaves when it predicts at once."""
        rank, condition, residual, hindcast = solved[:4]
        return cls(part, groups, affine, rank, residual, condition, hindcast, holdout)

    def fit(self, snapshots: Snapshots, backend: Backend) -> FeatureFit:
        """The same fit with its operators."""
        solved = backend.feature_fit(snapshots, self.part, self.affine, self.holdout)
        return FeatureFit.of(self.part, self.groups, self.affine, solved)
