"""What NumPy users write: U = F' F⁺ of every group by `numpy.linalg.pinv`, then T products."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def pinv_loop(groups: npt.NDArray[Any], horizon: int) -> npt.NDArray[np.float64]:
    """(n_groups, n, m) -> (n_groups, m): one group after the other, in float64."""
    out = np.empty((groups.shape[0], groups.shape[2]))
    for state, snapshots in zip(out, groups, strict=True):
        x = snapshots.T.astype(np.float64)
        operator = x[:, 1:] @ np.linalg.pinv(x[:, :-1])
        y = x[:, -1]
        for _ in range(horizon):
            y = operator @ y
        state[:] = y
    return out


def pinv_stack(groups: npt.NDArray[Any], horizon: int) -> npt.NDArray[np.float64]:
    """The same with all groups in one call of pinv, and the small operator S = F⁺F' to a power."""
    x = np.swapaxes(groups, 1, 2).astype(np.float64)
    inverse = np.linalg.pinv(x[:, :, :-1])
    step = np.linalg.matrix_power(inverse @ x[:, :, 1:], horizon - 1)
    end: npt.NDArray[np.float64] = x[:, :, 1:] @ (step @ (inverse @ x[:, :, -1:]))
    return end[:, :, 0]
