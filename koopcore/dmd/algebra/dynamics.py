"""What a decomposition says about time: modes, amplitudes, reconstructions and forecasts.

    x_t = Σ_j φ_j b_j λ_jᵗ            t = 0 at the first snapshot

for every system at once; modes past a system's rank are zero. Modes lie where the data lie, all
else on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from koopcore import arrays
from koopcore.dmd.algebra.columns import contract
from koopcore.dmd.algebra.eigen import ComplexArray
from koopcore.types import FloatArray

LIMIT = 1e30
"""A forecast whose amplitudes grow past this, beside those of the data, has diverged."""

STEEP, PARALLEL = 1e-7, 1e-10
"""Squares of the sine between a column of unit length and those before it: below the first normal
equations lose more than nine digits, below the second the columns count as dependent."""


@dataclass
class Dynamics:
    """Eigenvalues, modes and amplitudes of S systems of m features."""

    eigenvalues: ComplexArray  # (S, r), NaN past the rank
    modes: Any  # (S, m, r) complex, unit columns; zero past the rank
    amplitudes: ComplexArray  # (S, r); of trajectories (trajectories, r)
    real: bool  # whether states are real
    lengths: tuple[int, ...]  # of the trajectories
    last: Any  # (S, m) the newest states, of trajectories (trajectories, m)

    @property
    def powers_of(self) -> ComplexArray:
        """λ with 0 for NaN."""
        return np.nan_to_num(self.eigenvalues, nan=0.0)

    def factors(self, times: npt.NDArray[Any]) -> ComplexArray:
        """b_j λ_jᵗ (S, r, T) at times (T,), or (S, T): of a growing mode not before it is asked."""
        times = np.atleast_2d(times).astype(np.float64)
        with np.errstate(all="ignore"):
            logarithms = np.log(self.powers_of)[:, :, None]
            values = np.exp(logarithms * times[:, None]) * self.amplitudes[:, :, None]
        # 0⁰ = 1: an eigenvalue that is zero acts on the first snapshot only.
        zero = self.powers_of[:, :, None] == 0.0
        return np.where(
            zero, np.where(times[:, None] == 0.0, self.amplitudes[:, :, None], 0), values
        )

    def states(self, times: npt.NDArray[Any]) -> Any:
        """x_t at times (T,): (S, T, m)."""
        return combined(self.modes, self.factors(times), self.real)

    def growth(self, horizon: npt.ArrayLike) -> FloatArray:
        """‖b λ^{n-1+T}‖/‖b λ^{n-1}‖ at horizons (T,): (S, T)."""
        ends = np.asarray(self.lengths, dtype=np.float64) - 1.0
        times = ends[:, None] + np.atleast_1d(np.asarray(horizon, dtype=np.float64))
        with np.errstate(all="ignore"):
            last = self.factors(ends[:, None])
            size = np.abs(last).max(axis=1, initial=0.0)[:, None]  # squares neither over- nor under
            now = np.linalg.norm(last / size, axis=1)
            ratio = np.linalg.norm(self.factors(times) / size, axis=1) / now
        # At rest the ratio is 0/0: what starts at rest stays there.
        return np.where(size[:, 0] == 0.0, 1.0, np.where(np.isfinite(ratio), ratio, np.inf))

    def ahead(self, horizons: npt.NDArray[Any]) -> tuple[Any, FloatArray]:
        """x_{n+T} at horizons (T,): (S, T, m), and the growth (S, T); diverged: the last state."""
        growth = self.growth(horizons)
        ends = np.asarray(self.lengths, dtype=np.float64) - 1.0
        factors = self.factors(ends[:, None] + horizons)
        lost = ~(growth <= LIMIT)
        factors = np.where(lost[:, None], 0.0, factors)
        states = combined(self.modes, factors, self.real)
        if lost.any():
            system, time = np.nonzero(lost)
            states[system, time] = self.last[system]
        return states, growth


def combined(modes: Any, factors: ComplexArray, real: bool) -> Any:
    """Σ_j φ_j f_jt, its real part for real states: (S, T, m) of (S, m, r) and (S, r, T)."""
    if isinstance(modes, np.ndarray):
        if not real:
            return (modes @ factors).swapaxes(1, 2)
        both = np.concatenate([factors.real, -factors.imag], axis=1).swapaxes(1, 2)
        parts = np.concatenate([modes.real, modes.imag], axis=2).swapaxes(1, 2)
        return both @ parts
    on = arrays.memory(modes).upload(np.ascontiguousarray(factors))
    result = (modes @ on).swapaxes(1, 2)
    return result.real if real else result


def amplitudes(x: Any, modes: Any, eigenvalues: ComplexArray) -> tuple[ComplexArray, FloatArray]:
    """b (S, r) of series x (S, n, m), and the `independence` of the columns φ_j λ_jᵗ (S,).

    min Σ_t ‖x_t - Φ diag(b) λᵗ‖² (Jovanović, Schmid, Nichols 2014, eq. 12; with the first snapshot
    alone Schmid 2010, where its noise counts in full).
    """
    gram = arrays.host(products(modes, modes))
    powers, scale = vandermonde(eigenvalues, int(x.shape[1]))
    shared = gram * (powers.conj() @ powers.swapaxes(1, 2))
    seen = arrays.host(products(modes, x.swapaxes(1, 2)))  # φ_jᴴ x_t: (S, r, n)
    right = np.einsum("sjt,sjt->sj", powers.conj(), seen)
    b = solve(shared, right[:, :, None])
    apart = independence(shared)
    for s in np.flatnonzero(apart < STEEP):
        b[s] = by_rotations(modes[s], powers[s], arrays.host(x[s])[:, :, None])
    with np.errstate(over="ignore"):
        return b[:, :, 0] * scale, apart


def of_rows(x: Any, modes: Any, eigenvalues: ComplexArray, depth: int) -> ComplexArray:
    """b (S, n, r) of every row of x (S, n, m), least squares over it and the depth - 1 before it.

    Rows that have fewer before them make do with those.
    """
    n = int(x.shape[1])
    gram = arrays.host(products(modes, modes))
    seen = arrays.host(products(modes, x.swapaxes(1, 2)))
    found = np.empty((len(seen), n, gram.shape[1]), dtype=np.complex128)
    for k in range(min(depth, n)):  # of k + 1 rows: row k, or where that is the depth all from k on
        rows = slice(k, n if k == depth - 1 else k + 1)
        powers, _ = vandermonde(eigenvalues, k + 1)
        size = found[:, rows].shape[1]
        right = sum(powers[:, :, j, None].conj() * seen[:, :, j : j + size] for j in range(k + 1))
        shared = gram * (powers.conj() @ powers.swapaxes(1, 2))
        first = solve(shared, right)
        for s in np.flatnonzero(independence(shared) < STEEP):
            series = arrays.host(x[s if len(x) > 1 else 0]).T
            reach = np.stack([series[:, j : j + size] for j in range(k + 1)])
            first[s] = by_rotations(modes[s], powers[s], reach)
        found[:, rows] = (first * powers[:, :, -1:]).swapaxes(1, 2)
    return found


def vandermonde(eigenvalues: ComplexArray, n: int) -> tuple[ComplexArray, FloatArray]:
    """λ_jᵗ s_j (S, r, n) and s_j: at most one in magnitude, whatever grows or decays."""
    values = np.nan_to_num(eigenvalues, nan=0.0)
    size = np.abs(values)
    with np.errstate(all="ignore"):
        scale = np.where(size > 1.0, np.maximum(size, 1.0) ** (1.0 - n), 1.0)
        inverse = np.where(size > 1.0, 1.0 / values, 1.0)
    powers = np.empty((*values.shape, n), dtype=np.complex128)
    growing = size > 1.0
    step = np.where(growing, inverse, values)[:, :, None]
    powers[:] = step
    powers[:, :, 0] = 1.0
    np.cumprod(powers, axis=2, out=powers)
    if growing.any():  # backwards from the end, where they are one, up to a phase
        with np.errstate(all="ignore"):
            phase = np.where(growing, values / np.where(size > 0.0, size, 1.0), 1.0) ** (n - 1)
        powers[growing] = powers[growing][:, ::-1] * phase[growing][:, None]
    return powers, scale


def solve(gram: ComplexArray, right: ComplexArray) -> ComplexArray:
    """b (S, r, k) of gram b = right, gram Hermitian: equilibrated, with one step of refinement.

    Columns of modes past the rank are zero, and so is their b.
    """
    n = gram.shape[1]
    squares = np.einsum("sii->si", gram).real
    over = np.divide(
        1.0, np.sqrt(np.maximum(squares, 0.0)), out=np.zeros_like(squares), where=squares > 0.0
    )
    scaled = gram * over[:, :, None] * over[:, None]
    ridged = scaled.copy()
    diagonal = ridged[:, np.arange(n), np.arange(n)]
    ridged[:, np.arange(n), np.arange(n)] = np.where(
        squares > 0.0, diagonal + 8.0 * n * np.finfo(float).eps, 1.0
    )
    target = right * over[:, :, None]
    b = np.linalg.solve(ridged, target)
    b += np.linalg.solve(ridged, target - scaled @ b)
    return b * over[:, :, None]


def independence(gram: ComplexArray) -> FloatArray:
    """The least squared sine between a column and those before it, of products (S, r, r): (S,).

    The pivots of Cholesky's factor of unit columns; columns that are zero do not count.
    """
    squares = np.einsum("sii->si", gram).real
    over = np.divide(
        1.0, np.sqrt(np.maximum(squares, 0.0)), out=np.zeros_like(squares), where=squares > 0.0
    )
    rest = gram * over[:, :, None] * over[:, None]
    least = np.ones(len(gram))
    for j in range(gram.shape[1]):
        pivot = rest[:, j, j].real
        np.minimum(least, pivot, out=least, where=squares[:, j] > 0.0)
        column = rest[:, j + 1 :, j, None] / np.where(pivot > PARALLEL, pivot, 1.0)[:, None, None]
        rest[:, j + 1 :, j + 1 :] -= column * rest[:, j, None, j + 1 :]
    return np.where(np.isfinite(least), least, 0.0)


def by_rotations(modes: Any, powers: ComplexArray, x: npt.NDArray[Any]) -> ComplexArray:
    """b (r, q) with min Σ_t ‖x_t - Φ diag(b) p_t‖² of modes (m, r), powers (r, n), x (n, m, q).

    Without products, so that columns may depend on each other up to rounding.
    """
    q, triangle = np.linalg.qr(arrays.host(modes))
    columns = (triangle * powers.T[:, None]).reshape(-1, len(powers))
    right = (q.conj().T @ x).reshape(len(columns), -1)
    sizes = np.linalg.norm(columns, axis=0)
    over = np.divide(1.0, sizes, out=np.zeros_like(sizes), where=sizes > 0.0)
    b: ComplexArray = np.linalg.lstsq(columns * over, right, rcond=None)[0] * over[:, None]
    return b


def refitted(x: Any, eigenvalues: ComplexArray) -> tuple[Any, ComplexArray, FloatArray]:
    """Unit modes and amplitudes b >= 0 with min Σ_t ‖x_t - Σ_j φ_j b_j λ_jᵗ‖² over both.

    And the `independence` of the eigenvalues' powers (S,).
    """
    powers, scale = vandermonde(eigenvalues, int(x.shape[1]))
    powers = np.where(np.isnan(eigenvalues)[:, :, None], 0.0, powers)
    gram = powers @ powers.conj().swapaxes(1, 2)
    inverse = solve(gram, powers).conj().swapaxes(1, 2)
    apart = independence(gram)
    for s in np.flatnonzero(apart < STEEP):
        sizes = np.linalg.norm(powers[s], axis=1)
        over = np.divide(1.0, sizes, out=np.zeros_like(sizes), where=sizes > 0.0)
        inverse[s] = np.linalg.pinv(powers[s] * over[:, None]) * over
    modes, sizes = unit(contract(x, inverse))
    with np.errstate(over="ignore", invalid="ignore"):
        return modes, (sizes * scale).astype(np.complex128), apart


def products(modes: Any, x: Any) -> Any:
    """φ_jᴴ x_t: (S, r, T) of (S, m, r) and (S, m, T)."""
    if isinstance(modes, np.ndarray):
        adjoint = modes.conj().swapaxes(1, 2)
        if x.dtype.kind == "c":
            return adjoint @ x
        return (adjoint.real @ x) + 1j * (adjoint.imag @ x)
    adjoint = modes.conj().swapaxes(1, 2)
    return adjoint @ (x.to(adjoint.dtype) if hasattr(x, "to") else x.astype(adjoint.dtype))


def unit(modes: Any) -> tuple[Any, FloatArray]:
    """Modes of unit length, and the lengths (S, r) that they had; zero modes stay so."""
    squares = arrays.host((modes.real**2 + modes.imag**2).sum(1))
    sizes = np.sqrt(squares)
    over = np.divide(1.0, sizes, out=np.zeros_like(sizes), where=sizes > 0.0)[:, None]
    if isinstance(modes, np.ndarray):
        return modes * over, sizes
    return modes * arrays.memory(modes).upload(np.ascontiguousarray(over)), sizes
