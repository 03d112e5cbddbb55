"""EMA and window averages equal their definitions, and give the parameters back."""

from __future__ import annotations

from itertools import pairwise

import pytest

torch = pytest.importorskip("torch")

from small_training import (  # noqa: E402
    OPTIMIZERS,
    identical,
    loss_of,
    network,
    noisy_network,
    points,
    train,
)

import koopcore as kc  # noqa: E402
from koopcore.training import averaged  # noqa: E402
from koopcore.training.averaging import AverageFamily, ExponentialAverage, WindowAverage  # noqa: E402


def stepped_weights(average, steps):
    """Steps of training with an update each; the weights seen, in float64."""
    model = average.parameters
    optimizer = OPTIMIZERS["momentum"](model)
    seen = []
    for _ in range(steps):
        train(optimizer, lambda: sum((p**2).sum() for p in model), 1)
        average.update()
        seen.append([p.detach().double().clone() for p in model])
    return seen


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_an_exponential_average_equals_its_recursion(decay):
    model = network()
    average = ExponentialAverage(list(model.parameters()), decay)
    expected = [p.detach().double().clone() for p in model.parameters()]
    for weights in stepped_weights(average, 20):
        expected = [decay * e + (1 - decay) * w for e, w in zip(expected, weights, strict=True)]
    for got, want in zip(average.average, expected, strict=True):
        assert torch.allclose(got.double(), want, rtol=0, atol=1e-6)  # 20 float32 roundings


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_a_slow_average_of_narrow_parameters_moves(dtype):
    """From 1 towards 2 at a decay of 0.999: a bfloat16 sum of 1 and 0.001 is 1 again."""
    weight = torch.ones(3, dtype=dtype)
    average = ExponentialAverage([weight], 0.999)
    weight.fill_(2.0)
    for _ in range(1000):
        average.update()
    # 2 - 0.999^1000 = 1.632; a thousand float32 roundings of 6e-8.
    assert average.average[0].double() == pytest.approx(torch.full((3,), 1.6323), abs=1e-4)
    assert average.average[0].dtype == torch.promote_types(dtype, torch.float32)
    with average.applied():
        assert weight.dtype == dtype
        assert float(weight[0]) == pytest.approx(1.6323, abs=2**-7)
    assert weight.tolist() == [2.0] * 3


def test_complex_parameters_are_averaged_as_they_are():
    weight = torch.zeros(2, dtype=torch.complex64)
    average = ExponentialAverage([weight], 0.5)
    weight.fill_(1.0 + 2.0j)
    average.update()
    assert average.average[0].tolist() == [0.5 + 1.0j] * 2


def test_an_average_follows_the_parameters_that_are_trained():
    first, second, third = (torch.full((2,), float(k)) for k in range(3))
    family = AverageFamily([first, second], [0.9, 0.99])
    second.fill_(3.0)
    family.taken = 10**6 + 1
    for _ in range(family.every[1] - 1):
        family.update()
    before = [family.rows[k][32:34].tolist() for k in range(2)]
    assert 1.0 < before[1][0] < before[0][0] < 3.0
    family.follow([second, third])
    assert [family.rows[k][:2].tolist() for k in range(2)] == before
    assert [family.rows[k][32:34].tolist() for k in range(2)] == [[2.0, 2.0]] * 2
    second.data = torch.zeros(3)
    family.follow([second])
    assert family.rows[:, :3].tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("updates", [1, 3, 4, 9])
def test_a_window_average_is_the_mean_of_the_last_snapshots(updates):
    model = network()
    average = WindowAverage(list(model.parameters()), 4)
    seen = stepped_weights(average, updates)[-4:]
    with average.applied():
        for k, p in enumerate(model.parameters()):
            want = torch.stack([weights[k] for weights in seen]).mean(0)
            assert torch.allclose(p.double(), want, rtol=0, atol=1e-6)  # float32 sum of 4


@pytest.mark.parametrize(
    "make", [lambda p: ExponentialAverage(p, 0.9), lambda p: WindowAverage(p, 3)]
)
def test_parameters_come_back_bit_by_bit_even_after_an_error(make):
    model = network()
    average = make(list(model.parameters()))
    optimizer = OPTIMIZERS["adam"](model.parameters())
    for _ in range(3):
        train(optimizer, loss_of(model), 2)
        average.update()
    before = [p.detach().clone() for p in model.parameters()]
    with average.applied():
        assert not identical([p.detach() for p in model.parameters()], before)
    assert identical([p.detach() for p in model.parameters()], before)
    with pytest.raises(ZeroDivisionError), average.applied():
        1 / 0  # noqa: B018 - the error is the point
    assert identical([p.detach() for p in model.parameters()], before)


