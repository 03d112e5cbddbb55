"""The fused stages, composed of the others: what a backend has that does nothing better."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from koopcore import arrays
from koopcore.backends import second_pass
from koopcore.backends.protocol import (
    Ahead,
    Backend,
    Companion,
    FeatureSolved,
    Projection,
    Snapshots,
    diverged,
    out_of_range,
    rank_tolerance,
)
from koopcore.backends.reflection import reflect, unreflect
from koopcore.partition.partition import Partition
from koopcore.types import FloatArray


class Composed(Backend):
    """A backend whose fused stages are composed of its own other ones."""

    def gram_solve(
        self,
        snapshots: Snapshots,
        part: Partition,
        affine: bool,
        holdout: int,
        ahead: Ahead | None = None,
    ) -> Companion:
        with np.errstate(over="ignore", invalid="ignore"):  # groups that overflow have no rank
            solved = self.solve(self.gram(snapshots, part), len(snapshots.order), affine, holdout)
        if ahead is not None:
            self.companion_endpoint(snapshots, part, solved.coefficients, affine, *ahead)
        return solved

    def companion_endpoint(
        self,
        snapshots: Snapshots,
        part: Partition,
        coefficients: FloatArray,
        affine: bool,
        horizons: Sequence[int],
        out: npt.NDArray[Any],
    ) -> None:
        weights, _ = self.rollout(coefficients, affine, horizons)
        self.combine(snapshots, part, weights, out)

    @np.errstate(over="ignore", invalid="ignore")
    def feature_fit(
        self,
        snapshots: Snapshots,
        part: Partition,
        affine: bool,
        holdout: int,
        ahead: Ahead | None = None,
    ) -> FeatureSolved:
        stops = feature_stops(len(snapshots.order), affine, holdout)
        moments = self.feature_gram(snapshots, part, affine, stops)
        squares = np.einsum("gii->gi", moments[0, :, 0]).copy()
        solved = self.feature_solve(snapshots, part, affine, holdout, moments, None, 0.0)
        if arrays.dtype_name(snapshots.array) == "float64":
            solved.residual[out_of_range(squares)] = np.nan
        self._write_ahead(snapshots, part, affine, ahead, solved)
        return solved

    def feature_solve(
        self,
        snapshots: Snapshots,
        part: Partition,
        affine: bool,
        holdout: int,
        moments: FloatArray,
        rank: int | None,
        ridge: float,
    ) -> FeatureSolved:
        """U = E C⁺ with C = FFᵀ, E = F'Fᵀ, C⁺ = V Vᵀ, rolled as U^T f = (E V) K^{T-1} (Vᵀf)."""
        if not np.isfinite(moments.sum()):
            nothing = np.full(part.n_groups, np.nan)
            rank_0 = np.zeros(part.n_groups, dtype=np.int64)
            return FeatureSolved(rank_0, nothing, nothing, nothing, None, None)
        if ridge == 0.0 and (rank is not None or arrays.dtype_name(snapshots.array) == "float64"):
            # Which directions lead, and products of a far position and small steps, are below what
            # moments resolve, whatever their condition.
            return self.feature_refit(snapshots, part, affine, holdout, rank)
        if ridge > 0.0 and not affine:
            silence_rounding(moments)
        ends = WindowEnds.of(self, snapshots, part, affine, holdout)
        limits = feature_ranks(len(snapshots.order), affine, holdout, rank)
        fits = self._moments_fits(moments, ends, limits, ridge)
        solved = self._feature_solved(ends, fits, fits[0][0].condition, holdout)
        if ridge > 0.0:
            return solved
        return self._with_second_pass(snapshots, part, affine, holdout, None, solved)

    def feature_refit(
        self,
        snapshots: Snapshots,
        part: Partition,
        affine: bool,
        holdout: int,
        rank: int | None,
        ahead: Ahead | None = None,
    ) -> FeatureSolved:
        stops = feature_stops(len(snapshots.order), affine, holdout)
        moments = self.feature_gram(snapshots, part, affine, stops)
        ends = WindowEnds.of(self, snapshots, part, affine, holdout)
        basis, condition = second_pass.first_basis(moments[0, :, 0])
        limits = feature_ranks(len(snapshots.order), affine, holdout, rank)
        starts = ends.start, ends.held_start
        fits = second_pass.feature_projection(
            self, snapshots, part, affine, stops, starts, basis, limits
        )
        solved = self._feature_solved(ends, fits, condition, holdout)
        self._write_ahead(snapshots, part, affine, ahead, solved)
        return solved

    def _write_ahead(
        self,
        snapshots: Snapshots,
        part: Partition,
        affine: bool,
        ahead: Ahead | None,
        solved: FeatureSolved,
    ) -> None:
        """The endpoints that were asked for with a fit."""
        if ahead is not None and solved.projection is not None and solved.readout is not None:
            fitted = solved.projection, solved.readout
            self.feature_endpoint(snapshots, part, *fitted, affine, *ahead)

    @np.errstate(over="ignore", invalid="ignore")
    def _with_second_pass(
        self,
        snapshots: Snapshots,
        part: Partition,
        affine: bool,
        holdout: int,
        ahead: Ahead | None,
        solved: FeatureSolved,
    ) -> FeatureSolved:
        """The fits that moments gave, with the groups that they resolve too little fitted again."""
        size = int(part.sizes[0])
        condition = solved.condition * second_pass.reach(self, snapshots, part)
        unsure = second_pass.unsure(condition, solved.rank, size, snapshots)
        # What moments call rounding may be a direction all the same.
        deficient = np.flatnonzero((solved.rank > 0) & (solved.rank < size))
        unsure = np.union1d(unsure, deficient)
        unsure = unsure[np.isfinite(solved.residual[unsure])]
        if not unsure.size:
            return solved
        again = self.feature_refit(snapshots, part.subset(unsure), affine, holdout, None, ahead)
        return second_pass.replaced(solved, unsure, again)

    def _moments_fits(
        self, moments: FloatArray, ends: WindowEnds, limits: Sequence[int | None], ridge: float
    ) -> list[tuple[Projection, FloatArray]]:
        """`project` of each stop's moments (n_stops, n_groups, 2, m, m), and the read-outs E V."""
        m = moments.shape[-1]
        fits = []
        for moment, start, limit in zip(
            moments, (ends.start, ends.held_start), limits, strict=False
        ):
            c, e = np.ascontiguousarray(moment[:, 0]), np.ascontiguousarray(moment[:, 1])
            most = None if limit is None else min(limit, m)
            projection = self.project(c, e, start, most, ridge, False)
            fits.append((projection, e @ projection.whitener))
        return fits

    def _feature_solved(
        self,
        ends: WindowEnds,
        fits: Sequence[tuple[Projection, FloatArray]],
        condition: FloatArray,
        holdout: int,
    ) -> FeatureSolved:
        """The fit of the whole window, and how well that of the shorter one predicts its end."""
        (projection, readout), *shorter = fits
        hindcast = np.full(len(projection.rank), np.nan)
        for held, held_readout in shorter:
            states = self.rollout_dense(held.operator, held.start, ends.affine, [holdout])[0][0]
            hindcast = ends.missed((held_readout @ states[:, :, None])[:, :, 0])
        residual = ends.residual(projection, readout)
        projection = projection._replace(condition=condition)
        return FeatureSolved(projection.rank, condition, residual, hindcast, projection, readout)

    def feature_endpoint(
        self,
        snapshots: Snapshots,
        part: Partition,
        projection: Projection,
        readout: FloatArray,
        affine: bool,
        horizons: Sequence[int],
        out: npt.NDArray[Any],
    ) -> None:
        last = self.gather(snapshots, part, [-1])[0]
        states, _ = self.rollout_dense(projection.operator, projection.start, affine, horizons)
        states = states.transpose(1, 0, 2)
        with np.errstate(over="ignore", invalid="ignore"):
            values = states @ readout.transpose(0, 2, 1)  # (n_groups, n_horizons, m)
            values = values + last[:, None] if affine else unreflect(values, last)
        lost = diverged(states)
        if lost.any():
            values = np.where(lost[:, :, None], last[:, None], values)
        self.scatter(part, values.transpose(1, 0, 2), out)

    def endpoint(
        self,
        snapshots: Snapshots,
        part: Partition,
        affine: bool,
        horizons: Sequence[int],
        out: npt.NDArray[Any],
    ) -> bool:
        return False

    def gather(self, snapshots: Snapshots, part: Partition, rows: Sequence[int]) -> FloatArray:
        columns = part.index_matrix(part.numbers)
        ring = snapshots.array
        return np.stack([ring[snapshots.order[k]][columns] for k in rows]).astype(np.float64)

    def scatter(self, part: Partition, values: FloatArray, out: npt.NDArray[Any]) -> None:
        limit = np.finfo(out.dtype).max
        out[:, part.index_matrix(part.numbers)] = np.clip(values, -limit, limit)


