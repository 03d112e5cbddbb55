"""What saved states may hold: a schema, by which they are checked before anything is written.

A schema is a dict of schemas by key, a tuple of one schema for each entry, :class:`Several` of one
schema, a tensor (of the same shape and dtype, all numbers finite), or a :class:`Leaf`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

#: Whole numbers count something, or are steps: none is larger.
MOST = 1 << 62


@dataclass(frozen=True)
class Leaf:
    """A value that ``accepts`` takes; words: what that is, "a whole number 0..5"."""

    accepts: Callable[[Any], bool]
    words: str


@dataclass(frozen=True)
class Several:
    """A list or tuple of ``least`` to ``most`` entries, each by the schema ``of``."""

    of: Schema
    least: int = 0
    most: int = MOST


Schema: TypeAlias = "Mapping[str, Schema] | tuple[Schema, ...] | Several | Leaf | Tensor"


def whole(least: int = 0, most: int = MOST) -> Leaf:
    """Return the leaf of whole numbers from ``least`` to ``most``; True and 3.0 are none."""
    words = f"a whole number {least}..{most}" if least < most else str(least)
    if most == MOST:
        words = f"a whole number >= {least}"
    return Leaf(lambda v: type(v) is int and least <= v <= most, words)


def number(
    least: float = -math.inf, most: float = math.inf, *, infinite: bool = False, nan: bool = False
) -> Leaf:
    """Return the leaf of numbers from ``least`` to ``most``, whole ones too; True is none."""
    bounds = [f">= {least:g}"] * (least > -math.inf) + [f"<= {most:g}"] * (most < math.inf)
    words = " and ".join(["a number", *bounds]).replace("number and", "number")
    words = words + ", inf" * infinite + ", nan" * nan

    def accepts(value: Any) -> bool:
        if type(value) not in (int, float):
            return False
        if value != value:
            return nan
        finite = abs(value) <= sys.float_info.max  # of whole numbers of any length
        return least <= value <= most and (infinite or finite)

    return Leaf(accepts, words)


def one_of(*values: Any) -> Leaf:
    """Return the leaf of these values alone, lists and tuples alike."""
    return Leaf(lambda v: any(same(v, value) for value in values), ", ".join(map(repr, values)))


def or_none(leaf: Leaf) -> Leaf:
    """Return the leaf that takes None as well."""
    return Leaf(lambda v: v is None or leaf.accepts(v), f"{leaf.words}, None")


FLAG = Leaf(lambda v: type(v) is bool, "True or False")
TEXT = Leaf(lambda v: type(v) is str, "a string")
BYTES = Leaf(lambda v: type(v) is bytes, "bytes")
#: What is looked into later.
PART = Leaf(lambda v: isinstance(v, Mapping), "a dict")


def check(given: Any, schema: Schema, where: str) -> None:
    """Raise ValueError, which names key, value and what is accepted, unless ``given`` fits.

    where: the name of ``given`` in the message.
    """
    if isinstance(schema, Leaf):
        if not schema.accepts(given):
            raise ValueError(f"{where} is {_words(given)}; {schema.words} is needed")
    elif isinstance(schema, Tensor):
        _check_tensor(given, schema, where)
    elif isinstance(schema, Mapping):
        check(given, PART, where)
        if lacking := [key for key in schema if key not in given]:
            raise ValueError(f"{where} lacks {lacking[0]!r}; it has {_listed(given)}")
        if unknown := [key for key in given if key not in schema]:
            raise ValueError(f"{where} has {unknown[0]!r}, which is not known here")
        for key, part in schema.items():
            check(given[key], part, f"{where}[{key!r}]")
    else:
        least, most = (
            (schema.least, schema.most)
            if isinstance(schema, Several)
            else (len(schema), len(schema))
        )
        if not isinstance(given, list | tuple):
            raise ValueError(f"{where} is {_words(given)}; a list is needed")
        if not least <= len(given) <= most:
            needed = f"{least}" if least == most else f"{least}..{most}"
            if most == MOST:
                needed = f"{least} or more"
            raise ValueError(f"{where} is {_words(given)}; {needed} entries are needed")
        for k, value in enumerate(given):
            part = schema.of if isinstance(schema, Several) else schema[k]
            check(value, part, f"{where}[{k}]")


def _check_tensor(given: Any, like: Tensor, where: str) -> None:
    if not isinstance(given, Tensor) or (given.shape, given.dtype) != (like.shape, like.dtype):
        raise ValueError(f"{where} is {_words(given)}; {_words(like)} is needed")
    held: Tensor = getattr(given, "_local_tensor", given)
    if not bool(held.isfinite().all()):
        raise ValueError(
            f"{where} holds numbers that are not finite; only finite ones are accepted: it was "
            "saved after the run had diverged, or altered; load an earlier one, or go on without it"
        )


def same(given: Any, expected: Any) -> bool:
    """Return whether a value is as expected; lists and tuples are alike, a tensor never is."""
    if isinstance(given, list | tuple) and isinstance(expected, list | tuple):
        return len(given) == len(expected) and all(map(same, given, expected))
    if isinstance(given, Tensor) or isinstance(given, bool) != isinstance(expected, bool):
        return False
    return bool(given == expected)


def restore(target: object, state: Mapping[str, Any]) -> None:
    """Set the attributes that ``state`` names; they stay floats, and lists of their own."""
    for name, value in state.items():
        now = getattr(target, name)
        if isinstance(now, float | list):
            value = type(now)(value)
        setattr(target, name, value)


def _words(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if value is None or isinstance(value, int | float | str):
        return repr(value)
    if isinstance(value, list | tuple) and len(repr(value)) < 80:
        return repr(value)
    size = f" of {len(value)} entries" if hasattr(value, "__len__") else ""
    return f"a {type(value).__name__}{size}"


def _listed(keys: Mapping[Any, Any]) -> str:
    return ", ".join(map(repr, list(keys)[:8])) or "nothing"
