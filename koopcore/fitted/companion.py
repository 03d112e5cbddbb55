"""Full-rank operators on the snapshot side: the next snapshot as a combination of the window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from koopcore.backends.protocol import Backend, Companion, Snapshots
from koopcore.fitted.base import (
    GroupFit,
    fit_bases,
    fit_matrices,
    operator_matrix,
    sorted_eigenvalues,
    unit_modes,
)
from koopcore.partition.partition import Partition
from koopcore.types import FloatArray, IntArray


@dataclass
class CompanionFit(GroupFit):
    """x_{k+n} = Σ a_i x_{k+i}, or the same for the differences: S = F⁺F' is a companion matrix."""

    coefficients: FloatArray  # (n_groups, N)

    @classmethod
    def of(cls, part: Partition, groups: IntArray, affine: bool, solved: Companion) -> CompanionFit:
        """The groups that `solve` found to have full rank."""
        return cls(
            part,
            groups,
            affine,
            solved.rank,
            solved.residual,
            solved.condition,
            solved.hindcast,
            solved.coefficients,
        )

    def write(
        self, snapshots: Snapshots, horizons: Sequence[int], out: npt.NDArray[Any], backend: Backend
    ) -> None:
        """Predictions at every horizon into the groups' columns of ``out`` (n_horizons, size)."""
        backend.companion_endpoint(
            snapshots, self.part, self.coefficients, self.affine, horizons, out
        )

    def growth(self, horizons: Sequence[int], backend: Backend) -> FloatArray:
        """‖c_T‖/‖c_1‖ (n_horizons, n_groups); infinite where the rollout diverged."""
        return backend.rollout(self.coefficients, self.affine, horizons)[1]

    def companions(self) -> FloatArray:
        """The companion matrices S (n_groups, N, N)."""
        groups, n = self.coefficients.shape
        matrices = np.zeros((groups, n, n))
        matrices[:, np.arange(1, n), np.arange(n - 1)] = 1.0
        matrices[:, :, -1] = self.coefficients
        return matrices

    def eigenvalues(self) -> npt.NDArray[np.complex128]:
        """Eigenvalues of S, which are the nonzero eigenvalues of U = F'F⁺: (n_groups, N)."""
        return sorted_eigenvalues(self.companions(), self.rank)

    def modes(self, group: int, snapshots: Snapshots) -> npt.NDArray[Any]:
        """Eigenvectors of U: F'v for every eigenvector v of S, to unit norm, (m, N)."""
        values, vectors = np.linalg.eig(self.companions()[group])
        ahead = fit_matrices(snapshots, self.part, group, self.affine)[1:]
        return unit_modes(values, ahead.T @ vectors, int(self.rank[group]))

    def operator(self, group: int, snapshots: Snapshots) -> FloatArray:
        """U = F'F⁺ as an (m, m) matrix."""
        f, ahead = fit_bases(snapshots, self.part, group, self.affine)
        return operator_matrix(f, ahead, np.diag(1.0 / np.linalg.norm(f, axis=1)))
