"""Groups whose parameters lie in several processes: each adds its own Gram matrix to the sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from koopcore.backends.composed import Composed
from koopcore.backends.protocol import Backend, Companion, Projection, Snapshots
from koopcore.partition.partition import Partition
from koopcore.types import FloatArray


class Shares(NamedTuple):
    """What a process has of groups that several hold parts of.

    total: an array summed over the processes, in float64; all call it equally often. counted: the
    same groups as the partition's, less the columns that another process counts already.
    """

    total: Callable[[FloatArray], FloatArray]
    counted: Partition


class Spread(Composed):
    """``inner`` for such groups: sums over snapshots are totals, all else is done where it is.

    A Gram matrix adds up over parameters, so that every process solves the same small problem and
    predicts its own columns. Only the snapshot side does: moments of a group need all of it.
    """

    is_spread = True

    def __init__(self, inner: Backend, total: Callable[[FloatArray], FloatArray]) -> None:
        self.name = inner.name  # type: ignore[misc]
        self.device = inner.device  # type: ignore[misc]
        self._inner = inner
        self._total = total

    def total(self, sums: FloatArray) -> FloatArray:
        return self._total(np.asarray(sums))

    def gram(self, snapshots: Snapshots, part: Partition) -> FloatArray:
        return self.total(self._inner.gram(snapshots, part))

    def feature_gram(
        self, snapshots: Snapshots, part: Partition, affine: bool, stops: Sequence[int]
    ) -> FloatArray:
        raise TypeError("moments need a group's parameters in one process; Gram matrices add up")

    def solve(self, gram: FloatArray, n: int, affine: bool, holdout: int) -> Companion:
        return self._inner.solve(gram, n, affine, holdout)

    def project(
        self, a: FloatArray, h: FloatArray, g: FloatArray, rank: int | None, ridge: float, raw: bool
    ) -> Projection:
        return self._inner.project(a, h, g, rank, ridge, raw)

    def rollout(
        self, coefficients: FloatArray, affine: bool, horizons: Sequence[int]
    ) -> tuple[FloatArray, FloatArray]:
        return self._inner.rollout(coefficients, affine, horizons)

    def rollout_dense(
        self, operator: FloatArray, start: FloatArray, affine: bool, horizons: Sequence[int]
    ) -> tuple[FloatArray, FloatArray]:
        return self._inner.rollout_dense(operator, start, affine, horizons)

    def combine(
        self, snapshots: Snapshots, part: Partition, weights: FloatArray, out: npt.NDArray[Any]
    ) -> None:
        self._inner.combine(snapshots, part, weights, out)

    def companion_endpoint(
        self,
        snapshots: Snapshots,
        part: Partition,
        coefficients: FloatArray,
        affine: bool,
        horizons: Sequence[int],
        out: npt.NDArray[Any],
    ) -> None:
        self._inner.companion_endpoint(snapshots, part, coefficients, affine, horizons, out)

    def gather(self, snapshots: Snapshots, part: Partition, rows: Sequence[int]) -> FloatArray:
        return self._inner.gather(snapshots, part, rows)

    def scatter(self, part: Partition, values: FloatArray, out: npt.NDArray[Any]) -> None:
        self._inner.scatter(part, values, out)
