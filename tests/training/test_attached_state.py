"""A run that is saved and resumed, in the middle of a window too, continues bit-identically."""

from __future__ import annotations

import io

import pytest

torch = pytest.importorskip("torch")

from small_training import (  # noqa: E402
    OPTIMIZERS,
    everything,
    identical,
    loss_of,
    network,
    noisy_network,
    train,
)

import koopcore as kc  # noqa: E402

SHORT = {"window": 6, "stride": 3}


def started(build, name, **options):
    model = build()
    optimizer = OPTIMIZERS[name](model.parameters())
    koop = kc.attach(optimizer, model, loss=loss_of(model), **{**SHORT, **options})
    return model, optimizer, koop


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


CASES = {
    "in the first window": (7, {}),
    "between two averaged steps": (8, {"record": "mean"}),
    "right after a jump": (18, {}),
    "in a later window": (50, {}),
    "while resting": (60, {"margin": 0.999}),
    "in a slid window": (100, {"margin": 0.05}),
    "before the warm-up ends": (5, {"warmup": 20}),
    "before it is ready": (25, {"warmup": "auto"}),
    "with an average": (50, {"average": 0.9}),
    "with updates": (50, {"observables": "weights+update"}),
    "with bfloat16 differences": (50, {"storage": "bfloat16"}),
    "with bfloat16 means": (50, {"storage": "bfloat16", "record": "mean"}),
    "in a schedule": (30, {"schedule": (20, 50, 40)}),
    "after a schedule": (60, {"schedule": (20, 50, 40)}),
}


@pytest.mark.parametrize("build", [network, noisy_network])
@pytest.mark.parametrize("name", ["sgd", "adam"])
@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_continues_bit_identically(build, name, case):
    steps, options = CASES[case]
    model, optimizer, koop = started(build, name, **options)
    train(optimizer, loss_of(model), steps)
    saved = through_a_file(
        {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "koop": koop.state_dict(),
            "random": torch.get_rng_state(),
        }
    )
    expected = train(optimizer, loss_of(model), 60)
    jumps = [(r.step, r.kind, r.horizon, r.loss_after) for r in koop.stats.history]

    again, resumed, other = started(build, name, **options)
    again.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    other.load_state_dict(saved["koop"])
    torch.set_rng_state(saved["random"])
    got = train(resumed, loss_of(again), 60)

    assert got == expected
    assert identical(everything(again, resumed), everything(model, optimizer))
    assert [(r.step, r.kind, r.horizon, r.loss_after) for r in other.stats.history] == jumps
    assert other.stats.snapshots == koop.stats.snapshots


def test_the_state_may_be_loaded_before_the_model():
    model, optimizer, koop = started(noisy_network, "adam")
    train(optimizer, loss_of(model), 40)
    saved = through_a_file([koop.state_dict(), model.state_dict(), optimizer.state_dict()])
    random = torch.get_rng_state()
    expected = train(optimizer, loss_of(model), 40)
    again, resumed, other = started(noisy_network, "adam")
    other.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    resumed.load_state_dict(saved[2])
    torch.set_rng_state(random)
    assert train(resumed, loss_of(again), 40) == expected


def test_statistics_go_on_counting():
    model, optimizer, koop = started(network, "sgd")
    train(optimizer, loss_of(model), 50)
    again, resumed, other = started(network, "sgd")
    again.load_state_dict(model.state_dict())
    other.load_state_dict(koop.state_dict())
    assert other.stats == koop.stats
    train(resumed, loss_of(again), 50)
    assert other.stats.jumps > koop.stats.jumps
    assert other.state_dict()["step"] == 100


def test_saving_changes_nothing():
    model, optimizer, koop = started(network, "adam")
    train(optimizer, loss_of(model), 40)
    state = koop.state_dict()
    rows = state["recording"]["ring"]["data"].clone()
    train(optimizer, loss_of(model), 10)
    assert torch.equal(state["recording"]["ring"]["data"], rows)
    assert state["step"] == 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 7}, "window=6"),
        ({"stride": 2}, "stride=3"),
        ({"record": "mean"}, "record=2"),
        ({"storage": "bfloat16"}, "storage='auto'"),
        ({"observables": "weights+update"}, "observables='weights'"),
        ({"schedule": (5, 50, 10)}, "schedule=None"),
        ({"exclude": "*.bias"}, "another layout"),
    ],
)
def test_a_state_saved_with_other_options_is_refused(options, message):
    model, optimizer, koop = started(network, "adam")
    train(optimizer, loss_of(model), 10)
    _, _, other = started(network, "adam", **options)
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(koop.state_dict())


def test_a_state_of_another_model_is_refused_and_changes_nothing():
    model, optimizer, koop = started(network, "adam")
    train(optimizer, loss_of(model), 10)
    other_model = torch.nn.Sequential(torch.nn.Linear(1, 9), torch.nn.Tanh(), torch.nn.Linear(9, 1))
    other_optimizer = OPTIMIZERS["adam"](other_model.parameters())
    other = kc.attach(other_optimizer, other_model, loss=loss_of(other_model), **SHORT)
    with pytest.raises(ValueError, match="another layout"):
        other.load_state_dict(koop.state_dict())
    assert other.state_dict()["step"] == 0
    assert other.stats.snapshots == 0
    train(other_optimizer, loss_of(other_model), 30)
    assert other.stats.jumps > 0
