"""Which parameter stands where in the flat vector, and which tensors form a layer and its nodes.

The flat vector is the concatenation of the parameters in the order of `model.parameters()`, each
one row-major. A partition (partition.py) turns a layout into groups of flat indices.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from math import prod
from numbers import Integral
from typing import Any

import numpy as np

from koopcore.partition.torch_module import walk
from koopcore.partition.units import Block, Tensor, Unit

_REPR_LINES = 8  # tensors listed by repr; a transformer has hundreds


@dataclass(frozen=True, repr=False)
class Layout:
    """An immutable map from parameter tensors to positions in a flat vector of length `size`.

    Attributes:
        tensors: in flat order.
        units: the layers, in the order of their first tensor.
        size: length of the flat vector, padding included (a multiple of `align`).
        left_out: (name, reason) of every parameter that is not recorded.

    Build one with `from_shapes` or `from_module`. Equal layouts have equal tensors, units and
    size. Do not use one layout for two models whose parameters differ in order: compare
    `fingerprint()` when a checkpoint comes back.
    """

    tensors: tuple[Tensor, ...]
    units: tuple[Unit, ...]
    size: int
    align: int = field(default=1, compare=False)
    left_out: tuple[tuple[str, str], ...] = field(default=(), compare=False)

    @classmethod
    def from_shapes(cls, shapes: Iterable[Sequence[Any]], *, align: int = 1) -> Layout:
        """Layout of a chain of fully connected layers: w1, b1, w2, b2, ...

        Args:
            shapes: (fan_out, fan_in, bias) per layer; weights are (fan_out, fan_in), row-major,
                as in a torch `Sequential` of `Linear`, whose names ("0.weight", "0.bias", ...)
                are used.
            align: every tensor starts at a multiple of `align` parameters (32 in the training
                ring).

        Raises TypeError or ValueError on anything but triples of two positive ints and a bool.
        """
        named: list[tuple[str, tuple[int, ...]]] = []
        units: list[Unit] = []
        for i, shape in enumerate(shapes):
            fan_out, fan_in, bias = _checked_triple(i, shape)
            first = len(named)
            named.append((f"{i}.weight", (fan_out, fan_in)))
            if bias:
                named.append((f"{i}.bias", (fan_out,)))
            blocks = tuple(Block(k) for k in range(first, len(named)))
            units.append(Unit(str(i), fan_out, blocks))
        if not named:
            raise ValueError(
                "shapes is empty; give at least one layer as (fan_out, fan_in, bias), "
                "for example [(10, 1, True), (2, 10, True)]"
            )
        tensors, size = place(named, align)
        return cls(tensors, tuple(units), size, align)

    @classmethod
    def from_module(
        cls,
        model: Any,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        align: int = 1,
    ) -> Layout:
        """Layout of the trainable floating-point parameters of a `torch.nn.Module`.

        Args:
            model: any module; nodes follow the module's own kind (see torch_module.py).
            include, exclude: fnmatch patterns on parameter names (``encoder.*``, ``*.bias``); a
                parameter is recorded if it matches an include pattern (or there are none) and
                no exclude one.
            align: every tensor starts at a multiple of `align` parameters.

        Tied parameters stand once, under their first name; complex ones are pairs of real numbers,
        a last axis of 2; frozen, integer and empty ones are left out and listed in `left_out`.
        Only shapes are read: a model on the meta device will do. Raises TypeError if `model` is
        no module, ValueError if a lazy parameter has no shape yet, an include pattern matches
        nothing, or nothing remains to record.
        """
        positive_int(align, "align")
        named, units, left_out = walk(
            model, _patterns("include", include), _patterns("exclude", exclude)
        )
        tensors, size = place(named, align)
        return cls(tensors, units, size, align, left_out)

    @cached_property
    def n_parameters(self) -> int:
        """The number of recorded parameters, padding not counted."""
        return sum(t.size for t in self.tensors)

    def match(self, pattern: str) -> tuple[int, ...]:
        """Positions of the tensors whose name matches the fnmatch `pattern`; ValueError if none."""
        found = tuple(i for i, t in enumerate(self.tensors) if fnmatchcase(t.name, pattern))
        if not found:
            raise ValueError(
                f"the pattern {pattern!r} matches no tensor of the layout; "
                f"its tensors are {_listed([t.name for t in self.tensors])}"
            )
        return found

    def find_units(self, layer: int | str) -> tuple[int, ...]:
        """Positions in `units` of a layer given by position or by name (fnmatch pattern)."""
        names = [u.name for u in self.units]
        if isinstance(layer, str):
            found = tuple(i for i, name in enumerate(names) if fnmatchcase(name, layer))
            if found:
                return found
        elif not is_int(layer):
            raise TypeError(f"layer {layer!r} is neither a position (int) nor a name (str)")
        elif 0 <= layer < len(names):
            return (int(layer),)
        raise ValueError(
            f"there is no layer {layer!r}; the layout has {len(names)}, counted from 0: "
            f"{_listed(names)}"
        )

    def fingerprint(self) -> str:
        """A short string equal exactly for equal layouts, stable across processes and versions."""
        content = [
            self.size,
            [[t.name, t.shape, t.offset] for t in self.tensors],
            [
                [u.name, u.n_nodes, [[b.tensor, b.axis, b.groups, b.first] for b in u.blocks]]
                for u in self.units
            ],
        ]
        text = json.dumps(content, separators=(",", ":"))
        return "layout1-" + hashlib.sha256(text.encode()).hexdigest()[:32]

    def __repr__(self) -> str:
        lines = [
            f"<Layout: {self.n_parameters} parameters in {len(self.tensors)} tensors, "
            f"{len(self.units)} layers, flat size {self.size}"
        ]
        lines += [f"  {t.offset:>10}  {t.name} {t.shape}" for t in self.tensors[:_REPR_LINES]]
        if len(self.tensors) > _REPR_LINES:
            lines.append(f"  ... {len(self.tensors) - _REPR_LINES} more tensors")
        lines += [f"  left out: {name} ({why})" for name, why in self.left_out[:_REPR_LINES]]
        if len(self.left_out) > _REPR_LINES:
            lines.append(f"  left out: {len(self.left_out) - _REPR_LINES} more")
        return "\n".join(lines) + ">"


def place(
    named: Iterable[tuple[str, tuple[int, ...]]], align: int
) -> tuple[tuple[Tensor, ...], int]:
    """Tensors one behind the other, each start and the end rounded up to a multiple of `align`."""
    step = positive_int(align, "align")
    tensors: list[Tensor] = []
    offset = 0
    for name, shape in named:
        size = prod(shape)
        tensors.append(Tensor(name, shape, offset, size))
        offset += -(-size // step) * step
    return tuple(tensors), offset


def is_int(value: Any) -> bool:
    """Whether the value is an integer of any library; a bool is not one."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def positive_int(value: Any, what: str) -> int:
    """The value as an int, or an error that says what it is: a count of parameters, at least 1."""
    if not is_int(value):
        raise TypeError(f"{what} is {value!r}; give an int >= 1, counted in parameters")
    if value < 1:
        raise ValueError(f"{what} is {value}; give an int >= 1, counted in parameters")
    return int(value)


