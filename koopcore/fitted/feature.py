"""Operators of groups with fewer parameters than snapshots: small dense matrices, m < n - 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from koopcore import arrays
from koopcore.backends import find, stage
from koopcore.backends.protocol import WEIGHT_LIMIT, FeatureSolved, Projection, Snapshots
from koopcore.backends.reference import reflect, unreflect
from koopcore.fitted.base import (
    GroupFit,
    group_values,
    put_group_values,
    relative,
    sorted_eigenvalues,
    unit_modes,
)
from koopcore.fitted.second_pass import refined
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
        cls,
        snapshots: Snapshots,
        part: Partition,
        groups: IntArray,
        affine: bool,
        moments: FloatArray,
        rank: int | None,
        ridge: float,
        holdout: int,
        on: str | None,
    ) -> FeatureFit:
        """Fit groups of one size m from their moments at `feature_stops`."""
        if not affine:
            silence_rounding(moments)
        kept = len(snapshots.order) - holdout
        last, before, held, held_before = group_values(
            snapshots, part, [-1, -2, kept - 1, kept - 2], on
        )
        if affine:
            starts = (last - before, held - held_before)
        else:
            starts = (reflect(last[:, None], last)[:, 0], reflect(held[:, None], last)[:, 0])
        projection = _projected(moments[0], starts[0], rank, ridge, on)
        exact = arrays.dtype_name(snapshots.array) == "float64" and rank is None and ridge == 0.0
        if exact and projection.start.size:
            projection = refined(snapshots, part, affine, starts[0], projection, on)
        readout = moments[0, :, 1] @ projection.whitener
        fit = cls(
            part,
            groups,
            affine,
            projection.rank,
            _residual(snapshots, part, affine, projection, readout, on),
            projection.condition,
            np.full(part.n_groups, np.nan),
            projection,
            readout,
        )
        if len(moments) == 2:
            # With fewer columns than parameters the rank is theirs, whatever rounding adds.
            columns = kept - 1 - affine
            limit = columns if rank is None else min(rank, columns)
            shorter = _projected(moments[1], starts[1], limit, ridge, on)
            states = stage("rollout_dense", backend=on)(
                shorter.operator, shorter.start, affine, [holdout]
            )[0][0]
            predicted = (moments[1, :, 1] @ (shorter.whitener @ states[:, :, None]))[:, :, 0]
            target = last - held if affine else starts[0]
            fit.hindcast = relative(
                np.linalg.norm(predicted - target, axis=1), np.linalg.norm(last - held, axis=1)
            )
        return fit

    @classmethod
    def of_solved(
        cls, part: Partition, groups: IntArray, affine: bool, solved: FeatureSolved
    ) -> FeatureFit:
        """What a backend's fused stage, `feature_fit`, has found and kept."""
        if solved.projection is None or solved.readout is None:
            raise ValueError("this fit kept no operators; fit again without endpoints ahead")
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
        self, snapshots: Snapshots, horizons: Sequence[int], out: npt.NDArray[Any], on: str | None
    ) -> None:
        """Predictions at every horizon into the groups' columns of ``out`` (n_horizons, size)."""
        fused = find("feature_endpoint", backend=on)
        if fused is not None and self.projection.start.size:
            rolled = (self.projection, self.readout, self.affine)
            fused(snapshots, self.part, *rolled, horizons, out)
            return
        last = group_values(snapshots, self.part, [-1], on)[0]
        states, _ = self._states(horizons, on)
        with np.errstate(over="ignore", invalid="ignore"):
            values = states @ self.readout.transpose(0, 2, 1)  # (n_groups, n_horizons, m)
            values = values + last[:, None] if self.affine else unreflect(values, last)
            diverged = _diverged(states)
        if diverged.any():
            values = np.where(diverged[:, :, None], last[:, None], values)
        put_group_values(self.part, values.transpose(1, 0, 2), out, on)

    def growth(self, horizons: Sequence[int], on: str | None) -> FloatArray:
        """Growth of the whitened state (n_horizons, n_groups); infinite where it diverged."""
        return self._states(horizons, on)[1]

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

    def _states(self, horizons: Sequence[int], on: str | None) -> tuple[FloatArray, FloatArray]:
        """Whitened states (n_groups, n_horizons, r), and their growth (n_horizons, n_groups)."""
        states, growth = stage("rollout_dense", backend=on)(
            self.projection.operator, self.projection.start, self.affine, horizons
        )
        return states.transpose(1, 0, 2), np.where(_diverged(states), np.inf, growth)


def silence_rounding(moments: FloatArray) -> None:
    """Zero the reflected coordinates that hold nothing but the rounding of the reflection.

    A motion along x_n alone leaves them at a few units in the last place; scaled to unit columns,
    as a fit does, that noise would look like motion.
    """
    squares = np.einsum("sgii->sgi", moments[:, :, 0])
    floor = (16.0 * np.finfo(np.float64).eps) ** 2 * squares.sum(axis=2, keepdims=True)
    noise = squares <= floor
    if noise.any():
        moments[:, :, :] *= ~noise[:, :, None, None, :]
        moments[:, :, 0] *= ~noise[:, :, :, None]


def feature_stops(n: int, affine: bool, holdout: int) -> list[int]:
    """Where the moments are taken: the whole window, and the one that the hindcast sees."""
    kept = n - holdout
    return [n, kept] if kept - 1 - affine >= 1 else [n]


def _diverged(states: FloatArray) -> npt.NDArray[np.bool_]:
    """Where whitened states (…, r), which have no unit, grew past what a prediction may."""
    return ~(np.abs(states).max(axis=-1, initial=0.0) <= WEIGHT_LIMIT)


def _projected(
    moments: FloatArray, start: FloatArray, rank: int | None, ridge: float, on: str | None
) -> Projection:
    c, e = np.ascontiguousarray(moments[:, 0]), np.ascontiguousarray(moments[:, 1])
    limit = None if rank is None else min(rank, c.shape[1])
    projection: Projection = stage("project", backend=on)(c, e, start, limit, ridge, False)
    return projection


def _residual(
    snapshots: Snapshots,
    part: Partition,
    affine: bool,
    projection: Projection,
    readout: FloatArray,
    on: str | None,
) -> FloatArray:
    """‖U f_last-1 - f_last‖ (n_groups,): F has full row rank here, so ‖F a - f‖ says nothing."""
    last, *earlier = group_values(snapshots, part, [-1, -2, -3] if affine else [-1, -2], on)
    if affine:
        f, ahead = earlier[0] - earlier[1], last - earlier[0]
    else:
        f = reflect(earlier[0][:, None], last)[:, 0]
        ahead = reflect(last[:, None], last)[:, 0]
    states = projection.whitener.transpose(0, 2, 1) @ f[:, :, None]
    return np.linalg.norm((readout @ states)[:, :, 0] - ahead, axis=1)
