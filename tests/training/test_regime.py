"""The regime: found from medians of windows, never from one, and found again when it changes."""

from __future__ import annotations

import math
import warnings

import pytest

torch = pytest.importorskip("torch")

from small_training import OPTIMIZERS, identical, loss_of, network, points, train  # noqa: E402

import koopcore as kc  # noqa: E402
from koopcore.training.recording.probe import Probe  # noqa: E402
from koopcore.training.regime import RegimeJudge, median  # noqa: E402

TOLD = {"sgd": 0.05, "momentum": 0.02, "adam": 3e-3, "adagrad": 0.05, "adadelta": 0.5}


def batch_loss(model, size, generator):
    x, y = points()
    chosen = torch.randint(len(x), (size,), generator=generator)
    return lambda: torch.nn.functional.mse_loss(model(x[chosen]), y[chosen])


def run(name, steps, size=None, koop_options=None):
    """Full-batch training, or on random batches of ``size`` points."""
    model = network()
    stepper = OPTIMIZERS[name](model.parameters())
    koop = None
    if koop_options is not None:
        koop = kc.attach(stepper, model, loss=loss_of(model), **koop_options)
    generator = torch.Generator().manual_seed(3)
    for _ in range(steps):
        loss = loss_of(model) if size is None else batch_loss(model, size, generator)
        train(stepper, loss, 1)
    return model, koop


@pytest.mark.parametrize("name", TOLD)
def test_minibatches_are_noise_and_never_touch_the_weights(name):
    plain, _ = run(name, 250, size=8)
    model, koop = run(name, 250, size=8, koop_options={})
    assert [regime for _, regime in koop.stats.regimes] == ["undecided", "noise"]
    assert koop.stats.jumps == 0
    assert identical(list(model.parameters()), list(plain.parameters()))
    assert "noise" in repr(koop)
    assert "noise since step 4" in str(koop.stats)


@pytest.mark.parametrize("name", TOLD)
def test_full_batches_are_none_and_gain(name):
    plain, _ = run(name, 250)
    model, koop = run(name, 250, koop_options={})
    assert "noise" not in [regime for _, regime in koop.stats.regimes]
    assert koop.regime in ("smooth", "between")
    assert koop.stats.history[0].step <= 24
    assert koop.stats.accepted > 0
    assert float(loss_of(model)()) < float(loss_of(plain)())
    assert koop.regime in repr(koop)


def test_a_run_that_turns_to_noise_and_back_is_followed():
    model = network()
    stepper = OPTIMIZERS["sgd"](model.parameters())
    koop = kc.attach(stepper, model, loss=loss_of(model))
    generator = torch.Generator().manual_seed(1)
    train(stepper, loss_of(model), 100)
    assert koop.regime != "noise"
    accepted = None
    for _ in range(400):
        train(stepper, batch_loss(model, 4, generator), 1)
        if koop.regime == "noise" and accepted is None:
            accepted = koop.stats.accepted
    assert koop.regime == "noise"
    assert koop.stats.accepted == accepted
    train(stepper, loss_of(model), 400)
    assert koop.regime != "noise"


@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("size", [None, 8])
def test_full_batches_that_look_like_noise_are_told_by_their_gradient(size, closure):
    """At the edge of divergence no window predicts its end, whatever the batch."""
    model = network()
    stepper = torch.optim.Adam(model.parameters(), lr=0.2)
    koop = kc.attach(stepper, model, loss=loss_of(model))
    generator = torch.Generator().manual_seed(3)
    for _ in range(150):
        loss = loss_of(model) if size is None else batch_loss(model, size, generator)
        if closure:
            train(stepper, loss, 1)
        else:
            stepper.zero_grad()
            loss().backward()
            stepper.step()
    assert median(koop._judge.hindcasts) > 0.1
    regimes = [regime for _, regime in koop.stats.regimes]
    assert ("noise" in regimes) == (size is not None)


def test_what_has_no_gradient_to_compare_with_is_taken_for_noise():
    model = network()
    stepper = torch.optim.Adam(model.parameters(), lr=0.2)
    koop = kc.attach(stepper, model, loss=lambda: float(loss_of(model)().detach()))
    train(stepper, loss_of(model), 150)
    assert "noise" in [regime for _, regime in koop.stats.regimes]


def judged(hindcasts):
    judge = RegimeJudge()
    step = 0
    seen = []
    for hindcast in hindcasts:
        step = max(step, judge.next) + 9
        judge.window(hindcast, 1.0, step)
        if judge.doubt:
            judge.settle(step, full=False)
        seen.append(judge.regime)
    return judge, seen


