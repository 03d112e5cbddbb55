"""What torch users write: all groups in one batched call of pinv, lstsq or Cholesky, in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

FloatArray = npt.NDArray[np.float64]


def pinv(groups: npt.NDArray[Any], horizon: int) -> FloatArray:
    """S = F⁺F' by batched pinv, to the power: F' S^{T-1} F⁺ x_n."""
    import torch

    x = torch.from_numpy(groups).double().transpose(1, 2)
    inverse = torch.linalg.pinv(x[:, :, :-1])
    step = torch.linalg.matrix_power(inverse @ x[:, :, 1:], horizon - 1)
    end: FloatArray = (x[:, :, 1:] @ (step @ (inverse @ x[:, :, -1:])))[:, :, 0].numpy()
    return end


def lstsq(groups: npt.NDArray[Any], horizon: int) -> FloatArray:
    """The affine companion coefficients by batched QR (driver gels), to the power."""
    import torch

    x, f, d = _differences(groups)
    solution = torch.linalg.lstsq(f.transpose(1, 2), d[:, -1, :, None], driver="gels").solution
    return _rolled(x, d, solution, horizon)


def cholesky(groups: npt.NDArray[Any], horizon: int) -> FloatArray:
    """The same from batched Gram matrices of differences by `cholesky_ex`, as koopcore does it."""
    import torch

    x, f, d = _differences(groups)
    factor = torch.linalg.cholesky_ex(f @ f.transpose(1, 2))[0]
    solution = torch.cholesky_solve(f @ d[:, -1, :, None], factor)
    return _rolled(x, d, solution, horizon)


def _differences(groups: npt.NDArray[Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    import torch

    x = torch.from_numpy(groups).double()
    d = x.diff(dim=1)
    return x, d[:, :-1], d


def _rolled(x: torch.Tensor, d: torch.Tensor, a: torch.Tensor, horizon: int) -> FloatArray:
    """x_n + D' Σ_{j<T} Cʲ a, by the power of [[C, 0], [C, 1]], faster than T products."""
    import torch

    batch, size = a.shape[:2]
    step = torch.diag_embed(torch.ones(batch, size - 1, dtype=x.dtype), offset=-1)
    step[:, :, -1:] = a
    both = torch.zeros(batch, 2 * size, 2 * size, dtype=x.dtype)
    both[:, :size, :size] = both[:, size:, :size] = step
    both[:, size:, size:] = torch.eye(size, dtype=x.dtype)
    power = torch.linalg.matrix_power(both, horizon - 1)
    total = (power @ torch.cat([a, a], dim=1))[:, size:]
    end: FloatArray = (x[:, -1] + (total.transpose(1, 2) @ d[:, 1:])[:, 0]).numpy()
    return end
