"""Saved operators come back bit for bit, from files that run no code and are checked."""

import json
import random
import shutil
import time

import numpy as np
import pytest
import torch
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from koopcore.lab.problems.van_der_pol import paper_split
from koopcore.learning import (
    AlternatingLearner,
    Blocks,
    Layered,
    Monomials,
    OneLayer,
    RadialBasis,
    StateInclusive,
    TorchDictionary,
    load,
    load_parts,
    save,
)
from koopcore.learning.persistence import save_part

DATA = paper_split().train[:80]
DICTIONARIES = [
    OneLayer(2, 3, "arctan", 0.5, bias=None),
    Layered(2, (4, 3), "logistic", 0.1, 2.0),
    StateInclusive(OneLayer(2, 2, bias=None)),
    StateInclusive(OneLayer(2, 2, coordinates=(1,)), states=1),
    Monomials(2, 2, constant=True),
    RadialBasis(((0.0, 1.0), (1.0, 0.0)), 0.7),
    Blocks((StateInclusive(Layered(1, (3, 2))), OneLayer(1, 2, bias=None)), ((1,), (0,))),
]


def learned(dictionary):
    return AlternatingLearner(dictionary, n_iterations=3, standardize=True).fit(DATA).operator_


@pytest.mark.parametrize("dictionary", DICTIONARIES, ids=lambda d: type(d).__name__)
def test_an_operator_comes_back_bit_for_bit(dictionary, tmp_path):
    before = learned(dictionary)
    after = load(save(before, tmp_path / "operator"))
    assert after.dictionary == before.dictionary
    for name in ("parameters", "operator", "readout", "shift", "scale"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    np.testing.assert_array_equal(after.predict(DATA[0], 9), before.predict(DATA[0], 9))
    assert sorted(p.name for p in (tmp_path / "operator").iterdir()) == [
        "operator.json",
        "operator.safetensors",
    ]


def test_of_a_learner_its_operator_is_saved(tmp_path):
    learner = AlternatingLearner(DICTIONARIES[2], n_iterations=3)
    with pytest.raises(TypeError, match=r"a AlternatingLearner; .* that has learned, is needed"):
        save(learner, tmp_path)
    operator = load(save(learner.fit(DATA), tmp_path)).operator
    np.testing.assert_array_equal(operator, learner.operator_.operator)


def test_a_torch_dictionary_must_be_given_again(tmp_path):
    dictionary = TorchDictionary(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh()), 2)
    before = learned(dictionary)
    save(before, tmp_path)
    with pytest.raises(ValueError, match=r"TorchDictionary, whose code is not saved.*dictionary="):
        load(tmp_path)
    after = load(tmp_path, dictionary)
    np.testing.assert_array_equal(after.predict(DATA[0], 4), before.predict(DATA[0], 4))


def test_saving_again_replaces(tmp_path):
    save(learned(OneLayer(2, 3, bias=None)), tmp_path)
    save(learned(OneLayer(2, 5, bias=None)), tmp_path)
    assert load(tmp_path).dictionary == OneLayer(2, 5, bias=None)


