"""What passes between the engine and its backends: the snapshots, and what each stage returns."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from koopcore.types import FloatArray, IntArray

WEIGHT_LIMIT = 1e30
"""A rollout whose weights grow past this is divergent: the group keeps its last snapshot."""


class Snapshots(NamedTuple):
    """A window in a ring: ``array[order[k]]`` is snapshot k, oldest first."""

    array: npt.NDArray[Any]  # (n_slots, size) float32 or float64, any strides
    order: IntArray  # (n,)


class Companion(NamedTuple):
    """Full-rank fits: x_{k+n} = Σ a_i x_{k+i}, or the same recurrence for the differences."""

    coefficients: FloatArray  # (n_groups, N), N = n - 1 (linear) or n - 2 (affine), oldest first
    rank: IntArray  # (n_groups,) N; less where the Gram matrix is numerically singular
    residual: FloatArray  # (n_groups,) ‖F a - f'_last‖, in the parameters' unit
    condition: FloatArray  # (n_groups,) estimate of cond(F), columns scaled to unit norm
    hindcast: FloatArray  # (n_groups,) error of predicting x_n from x_{n-holdout}, / movement


class Projection(NamedTuple):
    """Dense fits: A⁺ = V Vᵀ, and the operator K = Vᵀ H V on the r whitened coordinates.

    V belongs to the coordinates of A as it was given; it contains the scales of its columns.
    """

    operator: FloatArray  # (n_groups, r, r) K; rows and columns past a group's rank are zero
    whitener: FloatArray  # (n_groups, N, r) V
    start: FloatArray  # (n_groups, r) Vᵀ g
    rank: IntArray  # (n_groups,)
    condition: FloatArray  # (n_groups,) estimate of cond(F), columns scaled to unit norm


class Ahead(NamedTuple):
    """Endpoints that a fit also predicts, while the snapshots of a group are in the cache."""

    horizons: Sequence[int]  # T >= 1, in any order
    out: npt.NDArray[Any]  # (n_horizons, size) float32 or float64, any strides; written to


class FeatureSolved(NamedTuple):
    """Fits of groups of equal m < n - 1. With endpoints `Ahead` no operator is kept: m² numbers."""

    rank: IntArray  # (n_groups,)
    condition: FloatArray  # (n_groups,) estimate of cond(F), columns scaled to unit norm
    residual: FloatArray  # (n_groups,) ‖U f - f'‖ of the newest step; not finite: nor is the group
    hindcast: FloatArray  # (n_groups,) error of predicting x_n from x_{n-holdout}, / movement
    projection: Projection | None
    readout: FloatArray | None  # (n_groups, m, m) H V


def breakdown_tolerance(n: int) -> float:
    """16 n·u: a pivot in time order below this share of its diagonal sends a group to `project`.

    16 times LAPACK's pstrf rule: near n·u the companion coefficients are rounding noise, and their
    rollout may explode (measured: 2 of 90 low-rank trajectories at n·u, none at 16 n·u).
    """
    return 16.0 * n * 2.0**-53


def rank_tolerance(n: int) -> float:
    """2 u·max(n, 16) = ε max(n, 16): what counts as zero, as a share of the largest.

    Of the squares of scaled columns, where diagonal pivoting stops: twice LAPACK's pstrf rule, and
    not less for tiny matrices, whose entries are sums of many products too. 4 n·u loses directions
    of long float32 windows that orthogonal methods keep. And of singular values of F itself, as
    NumPy's matrix_rank has it.
    """
    return 2.0 * max(n, 16) * 2.0**-53


SQUARES = 2.0**-800, 2.0**1000
"""‖F‖² between these: squares keep the last digit that counts, and their sums do not overflow."""


def near_cut_off(n: int) -> float:
    """A column's squared distance from the columns before it, below this share of ‖F‖², is small.

    Such a group is sent to `project`, which looks at singular values: one of them may be below
    `rank_tolerance`. 256 times that, as a distance is only an upper bound of the smallest of them.
    """
    return n * (256.0 * rank_tolerance(n)) ** 2


def packed_size(n: int) -> int:
    """Numbers in the packed lower triangle of an (n, n) Gram matrix."""
    return n * (n + 1) // 2


def unpack(packed: FloatArray, n: int) -> FloatArray:
    """The symmetric (n, n) matrices of packed lower triangles (…, n(n+1)/2)."""
    return np.take(packed, _places(n), axis=-1)


@lru_cache(maxsize=4)
def _places(n: int) -> IntArray:
    """(n, n) where the packed lower triangle holds each entry of a symmetric matrix."""
    rows, columns = np.indices((n, n))
    low, high = np.minimum(rows, columns), np.maximum(rows, columns)
    places: IntArray = high * (high + 1) // 2 + low
    places.setflags(write=False)
    return places
