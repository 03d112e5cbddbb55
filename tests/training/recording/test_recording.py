"""What a row of the ring holds: weights, normalized updates, buffers; and how they are grouped."""

from __future__ import annotations

import math

import numpy as np
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
from koopcore.training.recording.live_buffers import LiveBuffers, reestimate  # noqa: E402
from koopcore.training.recording.normalized_update import normalized_update  # noqa: E402
from koopcore.training.recording.parameters import TrainableParameters, same_bits  # noqa: E402
from koopcore.training.recording.recording import Recording, partition_of  # noqa: E402
from koopcore.training.settings import Settings  # noqa: E402

SHORT = {"regime": "smooth", "window": 6, "stride": 3}


def stepped(name, steps=7):
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(optimizer, loss_of(model), steps)
    return model, optimizer


@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if n not in ("lbfgs", "amsgrad")])
def test_the_normalized_update_is_the_direction_of_the_next_step(name):
    """One more step with the gradient unchanged moves each weight against its update."""
    model, optimizer = stepped(name)
    optimizer.zero_grad()
    loss_of(model)().backward()
    parameters = list(model.parameters())
    before = [p.detach().clone() for p in parameters]
    optimizer.step()
    updates = normalized_update(optimizer, parameters)
    moved = torch.cat([(p.detach() - b).flatten() for p, b in zip(parameters, before, strict=True)])
    update = torch.cat([u.flatten() for u in updates])
    cosine = float(-(moved @ update) / (moved.norm() * update.norm()))
    # Adam's bias correction is one factor for all weights and leaves the direction; Nesterov adds
    # the gradient to the buffer; Adadelta's accumulated step is already one step further, and
    # decoupled weight decay adds 1 % of the weights: small rotations.
    assert cosine > {"nesterov": 0.9, "adadelta": 0.99, "adamw": 0.999}.get(name, 0.9999)
    assert all(u.shape == p.shape for u, p in zip(updates, parameters, strict=True))


@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if n != "lbfgs"])
def test_reading_the_update_changes_nothing(name):
    model, optimizer = stepped(name)
    before = everything(model, optimizer)
    gradients = [p.grad.clone() for p in model.parameters()]
    normalized_update(optimizer, list(model.parameters()))
    assert identical(everything(model, optimizer), before)
    assert identical([p.grad for p in model.parameters()], gradients)


def test_the_update_of_a_parameter_never_stepped_is_zero():
    model = network()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    assert not any(u.any() for u in normalized_update(optimizer, list(model.parameters())))


def recording_of(model, optimizer, partition="network", slots=4):
    parameters = TrainableParameters(model, optimizer)
    buffers = LiveBuffers(model, "predict")
    loss = loss_of(model)
    train(optimizer, loss, 1)
    buffers.update()
    settings = Settings(partition=partition, observables="weights+update")
    return Recording(parameters, buffers, settings, slots), loss


@pytest.mark.parametrize("partition", ["network", "layers", "nodes", "weights"])
def test_an_update_belongs_to_the_group_of_its_weight(partition):
    model = noisy_network()
    recording, _ = recording_of(model, OPTIMIZERS["adam"](model.parameters()), partition)
    width = recording.width
    plain = partition_of(recording.parameters.layout, partition)
    assert recording.n_groups == plain.n_groups
    assert recording.partition.n_groups == plain.n_groups + 2  # running mean and variance
    for group in range(plain.n_groups):
        weights = set(plain.indices(group).tolist())
        assert set(recording.partition.indices(group).tolist()) == weights | {
            k + width for k in weights
        }
    for group in (plain.n_groups, plain.n_groups + 1):
        indices = recording.partition.indices(group)
        assert len(indices) == 8
        assert indices.min() >= 2 * width


def test_updates_are_scaled_by_a_power_of_two_to_the_weights_movement():
    model = network()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    recording, loss = recording_of(model, optimizer)
    for _ in range(4):
        train(optimizer, loss, 3)
        recording.blend()
        recording.ring.commit()
    rows, order = recording.ring.snapshots()
    raw = rows[order[-1], recording.width :].clone()
    recording.balance()
    assert math.log2(recording.scale) == round(math.log2(recording.scale))
    assert torch.equal(rows[order[-1], recording.width :], raw * recording.scale)
    moved = rows[order[-1], : recording.width] - rows[order[0], : recording.width]
    ratio = float(rows[order[-1], recording.width :].norm()) / (float(moved.norm()) / 3)
    assert 2**-0.51 <= ratio <= 2**0.51  # the nearest power of two, and rounding
    scale = recording.scale
    recording.balance()
    assert recording.scale == scale
    train(optimizer, loss, 3)
    recording.blend()
    recording.ring.commit()
    updates = normalized_update(optimizer, list(model.parameters()))
    row = recording.ring.unflatten(recording.ring.newest())[len(updates) :]
    for got, update in zip(row, updates, strict=True):
        assert torch.equal(got, update * scale)


def test_only_buffers_that_training_moves_are_recorded():
    model = noisy_network()
    model.register_buffer("constant", torch.ones(5))
    model.register_buffer("counter", torch.zeros(3, dtype=torch.int64))
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    buffers = LiveBuffers(model, "predict")
    assert not buffers.update()
    train(optimizer, loss_of(model), 1)
    assert buffers.update()
    assert buffers.names == ["1.running_mean", "1.running_var"]
    model.constant.add_(1)
    assert buffers.update()
    assert set(buffers.names) == {"1.running_mean", "1.running_var", "constant"}
    assert not buffers.update()


