"""Optimizer moments after a jump: kept, reset to the beginning, or rescaled with the speed."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from small_training import OPTIMIZERS, loss_of, network, train  # noqa: E402

import koopcore as kc  # noqa: E402
from koopcore.training.jumping.moments import carry_over  # noqa: E402
from koopcore.training.recording.parameters import same_bits  # noqa: E402

ORDER = {  # power of the gradient that each entry of the state grows with
    "exp_avg": 1,
    "momentum_buffer": 1,
    "exp_avg_sq": 2,
    "max_exp_avg_sq": 2,
    "square_avg": 2,
    "acc_delta": 2,
}


def stepped(name, steps=9):
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(optimizer, loss_of(model), steps)
    return model, optimizer


def tensors(optimizer):
    return {
        (k, name): value.clone()
        for k, state in enumerate(optimizer.state.values())
        for name, value in state.items()
        if isinstance(value, torch.Tensor)
    }


NAMES = [n for n in OPTIMIZERS if n != "lbfgs"]


@pytest.mark.parametrize("name", NAMES)
def test_keep_changes_nothing(name):
    model, optimizer = stepped(name)
    before = tensors(optimizer)
    carry_over("keep", optimizer, list(model.parameters()), 0.5)
    after = tensors(optimizer)
    assert before.keys() == after.keys()
    assert all(same_bits(before[k], after[k]) for k in before)


@pytest.mark.parametrize("name", NAMES)
def test_a_reset_optimizer_steps_as_a_fresh_one(name):
    model, optimizer = stepped(name)
    carry_over("reset", optimizer, list(model.parameters()), 0.5)
    fresh_model = network()
    fresh_model.load_state_dict(model.state_dict())
    fresh = OPTIMIZERS[name](fresh_model.parameters())
    losses = train(optimizer, loss_of(model), 5)
    assert losses == train(fresh, loss_of(fresh_model), 5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("slowdown", "factor"), [(0.5, 0.5), (3.0, 1.0), (-1.0, 0.0)])
def test_rescaling_follows_the_power_of_the_gradient(name, slowdown, factor):
    model, optimizer = stepped(name)
    before = tensors(optimizer)
    carry_over("rescale", optimizer, list(model.parameters()), slowdown)
    for (k, entry), value in tensors(optimizer).items():
        expected = before[k, entry] * factor ** ORDER.get(entry, 0)
        assert torch.equal(value, expected)


def test_lbfgs_forms_no_curvature_pair_across_a_jump():
    model, optimizer = stepped("lbfgs")
    state = optimizer.state[next(iter(model.parameters()))]
    pairs = [d.clone() for d in state["old_dirs"]]
    carry_over("keep", optimizer, list(model.parameters()), 1.0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)

    seen = []

    def closure():
        optimizer.zero_grad()
        value = loss_of(model)()
        value.backward()
        seen.append([d.clone() for d in state["old_dirs"]])
        return value

    optimizer.step(closure)
    # While the first gradient after the jump is taken in, the memory is as it was before it.
    assert all(torch.equal(a, b) for a, b in zip(seen[0], pairs, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(seen[1], pairs, strict=True))
    carry_over("reset", optimizer, list(model.parameters()), 1.0)
    assert not state


@pytest.mark.parametrize("rule", ["keep", "reset", "rescale"])
@pytest.mark.parametrize("name", ["adam", "momentum", "adadelta"])
def test_only_accepted_jumps_touch_the_moments(rule, name):
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    koop = kc.attach(optimizer, model, loss=loss_of(model), moments=rule, window=6, stride=3)
    entry = {"adam": "exp_avg", "momentum": "momentum_buffer", "adadelta": "square_avg"}[name]
    kept = []

    def before_hooks(*_):
        kept[:] = [s[entry].clone() for s in optimizer.state.values()]

    # Registered after koopcore's own, and moved before it: hooks run in order.
    handle = optimizer.register_step_post_hook(before_hooks)
    optimizer._optimizer_step_post_hooks.move_to_end(handle.id, last=False)
    for _ in range(60):
        accepted = koop.stats.accepted
        train(optimizer, loss_of(model), 1)
        now = [s.get(entry) for s in optimizer.state.values()]
        same = all(n is not None and same_bits(n, k) for n, k in zip(now, kept, strict=True))
        assert same or (koop.stats.accepted > accepted and rule in ("reset", "rescale"))
    assert koop.stats.accepted > 0
