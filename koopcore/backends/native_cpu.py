"""The engine's stages in C++: SIMD and threads over groups; the arithmetic is in csrc/cpu.

Mirrors backends/reference.py stage by stage. The instruction set is chosen when the first stage
runs (KOOPCORE_ISA forces one), the number of threads is KOOPCORE_NUM_THREADS or what the process
may use. Results do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from koopcore._native import build_record
from koopcore.backends.stages import Companion, FloatArray, Snapshots
from koopcore.partition import Partition

if TYPE_CHECKING:
    _cpu: Any
else:
    try:
        from koopcore._native import _cpu
    except ImportError as error:
        reason = build_record()["cpu"]["reason"] or f"the module does not load ({error})"
        raise ImportError(reason) from error

STAGES = ("gram", "solve", "gram_solve", "rollout", "combine")


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


def solve(gram: FloatArray, n: int, affine: bool, holdout: int) -> Companion:
    """The companion coefficients of every group, W groups to a vector register."""
    return Companion(*_cpu.solve(gram, n, affine, holdout))


def gram_solve(snapshots: Snapshots, part: Partition, affine: bool, holdout: int) -> Companion:
    """``solve(gram(snapshots, part), …)`` without the Gram matrices ever leaving the cache."""
    return Companion(*_cpu.gram_solve(*snapshots, part.segments, affine, holdout))


def rollout(
    coefficients: FloatArray, affine: bool, horizons: Sequence[int]
) -> tuple[FloatArray, FloatArray]:
    """Weights w (n_horizons, n_groups, n) on B with x_{n+T} = B w, and the growth of ‖c_T‖."""
    result: tuple[FloatArray, FloatArray] = _cpu.rollout(coefficients, affine, horizons)
    return result


def combine(
    snapshots: Snapshots, part: Partition, weights: FloatArray, out: npt.NDArray[Any]
) -> None:
    """x_{n+T} = x_n + B(w - 1) of every group, into its columns of ``out`` (n_horizons, size)."""
    _cpu.combine(*snapshots, part.segments, weights, out)
