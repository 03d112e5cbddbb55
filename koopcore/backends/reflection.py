"""Coordinates whose first axis is the last snapshot: position and motion apart, by a reflection.

    H = I - 2vvᵀ/vᵀv,  v = last + sign(last_1) ‖last‖ e_1,  H last = -sign(last_1) ‖last‖ e_1

with the sign of zero, and of -0, positive: every backend has the same coordinates. The linear model
of small groups stands in them: its moments are then as well conditioned as the motion itself,
however far from the origin it takes place. Squares are those of ``last`` times a power of two: in
range, however far the motion has come down.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from koopcore.types import FloatArray


def reflect(rows: npt.NDArray[Any], last: npt.NDArray[Any]) -> FloatArray:
    """Rows (…, k, m) in the coordinates of ``last`` (…, m).

    Taken as H(x - last) + H last, which rounds relative to the motion, not to the position.
    """
    last = np.asarray(last, dtype=np.float64)
    scaled, unit = _in_unit(last)
    norm = _signed_norm(scaled) / unit
    z = unreflect(rows - last[..., None, :], last)
    z[..., 0] -= norm[..., None]
    return z


def unreflect(rows: npt.NDArray[Any], last: npt.NDArray[Any]) -> FloatArray:
    """H applied to rows (…, k, m); its own inverse, and the identity where ``last`` is zero."""
    v, _ = _in_unit(np.asarray(last, dtype=np.float64))
    v[..., 0] += _signed_norm(v)
    square = np.sum(v * v, axis=-1)[..., None]
    along = np.einsum("...km,...m->...k", rows, v) * (2.0 / np.where(square == 0.0, np.inf, square))
    return rows - along[..., None] * v[..., None, :]


def _in_unit(last: FloatArray) -> tuple[FloatArray, FloatArray]:
    """``last`` times a power of two that brings it near 1, and that power."""
    _, exponent = np.frexp(np.abs(last).max(axis=-1, initial=0.0))
    unit = np.ldexp(1.0, -np.clip(exponent, -1000, 1000))
    return last * unit[..., None], unit


def _signed_norm(v: FloatArray) -> FloatArray:
    norm = np.linalg.norm(v, axis=-1)
    return np.where(v[..., 0] < 0.0, -norm, norm)
