"""EMA and window averages equal their definitions, and give the parameters back."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from small_training import OPTIMIZERS, identical, loss_of, network, train  # noqa: E402

import koopcore as kc  # noqa: E402
from koopcore.training.attached import AVERAGE_EVERY  # noqa: E402
from koopcore.training.averaging import ExponentialAverage, WindowAverage  # noqa: E402


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
    average = ExponentialAverage([first, second], 0.5)
    second.fill_(3.0)
    average.update()
    average.follow([second, third])
    assert [a.tolist() for a in average.average] == [[2.0, 2.0], [2.0, 2.0]]
    second.data = torch.zeros(3)
    average.follow([second])
    assert average.average[0].tolist() == [0.0] * 3


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
    koop = kc.attach(stepper, model, loss=loss_of(model), average=decay, **options)
    return model, stepper, koop


def test_the_average_of_an_attachment_follows_the_weights_between_jumps():
    model, stepper, koop = attached(window=9, stride=6)
    expected = [p.detach().double().clone() for p in model.parameters()]
    share = 1 - 0.9**AVERAGE_EVERY
    for step in range(1, 51):  # the first attempt is at step 54
        train(stepper, loss_of(model), 1)
        if step % AVERAGE_EVERY == 0:
            pairs = zip(expected, model.parameters(), strict=True)
            expected = [e + share * (p.detach().double() - e) for e, p in pairs]
    before = [p.detach().clone() for p in model.parameters()]
    with koop.averaged():
        for p, want in zip(model.parameters(), expected, strict=True):
            # Ten float32 roundings of weights below 4.
            assert torch.allclose(p.double(), want, rtol=0, atol=1e-5)
    assert identical([p.detach() for p in model.parameters()], before)


def test_the_average_begins_again_where_a_jump_lands():
    model, stepper, koop = attached(decay=0.999)
    while not koop.stats.accepted:
        train(stepper, loss_of(model), 1)
    here = [p.detach().clone() for p in model.parameters()]
    with koop.averaged():
        assert identical([p.detach() for p in model.parameters()], here)


def test_a_jump_must_beat_the_average_too():
    """Where the average has a loss of 0, nothing can; without one the same candidates win."""
    accepted = {}
    for decay in (None, 0.9):
        weight = torch.nn.Parameter(torch.tensor([4.0]))
        module = torch.nn.Module()
        module.weight = weight
        stepper = torch.optim.SGD([weight], lr=1.0)
        koop = kc.attach(
            stepper, module, loss=lambda w=weight: w.square().sum(), window=4, stride=5,
            average=decay, candidates=("line",), record="last",
        )  # fmt: skip
        if decay is not None:
            koop._average.average[0].zero_()
            koop._average.update = lambda: None  # what training averages is not the point here
        for _ in range(20):
            weight.grad = torch.full((1,), 0.01)  # a straight walk towards 0
            stepper.step()
        accepted[decay] = koop.stats.accepted
    assert accepted == {None: 1, 0.9: 0}


def test_the_average_of_a_bfloat16_model_moves():
    model = network().to(torch.bfloat16)
    stepper = torch.optim.SGD(model.parameters(), lr=0.0)
    koop = kc.attach(stepper, model, average=0.999, warmup=10**6)
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    koop.reset()
    with torch.no_grad():
        model[0].weight.fill_(2.0)
    for _ in range(1000):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        stepper.step()
    with koop.averaged():
        assert model[0].weight[0, 0].item() == pytest.approx(1.6323, abs=2**-7)


def test_masters_and_their_parameters_are_both_averaged():
    model = network().to(torch.bfloat16)
    masters = [p.detach().float().clone().requires_grad_() for p in model.parameters()]
    stepper = torch.optim.SGD(masters, lr=0.1)
    koop = kc.attach(stepper, model, masters=masters, average=0.5)
    for _ in range(AVERAGE_EVERY):
        for master in masters:
            master.grad = torch.ones_like(master)
        stepper.step()
    with koop.averaged():
        for master, p in zip(masters, model.parameters(), strict=True):
            assert torch.equal(master.detach().to(torch.bfloat16), p.detach())
        inside = [m.detach().clone() for m in masters]
    assert not identical(inside, [m.detach() for m in masters])


@pytest.mark.parametrize("average", [-0.1, 1.0, 1.5])
def test_an_average_outside_of_its_range_is_refused(average):
    with pytest.raises(ValueError, match=r"give a decay in \[0, 1\)"):
        attached(decay=average)


@pytest.mark.parametrize("gone", [False, True])
def test_without_an_average_there_is_none_to_show(gone):
    _, _, koop = attached(decay=0.9 if gone else None)
    if gone:
        koop.detach()
    with pytest.raises(RuntimeError, match="attach with average"), koop.averaged():
        raise AssertionError("not reached")