class WindowEnds(NamedTuple):
    """The last snapshots of groups of equal m, in the coordinates of the moments: (n_groups, m)."""

    affine: bool
    start: FloatArray  # what U takes on from: the newest column of F'
    held_start: FloatArray  # the same of the shorter window
    newest: FloatArray  # the newest column of F
    movement: FloatArray  # x_n - x_{n-holdout}, in the parameters' own coordinates

    @classmethod
    def of(
        cls, backend: Backend, snapshots: Snapshots, part: Partition, affine: bool, holdout: int
    ) -> WindowEnds:
        rows = [-1, -2, -1 - holdout, -2 - holdout, -3]
        last, before, held, held_before, *third = backend.gather(
            snapshots, part, rows if affine else rows[:4]
        )
        if affine:
            start, held_start, newest = last - before, held - held_before, before - third[0]
        else:
            start, held_start, newest = reflect(
                np.stack([last, held, before], axis=1), last
            ).transpose(1, 0, 2)
        return cls(affine, start, held_start, newest, last - held)

    def missed(self, predicted: FloatArray) -> FloatArray:
        """How far x_n is from what the shorter window predicts, / movement."""
        target = self.movement if self.affine else self.start
        error = np.linalg.norm(predicted - target, axis=1)
        return relative(error, np.linalg.norm(self.movement, axis=1))

    def residual(self, projection: Projection, readout: FloatArray) -> FloatArray:
        """‖U f - f'‖ of the newest step: F has full row rank, so ‖F a - f‖ says nothing."""
        states = projection.whitener.transpose(0, 2, 1) @ self.newest[:, :, None]
        return np.linalg.norm((readout @ states)[:, :, 0] - self.start, axis=1)


