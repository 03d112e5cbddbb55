"""Saved operators come back bit for bit, from files that run no code and are checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from koopcore.lab.problems.van_der_pol import paper_split
from koopcore.learning import (
    AlternatingLearner,
    Blocks,
    Layered,
    LearnedOperator,
    Monomials,
    OneLayer,
    RadialBasis,
    StateInclusive,
    TorchDictionary,
    load,
    save,
)

DATA = paper_split().train[:80]
DICTIONARIES: list[Any] = [
    OneLayer(2, 3, "arctan", 0.5),
    Layered(2, (4, 3), "logistic", 0.1, 2.0),
    StateInclusive(OneLayer(2, 2)),
    Monomials(2, 2, constant=True),
    RadialBasis(((0.0, 1.0), (1.0, 0.0)), 0.7),
    Blocks((StateInclusive(Layered(1, (3, 2))), OneLayer(1, 2)), ((1,), (0,))),
]


def learned(dictionary: Any) -> LearnedOperator:
    return AlternatingLearner(dictionary, n_iterations=3, standardize=True).fit(DATA).operator_


@pytest.mark.parametrize("dictionary", DICTIONARIES, ids=lambda d: type(d).__name__)
def test_an_operator_comes_back_bit_for_bit(dictionary: Any, tmp_path: Path) -> None:
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


def test_a_torch_dictionary_must_be_given_again(tmp_path: Path) -> None:
    dictionary = TorchDictionary(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh()), 2)
    before = learned(dictionary)
    save(before, tmp_path)
    with pytest.raises(ValueError, match=r"TorchDictionary, whose code is not saved.*dictionary="):
        load(tmp_path)
    after = load(tmp_path, dictionary)
    np.testing.assert_array_equal(after.predict(DATA[0], 4), before.predict(DATA[0], 4))


def test_saving_again_replaces(tmp_path: Path) -> None:
    save(learned(OneLayer(2, 3)), tmp_path)
    save(learned(OneLayer(2, 5)), tmp_path)
    assert load(tmp_path).dictionary == OneLayer(2, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "something"}, "is no koopcore learned operator"),
        ({"version": 2}, "has version 2; this koopcore reads 1"),
        ({"dictionary": {"kind": "os.system"}}, "kind 'os.system' is unknown; OneLayer"),
        (
            {"dictionary": {"kind": "OneLayer", "n_states": 2, "n_features": 4}},
            r"parameters has shape \(6,\), its dictionary needs \(8,\)",
        ),
    ],
)
def test_files_that_do_not_fit_say_why(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save(learned(OneLayer(2, 3)), tmp_path)
    path = tmp_path / "operator.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_numbers_that_are_missing_are_named(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    before = learned(OneLayer(2, 3))
    save(before, tmp_path)
    save_file({"operator": before.operator}, tmp_path / "operator.safetensors")
    with pytest.raises(ValueError, match="lacks parameters, readout, shift, scale"):
        load(tmp_path)


def test_nothing_half_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(learned(OneLayer(2, 3)), tmp_path)

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space"):
        save(learned(OneLayer(2, 5)), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.undo()
    assert load(tmp_path).dictionary == OneLayer(2, 3)