def test_an_average_beats_oscillating_weights():
    """Around a minimum at 0 with flips of +-1: the mean of an even window is the minimum."""
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    window = WindowAverage([weight], 4)
    for k in range(8):
        with torch.no_grad():
            weight.fill_((-1.0) ** k)
        window.update()
    with window.applied():
        assert weight.item() == 0.0


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0])
def test_a_decay_outside_of_its_range_is_refused(decay):
    with pytest.raises(ValueError, match=r"give a number in \[0, 1\)"):
        ExponentialAverage([torch.ones(1)], decay)


def test_averaging_nothing_is_refused():
    average = WindowAverage([torch.ones(1)], 2)
    with pytest.raises(ValueError, match="call update"), average.applied():
        raise AssertionError("not reached")


def attached(decay=0.9, optimizer="adagrad", **options):
    model = network()
    stepper = OPTIMIZERS[optimizer](model.parameters())
    options = {"regime": "smooth", "window": 9, "stride": 6, **options}
    koop = kc.attach(stepper, model, loss=loss_of(model), averages=decay, **options)
    return model, stepper, koop


# -- several at once ------------------------------------------------------------------------------


def recursions(decays, every, values):
    """The averages of a family as its docstring writes it, asked for at the end, in float64."""
    ages = [0.0] + [1 / (1 - decay) for decay in decays]
    memories = [b - a for a, b in pairwise(ages)]
    averages, updated = [values[0]] * len(decays), [0] * len(decays)
    for t in range(1, len(values)):
        for k, memory in enumerate(memories):
            if t % every[k] == 0 or t == len(values) - 1:
                steps = t - updated[k]
                share = max(1 - (1 - 1 / memory) ** steps, min(1.0, 3 * steps / t))
                source = averages[k - 1] if k else values[t]
                averages[k] += share * (source - averages[k])
                updated[k] = t
    return averages


@pytest.mark.parametrize("steps", [1, 36, 45, 1000, 4000])
def test_a_family_equals_its_recursion(steps):
    generator = torch.Generator().manual_seed(steps)
    values = torch.randn(steps + 1, generator=generator, dtype=torch.float64).cumsum(0)
    weight = values[:1].float()
    family = AverageFamily([weight], [0.98, 0.99, 0.995, 0.999])
    for value in values[1:]:
        weight.copy_(value)
        family.update()
    expected = recursions(family.decays, family.every, values.tolist())
    for decay, want in zip(family.decays, expected, strict=True):
        # A few hundred float32 roundings of numbers up to 100.
        assert float(family.values(f"{decay:g}")[0]) == pytest.approx(want, abs=1e-3)


def test_the_age_of_an_average_is_that_of_an_exponential_one():
    """Along a straight walk an average lags by its age, 1/(1 - decay) steps in the end."""
    weight = torch.zeros(1, dtype=torch.float64)
    family = AverageFamily([weight], [0.98, 0.99, 0.995])
    for step in range(1, 4001):
        weight.fill_(step)
        family.update()
    for decay in family.decays:
        lag = 4000 - float(family.values(f"{decay:g}")[0])
        # As if updated now, which is half the time between two updates ahead of an average one.
        assert 0.7 < lag * (1 - decay) < 1.0


def test_a_line_through_two_averages_ends_where_a_straight_walk_is():
    weight = torch.zeros(3, dtype=torch.float64)
    family = AverageFamily([weight], [0.98, 0.99, 0.995])
    for step in range(1, 1500):
        weight.copy_(torch.tensor([1.0, -2.0, 0.5]) * step)
        family.update()
    assert family.names == ["0.98", "0.99", "0.995", "line 0.98", "line 0.99"]
    for name in ("line 0.98", "line 0.99"):
        assert torch.allclose(family.values(name)[0], weight, rtol=1e-12)
    assert float(family.values("0.99")[0][0]) < float(weight[0]) - 50  # which lags


def test_long_averages_of_a_young_run_leave_its_beginning_behind():
    weight = torch.full((1,), 100.0)
    family = AverageFamily([weight], [0.999])
    weight.fill_(0.0)
    for _ in range(500):
        family.update()
    # 0.999^500 of the first weight would be 61; a third of the run remembers 1/3^3 of it at most.
    assert abs(float(family.values("0.999")[0])) < 4.0


