"""The engine's stages in C++: SIMD and threads over groups; the arithmetic is in csrc/cpu.

Mirrors backends/reference.py stage by stage. The instruction set is chosen when the first stage
runs (KOOPCORE_ISA forces one), the number of threads is KOOPCORE_NUM_THREADS or what the process
may use. Results do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from koopcore._native import build_record
from koopcore.backends.protocol import Ahead, Companion, FeatureSolved, Projection, Snapshots
from koopcore.partition.partition import Partition
from koopcore.types import FloatArray

if TYPE_CHECKING:
    _cpu: Any
else:
    try:
        from koopcore._native import _cpu
    except ImportError as error:
        reason = build_record()["cpu"]["reason"] or f"the module does not load ({error})"
        raise ImportError(reason) from error

STAGES = (
    "gram",
    "feature_gram",
    "solve",
    "gram_solve",
    "project",
    "rollout",
    "rollout_dense",
    "combine",
    "feature_fit",
    "companion_endpoint",
    "feature_endpoint",
    "gather",
    "scatter",
)


def unavailable() -> str | None:
    """Why this backend does not run, or None: a forced instruction set may be impossible here."""
    try:
        _cpu.isa()
    except ValueError as error:
        return str(error)
    return None


def gram(snapshots: Snapshots, part: Partition) -> FloatArray:
    """G = BᵀB of every group: (n_groups, n(n+1)/2), packed lower by rows."""
    result: FloatArray = _cpu.gram(snapshots.array, snapshots.order, part.segments)
    return result


def feature_gram(
    snapshots: Snapshots, part: Partition, affine: bool, stops: Sequence[int]
) -> FloatArray:
    """C = FFᵀ, E = F'Fᵀ of the first ``stop`` snapshots: (n_stops, n_groups, 2, m, m), equal m."""
    result: FloatArray = _cpu.feature_gram(*snapshots, part.segments, affine, stops)
    return result


def solve(gram: FloatArray, n: int, affine: bool, holdout: int) -> Companion:
    """The companion coefficients of every group, W groups to a vector register."""
    return Companion(*_cpu.solve(gram, n, affine, holdout))


def gram_solve(
    snapshots: Snapshots, part: Partition, affine: bool, holdout: int, ahead: Ahead | None = None
) -> Companion:
    """``solve(gram(snapshots, part), …)`` without the Gram matrices ever leaving the cache.

    With ``ahead`` also rollout and combine, while the snapshots of a small group are in the cache.
    """
    return Companion(*_cpu.gram_solve(*snapshots, part.segments, affine, holdout, ahead))


def project(
    a: FloatArray, h: FloatArray, g: FloatArray, rank: int | None, ridge: float, raw: bool
) -> Projection:
    """K = Vᵀ H V, z = Vᵀ g, V Vᵀ = A⁺; W groups to a vector register, whatever their ranks."""
    operator, whitener, start, ranks, condition = _cpu.project(a, h, g, rank or 0, ridge, raw)
    width = int(ranks.max(initial=0))
    if width < operator.shape[1]:
        operator = operator[:, :width, :width]
        whitener, start = whitener[:, :, :width], start[:, :width]
    return Projection(operator, whitener, start, ranks, condition)


def rollout(
    coefficients: FloatArray, affine: bool, horizons: Sequence[int]
) -> tuple[FloatArray, FloatArray]:
    """Weights w (n_horizons, n_groups, n) on B with x_{n+T} = B w, and the growth of ‖c_T‖."""
    result: tuple[FloatArray, FloatArray] = _cpu.rollout(coefficients, affine, horizons)
    return result


def rollout_dense(
    operator: FloatArray, start: FloatArray, affine: bool, horizons: Sequence[int]
) -> tuple[FloatArray, FloatArray]:
    """K^{T-1} z, or Σ_{j<T} Kʲ z where affine: (n_horizons, n_groups, r), and the growth."""
    result: tuple[FloatArray, FloatArray] = _cpu.rollout_dense(operator, start, affine, horizons)
    return result


def combine(
    snapshots: Snapshots, part: Partition, weights: FloatArray, out: npt.NDArray[Any]
) -> None:
    """x_{n+T} = x_n + B(w - 1) of every group, into its columns of ``out`` (n_horizons, size)."""
    _cpu.combine(*snapshots, part.segments, weights, out)


def feature_fit(
    snapshots: Snapshots, part: Partition, affine: bool, holdout: int, ahead: Ahead | None = None
) -> FeatureSolved:
    """feature_gram, project and the held-out fit of W groups while their matrices are in the cache.

    For groups of equal m < n - 1. With ``ahead`` also their endpoints; no operator is kept then.
    """
    rank, condition, residual, hindcast, operator, whitener, start, readout = _cpu.feature_fit(
        *snapshots, part.segments, affine, holdout, ahead
    )
    projection = None if ahead else Projection(operator, whitener, start, rank, condition)
    return FeatureSolved(rank, condition, residual, hindcast, projection, readout)


def companion_endpoint(
    snapshots: Snapshots,
    part: Partition,
    coefficients: FloatArray,
    affine: bool,
    horizons: Sequence[int],
    out: npt.NDArray[Any],
) -> None:
    """``combine(…, rollout(coefficients, …)[0], out)`` without the weights ever leaving the cache.

    Of full-rank fits into ``out`` (n_horizons, size).
    """
    _cpu.companion_endpoint(*snapshots, part.segments, coefficients, affine, horizons, out)


def feature_endpoint(
    snapshots: Snapshots,
    part: Partition,
    projection: Projection,
    readout: FloatArray,
    affine: bool,
    horizons: Sequence[int],
    out: npt.NDArray[Any],
) -> None:
    """rollout_dense, read-out and scatter of groups of equal m, into ``out`` (n_horizons, size)."""
    _cpu.feature_endpoint(
        *snapshots,
        part.segments,
        projection.operator,
        projection.start,
        readout,
        affine,
        horizons,
        out,
    )


def gather(snapshots: Snapshots, part: Partition, rows: Sequence[int]) -> FloatArray:
    """Snapshots ``rows`` (negative: from the end) by group: (len(rows), n_groups, m), equal m."""
    result: FloatArray = _cpu.gather(
        snapshots.array, snapshots.order[np.asarray(rows, dtype=np.int64)], part.segments
    )
    return result


def scatter(part: Partition, values: FloatArray, out: npt.NDArray[Any]) -> None:
    """Values (n_horizons, n_groups, m) into the groups' columns of ``out`` (n_horizons, size)."""
    _cpu.scatter(part.segments, values, out)
