"""What JAX users write: one group's Cholesky solve, vmapped and compiled, in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from koopcore.lab.studies.peers.powers import powered, summed
from koopcore.types import FloatArray


def cholesky(
    groups: npt.NDArray[Any],
    horizon: int,
    each: Callable[..., Any] = map,
    *,
    affine: bool = True,
) -> FloatArray:
    """(n_groups, n, m) -> (n_groups, m); compiled at the first call of a shape."""
    with jax.enable_x64(True):
        return np.asarray(_compiled(horizon, affine)(groups))


@cache
def _compiled(horizon: int, affine: bool) -> Any:
    def one(x: Any) -> Any:
        d = (jnp.diff(x, axis=0) if affine else x).astype(jnp.float64)
        f, ahead, newest = d[:-1], d[1:], d[-1][:, None]
        if f.shape[1] < f.shape[0]:
            factor = jax.scipy.linalg.cho_factor(f.T @ f, lower=True)
            step = jax.scipy.linalg.cho_solve(factor, f.T @ ahead).T
            if not affine:
                return powered(step, newest, horizon)[:, 0]
            return x[-1] + summed(step, step @ newest, horizon)[:, 0]
        factor = jax.scipy.linalg.cho_factor(f @ f.T, lower=True)
        a = jax.scipy.linalg.cho_solve(factor, f @ newest)
        step = jnp.eye(len(a), k=-1, dtype=a.dtype).at[:, -1:].set(a)
        if not affine:
            return powered(step, a, horizon - 1)[:, 0] @ ahead
        return x[-1] + summed(step, a, horizon)[:, 0] @ ahead

    return jax.jit(jax.vmap(one))
