"""The engine's stages in C++: SIMD and threads over groups; the arithmetic is in csrc/cpu.

Mirrors backends/reference.py stage by stage. The instruction set is chosen when the first stage
runs (KOOPCORE_ISA forces one), the number of threads is that of backends/threads.py. Results do not
depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from koopcore._native import build_record
from koopcore.backends.composed import Composed
from koopcore.backends.protocol import (
    Ahead,
    Companion,
    ExponentFit,
    FeatureSolved,
    ModalFit,
    Projection,
    RankRule,
    Snapshots,
    WholeCompanion,
)
from koopcore.backends.second_pass import LONG, is_long
from koopcore.backends.threads import thread_count
from koopcore.partition.partition import Partition
from koopcore.types import FloatArray, IntArray

MOST_THREADS = 4096  # that the module takes
MOMENTS, SECOND, SAMPLED, LARGE = range(4)
"""Passes of a fit on the feature side: `Passes` in csrc/cpu/problem.h."""
MODAL_ROWS, MODAL_NUMBERS = 32, 2**15
"""Of a modal fit: rows of its small matrices, and numbers of a system, that the cache holds."""
LEADING_ROWS = 160  # of matrices whose leading eigenvectors are iterated in the cache
PROBED = 64  # systems that say how many modes the others may have
MANY_PARAMETERS, SURELY_MANY = 16, 32
"""Groups of so many are fitted one at a time, each in whole registers, instead of one a lane: of
float32 in windows that are not long only groups of surely many, as moments are all they need."""
FEW_GROUPS, PARAMETERS_OF_FEW = 4, 8
"""In long windows, so few groups of so many parameters leave most lanes to copies."""
LONG_FOR_ONE = 2**16
"""Windows of so many snapshots are long for groups of one parameter, unless those are many."""


class NativeCpu(Composed):
    """The engine's stages in C++; ``module`` is koopcore._native._cpu."""

    name = "native_cpu"
    device = "cpu"

    def __init__(self, module: Any) -> None:
        self._module = module

    @property
    def _cpu(self) -> Any:
        """The module, with as many threads as `thread_count` says now."""
        self._module.set_num_threads(min(thread_count(), MOST_THREADS))
        return self._module

    def _groups(self, part: Partition) -> Any:
        """The partition's segments, checked once; kept with it, for training loops."""
        groups = part.kept.get(self.name)
        if groups is None:
            groups = part.kept[self.name] = self._cpu.Groups(tuple(part.segments))
        return groups

    def gram(self, snapshots: Snapshots, part: Partition) -> FloatArray:
        result: FloatArray = self._cpu.gram(snapshots.array, snapshots.order, self._groups(part))
        return result

    def feature_gram(
        self, snapshots: Snapshots, part: Partition, affine: bool, stops: Sequence[int]
    ) -> FloatArray:
        result: FloatArray = self._cpu.feature_gram(*snapshots, self._groups(part), affine, stops)
        return result

    def solve(self, gram: FloatArray, n: int, affine: bool, holdout: int) -> Companion:
        return Companion(*self._cpu.solve(gram, n, affine, holdout))

    def gram_solve(
        self,
        snapshots: Snapshots,
        part: Partition,
        affine: bool,
        holdout: int,
        ahead: Ahead | None = None,
    ) -> Companion:
        """``solve(gram(…), …)`` without the Gram matrices ever leaving the cache.

        With ``ahead`` a small group is predicted while its snapshots are in the cache.
        """
        groups = self._groups(part)
        solved, whole = self._cpu.gram_solve(*snapshots, groups, affine, holdout, ahead)
        return (WholeCompanion if whole else Companion)._make(solved)

    def project(
        self, a: FloatArray, h: FloatArray, g: FloatArray, rank: int | None, ridge: float, raw: bool
    ) -> Projection:
        """K = Vᵀ H V, z = Vᵀ g, V Vᵀ = A⁺; W groups to a vector register, whatever their ranks."""
        operator, whitener, start, ranks, condition = self._cpu.project(
            a, h, g, rank or 0, ridge, raw
        )
        width = int(ranks.max(initial=0))
        if width < operator.shape[1]:
            operator = operator[:, :width, :width]
            whitener, start = whitener[:, :, :width], start[:, :width]
        return Projection(operator, whitener, start, ranks, condition)

    def rollout(
        self, coefficients: FloatArray, affine: bool, horizons: Sequence[int]
    ) -> tuple[FloatArray, FloatArray]:
        result: tuple[FloatArray, FloatArray] = self._cpu.rollout(coefficients, affine, horizons)
        return result

    def rollout_dense(
        self, operator: FloatArray, start: FloatArray, affine: bool, horizons: Sequence[int]
    ) -> tuple[FloatArray, FloatArray]:
        result: tuple[FloatArray, FloatArray] = self._cpu.rollout_dense(
            operator, start, affine, horizons
        )
        return result

    def combine(
        self, snapshots: Snapshots, part: Partition, weights: FloatArray, out: npt.NDArray[Any]
    ) -> None:
        self._cpu.combine(*snapshots, self._groups(part), weights, out)

    def feature_fit(
        self,
        snapshots: Snapshots,
        part: Partition,
        affine: bool,
        holdout: int,
        ahead: Ahead | None = None,
    ) -> FeatureSolved:
        """W groups at a time, while their matrices are in the cache; no operators where ``ahead``.

        Float64 resolves more than moments do in nearly all groups: they are fitted by the second
        pass at once. In long windows some rows find its basis; groups for which they do not speak
        are fitted by two full passes. In short windows a group that is not large has the same bits
        alone as beside others.
        """
        m, n = int(part.sizes[0]), len(snapshots.order)
        double = snapshots.array.dtype == np.float64
        long = is_long(n, m)
        many = MANY_PARAMETERS if double or long else SURELY_MANY
        if long and part.n_groups <= FEW_GROUPS:
            many = PARAMETERS_OF_FEW
        if m >= many and n - 1 - affine - holdout >= m:
            passes = LARGE
        elif m == 1 and n < max(LONG * part.n_groups, LONG_FOR_ONE):  # there is one direction
            passes = SECOND
        elif long:
            passes = SAMPLED
        else:
            passes = SECOND if double else MOMENTS
        return self._feature_fit(
            snapshots, part, affine, holdout, ahead, passes=passes, ranged=double
        )

    def feature_refit(
        self,
        snapshots: Snapshots,
        part: Partition,
        affine: bool,
        holdout: int,
        rank: int | None,
        ahead: Ahead | None = None,
    ) -> FeatureSolved:
        return self._feature_fit(
            snapshots, part, affine, holdout, ahead, passes=SECOND, rank=rank or 0
        )

    def _feature_fit(
        self,
        snapshots: Snapshots,
        part: Partition,
        affine: bool,
        holdout: int,
        ahead: Ahead | None,
        *,
        passes: int,
        rank: int = 0,
        ranged: bool = False,
    ) -> FeatureSolved:
        """Groups for which ``passes`` say too little have a second one.

        ``ranged``: out of range, the residual is NaN.
        """
        given = *snapshots, self._groups(part), affine, holdout, ahead, passes, rank, ranged
        ranks, condition, residual, hindcast, operator, whitener, start, readout = (
            self._cpu.feature_fit(*given)
        )
        projection = None if ahead else Projection(operator, whitener, start, ranks, condition)
        return FeatureSolved(ranks, condition, residual, hindcast, projection, readout)

    def companion_endpoint(
        self,
        snapshots: Snapshots,
        part: Partition,
        coefficients: FloatArray,
        affine: bool,
        horizons: Sequence[int],
        out: npt.NDArray[Any],
    ) -> None:
        """Rollout and combine, the weights never leaving the cache."""
        groups = self._groups(part)
        self._cpu.companion_endpoint(*snapshots, groups, coefficients, affine, horizons, out)

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
        if not projection.start.size:
            fitted = projection, readout
            super().feature_endpoint(snapshots, part, *fitted, affine, horizons, out)
            return
        self._cpu.feature_endpoint(
            *snapshots,
            self._groups(part),
            projection.operator,
            projection.start,
            readout,
            affine,
            horizons,
            out,
        )

    def modal_fit(
        self,
        systems: npt.NDArray[Any],
        delays: int,
        rule: RankRule,
        value: float,
        ridge: float,
        exact: bool,
        optimal: bool,
    ) -> ModalFit | None:
        """W systems at a time, from snapshots to modes while they are in the cache."""
        count, n, m = systems.shape
        size = min(n - delays, m * delays)
        if size > MODAL_ROWS or n * m > MODAL_NUMBERS or (delays > 1 and m * delays < n - delays):
            return None
        how = delays, get_args(RankRule).index(rule), value, ridge, exact, optimal
        most = min(int(value), size) if rule == "number" else size
        width = most
        if rule != "number" and count > 2 * PROBED:  # some tell how many modes to make room for
            width = max(int(self._cpu.modal_fit(systems[:PROBED], *how, most)[-2].max()), 1)
        *numbers, newest, ranks, status = self._cpu.modal_fit(systems, *how, width)
        wider = np.flatnonzero(status == 1)
        if wider.size:
            *more, _, ranks[wider], status[wider] = self._cpu.modal_fit(systems[wider], *how, most)
            numbers = [widened(*both, wider) for both in zip(numbers, more, strict=True)]
        width = int(ranks.max(initial=0))
        values, modes, amplitudes, singular, residuals = numbers
        return ModalFit(
            values[:, :width],
            np.ascontiguousarray(modes[:, :, :width]),
            amplitudes[:, :width],
            singular,
            residuals[:, :width],
            newest,
            ranks,
            np.flatnonzero(status),
        )

    def exponent_fit(
        self,
        c: FloatArray,
        start: npt.NDArray[np.complex128],
        partner: IntArray,
        ceiling: float,
        headroom: float,
        most: int,
    ) -> ExponentFit | None:
        if not start.size or c.shape[1] * c.shape[2] > MODAL_NUMBERS:
            return None
        return ExponentFit(*self._cpu.exponent_fit(c, start, partner, ceiling, headroom, most))

    def leading(
        self, matrices: FloatArray, count: int
    ) -> tuple[FloatArray, FloatArray, npt.NDArray[np.bool_]] | None:
        if matrices.dtype != np.float64 or matrices.shape[1] > LEADING_ROWS:
            return None
        values, vectors, settled = self._cpu.leading(matrices, count)
        return values, vectors, settled

    def delay_start(
        self, c: FloatArray, rank: int, delays: int
    ) -> tuple[npt.NDArray[np.complex128], npt.NDArray[np.bool_]] | None:
        pairs = c.shape[1] - delays
        if c.dtype != np.float64 or not 3 * rank <= pairs <= LEADING_ROWS or rank > MODAL_ROWS:
            return None
        values, settled = self._cpu.delay_start(c, rank, delays)
        return values, settled

    def gather(self, snapshots: Snapshots, part: Partition, rows: Sequence[int]) -> FloatArray:
        result: FloatArray = self._cpu.gather(
            snapshots.array, snapshots.order[np.asarray(rows, dtype=np.int64)], self._groups(part)
        )
        return result

    def scatter(self, part: Partition, values: FloatArray, out: npt.NDArray[Any]) -> None:
        self._cpu.scatter(self._groups(part), values, out)


def widened(
    few: npt.NDArray[Any], more: npt.NDArray[Any], at: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    """``few`` with the systems ``at`` from ``more``, whose last axis is longer."""
    missing = 0.0 if few.ndim == 3 else np.nan
    result = np.full((*few.shape[:-1], more.shape[-1]), missing, dtype=few.dtype)
    result[..., : few.shape[-1]] = few
    result[at] = more
    return result


def load() -> NativeCpu:
    """The backend; ImportError with the reason where it was not built or cannot run here."""
    try:
        module = import_module("koopcore._native._cpu")
    except ImportError as error:
        reason = build_record()["cpu"]["reason"] or f"the module does not load ({error})"
        raise ImportError(reason) from error
    try:
        module.isa()
    except ValueError as error:  # the instruction set that is forced may be impossible here
        raise ImportError(str(error)) from error
    return NativeCpu(module)