def changed(directory, dictionary=None, **changes):
    """Rewrite operator.json with other values, of the whole or of its dictionary; None deletes."""
    path = directory / "operator.json"
    description = json.loads(path.read_text())
    for part, new in ((description, changes), (description["dictionary"], dictionary or {})):
        part.update(new)
        for key in [key for key, value in new.items() if value is None]:
            del part[key]
    path.write_text(json.dumps(description))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "something"}, 'is no koopcore learned operator: it has no "format"'),
        ({"format": None}, 'it has no "format"'),
        ({"version": 2}, "has version 2; this koopcore reads 1"),
        ({"version": True}, "has version True"),
        ({"version": None}, "has version None"),
        ({"dictionary": None}, "it lacks dictionary"),
        ({"sha256": None, "sha512": ""}, "it lacks sha256 and has an unknown 'sha512'"),
        ({"sha256": "0" * 64}, "do not belong together"),
        ({"sha256": 5}, "do not belong together"),
        ({"dictionary": []}, 'a text "kind"'),
        ({"dictionary": {"kind": ["OneLayer"]}}, 'a text "kind"'),
        ({"dictionary": {"kind": "os.system"}}, "kind 'os.system' is unknown; OneLayer"),
        ({"dictionary": {"kind": "OneLayer"}}, "OneLayer lacks n_states, n_features, activation"),
    ],
)
def test_descriptions_that_are_none_say_why(change, message, tmp_path):
    save(learned(OneLayer(2, 3, bias=None)), tmp_path)
    path = tmp_path / "operator.json"
    path.write_text(
        json.dumps(
            {k: v for k, v in (json.loads(path.read_text()) | change).items() if v is not None}
        )
    )
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path)
    assert str(path) in str(caught.value) or path.name in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (OneLayer, {"n_states": "2"}, "n_states is '2'; a whole number"),
        (OneLayer, {"n_states": 2.0}, "n_states is 2.0; a whole number"),
        (OneLayer, {"n_states": True}, "n_states is True; a whole number"),
        (OneLayer, {"n_states": -2}, "n_states is -2; a whole number"),
        (OneLayer, {"n_features": 4}, r"parameters has shape \(6,\), its dictionary needs \(8,\)"),
        (OneLayer, {"n_features": 10**12}, "1000000000000 is more than the numbers"),
        (OneLayer, {"activation": ["tanh"]}, r"activation is \['tanh'\]; one of"),
        (OneLayer, {"activation": "logistic"}, "do not belong together"),
        (OneLayer, {"scale": "1"}, "scale is '1'; a finite number"),
        (OneLayer, {"scale": float("nan")}, "scale is nan; a finite number"),
        (OneLayer, {"scale": 1e999}, "scale is inf; a finite number"),
        (OneLayer, {"bend": 0.5}, "OneLayer has an unknown 'bend'"),
        (Layered, {"widths": 7}, "not iterable"),
        (Layered, {"widths": []}, "widths is empty"),
        (Layered, {"widths": [3, 2.5]}, r"widths\[1\] is 2.5"),
        (Layered, {"bias": True}, "bias is True; a finite number"),
        (StateInclusive, {"inner": "OneLayer"}, 'a text "kind"'),
        (StateInclusive, {"inner": {"kind": "foreign"}}, "whose code is not saved"),
        (Monomials, {"constant": 1}, "constant is 1; True or False"),
        (Monomials, {"degree": 9}, "its dictionary needs"),
        (Monomials, {"degree": 30, "n_states": 30}, "make more than 1000000 monomials"),
        (RadialBasis, {"centres": [[0.0, 1.0], [1.0]]}, "centres cannot be made an array"),
        (RadialBasis, {"centres": [["0.0", "1.0"]]}, "centres is of <U3; real numbers"),
        (RadialBasis, {"centres": [[0.0, float("inf")]]}, "centres is not finite"),
        (RadialBasis, {"width": 0}, "width is 0"),
        (Blocks, {"states": [[1], [1]]}, "named twice"),
        (Blocks, {"states": [[1.5], [0]]}, "a state is 1.5; a whole number"),
        (Blocks, {"states": []}, "its dictionary is not Blocks"),
        (Blocks, {"states": None}, "Blocks lacks states"),
        (Blocks, {"dictionaries": []}, "dictionaries is empty"),
        (Blocks, {"dictionaries": [1, 2]}, 'a text "kind"'),
    ],
)
def test_dictionaries_that_cannot_be_say_why(kind, change, message, tmp_path):
    save(learned(next(d for d in DICTIONARIES if type(d) is kind)), tmp_path)
    changed(tmp_path, dictionary=change)
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path)
    assert str(tmp_path / "operator.") in str(caught.value)


def files(dictionary, directory):
    save(learned(dictionary), directory)
    text, numbers = (directory / f"operator.{end}" for end in ("json", "safetensors"))
    return text.read_bytes(), numbers.read_bytes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "Expecting value"),
        (b'{"format": "koopcore learned op', "Unterminated string"),
        (b"[]", "it has no"),
        (b"null", "it has no"),
        (b"\xff\xfe", "can't decode"),
        (b'{"format": 1, "format": 2}', "a key is there twice"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b'{"version": ' + b"9" * 100_000 + b"}", "koopcore learned operator"),
    ],
)
def test_text_that_is_no_description_is_named(text, message, tmp_path):
    files(OneLayer(2, 3, bias=None), tmp_path)
    (tmp_path / "operator.json").write_bytes(text)
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "operator.json"))