def test_averages_are_in_float32_whatever_the_parameters_are():
    model = network().to(torch.bfloat16)
    stepper = torch.optim.SGD(model.parameters(), lr=1e-30)
    koop = kc.attach(stepper, model, averages=0.999, warmup=10**6)
    for _ in range(3000):  # the memory of a young average is short; let it grow
        train(stepper, lambda: sum(p.float().sum() for p in model.parameters()), 1)
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    family = koop._averages.family
    family.restart()
    family.taken = 10**4 * family.every[0]  # of an old run, whose average has its full memory
    with torch.no_grad():
        model[0].weight.fill_(2.0)
    for _ in range(1000):
        train(stepper, lambda: sum(p.float().sum() for p in model.parameters()), 1)
    with koop.averaged(0.999):  # 2 - 0.999^1000
        assert model[0].weight[0, 0].item() == pytest.approx(1.6323, abs=2**-7)


def test_few_parameters_are_averaged_more_often():
    """An update of many is a walk through memory."""
    decays = [0.98, 0.99]
    few, many = (AverageFamily([torch.zeros(n)], decays) for n in (65_536, 65_537))
    assert (few.every, many.every) == ([6, 36], [12, 36])


def test_the_averages_begin_again_where_a_jump_lands():
    model, stepper, koop = attached(decay=(0.99, 0.999))
    while not koop.stats.accepted:
        train(stepper, loss_of(model), 1)
    here = [p.detach().clone() for p in model.parameters()]
    for decay in (0.99, 0.999):
        with koop.averaged(decay) as name:
            assert name == f"{decay:g}"
            assert identical([p.detach() for p in model.parameters()], here)


def test_a_mean_must_beat_the_average_too():
    """Where the average has a loss of 0, nothing can; without one the same candidates win."""
    accepted = {}
    for decays in ((), 0.9):
        weight = torch.nn.Parameter(torch.tensor([4.0]))
        module = torch.nn.Module()
        module.weight = weight
        stepper = torch.optim.SGD([weight], lr=1.0)
        koop = kc.attach(
            stepper, module, loss=lambda w=weight: w.square().sum(), window=4, stride=5,
            averages=decays, candidates=("line", "mean"), record="last", regime="smooth",
        )  # fmt: skip
        if decays:
            koop._averages.family.values = lambda name: [torch.zeros(1)]  # nothing is better
        for _ in range(20):
            weight.grad = torch.full((1,), 0.01)  # a straight walk towards 0
            stepper.step()
        accepted[decays] = koop.stats.accepted
    assert accepted == {(): 1, 0.9: 0}


def test_masters_and_their_parameters_are_both_averaged():
    model = network().to(torch.bfloat16)
    masters = [p.detach().float().clone().requires_grad_() for p in model.parameters()]
    stepper = torch.optim.SGD(masters, lr=0.1)
    koop = kc.attach(stepper, model, masters=masters, averages=0.9, warmup=10**6)
    for _ in range(40):
        for master in masters:
            master.grad = torch.ones_like(master)
        stepper.step()
    with koop.averaged(0.9):
        for master, p in zip(masters, model.parameters(), strict=True):
            assert torch.equal(master.detach().to(torch.bfloat16), p.detach())
        inside = [m.detach().clone() for m in masters]
    assert not identical(inside, [m.detach() for m in masters])


# -- which of them --------------------------------------------------------------------------------


def noisy_run(steps=300, loss=True, build=network, batch=4, **options):
    """Training on random points of the sine: every step is a draw."""
    model = build()
    stepper = torch.optim.SGD(model.parameters(), lr=0.1)
    koop = kc.attach(stepper, model, loss=loss_of(model) if loss else None, **options)
    generator = torch.Generator().manual_seed(0)
    x, y = points()
    for _ in range(steps):
        chosen = torch.randint(len(x), (batch,), generator=generator)
        train(stepper, lambda c=chosen: torch.nn.functional.mse_loss(model(x[c]), y[c]), 1)
    return model, stepper, koop


