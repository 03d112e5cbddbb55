"""The fused stages, composed of the others: what a backend has that does nothing better."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from koopcore.backends import second_pass
from koopcore.backends.protocol import (
    Ahead,
    Backend,
    Companion,
    FeatureSolved,
    Projection,
    Snapshots,
    diverged,
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
        solved = self.feature_solve(snapshots, part, affine, holdout, moments, None, 0.0)
        if ahead is not None and solved.projection is not None and solved.readout is not None:
            fitted = solved.projection, solved.readout
            self.feature_endpoint(snapshots, part, *fitted, affine, *ahead)
        return solved

    def _with_second_pass(
        self,
        snapshots: Snapshots,
        part: Partition,
        affine: bool,
        holdout: int,
        ahead: Ahead | None,
        solved: FeatureSolved,
    ) -> FeatureSolved:
        """What a fused `feature_fit` found, with the groups it was unsure of fitted again."""
        size = int(part.sizes[0])
        unsure = second_pass.unsure(solved.condition, solved.rank, size, snapshots)
        if not unsure.size or not np.isfinite(solved.residual[unsure].sum()):
            return solved
        own = snapshots, part.subset(unsure), affine, holdout, ahead
        again = Composed.feature_fit(self, *own)
        solved.rank[unsure] = again.rank
        solved.residual[unsure] = again.residual
        solved.hindcast[unsure] = again.hindcast
        if solved.projection is None or solved.readout is None:
            return solved
        assert again.projection is not None
        assert again.readout is not None
        projection, readout = second_pass.patched_readout(
            solved.projection, solved.readout, unsure, again.projection, again.readout
        )
        return solved._replace(projection=projection, readout=readout)

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
        groups = part.n_groups
        if not np.isfinite(moments.sum()):
            nothing = np.full(groups, np.nan)
            rank_0 = np.zeros(groups, dtype=np.int64)
            return FeatureSolved(rank_0, nothing, nothing, nothing, None, None)
        if ridge > 0.0 and not affine:
            silence_rounding(moments)
        # With fewer columns than parameters the rank of the hindcast's window is theirs.
        columns = len(snapshots.order) - holdout - 1 - affine
        last, before, held, held_before = self.gather(
            snapshots, part, [-1, -2, -1 - holdout, -2 - holdout]
        )
        if affine:
            start, held_start = last - before, held - held_before
        else:
            start = reflect(last[:, None], last)[:, 0]
            held_start = reflect(held[:, None], last)[:, 0]
        limits = [rank, columns if rank is None else min(rank, columns)][: len(moments)]
        starts = [start, held_start]
        fits = []
        for moment, begin, limit in zip(moments, starts, limits, strict=False):
            projection = self._projected(moment, begin, limit, ridge)
            fits.append((projection, moment[:, 1] @ projection.whitener))
        found = fits[0][0].condition, fits[0][0].rank
        unsure = second_pass.unsure(*found, moments.shape[-1], snapshots)
        if unsure.size and ridge == 0.0:
            again = second_pass.feature_projection(
                self,
                snapshots,
                part.subset(unsure),
                affine,
                feature_stops(len(snapshots.order), affine, holdout),
                [begin[unsure] for begin in starts],
                [second_pass.part_of(fit[0], unsure) for fit in fits],
                limits,
            )
            fits = [
                second_pass.patched_readout(*fit, unsure, *other)
                for fit, other in zip(fits, again, strict=True)
            ]
        (projection, readout), *shorter = fits
        residual = self._newest_residual(snapshots, part, affine, projection, readout)
        hindcast = np.full(groups, np.nan)
        for held_fit, held_readout in shorter:
            states = self.rollout_dense(held_fit.operator, held_fit.start, affine, [holdout])[0][0]
            predicted = (held_readout @ states[:, :, None])[:, :, 0]
            target = last - held if affine else start
            hindcast = relative(
                np.linalg.norm(predicted - target, axis=1), np.linalg.norm(last - held, axis=1)
            )
        return FeatureSolved(
            projection.rank, projection.condition, residual, hindcast, projection, readout
        )

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

    def _projected(
        self, moments: FloatArray, start: FloatArray, rank: int | None, ridge: float
    ) -> Projection:
        c, e = np.ascontiguousarray(moments[:, 0]), np.ascontiguousarray(moments[:, 1])
        limit = None if rank is None else min(rank, c.shape[1])
        return self.project(c, e, start, limit, ridge, False)

    def _newest_residual(
        self,
        snapshots: Snapshots,
        part: Partition,
        affine: bool,
        projection: Projection,
        readout: FloatArray,
    ) -> FloatArray:
        """‖U f_last-1 - f_last‖ (n_groups,): F has full row rank, so ‖F a - f‖ says nothing."""
        last, *earlier = self.gather(snapshots, part, [-1, -2, -3] if affine else [-1, -2])
        if affine:
            f, ahead = earlier[0] - earlier[1], last - earlier[0]
        else:
            f = reflect(earlier[0][:, None], last)[:, 0]
            ahead = reflect(last[:, None], last)[:, 0]
        states = projection.whitener.transpose(0, 2, 1) @ f[:, :, None]
        return np.linalg.norm((readout @ states)[:, :, 0] - ahead, axis=1)


def feature_stops(n: int, affine: bool, holdout: int) -> list[int]:
    """Where the moments are taken: the whole window, and the one that the hindcast sees."""
    shorter = n - holdout
    return [n, shorter] if shorter - 1 - affine >= 1 else [n]


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
