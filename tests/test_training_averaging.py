"""EMA and window averages equal their definitions, and give the parameters back."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from small_training import OPTIMIZERS, identical, loss_of, network, train  # noqa: E402

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
