"""Coordinates with one axis along the last snapshot: position and motion apart, by a reflection.

    H = I - 2vvᵀ/vᵀv,  v = last + sign(last_p) ‖last‖ e_p,  H last = -sign(last_p) ‖last‖ e_p

with p the first of the largest entries of ``last`` in size. Any other p would be as orthogonal, but
turn the largest parameter into entry p and what stood there into its place, where rounding of the
largest is all that is left of a parameter of 1e-8 of it. With this p every coordinate is as small
as its parameter, and as accurate (the row sorting of Cox & Higham 1998 for Householder's method),
and no order of the parameters matters. The linear model of small groups stands in them: its moments
are then as well conditioned as the motion itself, however far from the origin it takes place.
Squares are those of ``last`` times a power of two: in range, however far the motion has come down.
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
    position = _position(scaled)
    return unreflect(rows - last[..., None, :], last) - (position / unit[..., None])[..., None, :]


def unreflect(rows: npt.NDArray[Any], last: npt.NDArray[Any]) -> FloatArray:
    """H applied to rows (…, k, m); its own inverse, and the identity where ``last`` is zero."""
    v, _ = _in_unit(np.asarray(last, dtype=np.float64))
    v += _position(v)
    square = np.sum(v * v, axis=-1)[..., None]
    along = np.einsum("...km,...m->...k", rows, v) * (2.0 / np.where(square == 0.0, np.inf, square))
    return rows - along[..., None] * v[..., None, :]


def _in_unit(last: FloatArray) -> tuple[FloatArray, FloatArray]:
    """``last`` times a power of two that brings it near 1, and that power."""
    _, exponent = np.frexp(np.abs(last).max(axis=-1, initial=0.0))
    unit = np.ldexp(1.0, -np.clip(exponent, -1000, 1000))
    return last * unit[..., None], unit


def _position(last: FloatArray) -> FloatArray:
    """sign(last_p) ‖last‖ e_p."""
    here = np.arange(last.shape[-1]) == np.abs(last).argmax(axis=-1)[..., None]
    norm = np.linalg.norm(last, axis=-1)[..., None]
    return np.where(here, np.where(last < 0.0, -norm, norm), 0.0)
