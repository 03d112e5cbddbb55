"""Groups given by hand: index arrays, slices and tensor-name patterns, read into segments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any

import numpy as np

from koopcore.partition.layout import Layout, is_int, positive_int
from koopcore.partition.segments import Index, Segments, runs

_ACCEPTED = "a 1-D integer array, a slice or range with a step >= 1, or a tensor-name pattern"


def read_groups(layout_or_size: Layout | int, groups: Iterable[Any]) -> tuple[int, Segments]:
    """The flat size and the groups as segments, every index checked to lie in the flat vector."""
    layout = layout_or_size if isinstance(layout_or_size, Layout) else None
    size = layout.size if layout is not None else _checked_size(layout_or_size)
    arrays: list[Index] = []
    array_groups: list[int] = []
    spans: list[tuple[int, int, int, int]] = []  # (group, start, length, stride)
    given = _listed_groups(groups)
    for g, group in enumerate(given):
        if isinstance(group, str):
            spans += [(g, *span) for span in _tensors(layout, g, group)]
        elif isinstance(group, slice | range):
            spans.append((g, *_span(g, group, size)))
        else:
            arrays.append(_array(g, group))
            array_groups.append(g)
    pieces = [_from_spans(spans)] if spans else []
    if arrays:
        pieces.append(_from_arrays(arrays, np.array(array_groups, dtype=np.int64), size))
    owner, start, length, stride = (np.concatenate(column) for column in zip(*pieces, strict=True))
    ptr = np.concatenate(([0], np.cumsum(np.bincount(owner, minlength=len(given)))))
    if len(pieces) > 1:  # each piece is in the order of the groups; together they are not
        order = np.argsort(owner, kind="stable")
        start, length, stride = start[order], length[order], stride[order]
    return size, Segments(ptr.astype(np.int64), start, length, stride)


def _listed_groups(groups: Any) -> list[Any]:
    wrong = isinstance(groups, str | bytes | slice | Mapping | Integral)
    if wrong or not isinstance(groups, Iterable):
        raise TypeError(
            f"groups is {type(groups).__name__}; give a sequence with one entry per group, each "
            f"{_ACCEPTED} (a single group still stands in a list)"
        )
    listed = list(groups)
    if not listed:
        raise ValueError(f"groups is empty; give at least one group: {_ACCEPTED}")
    return listed


def _checked_size(size: Any) -> int:
    if not is_int(size):
        raise TypeError(
            f"Partition.groups got {type(size).__name__} as its first argument; give a Layout or "
            "the length of the flat vector (an int >= 1)"
        )
    return positive_int(size, "the length of the flat vector")


def _tensors(layout: Layout | None, g: int, pattern: str) -> list[tuple[int, int, int]]:
    if layout is None:
        raise TypeError(
            f"group {g} is the pattern {pattern!r}, but a length knows no tensor names; "
            "pass a Layout as the first argument"
        )
    found = (layout.tensors[i] for i in layout.match(pattern))
    return [(t.offset, t.size, 1) for t in found]


def _span(g: int, group: slice | range, size: int) -> tuple[int, int, int]:
    for bound in (group.start, group.stop, group.step):
        if bound is not None and not is_int(bound):
            raise TypeError(f"group {g} is {group}; its bounds must be ints or None")
    start = 0 if group.start is None else int(group.start)
    stop = size if group.stop is None else int(group.stop)
    step = 1 if group.step is None else int(group.step)
    if step < 1:
        raise ValueError(f"group {g} is {group}; its step must be >= 1")
    if start < 0 or stop < 0 or stop > size:
        raise ValueError(
            f"group {g} is {group}, which leaves the flat vector of length {size}; "
            f"bounds are counted from 0 and end at {size} (negative ones are not accepted)"
        )
    length = len(range(start, stop, step))
    if length == 0:
        raise ValueError(f"group {g} is {group}, which is empty; every group needs a parameter")
    return start, length, step if length > 1 else 1


def _array(g: int, group: Any) -> Index:
    try:
        array = np.asarray(group)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, tensors on a device
        raise TypeError(f"group {g} cannot be read as an array ({error}); give {_ACCEPTED}") from (
            error
        )
    if array.ndim == 1 and array.size == 0:
        raise ValueError(f"group {g} is empty; every group needs at least one parameter")
    if array.ndim == 1 and array.dtype.kind == "b":
        raise TypeError(f"group {g} is a boolean mask; give np.flatnonzero(mask) instead")
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise TypeError(
            f"group {g} is {type(group).__name__} of dtype {array.dtype} and shape {array.shape}; "
            f"give {_ACCEPTED}"
        )
    if array.dtype == np.uint64:  # past the signed range it would wrap; clipped, it stays outside
        array = np.minimum(array, np.uint64(np.iinfo(np.int64).max))
    return array.astype(np.int64)


def _from_spans(spans: list[tuple[int, int, int, int]]) -> tuple[Index, Index, Index, Index]:
    owner, start, length, stride = np.array(spans, dtype=np.int64).T
    return owner, start, length, stride


def _from_arrays(
    arrays: list[Index], owners: Index, size: int
) -> tuple[Index, Index, Index, Index]:
    index = np.concatenate(arrays)
    sizes = np.array([a.size for a in arrays], dtype=np.int64)
    outside = np.flatnonzero((index < 0) | (index >= size))
    if outside.size:
        at = int(outside[0])
        group = owners[np.searchsorted(np.cumsum(sizes), at, side="right")]
        raise ValueError(
            f"group {group} contains index {index[at]}; indices are 0 .. {size - 1} "
            "(negative ones are not accepted)"
        )
    found = runs(index, sizes)
    owner = np.repeat(owners, np.diff(found.group_ptr))
    return owner, found.start, found.length, found.stride
