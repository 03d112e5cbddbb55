"""Gram matrices and companion coefficients of a block of groups at a time, in the cache."""

from __future__ import annotations

import numpy as np

from koopcore.backends.numba_kernels.compiled import kernel
from koopcore.backends.numba_kernels.gram import gram_range
from koopcore.backends.numba_kernels.simd import WIDTH
from koopcore.backends.numba_kernels.solve import solve_range

BLOCK = 8 * WIDTH  # groups; 70 KiB of Gram matrices of 16 snapshots, where a vector has 8 lanes


@kernel
def gram_solve_range(memory, rows, step, pointer, start, length, stride, affine, holdout,
                     tolerance, low, high, result):
    """Groups low .. high - 1 of ``result``, a Companion as a tuple."""
    n = len(rows)
    gram = np.empty((BLOCK, n * (n + 1) // 2))
    for first in range(low, high, BLOCK):
        count = min(BLOCK, high - first)
        gram_range(memory, rows, step, pointer, start, length, stride, first, first + count, gram)
        solve_range(gram, n, affine, holdout, tolerance, 0, count, first, result)
