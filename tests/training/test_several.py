"""Lists of optimizers and modules, pause and resume, on_jump, and what attach refuses."""

import pytest
import torch
from torch import nn

import koopcore


class Slow(nn.Module):
    """Weights that fall to zero at their own rates: a linear system, exactly."""

    def __init__(self, size=24):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(1.0, 2.0, size, dtype=torch.float64))
        self.rates = torch.linspace(0.02, 0.2, size, dtype=torch.float64)

    def forward(self):
        return (self.rates * self.weight**2).sum() / 2


def steps(count, optimizers, loss):
    for _ in range(count):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss().backward()
        for optimizer in optimizers:
            optimizer.step()


def of_two(**options):
    models = [Slow(24), Slow(30)]
    optimizers = [torch.optim.SGD(model.parameters(), 0.5) for model in models]

    def loss():
        return models[0]() + models[1]()

    koop = koopcore.attach(optimizers, models, loss=loss, regime="smooth", stride=2, **options)
    return koop, models, optimizers, loss


def test_two_optimizers_of_two_modules_jump_together():
    koop, models, optimizers, loss = of_two()
    steps(150, optimizers, loss)
    assert koop.stats.accepted >= 1
    plain = [Slow(24), Slow(30)]
    alone = [torch.optim.SGD(model.parameters(), 0.5) for model in plain]
    steps(150, alone, lambda: plain[0]() + plain[1]())
    assert all(
        bool(model.weight.abs().sum() < other.weight.abs().sum())
        for model, other in zip(models, plain, strict=True)
    )


def test_a_step_is_one_of_all_optimizers_that_step():
    koop, _, optimizers, loss = of_two()
    steps(7, optimizers, loss)
    assert koop.stats.steps == 7


def test_a_paused_run_is_plain_training_bit_by_bit():
    koop, models, optimizers, loss = of_two()
    koop.pause()
    steps(150, optimizers, loss)
    plain = [Slow(24), Slow(30)]
    alone = [torch.optim.SGD(model.parameters(), 0.5) for model in plain]
    steps(150, alone, lambda: plain[0]() + plain[1]())
    assert len(koop.stats.history) == 0
    for model, other in zip(models, plain, strict=True):
        assert torch.equal(model.weight, other.weight)
    koop.resume()
    steps(150, optimizers, loss)
    assert len(koop.stats.history) >= 1


def test_on_jump_sees_every_attempt():
    records = []
    koop, _, optimizers, loss = of_two(on_jump=records.append)
    steps(150, optimizers, loss)
    assert records == list(koop.stats.history)
    assert len(records) >= 1


@pytest.mark.parametrize(
    ("optimizers", "error", "message"),
    [
        (lambda p: [], ValueError, "empty"),
        (lambda p: [torch.optim.SGD(p, 1e-3), torch.optim.SGD(p, 1e-3)], ValueError, "two of the"),
        (lambda p: [torch.optim.SGD(p, 1e-3), "adam"], TypeError, "list of them"),
    ],
)
def test_a_list_that_cannot_step_a_model_is_refused(optimizers, error, message):
    model = Slow()
    with pytest.raises(error, match=message):
        koopcore.attach(optimizers(list(model.parameters())), model)


@pytest.mark.parametrize(("models", "error"), [([], ValueError), (["net"], TypeError)])
def test_a_list_that_is_no_model_is_refused(models, error):
    optimizer = torch.optim.SGD(Slow().parameters(), 1e-3)
    with pytest.raises(error, match="list of models"):
        koopcore.attach(optimizer, models)


def test_models_of_fsdp1_and_deepspeed_are_refused_with_what_to_use_instead():
    inner = Slow()
    optimizer = torch.optim.SGD(inner.parameters(), 1e-3)
    flat = type("FullyShardedDataParallel", (nn.Module,), {})()
    flat.inner = inner
    with pytest.raises(TypeError, match="fully_shard"):
        koopcore.attach(optimizer, flat)
    engine = type("DeepSpeedEngine", (nn.Module,), {"__module__": "deepspeed.runtime.engine"})()
    with pytest.raises(TypeError, match="fully_shard"):
        koopcore.attach(optimizer, engine)
    partitioned = type("Zero", (), {"__module__": "deepspeed.runtime.zero", "optimizer": optimizer})
    with pytest.raises(TypeError, match="DeepSpeed"):
        koopcore.attach(partitioned(), inner)


def test_a_partitioned_state_is_not_read():
    kind = type("ZeroRedundancyOptimizer", (torch.optim.SGD,), {})
    model = Slow()
    with pytest.raises(ValueError, match='moments="keep"'):
        koopcore.attach(kind(model.parameters(), 1e-3), model, moments="rescale")
