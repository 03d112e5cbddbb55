"""Groups given by hand: what is accepted, in which order, and every refusal."""

from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from koopcore.partition.layout import Layout
from koopcore.partition.partition import Partition

LAYOUT = Layout.from_shapes([(3, 2, True), (4, 3, True)])  # 6 + 3 + 12 + 4 = 25 parameters


def listed(partition):
    return [partition.indices(g).tolist() for g in range(partition.n_groups)]


@pytest.mark.parametrize(
    ("group", "expected", "segments"),
    [
        ([4, 5, 6], [4, 5, 6], 1),
        ((4, 9, 14), [4, 9, 14], 1),
        ([6, 5, 4], [6, 5, 4], 3),
        (np.array([3], dtype=np.uint8), [3], 1),
        (np.array([[3, 4], [8, 9]])[1], [8, 9], 1),
        (torch.tensor([1, 2]), [1, 2], 1),
        (slice(None), list(range(25)), 1),
        (slice(20, None), [20, 21, 22, 23, 24], 1),
        (slice(0, 9, 4), [0, 4, 8], 1),
        (slice(7, 9, 4), [7], 1),
        (range(2, 11, 3), [2, 5, 8], 1),
        (slice(np.int64(2), np.int64(4)), [2, 3], 1),
        ("0.bias", [6, 7, 8], 1),
        ("0.*", list(range(9)), 1),
        ("*.bias", [6, 7, 8, 21, 22, 23, 24], 2),
    ],
)
def test_every_kind_of_group(group, expected, segments):
    partition = Partition.groups(LAYOUT, [group])
    assert listed(partition) == [expected]
    assert partition.n_segments == segments
    assert (partition.stride[partition.length == 1] == 1).all()
    assert partition.size == 25
    assert partition.name == "groups"


def test_kinds_can_be_mixed_and_keep_their_order():
    groups = [[24, 20], "0.bias", range(0, 6, 2), [1], slice(9, 12), [22]]
    expected = [[24, 20], [6, 7, 8], [0, 2, 4], [1], [9, 10, 11], [22]]
    assert listed(Partition.groups(LAYOUT, groups)) == expected
    assert listed(Partition.groups(LAYOUT, iter(groups))) == expected


def test_a_length_will_do_in_place_of_a_layout():
    assert Partition.groups(25, [[3, 4]]) == Partition.groups(LAYOUT, [[3, 4]])
    assert Partition.groups(np.int64(25), np.array([[3, 4]])).size == 25


def test_rows_of_a_matrix_are_groups():
    matrix = np.arange(12).reshape(3, 4)
    assert listed(Partition.groups(12, matrix)) == matrix.tolist()


def test_given_arrays_are_neither_kept_nor_changed():
    array = np.array([3, 4, 5])
    partition = Partition.groups(25, [array])
    array[:] = 0
    assert array.flags.writeable
    assert listed(partition) == [[3, 4, 5]]


def test_parameters_of_no_group_are_legal_and_shown():
    assert "covering 2 of 25 (8 %)" in repr(Partition.groups(LAYOUT, [[3, 4]]))


def test_a_group_across_padding_holds_parameters_only_where_it_says_so():
    padded = Layout.from_shapes([(3, 2, True)], align=32)
    assert listed(Partition.groups(padded, ["0.*"])) == [[*range(6), 32, 33, 34]]


