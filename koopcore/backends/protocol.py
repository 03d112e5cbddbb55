"""What a backend is: its stages, what passes between them, and the tolerances that all share.

A backend does three things to a window of snapshots, for all groups of a partition at once:

    gram     the Gram matrix of every group                 one read of the snapshots
    solve    rank, coefficients, diagnostics; rollout       no snapshots
    combine  the prediction of every group                  one more read

Groups of at least as many parameters as columns take ``gram``, ``solve`` (full rank) or ``project``
(everything else), ``rollout`` or ``rollout_dense``, ``combine``. Groups of fewer parameters take
``feature_gram``, ``project``, ``rollout_dense`` and a read-out. `Composed` (composed.py) adds the
fused stages, made of the others, which a backend overrides where it can do better.

All small matrices are float64 NumPy arrays (or stay on a device, `koopcore.arrays.Resident`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from koopcore.partition.partition import Partition
from koopcore.types import FloatArray, IntArray

WEIGHT_LIMIT = 1e30
"""A rollout whose weights grow past this has diverged: the group keeps its last snapshot."""


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


class WholeCompanion(Companion):
    """One of which every rank is known to be N and every coefficient finite."""

    __slots__ = ()


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
    """Fits of groups of equal m < n - 1; without operators where endpoints were written instead."""

    rank: IntArray  # (n_groups,)
    condition: FloatArray  # (n_groups,) estimate of cond(F), columns scaled to unit norm
    residual: FloatArray  # (n_groups,) ‖U f - f'‖ of the newest step; not finite: nor is the group
    hindcast: FloatArray  # (n_groups,) error of predicting x_n from x_{n-holdout}, / movement
    projection: Projection | None  # None: m² numbers a group that nobody has asked for
    readout: FloatArray | None  # (n_groups, m, r) E V


RankRule: TypeAlias = Literal["all", "number", "energy", "threshold"]
"""Singular values kept: all that are no rounding, a number, a share of energy, times the median."""


class ModalFit(NamedTuple):
    """Dynamic mode decompositions, as in koopcore/dmd; NaN, or zero modes, past a system's rank."""

    eigenvalues: npt.NDArray[np.complex128]  # (systems, r) falling magnitude
    modes: npt.NDArray[np.complex128]  # (systems, m, r) unit columns
    amplitudes: npt.NDArray[np.complex128]  # (systems, r)
    singular_values: FloatArray  # (systems, N) falling, those of rounding zero
    residuals: FloatArray  # (systems, r)
    newest: npt.NDArray[Any]  # (systems, m) the last snapshots
    rank: IntArray  # (systems,)
    left: IntArray  # systems that were not decomposed: not finite, out of range, not converged


class ExponentFit(NamedTuple):
    """Exponents fitted to series, in 1/length of the series, NaN where there are fewer."""

    alpha: npt.NDArray[np.complex128]  # (series, r)
    stop: IntArray  # (series,) 0 converged, 1 stalled, 2 neither after the most iterations
    iterations: IntArray  # (series,)
    error: FloatArray  # (series,) ‖R‖²


