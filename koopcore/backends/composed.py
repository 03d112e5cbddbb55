"""The fused stages, composed of the others: what a backend has that does nothing better."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from koopcore import arrays
from koopcore.backends.protocol import (
    Ahead,
    Backend,
    Companion,
    FeatureSolved,
    Projection,
    Snapshots,
    diverged,
)
from koopcore.backends.reflection import reflect, unreflect
from koopcore.partition.partition import Partition
from koopcore.types import FloatArray

BLOCK = 2**23  # numbers of snapshots gathered at once


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
        if not affine:
            silence_rounding(moments)
        columns = len(snapshots.order) - holdout - 1 - affine  # that the hindcast sees
        last, before, held, held_before = self.gather(
            snapshots, part, [-1, -2, -1 - holdout, -2 - holdout]
        )
        if affine:
            start, held_start = last - before, held - held_before
        else:
            start = reflect(last[:, None], last)[:, 0]
            held_start = reflect(held[:, None], last)[:, 0]
        projection = self._projected(moments[0], start, rank, ridge)
        exact = arrays.dtype_name(snapshots.array) == "float64" and rank is None and ridge == 0.0
        if exact and projection.start.size:
            projection = self._refined(snapshots, part, affine, start, projection)
        readout: FloatArray = moments[0, :, 1] @ projection.whitener
        residual = self._newest_residual(snapshots, part, affine, projection, readout)
        hindcast = np.full(groups, np.nan)
        if len(moments) == 2:
            # With fewer columns than parameters the rank is theirs, whatever rounding adds.
            limit = columns if rank is None else min(rank, columns)
            shorter = self._projected(moments[1], held_start, limit, ridge)
            states = self.rollout_dense(shorter.operator, shorter.start, affine, [holdout])[0][0]
            predicted = (moments[1, :, 1] @ (shorter.whitener @ states[:, :, None]))[:, :, 0]
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

    def _refined(
        self,
        snapshots: Snapshots,
        part: Partition,
        affine: bool,
        start: FloatArray,
        first: Projection,
    ) -> Projection:
        """``first`` again from the snapshots in its own whitened coordinates, as CholeskyQR2.

        A Gram matrix squares cond(F); near the identity it does not, so that this is accurate for
        cond(F) up to 1e8. Float32 snapshots carry more noise than one Gram matrix costs; float64
        ones do not, and groups of this side are small enough to be read twice.
        start (n_groups, m): the vectors to roll, in the coordinates of the moments.
        """
        operators, whiteners, starts, ranks = [], [], [], []
        block = max(1, BLOCK // (len(snapshots.order) * max(1, start.shape[1])))
        for low in range(0, part.n_groups, block):
            groups = part.numbers[low : low + block]
            whitener = first.whitener[groups]
            rows = self.gather(snapshots, part.subset(groups), range(len(snapshots.order)))
            rows = rows.transpose(1, 0, 2)
            rows = np.diff(rows, axis=1) if affine else reflect(rows, rows[:, -1])
            whitened = rows[:, :-1] @ whitener
            across = whitener.transpose(0, 2, 1)
            second = self.project(
                whitened.transpose(0, 2, 1) @ whitened,
                across @ (rows[:, 1:].transpose(0, 2, 1) @ whitened),
                (across @ start[groups, :, None])[:, :, 0],
                None,
                0.0,
                False,
            )
            operators.append(_padded(second.operator, 2, whitener.shape[2]))
            whiteners.append(_padded(whitener @ second.whitener, 1, whitener.shape[2]))
            starts.append(_padded(second.start, 1, whitener.shape[2]))
            ranks.append(second.rank)
        return Projection(
            np.concatenate(operators),
            np.concatenate(whiteners),
            np.concatenate(starts),
            np.concatenate(ranks),
            first.condition,
        )

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
    as a fit does, that noise would look like motion.
    """
    squares = np.einsum("sgii->sgi", moments[:, :, 0])
    floor = (16.0 * np.finfo(np.float64).eps) ** 2 * squares.sum(axis=2, keepdims=True)
    noise = squares <= floor
    if noise.any():
        moments[:, :, :] *= ~noise[:, :, None, None, :]
        moments[:, :, 0] *= ~noise[:, :, :, None]


def relative(error: FloatArray, movement: FloatArray) -> FloatArray:
    """error / movement; 0 for a group that stood still, where the ratio says nothing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: FloatArray = error / movement
    return np.where(movement > 0.0, ratio, 0.0)


def _padded(values: FloatArray, axes: int, width: int) -> FloatArray:
    """The last ``axes`` axes of ``values`` filled up with zeros to ``width``."""
    pad = [(0, 0)] * (values.ndim - axes) + [(0, width - n) for n in values.shape[-axes:]]
    return np.pad(values, pad)
