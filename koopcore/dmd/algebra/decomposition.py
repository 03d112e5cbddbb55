"""From products of columns to eigenvalues: every variant of the operator, for all systems at once.

With the singular vectors of F = U Σ Vᴴ and P = V Σ⁻¹, the operator on r coordinates is K = Pᴴ h P.
Each variant changes the products before, or K after.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from koopcore.backends.protocol import RankRule
from koopcore.dmd.algebra.columns import Columns, Numbers, omega
from koopcore.dmd.algebra.dynamics import PARALLEL, independence
from koopcore.dmd.algebra.eigen import ComplexArray, eig, eigh
from koopcore.dmd.checks import Rank
from koopcore.types import FloatArray, IntArray

GOOD, EMPTY, BACKWARD, DIVERGED, STALLED, EXHAUSTED, DEFECTIVE = range(7)
STATUS = {
    GOOD: "decomposed",
    EMPTY: "nothing to decompose: all zero, or noise alone; it has no modes",
    BACKWARD: "forward-backward: A_f A_b⁻¹ has a negative real eigenvalue, so no real root; the "
    "forward operator was taken",
    DIVERGED: "the last forecast grew past 1e30 times the data: the last state was kept",
    STALLED: "OptimizedDMD: no step makes the error smaller, though the slope is not zero",
    EXHAUSTED: "OptimizedDMD: still on its way after n_iterations, or at the fastest growth that "
    "is tried, which noise or too many modes ask for, or a series that grows by more than e^60",
    DEFECTIVE: "nearly defective: some modes, or powers of eigenvalues, nearly depend on each "
    "other, as where a series goes along a straight line. Read none of their amplitudes alone: "
    "they are large and cancel. States keep some six digits",
}
"""The codes of ``status_``."""

SPLIT = 1e-11
"""What is added to an operator that has not enough eigenvectors, over its size."""


@dataclass
class Decomposition:
    """Eigenvalues, and the coefficients g of their modes: φ = F g or F' g."""

    eigenvalues: ComplexArray  # (S, r) falling |λ|, NaN past the rank
    coefficients: ComplexArray  # (S, N, r) of eigenvectors of unit length; zero past the rank
    singular_values: FloatArray  # (S, k) of F, falling; zero where they are rounding
    rank: IntArray  # (S,)
    status: IntArray  # (S,)

    def with_constant(self, n: int) -> None:
        """λ = 1 in front, for the constant of an affine model of n snapshots.

        Another λ = 1, of a series that drifts, and this one become 1 ± δ with δ n = 1e-5, whose
        powers a least squares fit can tell apart, and which are those of a straight line to 1e-11.
        """
        one = np.ones((len(self.rank), 1), dtype=np.complex128)
        other = np.abs(self.eigenvalues - 1.0) * n < 1e-5
        twice = other.any(axis=1)
        one[twice] += 1e-5 / n
        self.eigenvalues[other] = 1.0 - 1e-5 / n
        self.eigenvalues = np.concatenate([one, self.eigenvalues], axis=1)
        self.rank = self.rank + 1
        self.status = np.where(self.status == EMPTY, GOOD, self.status)

    def note_independence(self, apart: FloatArray) -> None:
        """Systems whose columns depend on each other are nearly defective."""
        defective = (apart < PARALLEL) & (self.status == GOOD)
        self.status = np.where(defective, DEFECTIVE, self.status)


