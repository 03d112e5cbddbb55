"""Optimizers that keep a second copy of the weights: a jump moves the one that trains alone."""

import pytest
import torch
from small_training import loss_of, network

import koopcore


class Lookahead:
    """Every ``k`` steps the weights go half way back to a slow copy (Zhang et al. 2019)."""

    def __init__(self, optimizer, k=6, share=0.5):
        self.optimizer, self.k, self.share = optimizer, k, share
        self.param_groups = optimizer.param_groups
        self.taken = 0
        self.slow = [p.detach().clone() for p in self.weights()]

    def weights(self):
        return [p for group in self.param_groups for p in group["params"]]

    def zero_grad(self):
        self.optimizer.zero_grad()

    @torch.no_grad()
    def step(self):
        self.optimizer.step()
        self.taken += 1
        if self.taken % self.k == 0:
            for slow, p in zip(self.slow, self.weights(), strict=True):
                p.copy_(slow.lerp_(p, self.share))


def schedule_free(parameters):
    package = pytest.importorskip("schedulefree")
    optimizer = package.AdamWScheduleFree(parameters, lr=3e-3)
    optimizer.train()
    return optimizer


def lookahead(parameters):
    return Lookahead(torch.optim.Adam(parameters, lr=3e-3))


def copies_of(optimizer):
    """The second copy of the weights: schedule-free's z, or what is slow."""
    if isinstance(optimizer, Lookahead):
        return optimizer.slow
    return [optimizer.state[p]["z"] for group in optimizer.param_groups for p in group["params"]]


def trained(make, steps, koopman):
    """Train until a jump, ``steps`` at most; the model, the optimizer and the attempts."""
    model = network()
    optimizer = make(model.parameters())
    loss, records = loss_of(model), []
    if koopman:
        # A window between two synchronizations, which are kinks of the trajectory.
        options = {"regime": "smooth", "window": 4, "stride": 1, "on_jump": records.append}
        koopcore.attach(optimizer, model, loss=loss, **options)
    while steps and not records:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        steps -= 1
    return model, optimizer, records


@pytest.mark.parametrize("make", [schedule_free, lookahead])
def test_a_jump_moves_the_weights_that_train_and_not_their_second_copy(make):
    model, optimizer, records = trained(make, 20, True)
    assert records[0].accepted
    plain, other, _ = trained(make, records[0].step, False)
    with torch.no_grad():
        assert loss_of(model)() < loss_of(plain)()
    for mine, expected in zip(copies_of(optimizer), copies_of(other), strict=True):
        assert torch.equal(mine, expected)