class Backend(ABC):
    """One implementation of the stages, for arrays of one kind of device.

    In every stage ``part`` is a partition of the columns of ``snapshots.array``, and ``out``
    (n_horizons, size) is written in the columns of the partition's groups only: values are clipped
    to the finite numbers of its dtype, and no other column is touched. Inputs are never written
    to. A group that fails numerically says so in its rank, condition or growth; nothing is raised
    and no NumPy warning is issued. Results do not depend on the number of threads.
    """

    name: ClassVar[str]
    device: ClassVar[Literal["cpu", "cuda"]]
    is_spread: ClassVar[bool] = False  # groups have parameters elsewhere: sizes here say nothing

    def total(self, sums: FloatArray) -> FloatArray:
        """``sums`` over a group's parameters here, added up over all places that hold some."""
        return sums

    @abstractmethod
    def gram(self, snapshots: Snapshots, part: Partition) -> FloatArray:
        """G = BᵀB of every group, B = [x_1, d_1, …, d_{n-1}] with d_k = x_{k+1} - x_k.

        Returns (n_groups, n(n+1)/2), the lower triangles packed by rows. Unit: the parameters'
        squared. Cost: one read of the snapshots, P n² multiply-adds.
        """

    @abstractmethod
    def feature_gram(
        self, snapshots: Snapshots, part: Partition, affine: bool, stops: Sequence[int]
    ) -> FloatArray:
        """C = FFᵀ and E = F'Fᵀ of the first ``stop`` snapshots, for groups of equal size m.

        affine: of the differences; else of the snapshots in the coordinates of `reflect`.
        Returns (n_stops, n_groups, 2, m, m). Cost: one read, 2 P m n multiply-adds.
        """

    @abstractmethod
    def solve(self, gram: FloatArray, n: int, affine: bool, holdout: int) -> Companion:
        """Companion coefficients of every group from ``gram`` (n_groups, n(n+1)/2).

        By Cholesky in time order; a group whose pivots break down has coefficients 0, a rank below
        N and an infinite condition. holdout: snapshots that the hindcast predicts; where the
        window is too short for one it is NaN. Cost: n³/6 + O(n²) multiply-adds per group.
        """

    @abstractmethod
    def project(
        self,
        a: FloatArray,
        h: FloatArray,
        g: FloatArray,
        rank: int | None,
        ridge: float,
        raw: bool,
    ) -> Projection:
        """K = Vᵀ H V and z = Vᵀ g with V Vᵀ = A⁺, or (A + ridge D)⁻¹ with D the mean diagonal.

        a, h (n_groups, N, N), g (n_groups, N): FᵀF, FᵀF', Fᵀf, or FFᵀ, F'Fᵀ, f. raw: F stands in
        the basis [x_1, d_1, …] of columns x_1, x_2, …; A⁺ is the pseudo-inverse of the x_k then.
        The rank is what diagonal pivoting of the equilibrated A finds above `rank_tolerance`, less
        the singular values of the columns within `rank_tolerance` of their largest, and ``rank`` at
        most. ridge: relative to the mean diagonal of the equilibrated A. Cost: O(N³) per group.
        """

    @abstractmethod
    def rollout(
        self, coefficients: FloatArray, affine: bool, horizons: Sequence[int]
    ) -> tuple[FloatArray, FloatArray]:
        """Weights w on B with x_{n+T} = B w, and the growth ‖c_T‖/‖c_1‖, of companion fits.

        coefficients (n_groups, N). Returns (n_horizons, n_groups, n) and (n_horizons, n_groups).
        Where the rollout has diverged all weights are 1 (the last snapshot) and the growth is
        infinite. Cost: O(T n) per group up to T = 1024, O(n² log T) beyond.
        """

    @abstractmethod
    def rollout_dense(
        self, operator: FloatArray, start: FloatArray, affine: bool, horizons: Sequence[int]
    ) -> tuple[FloatArray, FloatArray]:
        """K^{T-1} z, or Σ_{j<T} Kʲ z where affine, and the growth ‖K^{T-1} z‖/‖z‖.

        operator (n_groups, r, r), start (n_groups, r). Returns (n_horizons, n_groups, r) and
        (n_horizons, n_groups); numbers that overflow are not finite. Cost: O(T r²) per group,
        O(r³ log T) for long horizons.
        """

    @abstractmethod
    def combine(
        self, snapshots: Snapshots, part: Partition, weights: FloatArray, out: npt.NDArray[Any]
    ) -> None:
        """x_{n+T} = x_n + B (w - 1) of every group, written into its columns of ``out``.

        weights (n_horizons, n_groups, n). Cost: one read of the snapshots, P n multiply-adds a
        horizon.
        """

    @abstractmethod
    def gram_solve(
        self,
        snapshots: Snapshots,
        part: Partition,
        affine: bool,
        holdout: int,
        ahead: Ahead | None = None,
    ) -> Companion:
        """``solve(gram(snapshots, part), …)``, and with ``ahead`` rollout and combine of its fits.

        What is written ahead for groups of less than full rank says nothing.
        """

    @abstractmethod
    def companion_endpoint(
        self,
        snapshots: Snapshots,
        part: Partition,
        coefficients: FloatArray,
        affine: bool,
        horizons: Sequence[int],
        out: npt.NDArray[Any],
    ) -> None:
        """``combine(snapshots, part, rollout(coefficients, …)[0], out)``."""

    @abstractmethod
    def feature_fit(
        self,
        snapshots: Snapshots,
        part: Partition,
        affine: bool,
        holdout: int,
        ahead: Ahead | None = None,
    ) -> FeatureSolved:
        """The full-rank fit of groups of equal m < n - 1, its diagnostics and its endpoints ahead.

        The residual of float64 groups that are `out_of_range` is not finite. With ``ahead`` a
        backend may leave out the operators.
        """

    @abstractmethod
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
        """Such a fit, with operators, of any rank and ridge, from moments taken before.

        moments: `feature_gram` at `feature_stops` (composed.py); their rounding noise may be
        zeroed. Where they are not finite, nor is the residual, and there are no operators.
        """

    @abstractmethod
    def feature_refit(
        self,
        snapshots: Snapshots,
        part: Partition,
        affine: bool,
        holdout: int,
        rank: int | None,
        ahead: Ahead | None = None,
    ) -> FeatureSolved:
        """The fit of groups of equal m whose moments resolve too little of F, any rank.

        The moments find a basis V; sums of products with Y = Vᵀf, taken from the snapshots, are
        then as accurate as an orthogonal factorization of F (second_pass.py). The condition is the
        moments'. With ``ahead`` a backend may leave out the operators. Cost: two reads,
        P n (2 m + 3 r) multiply-adds.
        """

    @abstractmethod
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
        """rollout_dense, read-out (n_groups, m, r) and scatter of groups of equal m.

        A group whose states pass WEIGHT_LIMIT keeps its last snapshot.
        """

    @abstractmethod
    def endpoint(
        self,
        snapshots: Snapshots,
        part: Partition,
        affine: bool,
        horizons: Sequence[int],
        out: npt.NDArray[Any],
    ) -> bool:
        """Fit and prediction of groups with m >= n - 1 without a word from the host.

        Returns False, and has written nothing, where the backend knows no such way.
        """

    @abstractmethod
    def gather(self, snapshots: Snapshots, part: Partition, rows: Sequence[int]) -> FloatArray:
        """Snapshots ``rows`` (negative: from the end) of groups of equal m.

        Returns (len(rows), n_groups, m) float64.
        """

    @abstractmethod
    def scatter(self, part: Partition, values: FloatArray, out: npt.NDArray[Any]) -> None:
        """Values (n_horizons, n_groups, m) into the groups' columns of ``out``."""

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
        """Dynamic mode decomposition of every system of ``systems`` (systems, n, m), C-contiguous.

        delays, ridge: as `koopcore.dmd.DMD`. rule, value: which singular values are kept. exact:
        modes F' g, not F g. optimal: amplitudes over all times, not at the first.
        Returns None where the backend does not do systems of this size: koopcore.dmd, which is the
        definition, then does it. Cost: one read, (n m + N²) min(n, m) multiply-adds a system.
        """
        return None

    def exponent_fit(
        self,
        c: FloatArray,
        start: npt.NDArray[np.complex128],
        partner: IntArray,
        ceiling: float,
        headroom: float,
        most: int,
    ) -> ExponentFit | None:
        """Exponentials fitted to real series ``c`` (series, n, k) at equal steps of [0, 1].

        As `koopcore.dmd.algebra.variable_projection.fit_exponents`, its definition. Returns
        None where the backend does not do it. Cost: n r (r + k) multiply-adds an iteration.
        """
        return None

    def leading(
        self, matrices: FloatArray, count: int
    ) -> tuple[FloatArray, FloatArray, npt.NDArray[np.bool_]] | None:
        """The ``count`` largest eigenvalues and eigenvectors of semidefinite matrices (S, n, n).

        Returns (S, count) falling, (S, n, count), and where they settled (S,). None where the
        backend does not do it. Cost: some 10 n² (count + 4) multiply-adds a matrix.
        """
        return None

    def delay_start(
        self, c: FloatArray, rank: int, delays: int
    ) -> tuple[npt.NDArray[np.complex128], npt.NDArray[np.bool_]] | None:
        """Eigenvalues (S, rank) of one step of ``delays`` coordinates c (S, n, k), stacked.

        NaN past a rank; and where they settled (S,). None where the backend does not do it. Cost:
        that of `leading` of n - delays rows.
        """
        return None


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