def test_predicted_buffers_stay_near_what_the_window_saw():
    buffers = LiveBuffers(noisy_network(), "predict")
    window = torch.tensor([[1.0, -1.0, 5.0], [2.0, -3.0, 5.0]])
    (low,) = buffers.clip([torch.full((3,), -100.0)], [window])
    (high,) = buffers.clip([torch.full((3,), 100.0)], [window])
    assert low.tolist() == [0.0, -5.0, 5.0]  # never below zero where the window never was
    assert high.tolist() == [3.0, 1.0, 5.0]


@pytest.mark.parametrize("mode", ["predict", "reestimate", "keep"])
@pytest.mark.parametrize("evaluating", [False, True])
def test_statistics_follow_an_accepted_jump(mode, evaluating):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(1, 8), torch.nn.BatchNorm1d(8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    seen = []

    def loss():
        model.train(not evaluating)
        return loss_of(model)()

    koop = kc.attach(optimizer, model, loss=loss, buffers=mode, slack=0.0, **SHORT)
    norm = model[1]

    def around(*_):
        seen.append((norm.running_mean.clone(), int(norm.num_batches_tracked)))

    optimizer.register_step_post_hook(around)
    count = 0
    for _ in range(60):
        optimizer.zero_grad()
        loss_of(model)().backward()
        count += 1
        before = norm.running_mean.clone()
        jumps = koop.stats.accepted
        optimizer.step()
        assert int(norm.num_batches_tracked) == count  # only training counts batches
        assert norm.momentum == 0.1
        assert not norm._forward_hooks
        assert not norm._forward_pre_hooks
        if koop.stats.accepted == jumps:
            assert same_bits(norm.running_mean, before)
        elif mode == "keep":
            assert same_bits(norm.running_mean, before)
        else:
            assert not same_bits(norm.running_mean, before)
        if koop.stats.accepted > jumps and mode == "reestimate":
            x = torch.linspace(-2, 2, 32)[:, None]
            # The statistics of the loss's own batch at the parameters jumped to (float32 sums).
            assert torch.allclose(norm.running_mean, model[0](x).mean(0), atol=1e-6)
            assert torch.allclose(norm.running_var, model[0](x).var(0), rtol=1e-5, atol=1e-6)
        if koop.stats.accepted > jumps and mode == "predict" and evaluating:
            # What was judged is what stands: the loss in evaluation mode uses the statistics.
            after = float(loss().detach())
            assert after == pytest.approx(koop.stats.history[-1].loss_after, rel=1e-6)
            model.train()
    assert koop.stats.accepted > 0


def test_a_layer_that_the_loss_does_not_reach_keeps_its_statistics():
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2))
    model[1].running_mean.fill_(7.0)
    x = torch.randn(16, 2)
    reestimate(model, lambda: model[0](x))
    assert torch.allclose(model[0].running_mean, x.mean(0), atol=1e-6)  # float32 sums
    assert model[1].running_mean.tolist() == [7.0, 7.0]
    assert int(model[0].num_batches_tracked) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("by_name", [False, True])
def test_masters_and_low_precision_parameters_are_both_written(dtype, by_name):
    model = network().to(dtype)
    masters = [p.detach().float().clone().requires_grad_() for p in model.parameters()]
    named = dict(zip([n for n, _ in model.named_parameters()], masters, strict=True))
    optimizer = torch.optim.SGD(masters, lr=0.05)
    x = torch.linspace(-2, 2, 32)[:, None]
    loss = lambda: torch.nn.functional.mse_loss(model(x.to(dtype)).float(), torch.sin(2 * x))  # noqa: E731
    koop = kc.attach(optimizer, model, loss=loss, masters=named if by_name else masters, **SHORT)
    for _ in range(80):
        model.zero_grad()
        loss().backward()
        for master, p in zip(masters, model.parameters(), strict=True):
            master.grad = p.grad.float()
        jumps = koop.stats.accepted
        optimizer.step()
        if koop.stats.accepted > jumps:
            for master, p in zip(masters, model.parameters(), strict=True):
                assert torch.equal(p, master.to(dtype))
            now = float(loss().detach())
            assert now == pytest.approx(koop.stats.history[-1].loss_after, rel=1e-6)
        with torch.no_grad():
            for master, p in zip(masters, model.parameters(), strict=True):
                p.copy_(master)
    assert koop.stats.accepted > 0


def test_a_model_in_float64_is_recorded_in_float64():
    model = network(dtype=torch.float64)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    koop = kc.attach(optimizer, model, loss=loss_of(model, torch.float64), **SHORT)
    train(optimizer, loss_of(model, torch.float64), 60)
    assert koop._recording.ring.dtype == torch.float64
    assert koop.stats.accepted > 0


def test_groups_of_own_choice_cover_the_aligned_layout():
    model = network()
    parameters = TrainableParameters(model, OPTIMIZERS["sgd"](model.parameters()))
    assert parameters.layout.size % 32 == 0
    part = partition_of(parameters.layout, lambda layout: kc.Partition.groups(layout, ["0.*"]))
    assert np.array_equal(part.indices(0), [*range(8), *range(32, 40)])
