"""Saved states are checked whole, against what is expected, before anything is written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor


def check_like(given: Any, expected: Any, where: str) -> None:
    """Raise ValueError unless ``given`` has the keys, types, shapes and dtypes of ``expected``.

    Mappings are compared key by key; of other values, and of lists, only the type counts: a whole
    number will do for a float. Whole numbers count something or are steps: none is negative, unless
    ``expected`` is, or above 2^62, and no float is NaN, unless ``expected`` is.
    where: the name of ``given`` in the message.
    """
    if isinstance(expected, Mapping):
        if not isinstance(given, Mapping):
            raise ValueError(f"{where} is {_words(given)}; a dict is needed")
        if lacking := [key for key in expected if key not in given]:
            raise ValueError(f"{where} lacks {lacking[0]!r}; it has {_listed(given)}")
        if unknown := [key for key in given if key not in expected]:
            raise ValueError(f"{where} has {unknown[0]!r}, which is not known here")
        for key, value in expected.items():
            check_like(given[key], value, f"{where}[{key!r}]")
    elif isinstance(expected, Tensor):
        same = isinstance(given, Tensor) and (given.shape, given.dtype) == (
            expected.shape,
            expected.dtype,
        )
        if not same:
            raise ValueError(f"{where} is {_words(given)}; {_words(expected)} is needed")
    else:
        accepted = (int, float) if type(expected) is float else (type(expected),)
        if type(given) not in accepted:
            raise ValueError(f"{where} is {_words(given)}; {type(expected).__name__} is needed")
        if type(expected) is int:
            check_range(given, min(0, expected), 1 << 62, where)
        elif type(expected) is float and math.isnan(given) and not math.isnan(expected):
            raise ValueError(f"{where} is nan; a number is needed")


def same(given: Any, expected: Any) -> bool:
    """Return whether a value is as expected; lists and tuples are alike, a tensor never is."""
    if isinstance(given, list | tuple) and isinstance(expected, list | tuple):
        return len(given) == len(expected) and all(map(same, given, expected))
    return not isinstance(given, Tensor) and bool(given == expected)


def restore(target: object, state: Mapping[str, Any]) -> None:
    """Set the attributes that ``state`` names; they stay floats, and lists of their own."""
    for name, value in state.items():
        now = getattr(target, name)
        if isinstance(now, float | list):
            value = type(now)(value)
        setattr(target, name, value)


def check_range(given: int, least: int, most: int, where: str) -> None:
    """Raise ValueError unless ``least <= given <= most``."""
    if not least <= given <= most:
        raise ValueError(f"{where} is {given}; {least}..{most} is possible")


def check_finite(tensors: Iterable[Tensor], where: str) -> None:
    """Raise ValueError if a tensor holds a number that is not finite."""
    for tensor in tensors:
        if not bool(tensor.isfinite().all()):
            raise ValueError(
                f"{where} holds numbers that are not finite: it was saved after the run had "
                "diverged, or altered; load an earlier one, or go on without it"
            )


def _words(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    return (
        repr(value)
        if value is None or isinstance(value, int | float | str)
        else (f"a {type(value).__name__}")
    )


def _listed(keys: Mapping[Any, Any]) -> str:
    return ", ".join(map(repr, list(keys)[:8])) or "nothing"
