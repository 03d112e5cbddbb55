"""The engine's stages in Numba, mirroring reference.py: WIDTH groups at a time, all threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from koopcore.backends.composed import Composed
from koopcore.backends.numba.combine import combine_range
from koopcore.backends.numba.feature_fit import feature_fit_range
from koopcore.backends.numba.features import feature_range, gather_range, scatter_range
from koopcore.backends.numba.gram import gram_range
from koopcore.backends.numba.project import dense_range, project_any_range, project_range
from koopcore.backends.numba.runtime import equal_ends, spread
from koopcore.backends.numba.simd import WIDTH
from koopcore.backends.numba.solve import rollout_range, solve_range
from koopcore.backends.numba.views import (
    flat,
    frozen,
    piece_sizes,
    pieces,
    segments,
    target,
    window,
)
from koopcore.backends.protocol import (
    Ahead,
    Companion,
    FeatureSolved,
    Projection,
    Snapshots,
    breakdown_tolerance,
    near_cut_off,
    out_of_range,
    packed_size,
    rank_tolerance,
)
from koopcore.backends.second_pass import is_long
from koopcore.partition.partition import Partition
from koopcore.types import FloatArray, IntArray

CACHED = 1 << 16  # float64 numbers of Gram matrices kept between two stages: half a megabyte


def _ascending(horizons: Sequence[int]) -> tuple[IntArray, IntArray]:
    """The horizons in ascending order, and the places where they were given."""
    steps = np.array(horizons, dtype=np.int64)
    places = np.argsort(steps, kind="stable")
    return steps[places], places


def _companion(groups: int, columns: int) -> Companion:
    return Companion(
        np.empty((groups, columns)),
        np.empty(groups, dtype=np.int64),
        np.empty(groups),
        np.empty(groups),
        np.empty(groups),
    )


class NumbaCpu(Composed):
    """The engine's stages compiled by Numba, WIDTH groups at a time, all threads."""

    name = "numba_cpu"
    device = "cpu"

    def gram(self, snapshots: Snapshots, part: Partition) -> FloatArray:
        n = len(snapshots.order)
        view, cut = window(snapshots), pieces(part)
        out = np.empty((len(cut.owner), packed_size(n)))

        def work(low: int, high: int) -> None:
            gram_range(view, cut.segments, low, high, out[low:high])

        spread(work, np.cumsum(piece_sizes(cut) * packed_size(n)))
        if len(cut.owner) == part.n_groups:
            return out
        return np.add.reduceat(out, np.searchsorted(cut.owner, np.arange(part.n_groups)))

    def solve(self, gram: FloatArray, n: int, affine: bool, holdout: int) -> Companion:
        groups = len(gram)
        result = _companion(groups, n - 1 - int(affine))
        packed = np.require(gram, requirements=["C", "W"])  # as gram_solve has it: compiled once
        columns = n - 1 - int(affine)
        bounds = breakdown_tolerance(columns), near_cut_off(columns)
        model = n, int(affine), holdout, *bounds

        def work(low: int, high: int) -> None:
            solve_range(packed, model, low, high, low, tuple(result))

        spread(work, equal_ends(groups, n**3 / 6 + 8 * n * n), WIDTH)
        return result

    def gram_solve(
        self,
        snapshots: Snapshots,
        part: Partition,
        affine: bool,
        holdout: int,
        ahead: Ahead | None = None,
    ) -> Companion:
        """``solve(gram(snapshots, part), …)`` without keeping the Gram matrices.

        With ``ahead`` rollout and combine follow while they are in the cache.
        """
        n = len(snapshots.order)
        cut = pieces(part)
        if len(cut.owner) > part.n_groups:  # a group shared by threads has to be whole first
            solved = self.solve(self.gram(snapshots, part), n, affine, holdout)
            if ahead is not None:
                weights, _ = self.rollout(solved.coefficients, affine, ahead.horizons)
                self.combine(snapshots, part, weights, ahead.out)
            return solved
        columns = n - 1 - int(affine)
        result = _companion(part.n_groups, columns)
        view, whole = window(snapshots), tuple(cut)
        model = n, int(affine), holdout, breakdown_tolerance(columns), near_cut_off(columns)
        block = CACHED // packed_size(n)
        if ahead is not None:
            block = min(block, CACHED // n * part.n_groups // max(part.n_parameters, 1))
            written = target(ahead.out)
            steps = np.array(ahead.horizons, dtype=np.int64)
        block = max(block // WIDTH, 1) * WIDTH

        def work(low: int, high: int) -> None:
            packed = np.empty((min(block, high - low), packed_size(n)))
            if ahead is not None:
                weights = np.empty((len(steps), len(packed), n))
                growth = np.empty((len(steps), len(packed)))
            for first in range(low, high, block):
                last = min(first + block, high)
                gram_range(view, cut.segments, first, last, packed)
                solve_range(packed, model, 0, last - first, first, tuple(result))
                if ahead is not None:
                    fitted = frozen(result.coefficients[first:last])
                    rollout_range(fitted, int(affine), steps, 0, last - first, weights, growth)
                    combine_range(view, whole, first, last, frozen(weights), first, written)

        cost = piece_sizes(cut) * packed_size(n) + (n**3 // 6 + 8 * n * n)
        spread(work, np.cumsum(cost), WIDTH)
        return result

    def feature_gram(
        self, snapshots: Snapshots, part: Partition, affine: bool, stops: Sequence[int]
    ) -> FloatArray:
        m = int(part.sizes[0])
        view, groups = window(snapshots), segments(part)
        ascending = np.unique(np.array(stops, dtype=np.int64))
        out = np.empty((len(ascending), part.n_groups, 2, m, m))

        def work(low: int, high: int) -> None:
            feature_range(view, groups, m, int(affine), ascending, low, high, out)

        spread(work, equal_ends(part.n_groups, 2 * m * m * len(snapshots.order)), WIDTH)
        if np.array_equal(ascending, stops):
            return out
        return out[np.searchsorted(ascending, stops)]

    def feature_fit(
        self,
        snapshots: Snapshots,
        part: Partition,
        affine: bool,
        holdout: int,
        ahead: Ahead | None = None,
    ) -> FeatureSolved:
        """WIDTH groups at a time, their matrices in the cache; no operators where ``ahead``.

        Float64 snapshots of short windows, which resolve more than moments do in nearly all
        groups, take the way of `Composed`. In long ones noise alone makes most groups well
        conditioned: only the others are fitted by a second pass.
        """
        m, groups, n = int(part.sizes[0]), part.n_groups, len(snapshots.order)
        double = snapshots.array.dtype == np.float64
        if double and not is_long(n, m):
            return super().feature_fit(snapshots, part, affine, holdout, ahead)
        wanted = groups if ahead is None else 0
        operator, whitener, readout = (np.empty((wanted, m, m)) for _ in range(3))
        start = np.empty((wanted, m))
        rank = np.empty(groups, dtype=np.int64)
        condition, residual, hindcast = (np.empty(groups) for _ in range(3))
        squares = np.empty((groups, m if double else 0))
        result = rank, condition, residual, hindcast, operator, whitener, start, readout, squares
        view, cut = window(snapshots), segments(part)
        steps, places = _ascending(() if ahead is None else ahead.horizons)
        memory, rows, step, limit = target(
            np.empty((0, 0), snapshots.array.dtype) if ahead is None else ahead.out
        )
        written = memory, rows[places], step, limit
        tolerances = breakdown_tolerance(m), rank_tolerance(m)

        def work(low: int, high: int) -> None:
            feature_fit_range(
                view, cut, m, int(affine), holdout, tolerances, steps, written, low, high, result
            )

        longest = int(steps.max(initial=0))
        cost = 2 * m * m * n + 8 * m**3 + m * m * min(longest, 8 * m)
        spread(work, equal_ends(groups, cost), WIDTH)
        if double:
            residual[out_of_range(squares)] = np.nan
        projection = None if ahead else Projection(operator, whitener, start, rank, condition)
        solved = FeatureSolved(
            rank, condition, residual, hindcast, projection, None if ahead else readout
        )
        return self._with_second_pass(snapshots, part, affine, holdout, ahead, solved)

    def project(
        self, a: FloatArray, h: FloatArray, g: FloatArray, rank: int | None, ridge: float, raw: bool
    ) -> Projection:
        """K = Vᵀ H V and z = Vᵀ g with V Vᵀ = A⁺ of every group."""
        groups, n, _ = a.shape
        cap = n if rank is None else min(rank, n)
        result = Projection(
            np.empty((groups, n, n)),
            np.empty((groups, n, n)),
            np.empty((groups, n)),
            np.full(groups, -1 if n else 0),  # -1: not done yet
            np.full(groups, np.inf),
        )
        given = tuple(flat(a)), tuple(flat(h)), tuple(flat(g))

        # Only a ridge leaves nothing deficient, so that natural order is safe.
        shift, breakdown = float(ridge), breakdown_tolerance(n) if ridge > 0.0 else np.inf
        if cap == n > 0 and ridge > 0.0:

            def work(low: int, high: int) -> None:
                project_range(given, n, shift, breakdown, low, high, tuple(result))

            spread(work, equal_ends(groups, 3 * n**3), WIDTH)
            breakdown = np.inf  # whoever is left has broken down
        left = np.flatnonzero(result.rank < 0)
        tolerances = breakdown, rank_tolerance(n)

        def work_any(low: int, high: int) -> None:
            project_any_range(
                given, n, cap, shift, bool(raw), tolerances, left, low, high, tuple(result)
            )

        spread(work_any, equal_ends(len(left), 30 * n**3))
        width = int(result.rank.max(initial=0))
        if width == n:
            return result
        return Projection(
            np.ascontiguousarray(result.operator[:, :width, :width]),
            np.ascontiguousarray(result.whitener[:, :, :width]),
            np.ascontiguousarray(result.start[:, :width]),
            *result[3:],
        )

    def rollout(
        self, coefficients: FloatArray, affine: bool, horizons: Sequence[int]
    ) -> tuple[FloatArray, FloatArray]:
        groups, columns = coefficients.shape
        weights = np.empty((len(horizons), groups, columns + 1 + int(affine)))
        growth = np.empty((len(horizons), groups))
        steps = np.array(horizons, dtype=np.int64)
        given = frozen(coefficients)

        def work(low: int, high: int) -> None:
            rollout_range(given, int(affine), steps, low, high, weights, growth)

        cost = columns * min(max(horizons, default=0), 1024) + len(horizons) * columns**2 / 2
        spread(work, equal_ends(groups, cost), WIDTH)
        return weights, growth

    def rollout_dense(
        self, operator: FloatArray, start: FloatArray, affine: bool, horizons: Sequence[int]
    ) -> tuple[FloatArray, FloatArray]:
        groups, r = start.shape
        states = np.empty((len(horizons), groups, r))
        growth = np.empty((len(horizons), groups))
        ahead = _ascending(horizons)
        matrices, vectors = frozen(operator), frozen(start)

        def work(low: int, high: int) -> None:
            dense_range(matrices, vectors, int(affine), ahead, low, high, states, growth)

        spread(work, equal_ends(groups, r * r * min(max(horizons, default=0), 8 * r + 8)), WIDTH)
        return states, growth

    def combine(
        self, snapshots: Snapshots, part: Partition, weights: FloatArray, out: npt.NDArray[Any]
    ) -> None:
        horizons, _, n = weights.shape
        view, cut = window(snapshots), pieces(part)
        whole, given, written = tuple(cut), frozen(weights), target(out)

        def work(low: int, high: int) -> None:
            combine_range(view, whole, low, high, given, 0, written)

        spread(work, np.cumsum(piece_sizes(cut) * (n * (horizons + 1))))

    def gather(self, snapshots: Snapshots, part: Partition, rows: Sequence[int]) -> FloatArray:
        memory, places, step = window(snapshots)
        view, cut = (memory, places[np.array(rows, dtype=np.int64)], step), segments(part)
        out = np.empty((len(rows), part.n_groups, int(part.sizes[0])))

        def work(low: int, high: int) -> None:
            gather_range(view, cut, low, high, out)

        spread(work, np.cumsum(part.sizes * len(rows)))
        return out

    def scatter(self, part: Partition, values: FloatArray, out: npt.NDArray[Any]) -> None:
        given, written, cut = frozen(values), target(out), segments(part)

        def work(low: int, high: int) -> None:
            scatter_range(given, cut, low, high, written)

        spread(work, np.cumsum(part.sizes * len(values)))


def load() -> NumbaCpu:
    """The backend; where Numba can be imported, it runs."""
    return NumbaCpu()
