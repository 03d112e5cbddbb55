"""The exact K step (variable projection), by the engine's Gram, Cholesky and whitening stages."""

from __future__ import annotations

import numpy as np

from koopcore.backends import backend_for
from koopcore.learning.trajectories import Pairs
from koopcore.types import FloatArray


def exact_operator(
    features: FloatArray, pairs: Pairs, ridge: float = 0.0, rows: slice = slice(None)
) -> FloatArray:
    """K (h, h) = argmin F(W, ·) = (Σ ψ(x_{n+1}) ψ(x_n)ᵀ) (Σ ψ(x_n) ψ(x_n)ᵀ)⁺, or some rows of it.

    features: ψ of all states (M, h). ridge: Tikhonov term relative to the mean diagonal of the
    equilibrated Gram matrix. The pseudo-inverse is that of the engine's stage `project`: pivoted
    Cholesky, stopped at the rounding of the Gram matrix, so features that depend on each other
    (singular values below about 1e-8 of the largest) are left out and not amplified.
    A row of K depends on its own features ahead only: ``rows`` is what one worker solves.
    Cost: 4 N h² flops and one h³ factorization. Source: variable projection, Golub & Pereyra 1973.
    """
    now = features[pairs.current]
    ahead = features[pairs.following, rows] if rows != slice(None) else features[pairs.following]
    gram = now.T @ now
    start = np.zeros((1, len(gram)))
    whitened = backend_for("cpu").project(gram[None], gram[None], start, None, ridge, False)
    whitener: FloatArray = whitened.whitener[0]  # V with V Vᵀ = gram⁺
    return ((ahead.T @ now) @ whitener) @ whitener.T
