"""Partitions as values: subsets, index matrices, equality, every refusal, planning at scale."""

import copy
import pickle
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from koopcore.partition.layout import Layout
from koopcore.partition.partition import Partition

PAPER = Layout.from_shapes([(10, 1, True), (10, 10, True), (2, 10, True)])


def listed(partition):
    return [partition.indices(g).tolist() for g in range(partition.n_groups)]


# -- the data contract --------------------------------------------------------------------------


def ragged(seed, n_groups=12, size=200):
    rng = np.random.default_rng(seed)
    order = rng.permutation(size)
    cuts = np.sort(rng.choice(np.arange(1, size), n_groups - 1, replace=False))
    return Partition.groups(size, [np.sort(g) for g in np.split(order, cuts)])


@given(st.integers(0, 2**32 - 1), st.data())
@settings(deadline=None, max_examples=100)
def test_a_subset_has_these_groups_in_this_order(seed, data):
    partition = ragged(seed)
    chosen = data.draw(st.lists(st.integers(0, 11), unique=True))
    subset = partition.subset(chosen)
    assert listed(subset) == [listed(partition)[g] for g in chosen]
    assert (subset.size, subset.name) == (partition.size, partition.name)


def test_a_subset_may_be_empty():
    empty = Partition.nodes(PAPER).subset([])
    assert (empty.n_groups, empty.n_segments, empty.n_parameters) == (0, 0, 0)
    assert empty.sizes.shape == (0,)
    assert empty.subset([]) == empty
    assert empty.index_matrix([]).shape == (0, 0)
    assert repr(empty) == "<Partition nodes: no groups over 152 parameters>"


@pytest.mark.parametrize(
    "module",
    [nn.Linear(5, 4), nn.ConvTranspose1d(5, 4, 1), nn.ConvTranspose1d(3, 4, 2)],
    ids=["rows", "strided columns", "many segments"],
)
def test_an_index_matrix_stacks_groups_of_equal_size(module):
    partition = Partition.nodes(Layout.from_module(module))
    for chosen in ([0, 1, 2, 3], [3, 0], [2], [1, 1]):
        matrix = partition.index_matrix(chosen)
        assert matrix.dtype == np.int64
        assert matrix.tolist() == [partition.indices(g).tolist() for g in chosen]


def test_an_index_matrix_does_not_care_how_groups_are_cut_into_segments():
    partition = Partition.groups(20, [[0, 1, 2], [10, 3, 7], range(11, 20, 4)])
    assert partition.index_matrix([2, 0, 1]).tolist() == [[11, 15, 19], [0, 1, 2], [10, 3, 7]]


def test_equality_is_of_the_groups():
    nodes = Partition.nodes(PAPER)
    assert nodes == Partition.quasi_nodes(PAPER, 11)
    assert hash(nodes) == hash(Partition.quasi_nodes(PAPER, 11))
    assert nodes != Partition.layers(PAPER)
    assert nodes != nodes.subset(range(21))
    assert nodes != nodes.subset(range(21, -1, -1))
    assert Partition.groups(9, [[1]]) != Partition.groups(10, [[1]])
    assert nodes != "nodes"


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_are_equal_and_read_only(copied):
    partition = Partition.quasi_nodes(PAPER, 4)
    again = copied(partition)
    assert again == partition
    assert again.name == partition.name
    assert not any(array.flags.writeable for array in again.segments)


def test_a_partition_cannot_be_changed():
    partition = Partition.nodes(PAPER)
    with pytest.raises(AttributeError):
        partition.size = 3
    with pytest.raises(ValueError, match="read-only"):
        partition.start[0] = 3


@pytest.mark.parametrize(
    ("partition", "text"),
    [
        (
            Partition.network(PAPER),
            "<Partition network: 1 group of 152 parameters, covering 152 of 152 (100 %)>",
        ),
        (
            Partition.nodes(PAPER),
            "<Partition nodes: 22 groups of 2 to 11 parameters, covering 152 of 152 (100 %)>",
        ),
        (
            Partition.groups(30, [[1], [2]]),
            "<Partition groups: 2 groups of 1 parameters, covering 2 of 30 (6.667 %)>",
        ),
    ],
)
def test_the_repr_shows_groups_sizes_and_coverage(partition, text):
    assert repr(partition) == text


