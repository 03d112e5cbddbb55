"""Segments (start, length, stride) in CSR form: the vectorized arithmetic behind partitions.

A segment covers the flat indices `start + stride * arange(length)`; group g owns the segments
`group_ptr[g] .. group_ptr[g + 1] - 1`. Segments of length 1 have stride 1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Index = npt.NDArray[np.int64]


class Segments(NamedTuple):
    """Groups of segments: `group_ptr` (n_groups + 1,), the others (n_segments,), all int64."""

    group_ptr: Index
    start: Index
    length: Index
    stride: Index


class Overlap(NamedTuple):
    """A flat index that two groups (or one group twice, then `first == second`) contain."""

    at: int
    first: int
    second: int


def expand(start: Index, length: Index, stride: Index) -> Index:
    """All flat indices of the segments, in order: (sum(length),). Lengths are at least 1.

    Written as the running sum of the steps from each index to the next: one output-sized array
    and two passes, whatever the number of segments.
    """
    step = np.repeat(stride, length)
    if step.size == 0:
        return step
    head = np.cumsum(length) - length
    last = start + stride * (length - 1)
    step[0] = start[0]
    step[head[1:]] = start[1:] - last[:-1]
    return np.cumsum(step, out=step)


def ranges(first: Index, count: Index) -> Index:
    """The concatenated ranges `first[i] .. first[i] + count[i] - 1`; counts may be zero."""
    some = count > 0
    return expand(first[some], count[some], np.ones(int(some.sum()), dtype=np.int64))


def merge(segments: Segments) -> Segments:
    """The same indices in the same order, contiguous neighbours within a group made one."""
    group_ptr, start, length, stride = segments
    contiguous = stride == 1
    follows = (start[1:] == start[:-1] + length[:-1]) & contiguous[1:] & contiguous[:-1]
    follows[group_ptr[1:-1] - 1] = False  # the neighbour belongs to the next group
    if not follows.any():
        return segments
    head = np.flatnonzero(np.concatenate(([True], ~follows)))
    return Segments(
        np.searchsorted(head, group_ptr).astype(np.int64),
        start[head],
        np.add.reduceat(length, head),
        stride[head],
    )


def cut(length: Index, size: int) -> tuple[Index, Index, Index, Index]:
    """Cut segments of the given lengths, laid end to end, into chunks of `size`; the rest is last.

    Returns for every piece the segment it is cut from, where in that segment it begins, and its
    length; and `chunk_ptr`, the first piece of every chunk and the number of pieces at the end.
    """
    end = np.cumsum(length)
    piece_end = np.union1d(end, np.arange(size, end[-1], size, dtype=np.int64))
    begin = np.concatenate((np.zeros(1, dtype=np.int64), piece_end[:-1]))
    segment = np.searchsorted(end, begin, side="right")
    chunk_ptr = np.append(np.flatnonzero(begin % size == 0), begin.size)
    within = begin - (end - length)[segment]
    return segment, within, piece_end - begin, chunk_ptr


def runs(index: Index, size: Index) -> Segments:
    """Group the indices `index`, `size[g]` of them for group g, into segments of constant stride.

    Maximal runs of consecutive indices become contiguous segments; three or more indices a
    constant step > 1 apart become strided ones; what remains has length 1. The order of the
    indices is kept, so descending ones are not joined.
    """
    group_head = np.cumsum(size) - size
    step = np.diff(index)
    if step.size == 0:
        one = np.ones(1, dtype=np.int64)
        return Segments(np.arange(2, dtype=np.int64), index, one, one)
    step[group_head[1:] - 1] = 0  # a step from one group into the next joins nothing
    # Blocks of equal steps. Worth a segment: steps of 1, and at least two equal steps > 1.
    opens = np.concatenate(([True], step[1:] != step[:-1]))
    block = np.flatnonzero(opens)
    count = np.diff(np.append(block, step.size))
    kept = (step[block] == 1) | ((step[block] > 1) & (count >= 2))
    joins = np.repeat(kept, count)
    # Two kept blocks in a row share an index: a contiguous block takes it, else the earlier one.
    shared = np.flatnonzero(kept[:-1] & kept[1:])
    to_later = step[block[shared + 1]] == 1
    joins[np.where(to_later, block[shared + 1] - 1, block[shared + 1])] = False
    head = np.flatnonzero(np.concatenate(([True], ~joins)))
    length = np.diff(np.append(head, index.size))
    stride = np.ones(head.size, dtype=np.int64)
    long = length > 1
    stride[long] = step[head[long]]
    group_ptr = np.append(np.searchsorted(head, group_head), head.size)
    return Segments(group_ptr.astype(np.int64), index[head], length, stride)


def find_overlap(segments: Segments) -> Overlap | None:
    """The smallest flat index that occurs twice, with the groups it occurs in; None if disjoint.

    Long segments whose spans do not overlap are settled by one sort of the segments; only short
    and interleaved ones (strided segments, or a true overlap) are written out index by index.
    """
    group_ptr, start, length, stride = segments
    last = start + stride * (length - 1)
    if length.sum() > 8 * length.size:  # below that the sort costs more than the indices
        order = np.argsort(start, kind="stable")
        if not (last[order][:-1] >= start[order][1:]).any():
            return None
    index = expand(start, length, stride)
    seen = np.zeros(int(last.max()) + 1, dtype=np.bool_)
    seen[index] = True
    if np.count_nonzero(seen) == index.size:
        return None
    group = np.repeat(np.arange(group_ptr.size - 1), np.diff(group_ptr))
    owner = np.repeat(group, length)
    by_index = np.argsort(index, kind="stable")
    ordered = index[by_index]
    twice = int(np.flatnonzero(ordered[1:] == ordered[:-1])[0])
    first, second = owner[by_index[twice : twice + 2]]
    return Overlap(int(ordered[twice]), int(first), int(second))