def test_under_noise_the_loss_chooses_the_average_and_the_weights_are_those_of_plain_training():
    model, _, koop = noisy_run()
    plain = network()
    stepper = torch.optim.SGD(plain.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(0)
    x, y = points()
    for _ in range(300):
        chosen = torch.randint(len(x), (4,), generator=generator)
        train(stepper, lambda c=chosen: torch.nn.functional.mse_loss(plain(x[c]), y[c]), 1)
    assert koop.regime == "noise"
    assert koop.stats.jumps == 0
    koop._averages._begun -= 1000.0  # a budget for all candidates, however fast the machine
    weights = [p.detach().clone() for p in model.parameters()]
    assert identical(weights, [p.detach() for p in plain.parameters()])
    with koop.averaged() as name:
        inside = float(loss_of(model)().detach())
    losses = koop.stats.averages
    assert set(losses) >= {"weights", "0.98", "0.99", "lawa", "regression"}
    assert losses[name] == min(losses.values())
    assert inside == losses[name]
    assert identical([p.detach() for p in model.parameters()], weights)
    for each, loss in losses.items():
        with koop.averaged(each):
            assert float(loss_of(model)().detach()) == loss


@pytest.mark.parametrize("known", ["weights", "line 0.98", "regression", "0.995"])
def test_what_is_best_early_in_a_run_does_not_stand_for_long(known, monkeypatch):
    """Where the loss cannot be asked again, an average stands; others give way to the shortest."""
    *_, koop = noisy_run(400)
    averages = koop._averages
    averages.best, averages._asked_at = known, averages.family.taken
    monkeypatch.setattr(averages, "_affordable", lambda evaluations: False)
    with koop.averaged() as name:
        assert name == known
    averages._asked_at = averages.family.taken // 3
    with koop.averaged() as name:
        assert name == ("0.995" if known == "0.995" else "0.98")


def test_asking_often_does_not_ask_the_loss_often(monkeypatch):
    """A run of a second, by a clock of its own, and a loss of a millisecond: 0.5 % are five."""
    _, _, koop = noisy_run()
    averages, calls = koop._averages, [0]
    averages.seconds, averages._cost = 0.0, 0.001
    loss = averages.guarded.loss
    monkeypatch.setattr(averaged, "perf_counter", lambda: averages._begun + 1.0 + 0.001 * calls[0])

    def counted():
        calls[0] += 1
        return loss()

    averages.guarded.loss = counted
    for _ in range(50):
        with koop.averaged():
            pass
    assert 0 < calls[0] <= 5  # of 50 times three to nine


def test_without_a_loss_the_length_of_the_run_chooses():
    for steps, expected in ((300, "0.98"), (1200, "0.99")):
        _, _, koop = noisy_run(steps, loss=False)
        with koop.averaged() as name:
            assert name == expected


def test_an_average_can_be_saved():
    model, _, koop = noisy_run()
    state = koop.averaged_state_dict(0.99)
    other = network(seed=1)
    other.load_state_dict(state)
    with koop.averaged(0.99):
        assert identical(list(other.parameters()), list(model.parameters()))
    assert not identical(list(other.parameters()), list(model.parameters()))


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_is_reestimated_at_the_average(training):
    model, _, koop = noisy_run(build=lambda: noisy_network()[:3].append(torch.nn.Linear(8, 1)))
    model.train(training)
    before = [b.clone() for b in model.buffers()]
    x, _ = points()
    with koop.averaged(0.98):
        hidden = model[0](x)
        # The guard loss runs on all points: their statistics at the averaged weights.
        if training:
            assert torch.allclose(model[1].running_mean, hidden.mean(0), atol=1e-6)
            assert torch.allclose(model[1].running_var, hidden.var(0), rtol=1e-5)
    assert identical(list(model.buffers()), before)


@pytest.mark.parametrize("average", [-0.1, 1.0, 1.5, (0.9, 2.0)])
def test_an_average_outside_of_its_range_is_refused(average):
    with pytest.raises(ValueError, match=r"give decays in \[0, 1\)"):
        attached(decay=average)


@pytest.mark.parametrize("averages", [(0.99, 0.98), (0.9, 0.9)])
def test_averages_out_of_order_are_refused(averages):
    with pytest.raises(ValueError, match="give each decay once, ascending"):
        attached(decay=averages)


def test_averages_that_there_are_not_are_named():
    model, stepper, koop = attached()
    with pytest.raises(RuntimeError, match="before the first step"), koop.averaged():
        raise AssertionError("not reached")
    train(stepper, loss_of(model), 1)
    for which in (0.98, "ema"):
        with pytest.raises(ValueError, match=r"there are weights, 0\.9 now"), koop.averaged(which):
            raise AssertionError("not reached")
    koop.detach()
    with pytest.raises(RuntimeError, match=r"averaged\(\) after detach"), koop.averaged():
        raise AssertionError("not reached")