def test_a_dictionary_in_a_thousand_others_is_refused(tmp_path):
    files(StateInclusive(OneLayer(2, 2, bias=None)), tmp_path)
    path = tmp_path / "operator.json"
    wrapped = json.loads(path.read_text())
    for _ in range(900):  # json still reads it; what is built of it is nested as deeply
        wrapped["dictionary"] = {"kind": "StateInclusive", "inner": wrapped["dictionary"]}
    path.write_text(json.dumps(wrapped))
    began = time.process_time()
    with pytest.raises(ValueError, match=r"operator\.json"):
        load(tmp_path)
    assert time.process_time() - began < 5.0  # a minute, where every level counts those below it


@pytest.mark.parametrize("dtype", ["bool", "int64", "uint8", "float16", "float32", "complex64"])
@pytest.mark.parametrize("name", ["parameters", "operator", "readout", "shift", "scale"])
def test_numbers_of_another_dtype_are_refused(name, dtype, tmp_path):
    _, numbers = files(OneLayer(2, 3, bias=None), tmp_path)
    tensors = load_tensors(numbers)
    with np.errstate(all="ignore"):
        tensors[name] = tensors[name].astype(dtype)
    (tmp_path / "operator.safetensors").write_bytes(save_tensors(tensors))
    with pytest.raises(ValueError, match=rf"operator\.safetensors: {name} is of .*; F64 is needed"):
        load(tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["parameters", "operator", "readout", "shift", "scale"])
def test_numbers_that_are_not_finite_are_refused(name, value, tmp_path):
    _, numbers = files(OneLayer(2, 3, bias=None), tmp_path)
    tensors = load_tensors(numbers)
    tensors[name].reshape(-1)[-1] = value
    (tmp_path / "operator.safetensors").write_bytes(save_tensors(tensors))
    with pytest.raises(ValueError, match=rf"operator\.safetensors: {name} is not finite"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {"operator": t["operator"]}, "lacks parameters, readout, shift, scale"),
        (lambda t: {**t, "more": t["shift"]}, "has an unknown 'more'"),
        (lambda t: {**t, "operator": t["operator"][:2].copy()}, r"operator has shape \(2, 3\)"),
        (lambda t: {**t, "operator": t["operator"].reshape(-1)}, r"operator has shape \(9,\)"),
        (lambda t: {**t, "readout": t["readout"].T.copy()}, r"readout has shape \(3, 2\)"),
        (lambda t: {**t, "shift": np.zeros((2, 0))}, r"shift has shape \(2, 0\)"),
        (lambda t: {**t, "scale": np.array(1.0)}, r"scale has shape \(\)"),
        (lambda t: {**t, "scale": np.zeros(2)}, "scale has numbers that are not > 0"),
        (lambda t: {**t, "scale": -t["scale"]}, "scale has numbers that are not > 0"),
        (lambda t: {**t, "operator": t["operator"] + 1e-9}, "do not belong together"),
        (lambda t: {**t, "shift": t["scale"], "scale": t["scale"] * 2}, "do not belong together"),
    ],
)
def test_numbers_that_do_not_fit_say_why(change, message, tmp_path):
    _, numbers = files(OneLayer(2, 3, bias=None), tmp_path)
    (tmp_path / "operator.safetensors").write_bytes(save_tensors(change(load_tensors(numbers))))
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path)
    assert str(tmp_path / "operator.safetensors") in str(caught.value)


