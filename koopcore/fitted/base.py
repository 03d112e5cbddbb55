"""What every kind of fitted operators shares: its groups, its diagnostics, its window."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from koopcore import arrays
from koopcore.backends.composed import relative
from koopcore.backends.protocol import Backend, Snapshots
from koopcore.partition.partition import Partition
from koopcore.types import FloatArray, IntArray

FitT = TypeVar("FitT", bound="GroupFit")


@dataclass
class GroupFit:
    """Groups ``groups`` of the user's partition, as the partition ``part`` of their own."""

    part: Partition
    groups: IntArray  # (n_groups,) positions in the user's partition
    affine: bool
    rank: IntArray
    residual: FloatArray
    condition: FloatArray
    hindcast: FloatArray

    @property
    def model(self) -> str:
        """The model of `koopcore.fit` that these operators are of."""
        return "affine" if self.affine else "linear"

    def resting(self, snapshots: Snapshots, backend: Backend) -> IntArray:
        """Positions of groups that moved in the window, but not in the snapshots held out.

        Their hindcast is 0 by a movement of 0, and says nothing. Cost: none but for such groups.
        """
        candidates = np.flatnonzero((np.asarray(self.hindcast) == 0.0) & self._moves())
        if not candidates.size:
            return candidates
        held = holdout_of(len(snapshots.order))
        changes = np.zeros((len(candidates), 2))  # in the snapshots held out, and in all
        for row, group in enumerate(candidates):
            columns = arrays.host(snapshots.array[:, self.part.indices(int(group))])
            other = columns[snapshots.order] != columns[snapshots.order[-1]]
            changes[row] = other[-1 - held :].sum(), other.sum()
        changes = backend.total(changes)
        return candidates[(changes[:, 0] == 0.0) & (changes[:, 1] > 0.0)]

    def _moves(self) -> npt.NDArray[np.bool_]:
        """Groups (n_groups,) that may have moved in the window; not those that surely have not."""
        moves: npt.NDArray[np.bool_] = np.asarray(self.rank) > 0
        return moves

    def select(self: FitT, keep: IntArray) -> FitT:
        """The same fits of the groups at positions ``keep`` only."""
        if len(keep) == self.part.n_groups:
            return self

        def taken(value: Any) -> Any:
            if isinstance(value, Partition):
                return value.subset(keep)
            if isinstance(value, GroupFit):
                return value.select(keep)
            if isinstance(value, (np.ndarray, arrays.Resident)):
                return value[keep]
            if isinstance(value, tuple):
                return type(value)(*map(taken, value))
            return value

        return type(self)(
            **{field.name: taken(getattr(self, field.name)) for field in fields(self)}
        )


def window(snapshots: Snapshots, part: Partition, group: int) -> FloatArray:
    """Snapshots (n, m) of one group in float64."""
    columns = arrays.host(snapshots.array[:, part.indices(group)])
    return columns[snapshots.order].astype(np.float64)


def fit_matrices(snapshots: Snapshots, part: Partition, group: int, affine: bool) -> FloatArray:
    """Rows [F; f'_last] of one group, (N + 1, m): snapshots, or differences where affine."""
    x = window(snapshots, part, group)
    return np.diff(x, axis=0) if affine else x


def fit_bases(
    snapshots: Snapshots, part: Partition, group: int, affine: bool
) -> tuple[FloatArray, FloatArray]:
    """F and F' of one group as rows (N, m), in the basis [x_1, d_1 …] and one snapshot later."""
    rows = fit_matrices(snapshots, part, group, affine)
    if affine:
        return rows[:-1], rows[1:]
    steps = np.diff(rows, axis=0)
    return np.vstack([rows[:1], steps[:-1]]), np.vstack([rows[1:2], steps[1:]])


def holdout_of(n: int) -> int:
    """Snapshots held out by the hindcast: a quarter of the window's steps, at least one."""
    return max(1, (n - 1) // 4)


def sorted_eigenvalues(operators: npt.NDArray[Any], rank: IntArray) -> npt.NDArray[np.complex128]:
    """Eigenvalues (n_groups, r) of (n_groups, r, r), largest first, NaN past each group's rank."""
    values = np.linalg.eigvals(operators).astype(np.complex128)
    values = np.take_along_axis(values, np.argsort(-np.abs(values), axis=1, kind="stable"), axis=1)
    values[np.arange(values.shape[1]) >= rank[:, None]] = np.nan
    return values


def unit_modes(values: npt.NDArray[Any], vectors: npt.NDArray[Any], r: int) -> npt.NDArray[Any]:
    """The leading r columns of ``vectors`` in the order of `sorted_eigenvalues`, to unit norm."""
    order = np.argsort(-np.abs(values), kind="stable")[:r]
    columns = vectors[:, order].astype(np.complex128)
    norms = np.linalg.norm(columns, axis=0)
    return columns / np.where(norms > 0.0, norms, 1.0)


def operator_matrix(f: FloatArray, ahead: FloatArray, v: FloatArray) -> FloatArray:
    """U = F'V (FV)⁺ (m, m) from F and F' as rows (N, m), V (N, r), FV of full column rank.

    By an orthonormal basis of FV: U then keeps the motion of a state far from the origin.
    """
    q, t = np.linalg.qr(f.T @ v)
    matrix: FloatArray = np.linalg.solve(t.T, (ahead.T @ v).T).T @ q.T
    return matrix


def relative_error(full: FloatArray, error: FloatArray, holdout: int) -> FloatArray:
    """‖B e‖ / ‖x_n - x_{n-holdout}‖ (n_groups,) of error weights e (n_groups, n)."""
    movement = np.zeros((1, full.shape[-1]))
    movement[:, -holdout:] = 1.0
    return relative(norms(full, error), norms(full, movement))


def norms(full: FloatArray, weights: FloatArray) -> FloatArray:
    """‖B w‖ (n_groups,) of weights (n_groups, n), or (1, n) for all groups, from G = BᵀB."""
    square = ((full @ weights[:, :, None])[:, :, 0] * weights).sum(axis=-1)
    return np.sqrt(np.maximum(square, 0.0))
