"""The guard around a loss: the same conditions at every call, and no trace left."""

from __future__ import annotations

import random

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from small_training import identical, loss_of, network, noisy_network  # noqa: E402

from koopcore.training.jumping.guarded_loss import GuardedLoss, scalar  # noqa: E402


def test_a_guarded_loss_sees_the_same_random_numbers_each_time_and_gives_them_back():
    model = noisy_network()
    own = torch.Generator().manual_seed(3)

    def loss():
        draws = (
            torch.rand(1).item(),
            torch.rand(1, generator=own).item(),
            random.random(),
            np.random.rand(),  # noqa: NPY002 - the global state is what is guarded
        )
        return sum(draws) + float(loss_of(model)())

    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 - as above
    guarded = GuardedLoss(loss, model, [own])
    states = (torch.get_rng_state(), own.get_state(), random.getstate())
    with guarded:
        values = {guarded() for _ in range(3)}
    assert len(values) == 1
    assert torch.equal(torch.get_rng_state(), states[0])
    assert torch.equal(own.get_state(), states[1])
    assert random.getstate() == states[2]
    first = np.random.rand()  # noqa: NPY002 - as above
    np.random.seed(1)  # noqa: NPY002 - as above
    assert first == np.random.rand()  # noqa: NPY002 - as above
    with guarded:
        assert guarded() == guarded()


def test_a_guarded_loss_restores_buffers_and_modes():
    model = noisy_network()
    before = [b.clone() for b in model.buffers()]
    replaced = model[1].running_mean

    def loss():
        model.eval()
        model[1].running_mean = torch.ones(8)
        model[1].running_var.mul_(3.0)
        return loss_of(model)()

    with GuardedLoss(loss, model) as guarded:
        guarded()
    assert model.training
    assert model[3].training
    assert model[1].running_mean is replaced
    assert identical(list(model.buffers()), before)


@pytest.mark.parametrize(
    "value", [0.5, 1, np.float32(0.5), np.float64(2.0), torch.tensor(0.5), torch.ones(1, 1)]
)
def test_losses_may_be_any_real_scalar(value):
    assert scalar(value) == float(value)


def test_a_loss_attached_to_a_graph_is_detached():
    model = network()
    assert isinstance(scalar(loss_of(model)()), float)
