"""What tests of learning share: a linear system to learn, and the paper's sums point by point."""

from itertools import pairwise

import numpy as np


def rotation(n: int = 60, angle: float = 0.3, shrink: float = 0.98) -> np.ndarray:
    """States (n, 2) of x_{k+1} = shrink R(angle) x_k from (1, 0)."""
    steps = np.arange(n)[:, None]
    return shrink**steps * np.hstack([np.cos(angle * steps), np.sin(angle * steps)])


def by_points(
    w: np.ndarray, k: np.ndarray, trajectories: list[np.ndarray]
) -> tuple[float, np.ndarray, np.ndarray]:
    """F, ∇_K and ∇_W of MATH section 4, one pair of points at a time, for σ = tanh."""
    value, slope_k, slope_w, count = 0.0, np.zeros_like(k), np.zeros_like(w), 0
    for x in trajectories:
        for now, ahead in pairwise(x):
            psi, psi_ahead = np.tanh(w @ now), np.tanh(w @ ahead)
            e = psi_ahead - k @ psi
            value += e @ e
            slope_k -= 2.0 * np.outer(e, psi)
            slope_w += 2.0 * np.outer(e * (1.0 - psi_ahead**2), ahead)
            slope_w -= 2.0 * np.outer((k.T @ e) * (1.0 - psi**2), now)
            count += 1
    return value / count, slope_k / count, slope_w / count
