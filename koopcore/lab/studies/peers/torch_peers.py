"""What torch users write, in float64: batched `cholesky_ex`, `lstsq` or `pinv`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy.typing as npt
import torch

from koopcore.lab.studies.peers.powers import powered, summed
from koopcore.types import FloatArray

COLUMNS = 1 << 15  # of a large group at a time: differences in float64 that stay in a cache


def cholesky(
    groups: npt.NDArray[Any],
    horizon: int,
    each: Callable[..., Any] = map,
    *,
    affine: bool = True,
) -> FloatArray:
    """(n_groups, n, m) -> (n_groups, m): batched Gram matrices, `cholesky_ex`.

    The recurrence of the differences (linear model: of the snapshots) where there are as many
    parameters as columns, the operator of m x m elsewhere. each: `map`, or that of a pool, over
    column blocks.
    """
    x = torch.from_numpy(groups)
    m = x.shape[2]
    if m < x.shape[1] - 1 - affine:
        return _features(x, horizon, affine)
    blocks = [x[:, :, k : k + COLUMNS] for k in range(0, m, COLUMNS)]
    products = sum(each(lambda b: _products(b, affine), blocks))
    factor = torch.linalg.cholesky_ex(products[:, :, :-1])[0]
    weights = _weights(torch.cholesky_solve(products[:, :, -1:], factor), horizon, affine)
    moved = list(each(lambda b: _moved(b, weights, affine), blocks))
    end: FloatArray = torch.cat(moved, dim=1).numpy()
    return end


def lstsq(groups: npt.NDArray[Any], horizon: int, each: Callable[..., Any] = map) -> FloatArray:
    """The same coefficients by batched QR (driver gels)."""
    x = torch.from_numpy(groups)
    d = _columns(x, affine=True)
    f, newest = d[:, :-1].transpose(1, 2), d[:, -1, :, None]
    weights = _weights(torch.linalg.lstsq(f, newest, driver="gels").solution, horizon)
    end: FloatArray = (x[:, -1] + (weights @ d[:, 1:])[:, 0]).numpy()
    return end


def pinv(groups: npt.NDArray[Any], horizon: int, each: Callable[..., Any] = map) -> FloatArray:
    """The paper's U = F' F⁺ by batched `pinv`: F' S^{T-1} F⁺ x_n, S = F⁺F' of N x N."""
    x = torch.from_numpy(groups).double().transpose(1, 2)
    inverse = torch.linalg.pinv(x[:, :, :-1])
    coordinates = powered(inverse @ x[:, :, 1:], inverse @ x[:, :, -1:], horizon - 1)
    end: FloatArray = (x[:, :, 1:] @ coordinates)[:, :, 0].numpy()
    return end


def _columns(x: torch.Tensor, affine: bool) -> torch.Tensor:
    """Snapshots, or differences in the snapshots' precision, in which neighbours differ exactly."""
    return (x.diff(dim=1) if affine else x).double()


def _products(x: torch.Tensor, affine: bool) -> torch.Tensor:
    """F times all columns: the Gram matrix, and in the last column the right side."""
    d = _columns(x, affine)
    return d[:, :-1] @ d.transpose(1, 2)


def _weights(a: torch.Tensor, horizon: int, affine: bool = True) -> torch.Tensor:
    """(n_groups, 1, N) Σ_{j<T} Cʲ a, or C^{T-1} a, C the companion matrix of a."""
    step = torch.diag_embed(torch.ones(a.shape[0], a.shape[1] - 1, dtype=a.dtype), offset=-1)
    step[:, :, -1:] = a
    rolled = summed(step, a, horizon) if affine else powered(step, a, horizon - 1)
    return rolled.transpose(1, 2)


def _moved(x: torch.Tensor, weights: torch.Tensor, affine: bool) -> torch.Tensor:
    moved = (weights @ _columns(x, affine)[:, 1:])[:, 0]
    return x[:, -1] + moved if affine else moved


def _features(x: torch.Tensor, horizon: int, affine: bool) -> FloatArray:
    d = _columns(x, affine)
    f, ahead = d[:, :-1], d[:, 1:]
    transposed = f.transpose(1, 2)
    factor = torch.linalg.cholesky_ex(transposed @ f)[0]
    step = torch.cholesky_solve(transposed @ ahead, factor).transpose(1, 2)
    newest = d[:, -1, :, None]
    if affine:
        moved = x[:, -1] + summed(step, step @ newest, horizon)[:, :, 0]
    else:
        moved = powered(step, newest, horizon)[:, :, 0]
    end: FloatArray = moved.numpy()
    return end
