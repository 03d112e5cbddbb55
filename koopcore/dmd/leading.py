"""The leading eigenvectors of many Hermitian matrices, where few of many are wanted."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from koopcore.backends.protocol import Backend
from koopcore.dmd.eigen import eigh
from koopcore.types import FloatArray

Numbers = npt.NDArray[Any]

EXTRA = 4  # vectors iterated beside those that are wanted
ROUNDS = 12  # of four products each, before the whole decomposition is cheaper
CLOSE = 1e-11  # residual over the largest eigenvalue


def leading(matrices: Numbers, count: int, on: Backend | None = None) -> tuple[FloatArray, Numbers]:
    """The ``count`` largest eigenvalues (S, count), falling, and eigenvectors (S, n, count).

    Subspace iteration with Rayleigh-Ritz; systems that do not settle (eigenvalues without a gap,
    as of noise) are decomposed as a whole. Source: Golub & Van Loan, section 8.2.4.
    on: what may iterate all of them at once.
    """
    n = matrices.shape[1]
    width = count + EXTRA
    if n <= max(16, 3 * width):
        values, vectors = eigh(matrices)
        return values[:, :count], vectors[:, :, :count]
    native = None if on is None else on.leading(matrices, count)
    if native is not None:
        values, vectors, settled = native
        left = np.flatnonzero(~settled)
        if left.size:
            full, some = eigh(matrices[left])
            values[left], vectors[left] = full[:, :count], some[:, :, :count]
        return values, vectors
    values = np.empty((len(matrices), count))
    vectors = np.empty((len(matrices), n, count), dtype=matrices.dtype)
    size = np.einsum("sii->s", matrices).real
    scale = np.where(size > 0.0, size, 1.0)
    at = np.arange(len(matrices))
    rest = matrices / scale[:, None, None]
    y: Numbers = rest @ np.random.default_rng(0).standard_normal((n, width))
    for _ in range(ROUNDS):
        for _ in range(2):
            y = orthonormal(rest @ (rest @ y))
        image = rest @ y
        ritz, turn = eigh(hermitian(y.conj().swapaxes(1, 2) @ image))
        y, image = y @ turn, image @ turn
        error = np.abs(image[:, :, :count] - y[:, :, :count] * ritz[:, None, :count]).max(
            axis=(1, 2)
        )
        fine = error <= CLOSE * np.maximum(ritz[:, 0], np.finfo(float).tiny)
        done = at[fine]
        values[done] = ritz[fine, :count] * scale[done, None]
        vectors[done] = y[fine][:, :, :count]
        at, rest, y = at[~fine], rest[~fine], y[~fine]
        if not at.size:
            return values, vectors
    full, some = eigh(matrices[at])
    values[at], vectors[at] = full[:, :count], some[:, :, :count]
    return values, vectors


def orthonormal(y: Numbers) -> Numbers:
    """An orthonormal basis of the columns, those that are rounding left zero."""
    sizes = (
        np.sqrt((y.real**2 + y.imag**2).sum(axis=1))
        if y.dtype.kind == "c"
        else np.sqrt((y * y).sum(axis=1))
    )
    y = y * np.divide(1.0, sizes, out=np.zeros_like(sizes), where=sizes > 0.0)[:, None]
    squares, turn = eigh(hermitian(y.conj().swapaxes(1, 2) @ y))
    over = np.where(squares > 1e-14 * squares[:, :1], 1.0 / np.sqrt(np.maximum(squares, 1e-300)), 0)
    return y @ (turn * over[:, None])


def hermitian(matrices: Numbers) -> Numbers:
    """The nearest Hermitian matrices."""
    return 0.5 * (matrices + matrices.conj().swapaxes(1, 2))