RESOLVED = 2.0**-66
"""Of the squares of scaled parameters in a second pass, as a share of the largest: 2⁻³³ of lengths.

What it finds of a direction s has an error of about u/(2²⁶ s²) of itself: 1e-4 there.
"""

SQUARES = 2.0**-800, 2.0**1000
"""‖F‖² between these: squares keep the last digit that counts, and their sums do not overflow."""


def out_of_range(squares: FloatArray) -> npt.NDArray[np.bool_]:
    """Groups (n_groups,) whose squares (n_groups, k) say too little of the numbers they are of.

    They overflow, or may have lost digits to underflow: nothing moves, or what moves is very small.
    """
    least, most = SQUARES
    with np.errstate(invalid="ignore"):
        largest = squares.max(axis=1, initial=0.0)
        return ~((largest > least) & (largest < most))


def near_cut_off(n: int) -> float:
    """A column's squared distance from the columns before it, below this share of ‖F‖², is small.

    Such a group is sent to `project`, which looks at singular values: one of them may be below
    `rank_tolerance`. 256 times that, as a distance is only an upper bound of the smallest of them.
    """
    return n * (256.0 * rank_tolerance(n)) ** 2


LEAST_EIGENVALUE = 64.0 * 2.0**-53
"""Of a scaled Gram matrix whose Cholesky factor in time order is to be trusted: 64 u.

A pivot alone does not tell: without pivoting its rounding grows with the coefficients of its column
on the columns before it. Below, a group is sent to `project`. The estimate is LINPACK's (Cline,
Moler, Stewart & Wilkinson 1979).
"""


def diverged(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Where weights or whitened states (…, k) grew past WEIGHT_LIMIT, or are not numbers: (…)."""
    return ~(np.abs(values).max(axis=-1, initial=0.0) <= WEIGHT_LIMIT)


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
