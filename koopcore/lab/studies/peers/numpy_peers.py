"""What NumPy users write, in float64: Gram matrices of differences, or the paper's F⁺."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from koopcore.lab.studies.peers.powers import powered, summed
from koopcore.types import FloatArray

COLUMNS = 1 << 15  # of a large group at a time: differences in float64 that stay in a cache


def gram_stack(
    groups: npt.NDArray[Any], horizon: int, each: Callable[..., Any] = map
) -> FloatArray:
    """(n_groups, n, m) -> (n_groups, m): batched Gram matrices, `solve`, powers by doubling.

    The affine model: the recurrence of the differences where there are as many parameters as
    columns, the operator of m x m elsewhere. each: `map`, or that of a pool, over column blocks.
    """
    m = groups.shape[2]
    if m < groups.shape[1] - 2:
        return _features(groups, horizon)
    blocks = [groups[:, :, k : k + COLUMNS] for k in range(0, m, COLUMNS)]
    products = sum(each(_products, blocks))
    a = np.linalg.solve(products[:, :, :-1], products[:, :, -1:])
    step = np.zeros((len(a), a.shape[1], a.shape[1]))
    below = np.arange(a.shape[1] - 1)
    step[:, below + 1, below] = 1.0
    step[:, :, -1:] = a
    weights = summed(step, a, horizon).swapaxes(1, 2)
    return np.concatenate(list(each(lambda block: _moved(block, weights), blocks)), axis=1)


def gram_loop(groups: npt.NDArray[Any], horizon: int, each: Callable[..., Any] = map) -> FloatArray:
    """The same, one group after the other: a BLAS product and a LAPACK solve for each."""
    return np.concatenate([gram_stack(group[None], horizon, each) for group in groups])


def _differences(groups: npt.NDArray[Any]) -> FloatArray:
    """In the snapshots' precision, in which neighbouring snapshots differ exactly, or nearly so."""
    return np.diff(groups, axis=1).astype(np.float64)


def _products(groups: npt.NDArray[Any]) -> FloatArray:
    """F'ᵀ times all differences: the Gram matrix, and in the last column the right side."""
    d = _differences(groups)
    products: FloatArray = d[:, :-1] @ d.swapaxes(1, 2)
    return products


def _moved(groups: npt.NDArray[Any], weights: FloatArray) -> FloatArray:
    moved: FloatArray = groups[:, -1] + (weights @ _differences(groups)[:, 1:])[:, 0]
    return moved


def _features(groups: npt.NDArray[Any], horizon: int) -> FloatArray:
    d = _differences(groups)
    f, ahead = d[:, :-1], d[:, 1:]
    transposed = f.swapaxes(1, 2)
    step = np.linalg.solve(transposed @ f, transposed @ ahead).swapaxes(1, 2)
    start = step @ d[:, -1, :, None]
    end: FloatArray = groups[:, -1] + summed(step, start, horizon)[:, :, 0]
    return end


def pinv_stack(
    groups: npt.NDArray[Any], horizon: int, each: Callable[..., Any] = map
) -> FloatArray:
    """The paper's U = F' F⁺ by stacked `pinv`: F' S^{T-1} F⁺ x_n, S = F⁺F' of N x N."""
    x = np.swapaxes(groups, 1, 2).astype(np.float64)
    inverse = np.linalg.pinv(x[:, :, :-1])
    coordinates = powered(inverse @ x[:, :, 1:], inverse @ x[:, :, -1:], horizon - 1)
    end: FloatArray = x[:, :, 1:] @ coordinates
    return end[:, :, 0]


def pinv_loop(groups: npt.NDArray[Any], horizon: int, each: Callable[..., Any] = map) -> FloatArray:
    """The same, one group after the other."""
    return np.concatenate([pinv_stack(group[None], horizon) for group in groups])