@given(st.data())
@settings(deadline=None, max_examples=300)
def test_random_ragged_groups_come_back_as_they_went_in(data):
    size = data.draw(st.integers(1, 60))
    order = data.draw(st.permutations(range(size)))
    cuts = sorted(data.draw(st.sets(st.integers(1, size), min_size=1, max_size=8)))
    groups = [list(order[a:b]) for a, b in zip([0, *cuts[:-1]], cuts, strict=True)]
    ordered = [sorted(g) if data.draw(st.booleans()) else g for g in groups]
    partition = Partition.groups(size, ordered)
    assert listed(partition) == ordered
    assert partition.sizes.tolist() == [len(g) for g in ordered]


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_random_overlaps_are_never_missed(data):
    groups = data.draw(
        st.lists(st.lists(st.integers(0, 19), min_size=1, max_size=6), min_size=1, max_size=5)
    )
    flat = list(chain.from_iterable(groups))
    if len(set(flat)) == len(flat):
        assert listed(Partition.groups(20, groups)) == groups
    else:
        with pytest.raises(ValueError, match=r"contain index \d+|contains index \d+ more"):
            Partition.groups(20, groups)


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        ([[1, 2], [5], [2, 3]], ValueError, "groups 0 and 2 both contain index 2; groups must be"),
        ([slice(0, 9), [4]], ValueError, "groups 0 and 1 both contain index 4"),
        (["0.*", "*.bias"], ValueError, "groups 0 and 1 both contain index 6"),
        (
            [range(0, 20, 2), range(1, 20, 4), [9, 13]],
            ValueError,
            "groups 1 and 2 both contain index 9",
        ),
        ([[1], [2, 3, 2]], ValueError, "group 1 contains index 2 more than once"),
        ([[1], [25]], ValueError, r"group 1 contains index 25; indices are 0 \.\. 24"),
        ([[1, 2], [3, -1]], ValueError, r"group 1 contains index -1; .*negative ones are not"),
        ([np.array([2**63 + 5], dtype=np.uint64)], ValueError, r"contains index \d+; indices are"),
        ([[1], []], ValueError, "group 1 is empty"),
        ([np.empty(0, dtype=int)], ValueError, "group 0 is empty"),
        ([slice(3, 3)], ValueError, r"group 0 is slice\(3, 3, None\), which is empty"),
        ([range(0)], ValueError, r"group 0 is range\(0, 0\), which is empty"),
        ([range(23, 27)], ValueError, "leaves the flat vector of length 25"),
        ([slice(0, 26)], ValueError, "leaves the flat vector of length 25"),
        ([slice(-3, None)], ValueError, r"group 0 is slice\(-3.*negative ones are not accepted"),
        ([slice(9, 2, -1)], ValueError, "its step must be >= 1"),
        ([slice(0, 2.5)], TypeError, "its bounds must be ints or None"),
        ([[1.0, 2.0]], TypeError, "group 0 is list of dtype float64 and shape"),
        ([np.ones(25, dtype=bool)], TypeError, r"boolean mask; give np\.flatnonzero"),
        ([[[1, 2]]], TypeError, r"group 0 is list of dtype int64 and shape \(1, 2\); give a 1-D"),
        ([[1, [2, 3]]], TypeError, "group 0 cannot be read as an array"),
        ([3, 4], TypeError, r"group 0 is int of dtype int64 and shape \(\)"),
        ([None], TypeError, "group 0 is NoneType of dtype object"),
        ([{1, 2}], TypeError, "group 0 is set of dtype object"),
        ([], ValueError, "groups is empty; give at least one group"),
        ("0.*", TypeError, "groups is str; give a sequence with one entry per group"),
        (slice(0, 3), TypeError, "groups is slice; give a sequence"),
        ({"a": [1]}, TypeError, "groups is dict; give a sequence"),
        (5, TypeError, "groups is int; give a sequence"),
        (None, TypeError, "groups is NoneType; give a sequence"),
        (["2.*"], ValueError, r"the pattern '2\.\*' matches no tensor of the layout"),
    ],
)
def test_wrong_groups_are_refused(groups, error, message):
    with pytest.raises(error, match=message):
        Partition.groups(LAYOUT, groups)


@pytest.mark.parametrize(
    ("first", "groups", "error", "message"),
    [
        (25, ["0.*"], TypeError, r"a length knows no tensor names; pass a Layout"),
        (0, [[0]], ValueError, "the length of the flat vector is 0; give an int >= 1"),
        (True, [[0]], TypeError, "got bool as its first argument; give a Layout or the length"),
        ([25], [[0]], TypeError, "got list as its first argument"),
        (2.0, [[0]], TypeError, "got float as its first argument"),
    ],
)
def test_a_wrong_first_argument_is_refused(first, groups, error, message):
    with pytest.raises(error, match=message):
        Partition.groups(first, groups)
