"""What the endpoint job is compared with: torch and NumPy, as one would write them today."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch


def grouped(snapshots: torch.Tensor, groups: int, fan_in: int) -> torch.Tensor:
    """(n_groups, n, m) from rows of weights then biases, or of one group."""
    n = len(snapshots)
    if not fan_in:
        return snapshots[None]
    weights = snapshots[:, : groups * fan_in].reshape(n, groups, fan_in)
    biases = snapshots[:, groups * fan_in :, None]
    return torch.cat([weights, biases], dim=2).transpose(0, 1)


def torch_cholesky(snapshots: torch.Tensor, groups: int, fan_in: int, horizon: int) -> torch.Tensor:
    """(a): batched Gram matrices of differences, `cholesky_ex`, matrix power of the small operator.

    The affine model in float64, as koopcore computes it: on the snapshot side where the columns
    are at most the parameters, by the (m, m) operator elsewhere. Returns (n_groups, m) float64.
    """
    x = grouped(snapshots, groups, fan_in).double()
    d = x.diff(dim=1)
    f, ahead, last = d[:, :-1], d[:, 1:], x[:, -1]
    batch, columns, m = f.shape
    if columns <= m:
        factor = torch.linalg.cholesky_ex(f @ f.transpose(1, 2))[0]
        a = torch.cholesky_solve(f @ d[:, -1:].transpose(1, 2), factor)
        step = torch.diag_embed(torch.ones(batch, columns - 1, dtype=x.dtype), offset=-1)
        step[:, :, -1:] = a
        return last + (summed(step, a, horizon).transpose(1, 2) @ ahead)[:, 0]
    factor = torch.linalg.cholesky_ex(f.transpose(1, 2) @ f)[0]
    step = torch.cholesky_solve(f.transpose(1, 2) @ ahead, factor).transpose(1, 2)
    start = step @ d[:, -1:].transpose(1, 2)
    return last + summed(step, start, horizon)[:, :, 0]


def summed(step: torch.Tensor, start: torch.Tensor, horizon: int) -> torch.Tensor:
    """Σ_{j<T} Sʲ z by the powers of [[S, 0], [S, 1]], which is faster than T products."""
    size = step.shape[1]
    both = torch.zeros(len(step), 2 * size, 2 * size, dtype=step.dtype)
    both[:, :size, :size] = both[:, size:, :size] = step
    both[:, size:, size:] = torch.eye(size, dtype=step.dtype)
    power = torch.linalg.matrix_power(both, horizon - 1)
    return (power @ torch.cat([start, start], dim=1))[:, size:]


def numpy_pinv(
    snapshots: npt.NDArray[Any], groups: int, fan_in: int, horizon: int, timed: int
) -> npt.NDArray[Any]:
    """(b): U = F' pinv(F) and ``horizon`` products, for the first ``timed`` groups: (timed, m)."""
    biases = snapshots[:, groups * fan_in :]
    out = []
    for group in range(timed):
        weights = snapshots[:, group * fan_in : (group + 1) * fan_in]
        x = np.concatenate([weights, biases[:, group : group + 1]], axis=1).T.astype(np.float64)
        operator = x[:, 1:] @ np.linalg.pinv(x[:, :-1])
        state = x[:, -1]
        for _ in range(horizon):
            state = operator @ state
        out.append(state)
    return np.stack(out)


def least_squares(snapshots: npt.NDArray[Any], columns: npt.NDArray[Any], horizon: int) -> Any:
    """The affine prediction of one group by orthogonal least squares in float64: (m,)."""
    x = snapshots[:, columns].astype(np.float64)
    d = np.diff(x, axis=0)
    f, ahead = d[:-1].T, d[1:].T
    if f.shape[0] >= f.shape[1]:
        a = np.linalg.lstsq(f, d[-1], rcond=None)[0]
        c, total = a.copy(), a.copy()
        for _ in range(horizon - 1):
            c = np.append(0.0, c[:-1]) + a * c[-1]
            total += c
        return x[-1] + ahead @ total
    operator = np.linalg.lstsq(f.T, ahead.T, rcond=None)[0].T
    state, total = d[-1], np.zeros(x.shape[1])
    for _ in range(horizon):
        state = operator @ state
        total += state
    return x[-1] + total
