"""Batched training equals single training; traces hold the right losses and snapshots."""

import pytest
import torch

from koopcore.lab.problems.descent import OPTIMIZERS, RATES, Descent
from koopcore.lab.problems.oscillator import OscillatorBatch

STEPS = 40
GENTLE = 1e-4  # for an optimizer that has no usual rate here


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_batch_of_three_equals_three_single_runs(optimizer):
    problem = OscillatorBatch(3, seed=2, dtype=torch.float64)
    rate = RATES.get(optimizer, GENTLE)
    batch = Descent(problem, optimizer, rate=rate)
    together = batch.advance(STEPS, every=10)
    for k in range(3):
        single = Descent(problem, optimizer, rate=rate, start=problem.initial()[k : k + 1])
        alone = single.advance(STEPS, every=10)
        # Only the order of summation inside a batched product may differ: float64 rounding,
        # carried through 40 steps.
        for a, b in ((together.losses, alone.losses), (together.snapshots, alone.snapshots)):
            torch.testing.assert_close(a[:, k], b[:, 0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_is_what_torch_does_with_one_module_after_another(optimizer):
    kind, rate = OPTIMIZERS[optimizer], RATES.get(optimizer, GENTLE)
    problem = OscillatorBatch(2, dtype=torch.float64)
    trained = Descent(problem, optimizer, rate=rate)
    trained.advance(STEPS)
    for k in range(2):
        row = problem.initial()[k].clone().requires_grad_()
        by_hand = kind([row], lr=rate)
        for _ in range(STEPS):
            by_hand.zero_grad()
            problem.loss(row[None]).sum().backward()
            by_hand.step()
        torch.testing.assert_close(trained.params[k], row.detach(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_lowers_the_loss_of_every_network(optimizer):
    rate = RATES.get(optimizer, GENTLE)
    losses = Descent(OscillatorBatch(4), optimizer, rate=rate).advance(300).losses
    assert bool((losses[-1] < losses[0]).all())


def test_losses_and_snapshots_belong_to_the_same_steps():
    problem = OscillatorBatch(2, dtype=torch.float64)
    descent = Descent(problem)
    start = descent.params.clone()
    trace = descent.advance(12, every=4)
    assert trace.losses.shape == (13, 2)
    assert trace.snapshots.shape == (4, 2, 152)
    assert torch.equal(trace.snapshots[0], start)
    assert torch.equal(trace.snapshots[-1], descent.params)
    for k, snapshot in enumerate(trace.snapshots):
        torch.testing.assert_close(trace.losses[4 * k], problem.loss(snapshot), rtol=0, atol=0)


def test_stretches_continue_one_another_bit_for_bit():
    problem = OscillatorBatch(2)
    whole = Descent(problem, "adam").advance(20, every=5)
    descent = Descent(problem, "adam")
    first, second = descent.advance(15, every=5), descent.advance(5, every=5)
    assert torch.equal(whole.losses, torch.cat((first.losses[:-1], second.losses)))
    assert torch.equal(whole.snapshots, torch.cat((first.snapshots[:-1], second.snapshots)))
    assert descent.steps == 20


def test_a_stretch_of_no_steps_changes_nothing():
    descent = Descent(OscillatorBatch(2))
    before = descent.params.clone()
    trace = descent.advance(0)
    assert trace.losses.shape == (1, 2)
    assert trace.snapshots.shape == (0, 2, 152)
    assert torch.equal(descent.params, before)


def test_the_start_is_copied_not_trained():
    problem = OscillatorBatch(1)
    start = problem.initial()
    kept = start.clone()
    Descent(problem, start=start).advance(3)
    assert torch.equal(start, kept)


def test_decay_lowers_the_rate_with_the_step():
    problem = OscillatorBatch(1, dtype=torch.float64)
    decayed = Descent(problem, "adagrad", rate=0.1, decay=0.5)
    start = problem.initial()[0].clone().requires_grad_()
    by_hand = torch.optim.Adagrad([start], lr=0.1, lr_decay=0.5)  # rate / (1 + decay·step) too
    decayed.advance(10)
    for _ in range(10):
        by_hand.zero_grad()
        problem.loss(start[None]).sum().backward()
        by_hand.step()
    torch.testing.assert_close(decayed.params[0], start.detach(), rtol=1e-12, atol=1e-13)


def test_every_step_ticks_once():
    ticks = []
    Descent(OscillatorBatch(1)).advance(7, tick=lambda: ticks.append(1))
    assert len(ticks) == 7


def test_torch_gets_its_threads_back_even_after_an_error():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seen = []

        def interrupt():
            seen.append(torch.get_num_threads())
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            Descent(OscillatorBatch(1)).advance(1, tick=interrupt)
        assert seen == [1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "lamb"}, "'lamb'; accepted are sgd, adagrad, adadelta, adam"),
        ({"optimizer": "sgd"}, "rate is None; sgd has no usual rate"),
        ({"rate": 0.0}, "rate is 0.0"),
        ({"rate": float("nan")}, "rate is nan"),
        ({"decay": -1.0}, "decay is -1.0"),
    ],
)
def test_misuse_is_refused_before_any_step(options, message):
    with pytest.raises(ValueError, match=message):
        Descent(OscillatorBatch(1), **options)


@pytest.mark.parametrize(("steps", "every"), [(-1, 0), (10, 3), (10, -5)])
def test_steps_must_be_whole_strides(steps, every):
    with pytest.raises(ValueError, match="multiple of every"):
        Descent(OscillatorBatch(1)).advance(steps, every=every)
