"""Numbers that learning accepts, or an error that names what was given."""

from __future__ import annotations

import numpy as np


def whole(name: str, number: object, least: int = 1) -> int:
    """``number`` as an int >= ``least``; TypeError or ValueError otherwise."""
    if isinstance(number, bool) or not isinstance(number, (int, np.integer)):
        raise TypeError(f"{name} is {number!r}; a whole number >= {least} is needed")
    if number < least:
        raise ValueError(f"{name} is {number}; a whole number >= {least} is needed")
    return int(number)


def not_negative(name: str, number: float) -> None:
    """Raise ValueError unless ``number`` is finite and >= 0."""
    if not 0.0 <= number < np.inf:
        raise ValueError(f"{name} is {number}; a finite number >= 0 is needed")


def positive(name: str, number: float) -> None:
    """Raise ValueError unless ``number`` is finite and > 0."""
    if not 0.0 < number < np.inf:
        raise ValueError(f"{name} is {number}; a finite number > 0 is needed")


def positive_seconds(name: str, number: float) -> None:
    """Raise ValueError unless ``number`` is a time > 0; infinity is one."""
    if not number > 0.0:
        raise ValueError(f"{name} is {number}; seconds > 0 are needed")