def test_one_window_decides_nothing():
    _, seen = judged([0.01] * 5 + [0.9] + [0.01] * 3)
    assert seen == ["undecided"] * 4 + ["smooth"] * 5
    _, seen = judged([0.01] * 5 + [0.9] * 3)
    assert seen[-2:] == ["smooth", "noise"]


def test_what_lies_between_the_thresholds_changes_nothing():
    assert judged([0.9] * 12 + [0.08] * 20)[1][-1] == "noise"
    assert judged([0.01] * 5 + [0.08] * 20)[1][-1] == "smooth"
    judge, _ = judged([0.01] * 5)
    for hindcast, regime in ((0.5, "between"), (0.15, "between"), (0.05, "smooth")):
        for _ in range(5):
            judge.attempt(hindcast, 1000)
        assert judge.regime == regime


def test_windows_get_rarer_while_they_agree_and_dense_when_one_does_not():
    judge, _ = judged([0.01] * 5)
    gaps = []
    for _ in range(12):
        step = judge.next + 9
        assert judge.window(0.01, 1.0, step) == 0
        gaps.append(judge.next - step)
    assert gaps[:3] == [75, 112, 168]
    assert gaps[-1] == 800
    assert judge.window(0.9, 1.0, judge.next + 9) > 0
    assert judge.due(judge.next + 1)


def test_steps_lost_in_rounding_say_nothing():
    weight = torch.full((1000,), 100.0)
    probe = Probe([weight])
    generator = torch.Generator().manual_seed(0)
    for scale, known in ((1e-5, False), (1.0, True)):
        probe.follow()
        for _ in range(7):
            weight += scale * torch.randn(1000, generator=generator)
            probe.capture()
        error, cosine = probe.signals()
        assert math.isnan(error) is not known
    assert error > 0.5
    assert abs(cosine) < 0.1
    judge, seen = judged([math.nan] * 8)
    assert set(seen) == {"undecided"}
    assert not judge.may_jump


def test_a_sample_of_many_parameters_is_small_and_seen_in_place():
    weight = torch.nn.Parameter(torch.zeros(300, 1000))
    turned = torch.nn.Parameter(torch.zeros(8, 9, 10, 11).to(memory_format=torch.channels_last))
    probe = Probe([weight.detach(), turned.detach()])
    assert probe.ring.size <= 8192 + 64
    with torch.no_grad():
        weight += 1
        turned += 2
    probe.capture()
    kinds = set(probe.ring.newest()[: -(-300_000 // 38)].tolist())
    assert kinds <= {0.0, 1.0, 2.0}
    assert {1.0, 2.0} <= set(probe.ring.newest().tolist())


@pytest.mark.parametrize("regime", ["smooth", "between"])
def test_a_regime_can_be_forced_on(regime):
    _, koop = run("sgd", 250, size=8, koop_options={"regime": regime})
    assert koop.regime == regime
    assert koop.stats.jumps > 0


def test_a_regime_can_be_forced_off():
    plain, _ = run("sgd", 250)
    model, koop = run("sgd", 250, koop_options={"regime": "noise"})
    assert koop.regime == "noise"
    assert identical(list(model.parameters()), list(plain.parameters()))


@pytest.mark.parametrize("regime", ["undecided", "calm", None, 1])
def test_other_regimes_are_refused(regime):
    model = network()
    stepper = OPTIMIZERS["sgd"](model.parameters())
    with pytest.raises(ValueError, match="accepted are auto, smooth, between, noise"):
        kc.attach(stepper, model, regime=regime)


def test_a_run_that_gains_nothing_says_so_once():
    options = {"regime": "smooth", "margin": 0.999, "window": 4, "stride": 1}
    with pytest.warns(UserWarning, match="none of 8 jumps lowered the loss") as caught:
        run("sgd", 2500, koop_options=options)
    assert len(caught) == 1


@pytest.mark.parametrize("looks", [False, True])
def test_averages_that_nobody_looks_at_are_mentioned_once(looks):
    model = network()
    stepper = OPTIMIZERS["sgd"](model.parameters())
    koop = kc.attach(stepper, model, loss=loss_of(model))
    generator = torch.Generator().manual_seed(1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(6000):
            train(stepper, batch_loss(model, 4, generator), 1)
            if looks and step == 500:
                with koop.averaged():
                    pass
    messages = [str(w.message) for w in caught if "koopcore" in str(w.message)]
    assert len(messages) == (0 if looks else 1)
    assert looks or "with koop.averaged()" in messages[0]
