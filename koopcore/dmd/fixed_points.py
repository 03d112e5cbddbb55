"""Where a series is going: the state that a linear iteration does not move, by a few steps."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from koopcore import arrays
from koopcore.backends import backend_for
from koopcore.dmd.algebra.columns import gram, lift
from koopcore.dmd.algebra.eigen import eigh
from koopcore.dmd.checks import check_number
from koopcore.dmd.estimator import in_parts, padded
from koopcore.dmd.series import Series, read
from koopcore.types import FloatArray


class FixedPoint(NamedTuple):
    """What `fixed_point` found."""

    state: Any  # (features,), or (systems, features), in the kind of the series
    residual: Any  # ‖f(x∞) - x∞‖/‖newest step‖, without a unit: a float, or (systems,)


def fixed_point(X: Any, ridge: float = 1e-10, backend: str | None = None) -> FixedPoint:
    """The state x∞ = f(x∞) of an iteration x_{t+1} = f(x_t) that was seen for some steps.

    Reduced rank extrapolation in Gram terms: of the steps d_t = x_{t+1} - x_t the combination
    Σ c_t d_t with Σ c_t = 1 is made as short as it can be, and x∞ = Σ c_t x_{t+1}. The limit of an
    affine model without its eigenvalues, so where f is affine and n - 2 >= its degree it is exact,
    also where f is unstable.

    Args:
        X: (time, features), or (systems, time, features), each on its own: at least three
            snapshots. NumPy, torch, CuPy, pandas or xarray; real or complex.
        ridge: Tikhonov term beside the largest eigenvalue of dᴴd: 0 for reduced rank extrapolation
            (Mešina 1977; Eddy 1979); regularized nonlinear acceleration beyond (Scieur,
            d'Aspremont, Bach 2016). More where f is curved, or where there is noise.
        backend: a name of `koopcore.available_backends()`; None takes the first that runs.

    Returns `FixedPoint`. Its ``residual`` is of the linear model, beside the newest step, in no
    unit: 1e-8 says that x∞ moves by 1e-8 of what the series moved last (which, of a series that
    has nearly arrived, is itself small), 1 that nothing was gained. A series at rest stays there.

    Raises TypeError or ValueError for what is no series, NaN (with its place), fewer than three
    snapshots, a list of trajectories.

    Cost: one Gram matrix of the steps, n² m, and one read for the combination. Of a series that
    oscillates for ever it is the centre, where the series never comes. Not for one that drifts,
    whose residual is near one, nor for noise as large as the steps, where their mean is better.
    Of more steps than features some combination always vanishes: a small residual says nothing.

    Source: Smith, Ford, Sidi 1987, eq. 2.16; docs/mathematics.md.
    """
    ridge = check_number("ridge", ridge, 0.0, np.inf, "a finite number >= 0")
    series = read(X)
    series.warn_if_uneven()
    if len(series.lengths) > 1 or series.kind.trajectories:
        raise ValueError("fixed_point takes one series a system; a list was given")
    n, m = (int(size) for size in series.array.shape[1:])
    if n < 3:
        raise ValueError(
            f"a series has {n} snapshot{'s' * (n != 1)} (n_samples = {n}); a fixed point needs 3: "
            "two steps"
        )
    parts = in_parts(lambda part: _part(part, ridge, backend), series, 4 * n * n + n * m)
    state = padded([part[0] for part in parts], 0.0)
    residual = np.concatenate([part[1] for part in parts])
    one = series.kind.systems
    return FixedPoint(series.kind.give(state), residual if one else float(residual[0]))


def _part(series: Series, ridge: float, backend: str | None) -> tuple[Any, FloatArray]:
    series, scale = series.in_range()
    steps = series.differences()
    products = gram(steps, backend_for(series.device, backend))
    squares, v = eigh(products)
    largest = np.maximum(squares[:, :1], 0.0)
    count = products.shape[1]
    # A Gram matrix does not see below rounding of its largest eigenvalue.
    floor = max(ridge, 4.0 * count * np.finfo(float).eps)
    with np.errstate(invalid="ignore", divide="ignore"):
        damped = np.where(largest > 0.0, np.maximum(squares, 0.0) / largest + floor, 1.0)
    sums = v.conj().sum(axis=1)  # Vᴴ 1
    z = np.einsum("sik,sk->si", v, sums / damped)
    c = z / z.sum(axis=1, keepdims=True)
    left = np.einsum("si,sij,sj->s", c.conj(), products, c).real
    newest = products[:, -1, -1].real
    residual = np.sqrt(
        np.divide(np.maximum(left, 0.0), newest, out=np.zeros_like(left), where=newest > 0.0)
    )
    state = lift(series.array, np.arange(1, count + 1), c[:, :, None])[:, :, 0]
    factor = scale[:, None]
    return state * (
        factor if isinstance(state, np.ndarray) else arrays.memory(state).upload(factor)
    ), residual