def decompose(
    columns: Columns,
    rank: Rank,
    ridge: float = 0.0,
    tls: bool = False,
    forward_backward: bool = False,
) -> Decomposition:
    """Dynamic mode decomposition of every system.

    rank: `ranks`. ridge: Tikhonov term, relative to the mean of the squared singular values kept.
    tls: both sides are projected on the leading right singular vectors of [F; F'] first (Hemati,
    Rowley, Deem, Cattafesta 2017); not with as many ranks as columns, which projects on everything.
    forward_backward: K = (K_f K_b⁻¹)^½ with K_b of the series backwards (Dawson, Hemati, Williams,
    Rowley 2016); not where K_b is singular, nor for fast decaying modes, which grow backwards.
    """
    whitener, values = singular(columns.a)
    chosen = ranks(rank, values, columns.n_rows, columns.n_pairs)
    basis = None
    if tls:
        assert columns.c is not None
        leading, both = singular(columns.a + columns.c)
        width = int(chosen.max(initial=0))
        basis = leading[:, :, :width] * both[:, None, :width]
        basis *= (np.arange(width) < chosen[:, None])[:, None]
        columns = columns.mixed(basis)
        whitener, values = singular(columns.a)
        chosen = np.minimum(chosen, (values > 0.0).sum(axis=1))
    width = int(chosen.max(initial=0))
    kept = np.arange(width) < chosen[:, None]
    p = whitener[:, :, :width] * kept[:, None]
    if ridge:
        squares = np.where(kept, values[:, :width] ** 2, 0.0)
        mean = squares.sum(axis=1, keepdims=True) / np.maximum(chosen, 1)[:, None]
        right = p * np.divide(squares, squares + ridge * mean, out=squares, where=kept)[:, None]
    else:
        right = p
    adjoint = p.conj().swapaxes(1, 2)
    k = adjoint @ (columns.h @ right)
    status = np.where(chosen > 0, GOOD, EMPTY)
    if forward_backward:
        k, failed = _forward_backward(k, columns, adjoint, kept)
        status[failed & (chosen > 0)] = BACKWARD
    eigenvalues, vectors, defective = eigenvectors(k, chosen)
    status[defective & (status == GOOD)] = DEFECTIVE
    coefficients = _times(right if basis is None else basis @ right, vectors)
    return Decomposition(eigenvalues, coefficients, values, chosen, status)


def eigenvectors(
    k: Numbers, chosen: IntArray
) -> tuple[ComplexArray, ComplexArray, npt.NDArray[np.bool_]]:
    """`eig` of operators (S, r, r), and which of them are nearly defective (S,).

    To these a matrix of `SPLIT` times their size is added, which parts a double eigenvalue by its
    root: the powers of the eigenvectors that the sum has are those of the operator to some 1e-11,
    where rounding alone would part them by 1e-8, or not at all. Source: Davies 2007, Approximate
    diagonalization, SIAM J. Matrix Anal. Appl. 29.
    """
    eigenvalues, vectors = eig(k, chosen)
    defective = independence(vectors.conj().swapaxes(1, 2) @ vectors) < PARALLEL
    if defective.any():
        width = k.shape[1]
        part = SPLIT * np.random.default_rng(0).standard_normal((width, width))
        some, ranks = k[defective], chosen[defective]
        kept = np.arange(width) < ranks[:, None]
        size = np.sqrt((np.abs(some) ** 2).sum(axis=(1, 2), where=kept[:, None] & kept[:, :, None]))
        eigenvalues[defective], vectors[defective] = eig(some + size[:, None, None] * part, ranks)
    return eigenvalues, vectors, defective


def singular(a: Numbers) -> tuple[Numbers, FloatArray]:
    """P = V Σ⁻¹ (S, N, k) and σ (S, k), falling, of a = FᴴF; both zero where σ is rounding.

    A Gram matrix of N columns does not see below √(4 N ε) σ₁.
    """
    squares, v = eigh(a)
    least = 4.0 * a.shape[1] * np.finfo(float).eps * np.maximum(squares[:, :1], 0.0)
    values = np.sqrt(np.where(squares > least, squares, 0.0))
    inverse = np.divide(1.0, values, out=np.zeros_like(values), where=values > 0.0)
    return v * inverse[:, None], values


