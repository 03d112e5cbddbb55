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
    groups: npt.NDArray[Any],
    horizon: int,
    each: Callable[..., Any] = map,
    *,
    affine: bool = True,
) -> FloatArray:
    """(n_groups, n, m) -> (n_groups, m): batched Gram matrices, `solve`, powers by doubling.

    The recurrence of the differences (linear model: of the snapshots) where there are as many
    parameters as columns, the operator of m x m elsewhere. each: `map`, or that of a pool, over
    column blocks.
    """
    m = groups.shape[2]
    if m < groups.shape[1] - 1 - affine:
        return _features(groups, horizon, affine)
    blocks = [groups[:, :, k : k + COLUMNS] for k in range(0, m, COLUMNS)]
    products = sum(each(lambda block: _products(block, affine), blocks))
    a = np.linalg.solve(products[:, :, :-1], products[:, :, -1:])
    step = np.zeros((len(a), a.shape[1], a.shape[1]))
    below = np.arange(a.shape[1] - 1)
    step[:, below + 1, below] = 1.0
    step[:, :, -1:] = a
    rolled = summed(step, a, horizon) if affine else powered(step, a, horizon - 1)
    weights = rolled.swapaxes(1, 2)
    return np.concatenate(list(each(lambda block: _moved(block, weights, affine), blocks)), axis=1)


def gram_loop(
    groups: npt.NDArray[Any],
    horizon: int,
    each: Callable[..., Any] = map,
    *,
    affine: bool = True,
) -> FloatArray:
    """The same, one group after the other: a BLAS product and a LAPACK solve for each."""
    return np.concatenate(
        [gram_stack(group[None], horizon, each, affine=affine) for group in groups]
    )


def _columns(groups: npt.NDArray[Any], affine: bool) -> FloatArray:
    """Snapshots, or differences in the snapshots' precision, in which neighbours differ exactly."""
    return (np.diff(groups, axis=1) if affine else groups).astype(np.float64)


def _products(groups: npt.NDArray[Any], affine: bool) -> FloatArray:
    """F'ᵀ times all columns: the Gram matrix, and in the last column the right side."""
    d = _columns(groups, affine)
    products: FloatArray = d[:, :-1] @ d.swapaxes(1, 2)
    return products


def _moved(groups: npt.NDArray[Any], weights: FloatArray, affine: bool) -> FloatArray:
    moved: FloatArray = (weights @ _columns(groups, affine)[:, 1:])[:, 0]
    return groups[:, -1] + moved if affine else moved


def _features(groups: npt.NDArray[Any], horizon: int, affine: bool) -> FloatArray:
    d = _columns(groups, affine)
    f, ahead = d[:, :-1], d[:, 1:]
    transposed = f.swapaxes(1, 2)
    step = np.linalg.solve(transposed @ f, transposed @ ahead).swapaxes(1, 2)
    newest = d[:, -1, :, None]
    if not affine:
        return powered(step, newest, horizon)[:, :, 0]
    end: FloatArray = groups[:, -1] + summed(step, step @ newest, horizon)[:, :, 0]
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
