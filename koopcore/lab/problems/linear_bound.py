"""How well any K of h features with a linear read-out can follow a trajectory, at best."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize

from koopcore.types import FloatArray

_STARTS = 6


def linear_bound(states: FloatArray, n_features: int, angle: float) -> float:
    """The least relative error of C Kⁿ ψ_0, n = 1 … T, over all C, K and ψ_0 of n_features reals.

    Whatever the dictionary, such a prediction is Σ_k c_k λ_kⁿ over the eigenvalues of K, h of them,
    complex ones in pairs. So the error is at least that of the best such sum, c by least squares
    and λ by Nelder-Mead from the odd harmonics of the cycle (and decays), some starts each.

    states: (T, n), T > n_features. angle: of the cycle's eigenvalue, 2π dt / period, in radians.
    Returns ‖states - best‖ / ‖states‖. The search may miss the global minimum: the number is the
    bound as far as the search went. Cost: some seconds.
    """
    n = np.arange(1, len(states) + 1)[:, None]
    pairs, reals = divmod(n_features, 2)

    def error(unknowns: FloatArray) -> float:
        turns, growths, real = np.split(unknowns, [pairs, 2 * pairs])
        waves = np.exp(growths * n)
        columns = [waves * np.cos(turns * n), waves * np.sin(turns * n), np.exp(real * n)]
        basis = np.hstack(columns)
        basis /= np.linalg.norm(basis, axis=0)
        fitted = basis @ np.linalg.lstsq(basis, states, rcond=1e-10)[0]
        return float(np.linalg.norm(fitted - states) / np.linalg.norm(states))

    rng = np.random.default_rng(0)
    harmonics = angle * (2 * np.arange(pairs) + 1)
    errors = []
    for _ in range(_STARTS):
        near = harmonics * (1.0 + 0.02 * rng.standard_normal(pairs))
        growths, decays = 1e-4 * rng.standard_normal(pairs), -(10.0 ** rng.uniform(-4, -0.5, reals))
        start = np.concatenate([near, growths, decays])
        options = {"maxiter": 4000, "xatol": 1e-9, "fatol": 1e-8}
        with np.errstate(over="ignore", invalid="ignore"):
            errors.append(minimize(error, start, method="Nelder-Mead", options=options).fun)
    return float(min(errors))
