"""Layouts: order and offsets of every tensor, being a value, looking up, every refusal."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from koopcore.partition.layout import Layout
from koopcore.partition.units import Block, Tensor, Unit

PAPER = [(10, 1, True), (10, 10, True), (2, 10, True)]  # the 1:10:10:2 network


# -- from shapes --------------------------------------------------------------------------------


def test_shapes_are_placed_in_the_order_of_a_chain_of_linears():
    layout = Layout.from_shapes([(3, 2, True), (4, 3, False), (1, 4, True)])
    assert layout.tensors == (
        Tensor("0.weight", (3, 2), 0, 6),
        Tensor("0.bias", (3,), 6, 3),
        Tensor("1.weight", (4, 3), 9, 12),
        Tensor("2.weight", (1, 4), 21, 4),
        Tensor("2.bias", (1,), 25, 1),
    )
    assert layout.units == (
        Unit("0", 3, (Block(0), Block(1))),
        Unit("1", 4, (Block(2),)),
        Unit("2", 1, (Block(3), Block(4))),
    )
    assert (layout.size, layout.n_parameters) == (26, 26)


def test_shapes_and_the_module_of_those_shapes_give_the_same_layout():
    model = nn.Sequential(nn.Linear(1, 10), nn.Linear(10, 10), nn.Linear(10, 2))
    from_module, from_shapes = Layout.from_module(model), Layout.from_shapes(PAPER)
    assert from_module == from_shapes
    assert hash(from_module) == hash(from_shapes)
    assert from_module.fingerprint() == from_shapes.fingerprint()


@pytest.mark.parametrize("triple", [(3, 2, True), [3, 2, False], np.array([3, 2, 1])[:2]])
def test_sequences_of_any_kind_are_read_as_shapes_when_they_are_complete(triple):
    if len(triple) == 3:
        assert Layout.from_shapes([triple]).tensors[0].shape == (3, 2)
    else:
        with pytest.raises(ValueError, match=r"shapes\[0\] has 2 entries"):
            Layout.from_shapes([triple])


def test_numpy_integers_become_plain_ones_so_that_fingerprints_can_be_written():
    layout = Layout.from_shapes([(np.int64(3), np.int32(2), np.True_)])
    assert layout.fingerprint() == Layout.from_shapes([(3, 2, True)]).fingerprint()


@pytest.mark.parametrize(
    ("shapes", "error", "message"),
    [
        ([], ValueError, "shapes is empty; give at least one layer"),
        ([(3, 2)], ValueError, r"shapes\[0\] has 2 entries: \(3, 2\); each layer is"),
        ([(3, 2, True), 5], TypeError, r"shapes\[1\] is 5; each layer is \(fan_out"),
        (["abc"], TypeError, r"shapes\[0\] is 'abc'"),
        ([(0, 2, True)], ValueError, r"fan_out of shapes\[0\] is 0"),
        ([(2, -1, True)], ValueError, r"fan_in of shapes\[0\] is -1"),
        ([(2.0, 1, True)], TypeError, r"fan_out of shapes\[0\] is 2.0"),
        ([(2, True, True)], TypeError, r"fan_in of shapes\[0\] is True"),
        ([(2, 1, 1)], TypeError, r"bias of shapes\[0\] is 1; each layer"),
    ],
)
def test_wrong_shapes_are_refused(shapes, error, message):
    with pytest.raises(error, match=message):
        Layout.from_shapes(shapes)


# -- alignment ----------------------------------------------------------------------------------


@pytest.mark.parametrize("align", [1, 2, 7, 32, 1000])
def test_tensors_start_at_multiples_of_the_alignment_without_waste(align):
    layout = Layout.from_shapes(PAPER, align=align)
    assert layout.n_parameters == 152
    assert layout.size % align == 0
    stop = 0
    for tensor in layout.tensors:
        assert tensor.offset % align == 0
        assert 0 <= tensor.offset - stop < align
        stop = tensor.offset + tensor.size
    assert 0 <= layout.size - stop < align
    model = nn.Sequential(nn.Linear(1, 10), nn.Linear(10, 10), nn.Linear(10, 2))
    assert Layout.from_module(model, align=align) == layout


@pytest.mark.parametrize(
    ("align", "error"), [(0, ValueError), (-4, ValueError), (1.5, TypeError), (True, TypeError)]
)
def test_a_wrong_alignment_is_refused(align, error):
    for build in (
        lambda: Layout.from_shapes(PAPER, align=align),
        lambda: Layout.from_module(nn.Linear(1, 1), align=align),
    ):
        with pytest.raises(error, match=rf"align is {align}; give an int >= 1"):
            build()


# -- being a value ------------------------------------------------------------------------------

DIFFERENT = {
    "shapes": Layout.from_shapes(PAPER),
    "padded": Layout.from_shapes(PAPER, align=32),
    "without bias": Layout.from_shapes([(10, 1, False), *PAPER[1:]]),
    "turned": Layout.from_shapes([(1, 10, True), *PAPER[1:]]),
    "other names": Layout.from_module(
        nn.Sequential(nn.Linear(1, 10), nn.ReLU(), nn.Linear(10, 10), nn.Linear(10, 2))
    ),
    "one tensor, rows": Layout.from_module(nn.ParameterDict({"w": nn.Parameter(torch.ones(4, 4))})),
    "one tensor, whole": Layout.from_module(nn.ParameterDict({"w": nn.Parameter(torch.ones(16))})),
}


def test_different_layouts_differ_in_equality_and_fingerprint():
    layouts = list(DIFFERENT.values())
    assert len(set(layouts)) == len(layouts)
    assert len({layout.fingerprint() for layout in layouts}) == len(layouts)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("name", DIFFERENT)
def test_copies_are_equal(name, copied):
    layout = DIFFERENT[name]
    assert copied(layout) == layout
    assert copied(layout).fingerprint() == layout.fingerprint()


def test_the_fingerprint_is_the_same_in_another_process_and_hash_seed():
    code = f"from koopcore import Layout\nprint(Layout.from_shapes({PAPER}).fingerprint())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == Layout.from_shapes(PAPER).fingerprint()


def test_the_fingerprint_does_not_change_between_versions():
    # Checkpoints carry it; a change of format needs a new prefix.
    assert DIFFERENT["shapes"].fingerprint() == "layout1-e3c7d8b00c98414d6db55eec435b0199"


def test_a_layout_cannot_be_changed():
    layout = Layout.from_shapes(PAPER)
    with pytest.raises(AttributeError):
        layout.size = 3
    with pytest.raises(AttributeError):
        layout.tensors[0].offset = 3


def test_the_repr_shows_sizes_tensors_and_what_is_left_out():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(6)))
    model[0].bias.requires_grad_(False)
    text = repr(Layout.from_module(model, align=32))
    assert "34 parameters in 11 tensors, 6 layers, flat size 352" in text
    assert "32  1.weight (2, 2)" in text
    assert "3 more tensors" in text
    assert "left out: 0.bias (frozen: requires_grad is False)" in text


def test_layout_and_partition_load_without_torch():
    code = "import koopcore.partition, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_without_torch_from_module_says_what_it_needs():
    code = "from koopcore.partition.layout import Layout\nLayout.from_module(3)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "TypeError: model is int; Layout.from_module takes a torch.nn.Module" in out.stderr


# -- looking things up --------------------------------------------------------------------------


def test_tensors_and_layers_are_found_by_pattern():
    layout = Layout.from_shapes(PAPER)
    assert layout.match("1.*") == (2, 3)
    assert layout.match("*.bias") == (1, 3, 5)
    assert layout.find_units("2") == layout.find_units(2) == (2,)
    assert layout.find_units("[01]") == (0, 1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda x: x.match("3.*"),
            ValueError,
            r"'3\.\*' matches no tensor of the layout; its tensors are '0.weight', '0.bias'",
        ),
        (lambda x: x.find_units("first"), ValueError, r"no layer 'first'; the layout has 3, cou"),
        (lambda x: x.find_units(3), ValueError, "no layer 3; the layout has 3, counted from 0"),
        (lambda x: x.find_units(-1), ValueError, "no layer -1"),
        (lambda x: x.find_units(True), TypeError, r"layer True is neither a position \(int\)"),
        (lambda x: x.find_units(1.0), TypeError, "layer 1.0 is neither a position"),
    ],
)
def test_looking_up_what_is_not_there_says_what_is(call, error, message):
    with pytest.raises(error, match=message):
        call(Layout.from_shapes(PAPER))
