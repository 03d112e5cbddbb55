"""The walk over a module: what is recorded, what is left out and why, how nodes run."""

import warnings

import pytest
import torch
from torch import nn

from koopcore.partition.layout import Layout
from koopcore.partition.partition import Partition
from koopcore.partition.units import Block, Unit


def names(layout):
    return [t.name for t in layout.tensors]


def units(layout):
    return {u.name: u for u in layout.units}


# -- what of a module is recorded ---------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.decode = nn.Linear(4, 7)
        self.decode.weight = self.embed.weight
        self.again = self.decode


def test_tied_parameters_stand_once_under_their_first_name():
    layout = Layout.from_module(Tied())
    assert names(layout) == ["embed.weight", "decode.bias"]
    assert layout.n_parameters == 35
    assert dict(layout.left_out) == {
        "decode.weight": "tied to embed.weight",
        "again.weight": "tied to embed.weight",
        "again.bias": "tied to decode.bias",
    }
    # The bias of the tied layer still belongs to one node each.
    assert units(layout)["decode"] == Unit("decode", 7, (Block(1),))


def test_frozen_integer_and_empty_parameters_are_left_out_with_the_reason():
    model = nn.ParameterDict(
        {
            "kept": nn.Parameter(torch.ones(3)),
            "short": nn.Parameter(torch.ones(2, dtype=torch.bfloat16)),
            "frozen": nn.Parameter(torch.ones(3), requires_grad=False),
            "index": nn.Parameter(torch.ones(3, dtype=torch.int64), requires_grad=False),
            "empty": nn.Parameter(torch.ones(0, 3)),
        }
    )
    layout = Layout.from_module(model)
    assert names(layout) == ["kept", "short"]
    reasons = dict(layout.left_out)
    assert reasons["frozen"] == reasons["index"] == "frozen: requires_grad is False"
    assert reasons["empty"] == "empty"


def test_complex_parameters_are_pairs_of_real_numbers_and_their_nodes_hold_both():
    layout = Layout.from_module(nn.Linear(5, 3, dtype=torch.complex64))
    assert [(t.name, t.shape) for t in layout.tensors] == [("weight", (3, 5, 2)), ("bias", (3, 2))]
    assert layout.n_parameters == 36
    part = Partition.nodes(layout)
    assert [part.indices(k).tolist() for k in range(3)] == [
        [*range(10 * k, 10 * k + 10), 30 + 2 * k, 31 + 2 * k] for k in range(3)
    ]
    columns = Layout.from_module(nn.ConvTranspose1d(4, 3, 2, dtype=torch.complex64, bias=False))
    first = Partition.nodes(columns).indices(0).tolist()
    assert first == [row * 12 + k for row in range(4) for k in range(4)]  # 3 columns of 2 pairs


def test_a_frozen_weight_leaves_the_nodes_their_biases():
    model = nn.Linear(5, 3)
    model.weight.requires_grad_(False)
    assert Layout.from_module(model).units == (Unit("Linear", 3, (Block(0),)),)


@pytest.mark.parametrize(
    ("include", "exclude", "kept"),
    [
        (None, None, ["0.weight", "0.bias", "1.weight", "1.bias"]),
        ("0.*", None, ["0.weight", "0.bias"]),
        (["0.bias", "1.*"], None, ["0.bias", "1.weight", "1.bias"]),
        (None, "*.bias", ["0.weight", "1.weight"]),
        (None, ["*.bias", "1.*"], ["0.weight"]),
        ("*.weight", "0*", ["1.weight"]),
        (None, "nothing.like.it", ["0.weight", "0.bias", "1.weight", "1.bias"]),
    ],
)
def test_patterns_choose_the_recorded_parameters(include, exclude, kept):
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    layout = Layout.from_module(model, include=include, exclude=exclude)
    assert names(layout) == kept
    assert len(layout.left_out) == 4 - len(kept)
    assert layout.size == sum(dict(model.named_parameters())[name].numel() for name in kept)


def test_lazy_parameters_are_refused_until_they_have_a_shape():
    model = nn.Sequential(nn.Linear(2, 3), nn.LazyLinear(4))
    with pytest.raises(ValueError, match=r"'1\.weight' is uninitialized .* run one forward pass"):
        Layout.from_module(model)
    assert names(Layout.from_module(model, exclude="1.*")) == ["0.weight", "0.bias"]
    model(torch.zeros(1, 2))
    assert Layout.from_module(model).n_parameters == 9 + 16


def frozen_linear():
    model = nn.Linear(2, 2)
    return model.requires_grad_(False)


