"""Segment arithmetic against the same thing written index by index."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koopcore.partition.segments import Segments, cut, expand, find_overlap, merge, ranges, runs

ints = np.int64


def ints_of(*values):
    return np.array(values, dtype=ints)


def listed(segments):
    """The groups as lists of indices, straight from the definition of a segment."""
    group_ptr, start, length, stride = segments
    return [
        [
            int(start[k]) + int(stride[k]) * i
            for k in range(group_ptr[g], group_ptr[g + 1])
            for i in range(length[k])
        ]
        for g in range(group_ptr.size - 1)
    ]


def contract(segments):
    """What every consumer of segments relies on."""
    group_ptr, start, length, stride = segments
    assert all(a.dtype == ints and a.flags.c_contiguous for a in segments)
    assert group_ptr[0] == 0
    assert group_ptr[-1] == start.size == length.size == stride.size
    assert (np.diff(group_ptr) >= 1).all()
    assert (length >= 1).all()
    assert (stride >= 1).all()
    assert (stride[length == 1] == 1).all()


segment = st.tuples(st.integers(0, 60), st.integers(1, 6), st.integers(1, 5))
grouped = st.lists(st.lists(segment, min_size=1, max_size=5), min_size=1, max_size=6)


def built(groups):
    flat = [(s, n, d if n > 1 else 1) for group in groups for s, n, d in group]
    start, length, stride = np.array(flat, dtype=ints).T.copy()
    ptr = np.concatenate(([0], np.cumsum([len(g) for g in groups]))).astype(ints)
    return Segments(ptr, start, length, stride)


@given(grouped)
@settings(deadline=None)
def test_expand_writes_every_index_in_order(groups):
    segments = built(groups)
    assert expand(*segments[1:]).tolist() == list(chain.from_iterable(listed(segments)))


def test_expand_and_ranges_of_nothing_are_empty():
    nothing = np.empty(0, dtype=ints)
    assert expand(nothing, nothing, nothing).shape == (0,)
    assert ranges(ints_of(3, 5), ints_of(0, 0)).shape == (0,)


def test_ranges_skip_those_without_entries():
    assert ranges(ints_of(3, 9, 5), ints_of(2, 0, 3)).tolist() == [3, 4, 5, 6, 7]


@given(grouped)
@settings(deadline=None)
def test_merge_keeps_the_indices_and_leaves_no_contiguous_neighbours(groups):
    segments = built(groups)
    merged = merge(segments)
    contract(merged)
    assert listed(merged) == listed(segments)
    group_ptr, start, length, stride = merged
    for g in range(group_ptr.size - 1):
        for k in range(group_ptr[g], group_ptr[g + 1] - 1):
            both = stride[k] == stride[k + 1] == 1
            assert not (both and start[k] + length[k] == start[k + 1])


@pytest.mark.parametrize(
    ("lengths", "size", "pieces", "chunk_ptr"),
    [
        # (segment, begin within it, length) of every piece
        ([4], 2, [(0, 0, 2), (0, 2, 2)], [0, 1, 2]),
        ([4, 1], 2, [(0, 0, 2), (0, 2, 2), (1, 0, 1)], [0, 1, 2, 3]),
        ([3, 1], 2, [(0, 0, 2), (0, 2, 1), (1, 0, 1)], [0, 1, 3]),
        ([4, 1], 9, [(0, 0, 4), (1, 0, 1)], [0, 2]),
        ([4, 1], 5, [(0, 0, 4), (1, 0, 1)], [0, 2]),
        ([2, 2, 2], 1, [(s, i, 1) for s in range(3) for i in range(2)], [0, 1, 2, 3, 4, 5, 6]),
        ([2, 2, 1], 3, [(0, 0, 2), (1, 0, 1), (1, 1, 1), (2, 0, 1)], [0, 2, 4]),
    ],
)
def test_cut_makes_chunks_across_segments_and_keeps_the_remainder(lengths, size, pieces, chunk_ptr):
    *columns, ptr = cut(ints_of(*lengths), size)
    assert list(zip(*(c.tolist() for c in columns), strict=True)) == pieces
    assert ptr.tolist() == chunk_ptr


@pytest.mark.parametrize(
    ("index", "found"),
    [
        # (start, length, stride)
        ([5], [(5, 1, 1)]),
        ([3, 4, 5], [(3, 3, 1)]),
        ([0, 5, 10, 15], [(0, 4, 5)]),
        ([0, 5], [(0, 1, 1), (5, 1, 1)]),  # two points are no pattern
        ([0, 1, 2, 10, 11, 12], [(0, 3, 1), (10, 3, 1)]),
        ([0, 1, 2, 7, 12, 17], [(0, 3, 1), (7, 3, 5)]),
        ([0, 5, 10, 11, 12], [(0, 2, 5), (10, 3, 1)]),  # the contiguous run takes the shared index
        ([0, 5, 10, 17, 24], [(0, 3, 5), (17, 2, 7)]),
        ([0, 5, 12, 19], [(0, 1, 1), (5, 3, 7)]),
        ([0, 1, 4, 7, 8], [(0, 2, 1), (4, 1, 1), (7, 2, 1)]),
        ([4, 3, 2], [(4, 1, 1), (3, 1, 1), (2, 1, 1)]),  # the order given is the group's order
        ([7, 7, 7], [(7, 1, 1), (7, 1, 1), (7, 1, 1)]),
    ],
)
def test_runs_of_one_group(index, found):
    segments = runs(ints_of(*index), ints_of(len(index)))
    contract(segments)
    assert list(zip(*(c.tolist() for c in segments[1:]), strict=True)) == found


def test_runs_do_not_cross_from_one_group_into_the_next():
    segments = runs(np.arange(6, dtype=ints), ints_of(2, 1, 3))
    assert listed(segments) == [[0, 1], [2], [3, 4, 5]]
    assert segments.group_ptr.tolist() == [0, 1, 2, 3]


@given(st.lists(st.lists(st.integers(0, 25), min_size=1, max_size=12), min_size=1, max_size=5))
@settings(deadline=None, max_examples=500)
def test_runs_keep_groups_indices_and_order(groups):
    index = np.array(list(chain.from_iterable(groups)), dtype=ints)
    segments = runs(index, np.array([len(g) for g in groups], dtype=ints))
    contract(segments)
    assert listed(segments) == groups


@given(grouped)
@settings(deadline=None, max_examples=500)
def test_the_smallest_repeated_index_is_found_with_its_groups(groups):
    segments = built(groups)
    where = {}
    for g, indices in enumerate(listed(segments)):
        for i in indices:
            where.setdefault(i, []).append(g)
    repeated = sorted(i for i, owners in where.items() if len(owners) > 1)
    found = find_overlap(segments)
    if not repeated:
        assert found is None
    else:
        assert found == (repeated[0], *where[repeated[0]][:2])


def test_interleaved_columns_do_not_overlap():
    columns = Segments(np.arange(5), np.arange(4), np.full(4, 9), np.full(4, 4))
    assert find_overlap(columns) is None


@pytest.mark.parametrize(
    ("second", "found"),
    [
        ((1000, 1000), None),  # the neighbour, settled by their spans
        ((999, 1000), (999, 0, 1)),
        ((0, 1), (0, 0, 1)),
        ((5000, 50), None),
    ],
)
def test_overlaps_of_long_segments(second, found):
    start, length = second
    one = np.ones(2, dtype=ints)
    segments = Segments(ints_of(0, 1, 2), ints_of(0, start), ints_of(1000, length), one)
    assert find_overlap(segments) == found
    turned = Segments(ints_of(0, 1, 2), ints_of(start, 0), ints_of(length, 1000), one)
    assert find_overlap(turned) == found