def feature_stops(n: int, affine: bool, holdout: int) -> list[int]:
    """Where the moments are taken: the whole window, and the one that the hindcast sees."""
    shorter = n - holdout
    return [n, shorter] if shorter - 1 - affine >= 1 else [n]


def feature_ranks(n: int, affine: bool, holdout: int, rank: int | None) -> list[int | None]:
    """The most singular values that the two windows keep; None: all.

    With fewer columns than parameters the rank of the hindcast's window is theirs.
    """
    columns = n - holdout - 1 - affine
    return [rank, columns if rank is None else min(rank, columns)]


def silence_rounding(moments: FloatArray) -> None:
    """Zero the reflected coordinates that hold nothing but the rounding of the reflection.

    A motion along x_n alone leaves them at a few units in the last place; scaled to unit columns,
    as a ridge takes them, that noise would weigh as much as motion.
    """
    squares = np.einsum("sgii->sgi", moments[:, :, 0])
    floor = rank_tolerance(moments.shape[-1]) ** 2 * squares.sum(axis=2, keepdims=True)
    noise = squares <= floor
    if noise.any():
        moments[:, :, :] *= ~noise[:, :, None, None, :]
        moments[:, :, 0] *= ~noise[:, :, :, None]


def relative(error: FloatArray, movement: FloatArray) -> FloatArray:
    """error / movement; 0 for a group that stood still, where the ratio says nothing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: FloatArray = error / movement
    return np.where(movement > 0.0, ratio, 0.0)