@pytest.mark.parametrize(
    ("model", "arguments", "error", "message"),
    [
        ([torch.ones(2)], {}, TypeError, r"model is list; Layout.from_module takes a torch"),
        (nn.ReLU(), {}, ValueError, r"ReLU has no parameter to record \(it has none at all\)"),
        (frozen_linear(), {}, ValueError, r"no parameter to record \(weight: frozen"),
        (nn.Linear(1, 1), {"exclude": "*"}, ValueError, r"\(weight: excluded; bias: excluded\)"),
        (
            nn.Linear(1, 1),
            {"include": ["weight", "wieght"]},
            ValueError,
            "include pattern 'wieght' matches no parameter; their names are weight, bias",
        ),
        (nn.Linear(1, 1), {"include": [3]}, TypeError, "include holds 3; give fnmatch patterns"),
        (nn.Linear(1, 1), {"exclude": [None]}, TypeError, "exclude holds None; give fnmatch"),
    ],
)
def test_modules_that_cannot_be_laid_out_are_refused(model, arguments, error, message):
    with pytest.raises(error, match=message):
        Layout.from_module(model, **arguments)


@pytest.mark.parametrize("align", [1, 32])
def test_the_flat_vector_is_the_concatenation_of_the_parameters(align):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.LSTM(3, 2), nn.Linear(4, 5, bias=False)
    )
    layout = Layout.from_module(model, align=align)
    flat = torch.full((layout.size,), torch.nan)
    for tensor, (name, parameter) in zip(layout.tensors, model.named_parameters(), strict=True):
        assert (tensor.name, tensor.shape) == (name, tuple(parameter.shape))
        flat[tensor.offset : tensor.offset + tensor.size] = parameter.detach().reshape(-1)
    dense = flat[~flat.isnan()]
    assert torch.equal(dense, nn.utils.parameters_to_vector(model.parameters()))


def test_a_model_on_the_meta_device_is_enough():
    model = nn.Sequential(nn.Linear(1, 10), nn.Linear(10, 10), nn.Linear(10, 2))
    expected = Layout.from_module(model)
    assert Layout.from_module(model.to("meta")) == expected


# -- how the nodes of each kind of module run -----------------------------------------------------


class Conv1D(nn.Module):
    """A Linear with the transposed weight, as some language models keep it."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.ones(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.ones(3, 2))
        self.weight = nn.Parameter(torch.ones(3, 4))
        self.bias = nn.Parameter(torch.ones(3))
        self.in_weight = nn.Parameter(torch.ones(5, 2, 2))
        self.in_bias = nn.Parameter(torch.ones(5))
        self.gain = nn.Parameter(torch.ones(()))
        self.child = nn.PReLU(3)


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))
        self.bias = nn.Parameter(torch.ones(6))


def rows(*tensors):
    return tuple(Block(t) for t in tensors)


def hooked(norm):
    """A Linear under one of the older norms, which torch deprecates and models still use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return norm(nn.Linear(2, 3))