NODES = Partition.nodes(PAPER)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: Partition.nodes(nn.Linear(1, 1)),
            TypeError,
            r"Partition\.nodes got Linear; it takes a Layout: build one with Layout\.from_module",
        ),
        (lambda: Partition.network(3), TypeError, r"Partition\.network got int"),
        (lambda: Partition.layers(None), TypeError, r"Partition\.layers got NoneType"),
        (lambda: Partition.weights([]), TypeError, r"Partition\.weights got list"),
        (lambda: Partition.quasi_nodes(3, PAPER), TypeError, r"Partition\.quasi_nodes got int"),
        (
            lambda: Partition.quasi_nodes(PAPER, 0),
            ValueError,
            "the quasi-node size is 0; give an int >= 1, counted in parameters",
        ),
        (lambda: Partition.quasi_nodes(PAPER, -2), ValueError, "the quasi-node size is -2"),
        (lambda: Partition.quasi_nodes(PAPER, True), TypeError, "the quasi-node size is True"),
        (lambda: Partition.quasi_nodes(PAPER, 2.0), TypeError, "the quasi-node size is 2.0"),
        (lambda: Partition.quasi_nodes(PAPER, None), TypeError, "the quasi-node size is None"),
        (
            lambda: Partition.quasi_nodes(PAPER, 2, 3),
            ValueError,
            "no layer 3; the layout has 3, counted from 0: '0', '1', '2'",
        ),
        (lambda: Partition.quasi_nodes(PAPER, 2, [0, "x"]), ValueError, "there is no layer 'x'"),
        (lambda: Partition.quasi_nodes(PAPER, 2, True), TypeError, "layers is True; give a pos"),
        (lambda: Partition.quasi_nodes(PAPER, 2, [1.5]), TypeError, "layer 1.5 is neither a"),
        (lambda: NODES.indices(22), ValueError, "group 22 does not exist; the partition has 22"),
        (lambda: NODES.indices(-1), ValueError, "group -1 does not exist"),
        (lambda: NODES.indices(1.0), TypeError, r"group is 1.0; give an int, 0 \.\. 21"),
        (lambda: NODES.indices(True), TypeError, "group is True; give an int"),
        (
            lambda: NODES.index_matrix([0, 1, 10]),
            ValueError,
            "group 0 has 2 parameters and group 10 has 11; an index matrix needs groups of equal",
        ),
        (lambda: NODES.index_matrix([0, 22]), ValueError, "group 22 does not exist"),
        (lambda: NODES.index_matrix(3), TypeError, r"groups is int64 of shape \(\); give a 1-D"),
        (lambda: NODES.subset([-1]), ValueError, "group -1 does not exist"),
        (lambda: NODES.subset([0.0]), TypeError, "groups is float64 of shape"),
        (lambda: NODES.subset(np.ones(22, bool)), TypeError, "np.flatnonzero turns a mask into"),
        (lambda: NODES.subset([4, 4]), ValueError, "subset got group 4 more than once; groups"),
        (
            lambda: Partition(9, [0, 2], [1], [1], [1]),
            ValueError,
            r"must have one entry for each of the 2 segments that group_ptr counts",
        ),
    ],
)
def test_misuse_is_refused_before_any_work(call, error, message):
    with pytest.raises(error, match=message):
        call()


# -- planning at scale --------------------------------------------------------------------------

GPT2_SMALL = Layout.from_shapes(
    [(50257, 768, False), (1024, 768, False)]
    + 12 * [(2304, 768, True), (768, 768, True), (3072, 768, True), (768, 3072, True)]
)
TEN_MILLION = Layout.from_shapes([(3162, 3161, True)])


def cpu_seconds(work, repeats=3):
    """Best of a few, in this process's own CPU time: other load on the machine does not count."""
    best = np.inf
    for _ in range(repeats):
        begin = time.process_time()
        work()
        best = min(best, time.process_time() - begin)
    return best


@pytest.mark.parametrize(
    ("layout", "plan", "n_groups"),
    [
        (GPT2_SMALL, Partition.nodes, 134_225),
        (
            GPT2_SMALL,
            lambda layout: Partition.quasi_nodes(layout, 100),
            51_281 * 8 + 12 * (6_144 * 8 + 768 * 31),  # rows of 768 and 769, and of 3073
        ),
        (GPT2_SMALL, Partition.network, 1),
        (TEN_MILLION, Partition.weights, 3162 * 3162),
    ],
    ids=["nodes", "quasi_nodes", "network", "weights"],
)
def test_large_layouts_are_planned_within_a_second(layout, plan, n_groups):
    def work():
        partition = plan(layout)
        assert (partition.n_groups, partition.sizes.size) == (n_groups, n_groups)

    assert cpu_seconds(work) < 1.0  # measured: 0.4 s for the weights, well below 0.1 s for nodes


def test_planning_costs_far_less_than_a_loop_over_the_nodes():
    def loop():
        return [np.arange(2) for unit in GPT2_SMALL.units for _ in range(unit.n_nodes)]

    # The bare loop with the cheapest array per node, without any of the work, on this machine.
    assert cpu_seconds(lambda: Partition.nodes(GPT2_SMALL)) < cpu_seconds(loop)


def test_groups_may_be_as_unlike_as_one_parameter_and_a_hundred_million():
    size = 100_000_003
    partition = Partition.groups(size, [slice(1, size - 2), [0], [size - 1]])
    assert partition.sizes.tolist() == [100_000_000, 1, 1]
    assert partition.n_segments == 3
    assert partition.index_matrix([2, 1]).tolist() == [[size - 1], [0]]


def test_positions_past_the_range_of_32_bits_are_kept():
    layout = Layout.from_shapes([(70_000, 70_000, True)])  # 4.9e9 parameters, never allocated
    nodes = Partition.nodes(layout)
    assert nodes.n_groups == 70_000
    assert nodes.indices(69_999)[[0, -2, -1]].tolist() == [
        69_999 * 70_000,
        70_000**2 - 1,
        70_000**2 + 69_999,
    ]