def _checked_triple(i: int, shape: Any) -> tuple[int, int, bool]:
    wanted = "each layer is (fan_out, fan_in, bias) with two ints >= 1 and a bool"
    if isinstance(shape, str | bytes) or not isinstance(shape, Sequence | np.ndarray):
        raise TypeError(f"shapes[{i}] is {shape!r}; {wanted}")
    if len(shape) != 3:
        raise ValueError(f"shapes[{i}] has {len(shape)} entries: {shape!r}; {wanted}")
    fan_out, fan_in, bias = shape
    for name, value in (("fan_out", fan_out), ("fan_in", fan_in)):
        if not is_int(value):
            raise TypeError(f"{name} of shapes[{i}] is {value!r}; {wanted}")
        if value < 1:
            raise ValueError(f"{name} of shapes[{i}] is {value}; {wanted}")
    if not isinstance(bias, bool | np.bool_):
        raise TypeError(f"bias of shapes[{i}] is {bias!r}; {wanted}")
    return int(fan_out), int(fan_in), bool(bias)


def _patterns(argument: str, value: str | Sequence[str] | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    patterns = (value,) if isinstance(value, str) else tuple(value)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(
                f"{argument} holds {pattern!r}; give fnmatch patterns on parameter names, "
                "such as 'encoder.*' or ['*.weight', '*.bias']"
            )
    return patterns


def _listed(names: Sequence[str], most: int = 6) -> str:
    shown = ", ".join(repr(n) for n in names[:most])
    return shown if len(names) <= most else f"{shown}, ... ({len(names)} in all)"
