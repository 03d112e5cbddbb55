"""Network, layers, nodes, quasi-nodes against index tensors pushed through the modules."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from koopcore.partition.layout import Layout
from koopcore.partition.partition import Partition

PAPER = Layout.from_shapes([(10, 1, True), (10, 10, True), (2, 10, True)])
SMALL = Layout.from_shapes([(3, 2, True), (2, 3, True)])  # flat 0-5, 6-8, 9-14, 15-16


def listed(partition):
    return [partition.indices(g).tolist() for g in range(partition.n_groups)]


def index_tensors(layout):
    """Every parameter replaced by the flat indices of its entries."""
    return {
        t.name: torch.arange(t.offset, t.offset + t.size).reshape(t.shape) for t in layout.tensors
    }


# -- the modules, and their nodes taken out with torch indexing -----------------------------------


class Conv1D(nn.Module):
    def __init__(self, nf, nx):
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.ones(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.ones(1, 2, 3))
        self.slope = nn.Parameter(torch.ones(4))
        self.scalar = nn.Parameter(torch.ones(()))


def rows(weight="weight", *biases):
    def nodes(t):
        return [
            torch.cat([t[weight][i].flatten(), *(t[b][i].flatten() for b in biases)])
            for i in range(len(t[weight]))
        ]

    return nodes


def channels(groups):
    def nodes(t):  # weight (in, out / groups, ...)
        rows_of_group = t["weight"].chunk(groups, dim=0)
        nodes = [w[:, j].flatten() for w in rows_of_group for j in range(w.shape[1])]
        return [torch.cat([w, b[None]]) for w, b in zip(nodes, t["bias"], strict=True)]

    return nodes


def whole(*tensors):
    return lambda t: [torch.cat([t[name].flatten() for name in tensors])]


def separate_attention(t):
    bias = t["in_proj_bias"].reshape(3, -1)
    return [
        node
        for i, name in enumerate("qkv")
        for node in rows("w", "b")({"w": t[f"{name}_proj_weight"], "b": bias[i]})
    ] + rows("out_proj.weight", "out_proj.bias")(t)


def gates(*layers):
    kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return lambda t: [n for k in layers for n in rows(*(f"{kind}{k}" for kind in kinds))(t)]


MODULES = {
    "linear": (nn.Linear(4, 3), rows("weight", "bias")),
    "one output": (nn.Linear(4, 1), rows("weight", "bias")),
    "no bias": (nn.Linear(4, 3, bias=False), rows()),
    "conv1d": (nn.Conv1d(4, 6, 3, groups=2), rows("weight", "bias")),
    "conv2d": (nn.Conv2d(2, 3, (2, 3)), rows("weight", "bias")),
    "depthwise conv3d": (nn.Conv3d(2, 4, 2, groups=2), rows("weight", "bias")),
    "transposed conv1d": (nn.ConvTranspose1d(4, 6, 3), channels(1)),
    "transposed conv2d, groups": (nn.ConvTranspose2d(4, 6, (2, 3), groups=2), channels(2)),
    "transposed conv1d, kernel of one": (nn.ConvTranspose1d(6, 6, 1, groups=3), channels(3)),
    "transposed depthwise": (nn.ConvTranspose2d(3, 3, 2, groups=3), channels(3)),
    "embedding": (nn.Embedding(5, 3), rows()),
    "bilinear": (nn.Bilinear(2, 3, 4), rows("weight", "bias")),
    "transposed linear": (Conv1D(5, 3), channels(1)),
    "layer norm": (nn.LayerNorm((2, 3)), whole("weight", "bias")),
    "batch norm": (nn.BatchNorm1d(3), whole("weight", "bias")),
    "fused attention": (
        nn.MultiheadAttention(4, 2),
        lambda t: (
            rows("in_proj_weight", "in_proj_bias")(t) + rows("out_proj.weight", "out_proj.bias")(t)
        ),
    ),
    "separate attention": (nn.MultiheadAttention(4, 2, kdim=3, vdim=5), separate_attention),
    "lstm": (
        nn.LSTM(3, 2, num_layers=2, bidirectional=True),
        gates("_l0", "_l0_reverse", "_l1", "_l1_reverse"),
    ),
    "gru cell": (nn.GRUCell(3, 2), gates("")),
    "own parameters": (Own(), lambda t: rows("token")(t) + whole("slope")(t) + whole("scalar")(t)),
}


@pytest.mark.parametrize("align", [1, 32])
@pytest.mark.parametrize("kind", MODULES)
def test_nodes_are_the_rows_and_channels_of_the_index_tensors(kind, align):
    module, nodes = MODULES[kind]
    layout = Layout.from_module(module, align=align)
    expected = [node.tolist() for node in nodes(index_tensors(layout))]
    assert listed(Partition.nodes(layout)) == expected


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Linear(4, 3), (2, 4)),
        (nn.Conv1d(4, 6, 3, groups=2), (1, 4, 5)),
        (nn.Conv2d(2, 3, 2), (1, 2, 4, 4)),
        (nn.ConvTranspose1d(4, 6, 3), (1, 4, 5)),
        (nn.ConvTranspose2d(4, 6, (2, 3), groups=2), (1, 4, 3, 3)),
        (nn.ConvTranspose3d(2, 2, 2, groups=2), (1, 2, 2, 2, 2)),
    ],
)
def test_a_node_is_what_its_output_channel_depends_on(module, shape):
    layout = Layout.from_module(module)
    out = module(torch.rand(shape) + 0.5)  # positive inputs: no gradient vanishes by chance
    channel_axis = 1
    for c, node in enumerate(listed(Partition.nodes(layout))):
        module.zero_grad()
        out.select(channel_axis, c).sum().backward(retain_graph=True)
        gradient = nn.utils.parameters_to_vector([p.grad for p in module.parameters()])
        assert gradient.nonzero().flatten().tolist() == sorted(node)


def whole_model():
    return nn.Sequential(*(copy.deepcopy(module) for module, _ in MODULES.values()))


CONSTRUCTORS = {
    "network": Partition.network,
    "layers": Partition.layers,
    "nodes": Partition.nodes,
    "quasi_nodes(2)": lambda layout: Partition.quasi_nodes(layout, 2),
    "quasi_nodes(3)": lambda layout: Partition.quasi_nodes(layout, 3),
    "weights": Partition.weights,
    "groups": lambda layout: Partition.groups(layout, [t.name for t in layout.tensors]),
}


@pytest.mark.parametrize("align", [1, 8])
@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_every_parameter_is_in_exactly_one_group_and_the_arrays_keep_the_contract(name, align):
    layout = Layout.from_module(whole_model(), align=align)
    partition = CONSTRUCTORS[name](layout)
    groups = listed(partition)
    real = np.concatenate([np.arange(t.offset, t.offset + t.size) for t in layout.tensors])
    assert np.array_equal(np.sort(np.concatenate(groups)), real)
    assert partition.name == name
    assert partition.size == layout.size
    assert partition.n_parameters == layout.n_parameters
    assert partition.n_groups == len(groups)
    assert partition.sizes.tolist() == [len(g) for g in groups]
    ptr, start, length, stride = partition.segments
    for array in (ptr, start, length, stride, partition.sizes):
        assert array.dtype == np.int64
        assert array.flags.c_contiguous
        assert not array.flags.writeable
    assert ptr[0] == 0
    assert ptr[-1] == partition.n_segments == start.size
    assert (length >= 1).all()
    assert (stride[length == 1] == 1).all()
    joined = (stride[1:] == 1) & (stride[:-1] == 1) & (start[1:] == start[:-1] + length[:-1])
    joined[ptr[1:-1] - 1] = False
    assert not joined.any(), "contiguous neighbours of one group must be one segment"


def test_segment_counts_are_the_least_possible():
    linear, columns = Layout.from_module(nn.Linear(4, 3)), Layout.from_module(Conv1D(3, 4))
    one_output = Layout.from_shapes([(1, 4, True)])
    assert Partition.network(PAPER).n_segments == 1
    assert Partition.layers(PAPER).n_segments == 3
    assert Partition.nodes(linear).n_segments == 6
    assert Partition.nodes(one_output).n_segments == 1  # the bias follows the only row
    assert Partition.nodes(columns).n_segments == 6
    assert Partition.nodes(columns).stride.tolist() == [3, 1] * 3
    one_input = Partition.nodes(Layout.from_module(Conv1D(3, 1)))
    assert one_input.stride.tolist() == [1] * 6


def test_layers_are_the_units_weights_first():
    layout = Layout.from_module(whole_model(), align=4)
    flat = {t.name: np.arange(t.offset, t.offset + t.size) for t in layout.tensors}
    groups = dict(
        zip((u.name for u in layout.units), listed(Partition.layers(layout)), strict=True)
    )
    assert groups["0"] == [*flat["0.weight"], *flat["0.bias"]]
    attention = f"{list(MODULES).index('separate attention')}"
    bias = flat[f"{attention}.in_proj_bias"]
    assert groups[f"{attention}.k_proj"] == [*flat[f"{attention}.k_proj_weight"], *bias[4:8]]
    for unit, group in groups.items():
        nodes = [n for u in layout.units if u.name == unit for n in _nodes_of(layout, u)]
        assert sorted(group) == sorted(nodes)


def _nodes_of(layout, unit):
    first = sum(u.n_nodes for u in layout.units[: layout.units.index(unit)])
    partition = Partition.nodes(layout)
    return [i for g in range(first, first + unit.n_nodes) for i in partition.indices(g).tolist()]


# -- quasi-nodes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (1, [[i] for i in (0, 1, 6, 2, 3, 7, 4, 5, 8, 9, 10, 11, 15, 12, 13, 14, 16)]),
        (2, [[0, 1], [6], [2, 3], [7], [4, 5], [8], [9, 10], [11, 15], [12, 13], [14, 16]]),
        (3, [[0, 1, 6], [2, 3, 7], [4, 5, 8], [9, 10, 11], [15], [12, 13, 14], [16]]),
        (4, [[0, 1, 6], [2, 3, 7], [4, 5, 8], [9, 10, 11, 15], [12, 13, 14, 16]]),
    ],
)
def test_quasi_nodes_are_chunks_of_a_node_with_the_remainder_on_its_own(size, expected):
    partition = Partition.quasi_nodes(SMALL, size)
    assert listed(partition) == expected
    assert partition.name == f"quasi_nodes({size})"


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 100, np.int64(4), 10**12])
def test_quasi_nodes_of_every_kind_of_module_are_chunks_of_its_nodes(size):
    layout = Layout.from_module(whole_model())
    expected = [
        node[i : i + int(size)]
        for node in listed(Partition.nodes(layout))
        for i in range(0, len(node), int(size))
    ]
    assert listed(Partition.quasi_nodes(layout, size)) == expected


@pytest.mark.parametrize(
    ("layers", "name", "cut"),
    [
        (0, "quasi_nodes(2, layers=[0])", {0}),
        ([0], "quasi_nodes(2, layers=[0])", {0}),
        ("1", "quasi_nodes(2, layers=[1])", {1}),
        (["1", 0], "quasi_nodes(2, layers=[0, 1])", {0, 1}),
        ("*", "quasi_nodes(2, layers=[0, 1])", {0, 1}),
        (np.array([1]), "quasi_nodes(2, layers=[1])", {1}),
        ([], "quasi_nodes(2, layers=[])", set()),
    ],
)
def test_only_the_chosen_layers_are_cut(layers, name, cut):
    whole_nodes = listed(Partition.nodes(SMALL))
    chunks = {
        0: [[0, 1], [6], [2, 3], [7], [4, 5], [8]],
        1: [[9, 10], [11, 15], [12, 13], [14, 16]],
    }
    nodes = {0: whole_nodes[:3], 1: whole_nodes[3:]}
    partition = Partition.quasi_nodes(SMALL, 2, layers=layers)
    assert listed(partition) == [g for k in (0, 1) for g in (chunks if k in cut else nodes)[k]]
    assert partition.name == name
