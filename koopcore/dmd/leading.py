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
WEAK = 1e-2  # the same over the eigenvalue itself, which may be weaker than that


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
            y = np.linalg.qr(rest @ (rest @ y))[0]
        image = rest @ y
        ritz, turn = eigh(hermitian(y.conj().swapaxes(1, 2) @ image))
        y, image = y @ turn, image @ turn
        error = np.abs(image[:, :, :count] - y[:, :, :count] * ritz[:, None, :count]).max(axis=1)
        first = np.maximum(ritz[:, :1], np.finfo(float).tiny)
        near = np.minimum(CLOSE * first, WEAK * np.abs(ritz[:, :count]))
        fine = (error <= np.maximum(near, 4.0 * n * np.finfo(float).eps * first)).all(axis=1)
        done = at[fine]
        values[done] = ritz[fine, :count] * scale[done, None]
        vectors[done] = y[fine][:, :, :count]
        at, rest, y = at[~fine], rest[~fine], y[~fine]
        if not at.size:
            return values, vectors
    full, some = eigh(matrices[at])
    values[at], vectors[at] = full[:, :count], some[:, :, :count]
    return values, vectors


def hermitian(matrices: Numbers) -> Numbers:
    """The nearest Hermitian matrices."""
    return 0.5 * (matrices + matrices.conj().swapaxes(1, 2))