def test_files_of_two_operators_are_never_mixed(tmp_path):
    # Of equal shapes, as a save leaves them that was interrupted between its two files.
    dictionary = OneLayer(2, 3, bias=None)
    files(dictionary, tmp_path / "one")
    other = AlternatingLearner(dictionary, n_iterations=9).fit(DATA).operator_
    save(other, tmp_path / "two")
    for end in ("json", "safetensors"):
        mixed = tmp_path / f"mixed {end}"
        shutil.copytree(tmp_path / "one", mixed)
        shutil.copy(tmp_path / "two" / f"operator.{end}", mixed)
        with pytest.raises(ValueError, match="do not belong together"):
            load(mixed)


def header(numbers, **changes):
    """A safetensors file whose header says something else about the tensor ``operator``."""
    size = int.from_bytes(numbers[:8], "little")
    described = json.loads(numbers[8 : 8 + size])
    described["operator"].update(changes)
    text = json.dumps(described).encode()
    return len(text).to_bytes(8, "little") + text + numbers[8 + size :]


@pytest.mark.parametrize(
    "broken",
    [
        lambda n: b"",
        lambda n: n[:5],
        lambda n: n[:100],
        lambda n: n[:-1],
        lambda n: n + b"\0",
        lambda n: (2**63 - 1).to_bytes(8, "little") + n[8:],
        lambda n: b"{}" * 500,
        lambda n: header(n, shape=[2**40, 2**40]),
        lambda n: header(n, shape=[2**62, 8]),
        lambda n: header(n, shape=[-3, -3]),
        lambda n: header(n, shape="3"),
        lambda n: header(n, dtype="BF16"),
        lambda n: header(n, dtype="F8_E4M3"),
        lambda n: header(n, dtype="U64"),
        lambda n: header(n, dtype=None),
        lambda n: header(n, data_offsets=[0, 2**60]),
        lambda n: header(n, data_offsets=[72, 0]),
    ],
)
def test_bytes_that_are_no_safetensors_are_named(broken, tmp_path):
    _, numbers = files(OneLayer(2, 3, bias=None), tmp_path)
    path = tmp_path / "operator.safetensors"
    path.write_bytes(broken(numbers))
    with pytest.raises(ValueError, match=r"is no safetensors file|is of U64") as caught:
        load(tmp_path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("name", ["operator.json", "operator.safetensors"])
def test_files_that_are_not_there_are_named(name, tmp_path):
    files(OneLayer(2, 3, bias=None), tmp_path)
    path = tmp_path / name
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing"):
        load(tmp_path)
    path.mkdir()
    with pytest.raises(ValueError, match=f"{name} is no file"):
        load(tmp_path)
    path.rmdir()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}/operator.json is no file"):
        load(path)
    assert load(tmp_path).dictionary == OneLayer(2, 3, bias=None)


def test_files_in_each_others_place_are_refused(tmp_path):
    text, numbers = files(OneLayer(2, 3, bias=None), tmp_path)
    (tmp_path / "operator.json").write_bytes(numbers)
    (tmp_path / "operator.safetensors").write_bytes(text)
    with pytest.raises(ValueError, match=r"operator\.json is no koopcore learned operator"):
        load(tmp_path)


def test_another_dictionary_than_the_one_learned_with_is_refused(tmp_path):
    files(OneLayer(2, 3, bias=None), tmp_path)
    assert load(tmp_path, OneLayer(2, 3, bias=None)).dictionary == OneLayer(2, 3, bias=None)
    with pytest.raises(ValueError, match="its dictionary is not OneLayer"):
        load(tmp_path, OneLayer(2, 3, "arctan", bias=None))
    with pytest.raises(TypeError, match="dictionary is a int, without n_states"):
        load(tmp_path, 3)
    linear = TorchDictionary(torch.nn.Linear(2, 3), 2)
    with pytest.raises(ValueError, match="its dictionary is not <"):
        load(tmp_path, linear)
    save(learned(linear), tmp_path)
    with pytest.raises(ValueError, match="its dictionary needs"):
        load(tmp_path, TorchDictionary(torch.nn.Linear(2, 4), 2))


def test_settings_from_numpy_are_saved_as_numbers(tmp_path):
    dictionary = OneLayer(np.int64(2), np.int32(3), scale=np.float32(0.5), bias=None)
    assert load(save(learned(dictionary), tmp_path)).dictionary == OneLayer(
        2, 3, scale=0.5, bias=None
    )


