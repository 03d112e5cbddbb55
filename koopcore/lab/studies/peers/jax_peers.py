"""What JAX users write: one group's Cholesky solve and recurrence, vmapped and compiled."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt


def cholesky(groups: npt.NDArray[Any], horizon: int) -> npt.NDArray[np.float64]:
    """(n_groups, n, m) -> (n_groups, m) in float64; compiled at the first call of a shape."""
    import jax

    with jax.enable_x64(True):
        return np.asarray(_compiled(horizon)(groups))


@cache
def _compiled(horizon: int) -> Any:
    import jax
    import jax.numpy as jnp

    def one(snapshots: Any) -> Any:
        x = snapshots.astype(jnp.float64)
        d = jnp.diff(x, axis=0)
        f = d[:-1]
        factor = jax.scipy.linalg.cho_factor(f @ f.T, lower=True)
        a = jax.scipy.linalg.cho_solve(factor, f @ d[-1])

        def step(carry: Any, _: Any) -> Any:
            c, total = carry
            c = jnp.concatenate([jnp.zeros(1), c[:-1]]) + a * c[-1]
            return (c, total + c), None

        (_, total), _ = jax.lax.scan(step, (a, a), None, length=horizon - 1)
        return x[-1] + d[1:].T @ total

    return jax.jit(jax.vmap(one))