def ranks(rank: Rank, values: FloatArray, n_rows: int, n_columns: int) -> IntArray:
    """How many singular values (S, k), falling, every system keeps: (S,).

    An int: that many, where there are as many that are no rounding. A fraction: the fewest whose
    squares reach that share of the energy. "svht": those above ω(β) times the median (Gavish &
    Donoho 2014), at least one. None: all that are no rounding.
    """
    available = (values > 0.0).sum(axis=1)
    if rank is None:
        return available
    if rank == "svht":
        size = min(n_rows, n_columns)
        beta = size / max(n_rows, n_columns)
        padded = np.zeros((len(values), size))
        padded[:, : min(size, values.shape[1])] = values[:, :size]
        above = (values > omega(beta) * np.median(padded, axis=1)[:, None]).sum(axis=1)
        return np.minimum(np.maximum(above, 1), available)
    if isinstance(rank, float):
        share = np.cumsum(values**2, axis=1)
        # A sum's last digits decide nothing.
        reached = share >= (rank - 4.0 * np.finfo(float).eps) * share[:, -1:]
        return np.minimum(np.argmax(reached, axis=1) + 1, available)
    assert isinstance(rank, int)
    return np.minimum(rank, available)


def rank_rule(rank: Rank, n_rows: int, n_columns: int) -> tuple[RankRule, float]:
    """`ranks` as backends take it."""
    if rank is None:
        return "all", 0.0
    if isinstance(rank, str):
        return "threshold", omega(min(n_rows, n_columns) / max(n_rows, n_columns))
    return ("number" if isinstance(rank, int) else "energy"), float(rank)


def _forward_backward(
    k: Numbers, columns: Columns, adjoint: Numbers, kept: npt.NDArray[np.bool_]
) -> tuple[Numbers, npt.NDArray[np.bool_]]:
    """(K_f K_b⁻¹)^½ on the coordinates of F's leading left singular vectors.

    The root of each eigenvalue is the one next to the forward operator's. Returns k where a real
    one has none, and which systems those are.
    """
    real, width = k.dtype.kind == "f", k.shape[1]
    x, y = adjoint @ columns.a, adjoint @ columns.h  # Uᴴ F and Uᴴ F'
    beyond = np.zeros(k.shape)
    beyond[:, np.arange(width), np.arange(width)] = ~kept
    xy, yy = (left @ y.conj().swapaxes(1, 2) for left in (x, y))
    with np.errstate(all="ignore"):
        # K_b = X Yᴴ (Y Yᴴ)⁻¹, so K_f K_b⁻¹ = K_f Y Yᴴ (X Yᴴ)⁻¹.
        product = k @ yy @ np.linalg.pinv(xy + beyond)
        chosen = kept.sum(axis=1)
        squares, w = eig(product, chosen)
        squares = np.where(kept, squares, 0.0)
        w = w + beyond
        unmixed = _solve(w, k.astype(np.complex128) @ w)
        forward = np.einsum("sii->si", unmixed)
        roots = np.sqrt(squares)
        roots = np.where((roots * forward.conj()).real < 0.0, -roots, roots)
        root = _solve(w.swapaxes(1, 2), (w * roots[:, None]).swapaxes(1, 2)).swapaxes(1, 2)
        failed = ~np.isfinite(root).all(axis=(1, 2))
        if real:
            size = np.abs(squares).max(axis=1, initial=0.0)[:, None]
            failed |= (kept & (squares.imag == 0.0) & (squares.real < -1e-12 * size)).any(axis=1)
    result = root.real if real else root
    return np.where(failed[:, None, None], k, result), failed


def _solve(matrix: Numbers, right: Numbers) -> Numbers:
    try:
        return np.linalg.solve(matrix, right)
    except np.linalg.LinAlgError:  # one of the systems is singular: the others are not its business
        return np.linalg.pinv(matrix) @ right


def _times(p: Numbers, vectors: ComplexArray) -> ComplexArray:
    """P W, of a real P without making it complex."""
    if p.dtype.kind == "c":
        return p @ vectors
    parts = np.ascontiguousarray(vectors).view(np.float64)
    return (p @ parts).view(np.complex128)
