"""Options are spelt once: what attach takes is what Settings has, checked and tidied."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import get_type_hints

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from small_training import OPTIMIZERS, network  # noqa: E402

import koopcore as kc  # noqa: E402
from koopcore.training.settings import Options, Settings  # noqa: E402

ARGUMENTS = ["loss", "residuals", "masters", "generators", "process_group", "on_jump"]


def test_options_and_settings_have_the_same_names_types_and_order():
    assert get_type_hints(Options) == get_type_hints(Settings)
    assert list(Options.__annotations__) == [field.name for field in fields(Settings)]


def test_every_option_is_described_once_and_passes_through_attach():
    for field in fields(Settings):
        assert f"{field.name}" in Settings.__doc__, field.name
    parameters = inspect.signature(kc.attach).parameters
    assert list(parameters) == ["optimizer", "model", "misplaced", *ARGUMENTS, "options"]
    model = network()
    defaults = {field.name: field.default for field in fields(Settings)}
    optimizer = OPTIMIZERS["adam"](model.parameters())
    koop = kc.attach(optimizer=optimizer, model=model, **defaults)
    assert koop.settings == Settings()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"candidates": "line"}, ("line",)),
        ({"candidates": ["mean", "line"]}, ("mean", "line")),
        ({"window": np.int64(7)}, 7),
        ({"record": np.int32(3)}, 3),
        ({"schedule": [np.int64(20), 50, 40]}, (20, 50, 40)),
    ],
)
def test_what_means_the_same_is_taken(given, expected):
    ((name, _),) = given.items()
    value = getattr(Settings.of(given), name)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"candidates": {"mean", "line"}}, "in the order in which they are tried"),
        ({"candidates": None}, "candidates is None; give one of koopman, mean, line, regression"),
        ({"candidates": ("line", "line")}, "name each only once"),
        ({"candidates": ("line", 3)}, "3 is no kind of them; give .* koopman, mean, line"),
        ({"max_horizon": "256"}, "max_horizon is '256'; give a number"),
        ({"max_horizon": float("nan")}, "max_horizon is nan windows; give a number > 0"),
        ({"ladder": "auto"}, "ladder is 'auto'; give a number"),
        ({"slack": None}, "slack is None; give a share of the gain"),
        ({"margin": True}, "margin is True; give a share of the loss"),
        ({"averages": "0.9"}, "averages is '0.9'; give decays"),
        ({"operator": "afine"}, "operator is 'afine'; accepted are affine, linear, trend, auto"),
        ({"partition": None}, "partition is None; accepted are network, layers, nodes, weights"),
        ({"schedule": "123"}, r"give \(t1, t2, T\)"),
        ({"schedule": 7}, r"give \(t1, t2, T\)"),
        ({"storage": ["auto"]}, r"storage is \['auto'\]; accepted are"),
    ],
)
def test_what_does_not_is_explained(given, message):
    with pytest.raises(ValueError, match=message):
        Settings.of(given)
