"""What the settings of `koopcore.dmd` may be: errors say what was given and what is needed."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np

Rank: TypeAlias = int | float | Literal["svht"] | None


def check_whole(name: str, value: Any, least: int) -> int:
    """A whole number >= least."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} is {value!r}; a whole number >= {least} is needed")
    if value < least:
        raise ValueError(f"{name} is {value}; a whole number >= {least} is needed")
    return int(value)


def check_number(name: str, value: Any, low: float, high: float, wanted: str) -> float:
    """A real number with low < value <= high, or low = 0 = value where ``wanted`` says so."""
    number = isinstance(value, (int, float, np.integer, np.floating))
    if isinstance(value, (bool, np.bool_)) or not number:
        raise TypeError(f"{name} is {value!r}; {wanted} is needed")
    if not low <= value <= high or not np.isfinite(value):
        raise ValueError(f"{name} is {value}; {wanted} is needed")
    return float(value)


def check_flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} is {value!r}; True or False is needed")
    return bool(value)


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """One of some words."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; one of {', '.join(map(repr, choices))} is needed")
    return str(value)


def check_rank(value: Any) -> Rank:
    """An int >= 1, a fraction of the energy, "svht" or None."""
    wanted = (
        "a whole number >= 1, a fraction of the energy (0 < rank < 1), 'svht' (the optimal hard "
        "threshold) or None (all that is no rounding) is needed"
    )
    if value is None:
        return None
    if isinstance(value, str):
        if value == "svht":
            return "svht"
        raise ValueError(f"rank is {value!r}; {wanted}")
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"rank is {value!r}; {wanted}")
    if isinstance(value, (int, np.integer)):
        if value >= 1:
            return int(value)
        hint = " (PyDMD's svd_rank=0 is 'svht' here, its -1 is None)" if value in (0, -1) else ""
        raise ValueError(f"rank is {value}; {wanted}{hint}")
    if isinstance(value, (float, np.floating)):
        if 0.0 < value < 1.0:
            return float(value)
        raise ValueError(f"rank is {value}; {wanted}")
    raise TypeError(f"rank is {value!r}; {wanted}")