WHOLE = (Block(0, None), Block(1, None))
EXPECTED = {
    "linear": (nn.Linear(2, 3), [Unit("Linear", 3, rows(0, 1))]),
    "no bias": (nn.Linear(2, 3, bias=False), [Unit("Linear", 3, rows(0))]),
    "nested": (nn.Sequential(nn.Sequential(nn.Linear(2, 3))), [Unit("0.0", 3, rows(0, 1))]),
    "conv1d": (nn.Conv1d(4, 6, 3, groups=2), [Unit("Conv1d", 6, rows(0, 1))]),
    "conv3d": (nn.Conv3d(1, 2, 2), [Unit("Conv3d", 2, rows(0, 1))]),
    "transposed": (
        nn.ConvTranspose2d(4, 6, 3, groups=2),
        [Unit("ConvTranspose2d", 6, (Block(0, 1, 2), Block(1)))],
    ),
    "embedding": (nn.Embedding(5, 3), [Unit("Embedding", 5, rows(0))]),
    "bag": (nn.EmbeddingBag(5, 3), [Unit("EmbeddingBag", 5, rows(0))]),
    "bilinear": (nn.Bilinear(2, 3, 4), [Unit("Bilinear", 4, rows(0, 1))]),
    "columns": (Conv1D(6, 4), [Unit("Conv1D", 6, (Block(0, 1), Block(1)))]),
    "layer norm": (nn.LayerNorm((4, 5)), [Unit("LayerNorm", 1, WHOLE)]),
    "layer norm without bias": (
        nn.LayerNorm(4, bias=False),
        [Unit("LayerNorm", 1, (Block(0, None),))],
    ),
    "batch norm": (nn.BatchNorm2d(4), [Unit("BatchNorm2d", 1, WHOLE)]),
    "instance norm": (nn.InstanceNorm1d(4, affine=True), [Unit("InstanceNorm1d", 1, WHOLE)]),
    "group norm": (nn.GroupNorm(2, 4), [Unit("GroupNorm", 1, WHOLE)]),
    "rms norm": (nn.RMSNorm(4), [Unit("RMSNorm", 1, (Block(0, None),))]),
    "norm of another library": (Scale(), [Unit("Scale", 1, WHOLE)]),
    "rnn": (
        nn.RNN(3, 4, num_layers=2),
        [Unit("RNN.l0", 4, rows(0, 1, 2, 3)), Unit("RNN.l1", 4, rows(4, 5, 6, 7))],
    ),
    "lstm": (
        nn.LSTM(3, 4, bidirectional=True, proj_size=2, bias=False),
        [
            Unit("LSTM.l0", 16, rows(0, 1)),
            Unit("LSTM.weight_hr_l0", 2, rows(2)),
            Unit("LSTM.l0_reverse", 16, rows(3, 4)),
            Unit("LSTM.weight_hr_l0_reverse", 2, rows(5)),
        ],
    ),
    "gru cell": (nn.GRUCell(3, 4), [Unit("GRUCell", 12, rows(0, 1, 2, 3))]),
    "attention": (
        nn.MultiheadAttention(4, 2, add_bias_kv=True),
        [
            Unit("MultiheadAttention.in_proj", 12, rows(0, 1)),
            Unit("MultiheadAttention.bias_k", 1, rows(2)),
            Unit("MultiheadAttention.bias_v", 1, rows(3)),
            Unit("out_proj", 4, rows(4, 5)),
        ],
    ),
    "separate attention": (
        nn.MultiheadAttention(4, 2, kdim=3, vdim=5),
        [
            Unit("MultiheadAttention.q_proj", 4, (Block(0), Block(3))),
            Unit("MultiheadAttention.k_proj", 4, (Block(1), Block(3, first=4))),
            Unit("MultiheadAttention.v_proj", 4, (Block(2), Block(3, first=8))),
            Unit("out_proj", 4, rows(4, 5)),
        ],
    ),
    "separate attention without bias": (
        nn.MultiheadAttention(4, 2, kdim=3, bias=False),
        [
            Unit("MultiheadAttention.q_proj", 4, rows(0)),
            Unit("MultiheadAttention.k_proj", 4, rows(1)),
            Unit("MultiheadAttention.v_proj", 4, rows(2)),
            Unit("out_proj", 4, rows(3)),
        ],
    ),
    "unknown": (
        Mixed(),
        [
            Unit("Mixed.table", 3, rows(0)),
            Unit("Mixed", 3, rows(1, 2)),
            Unit("Mixed.in_weight", 5, rows(3, 4)),
            Unit("Mixed.gain", 1, (Block(5, None),)),
            Unit("child", 1, (Block(6, None),)),
        ],
    ),
    "parameter list": (
        nn.ParameterList([torch.ones(2, 3), torch.ones(2)]),
        [Unit("ParameterList.0", 2, rows(0)), Unit("ParameterList.1", 1, (Block(1, None),))],
    ),
    "weight norm": (
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 3))),
        [Unit("0", 3, rows(1, 2, 0))],
    ),
    "spectral norm": (
        nn.utils.parametrizations.spectral_norm(nn.Linear(2, 3)),
        [Unit("ParametrizedLinear", 3, rows(1, 0))],
    ),
    "weight norm by hooks": (hooked(nn.utils.weight_norm), [Unit("Linear", 3, rows(1, 2, 0))]),
    "spectral norm by hooks": (hooked(nn.utils.spectral_norm), [Unit("Linear", 3, rows(1, 0))]),
    "weight norm of a transposed convolution": (
        nn.utils.parametrizations.weight_norm(nn.ConvTranspose1d(2, 3, 2, bias=False)),
        [
            Unit("parametrizations.weight.original0", 1, (Block(0, None),)),
            Unit("ParametrizedConvTranspose1d", 3, (Block(1, 1),)),
        ],
    ),
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_nodes_follow_the_kind_of_module(kind):
    model, expected = EXPECTED[kind]
    assert list(Layout.from_module(model).units) == expected


class OddLSTM(nn.LSTM):
    """A subclass that keeps one of its biases in another length."""

    def __init__(self):
        super().__init__(3, 4)
        self.bias_ih_l0 = nn.Parameter(torch.zeros(5))


def test_a_tensor_without_a_share_for_every_node_stands_alone():
    layout = Layout.from_module(OddLSTM())
    odd = names(layout).index("bias_ih_l0")
    assert units(layout)["bias_ih_l0"] == Unit("bias_ih_l0", 1, (Block(odd, None),))
    assert odd not in [b.tensor for b in units(layout)["OddLSTM.l0"].blocks]
