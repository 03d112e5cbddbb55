"""What eigenvalues say: growth rates, frequencies, and the distance from the unit circle."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def growth_rates(eigenvalues: npt.ArrayLike, dt: float = 1.0) -> npt.NDArray[np.float64]:
    """log|λ|/dt: the exponential rate of a mode's amplitude, in 1/unit of dt.

    Args:
        eigenvalues: any shape, complex, one step of ``dt`` (for optimizer steps: dt = stride).

    Zero eigenvalues have the rate -inf. Raises ValueError for a dt that is not positive.

    Source: Dogra & Redman 2020, section 2; MATH of dynamic mode decomposition (Tu et al. 2014).
    """
    magnitude = np.abs(np.asarray(eigenvalues))
    with np.errstate(divide="ignore"):
        rates: npt.NDArray[np.float64] = np.log(magnitude) / _positive(dt)
    return rates


def frequencies(eigenvalues: npt.ArrayLike, dt: float = 1.0) -> npt.NDArray[np.float64]:
    """arg λ/(2π dt): cycles per unit of dt, in [-1/(2dt), 1/(2dt)]. Zero for a real positive λ."""
    return np.angle(np.asarray(eigenvalues)) / (2.0 * np.pi * _positive(dt))


def unit_circle_distance(eigenvalues: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """max over the last axis of | |λ| - 1 |, NaN entries left out.

    All eigenvalues on the unit circle indicate that the basin has been reached (Dogra & Redman
    2020, section 6). A group without eigenvalues has distance 0. Not for noisy windows: noise
    pulls estimated eigenvalues inside the circle (Dawson et al. 2016).
    """
    distance = np.abs(np.abs(np.asarray(eigenvalues)) - 1.0)
    return np.max(np.nan_to_num(distance, nan=0.0), axis=-1, initial=0.0)


def amplitudes(modes: npt.NDArray[Any], state: npt.ArrayLike) -> npt.NDArray[np.complex128]:
    """Least-squares amplitudes b of ``state`` (m,) on ``modes`` (m, r): state ≈ modes @ b."""
    target = np.asarray(state, dtype=np.complex128)
    return np.linalg.lstsq(modes.astype(np.complex128), target, rcond=None)[0].astype(np.complex128)


def _positive(dt: float) -> float:
    if not dt > 0.0:
        raise ValueError(f"dt is {dt}; a positive time between snapshots is needed")
    return float(dt)