def test_random_damage_is_refused_or_changes_nothing(tmp_path):
    rng = random.Random(7)
    pristine = [files(dictionary, tmp_path / str(k)) for k, dictionary in enumerate(DICTIONARIES)]
    operators = [load(tmp_path / str(k)) for k in range(len(DICTIONARIES))]
    refused = 0
    for _ in range(400):
        k = rng.randrange(len(pristine))
        damaged = [bytearray(content) for content in pristine[k]]
        content = rng.choice(damaged)
        for _ in range(rng.choice([1, 1, 3])):
            at = rng.randrange(len(content) + 1)
            length = rng.choice([1, 1, 8, 10**6])
            content[at : at + length] = rng.choice([b"", b"0", b'"', rng.randbytes(length % 99)])
        for end, some in zip(("json", "safetensors"), damaged, strict=True):
            (tmp_path / f"operator.{end}").write_bytes(some)
        after = loaded(tmp_path)
        if isinstance(after, str):
            assert str(tmp_path / "operator.") in after
            refused += 1
        else:  # white space, or a byte replaced by itself
            assert after.dictionary == operators[k].dictionary
            np.testing.assert_array_equal(after.operator, operators[k].operator)
    assert refused > 300


def loaded(directory):
    """What `load` makes of a directory: an operator, or the message of its ValueError."""
    try:
        return load(directory)
    except ValueError as error:
        return str(error)


def parts(directory):
    for rank, height in enumerate((2, 3)):
        save_part(
            directory, rank, 10 + rank, np.full(4, rank + 0.5), np.full((height, 5), 1.0 * rank)
        )


def test_parts_of_ranks_are_joined_in_their_order(tmp_path):
    parts(tmp_path)
    theta, k = load_parts(tmp_path, 2)
    np.testing.assert_array_equal(theta, [0.5] * 4 + [1.5] * 4)
    np.testing.assert_array_equal(k, [[0.0] * 5] * 2 + [[1.0] * 5] * 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": np.zeros((3, 6))}, "rank-1.safetensors has rows of K of width 6, rank 0 of 5"),
        ({"rows": np.zeros((2, 5))}, "have 4 of the 5 rows of K"),
        ({"rows": np.zeros(15)}, "rank-1.safetensors has numbers of other dimensions"),
        ({"rows": np.zeros((3, 5), np.float32)}, "rank-1.safetensors: rows is of F32"),
        ({"rows": np.full((3, 5), np.nan)}, "rank-1.safetensors: rows is not finite"),
        ({"parameters": np.zeros((4, 1))}, "other dimensions"),
        ({"rank": np.array(0)}, "is the part of rank 0; its name is wrong"),
        ({"rank": None}, "rank-1.safetensors lacks rank"),
        ({"iteration": np.array(3.0)}, "iteration is of F64; I64"),
        ({"extra": np.zeros(1)}, "unknown 'extra'"),
    ],
)
def test_parts_that_do_not_fit_are_named(change, message, tmp_path):
    parts(tmp_path)
    path = tmp_path / "rank-1.safetensors"
    tensors = {**load_tensors(path.read_bytes()), **change}
    path.write_bytes(save_tensors({k: v for k, v in tensors.items() if v is not None}))
    with pytest.raises(ValueError, match=message):
        load_parts(tmp_path, 2)


def test_another_number_of_ranks_is_refused(tmp_path):
    parts(tmp_path)
    with pytest.raises(ValueError, match="have 2 of the 5 rows of K; n_ranks must be"):
        load_parts(tmp_path, 1)
    with pytest.raises(FileNotFoundError, match=r"rank-2\.safetensors is missing"):
        load_parts(tmp_path, 3)
    with pytest.raises(ValueError, match="n_ranks is 0"):
        load_parts(tmp_path, 0)


def test_nothing_half_written_is_left(tmp_path, monkeypatch):
    save(learned(OneLayer(2, 3, bias=None)), tmp_path)

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space"):
        save(learned(OneLayer(2, 5, bias=None)), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.undo()
    assert load(tmp_path).dictionary == OneLayer(2, 3, bias=None)
