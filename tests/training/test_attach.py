"""``attach`` in ordinary training loops: faster where it can be, invisible where it cannot."""

from __future__ import annotations

import copy
import io
import itertools

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

#: No jump of a descending loss divides it by 1000: with this margin every attempt is rejected.
HOPELESS = 0.999
SHORT = {"regime": "smooth", "window": 6, "stride": 3}


def attached_run(name, steps, build=network, **options):
    model = build()
    optimizer = OPTIMIZERS[name](model.parameters())
    koop = kc.attach(optimizer, model, loss=loss_of(model), **{**SHORT, **options})
    losses = train(optimizer, loss_of(model), steps)
    return model, optimizer, koop, losses


@pytest.mark.parametrize("when", [0, 30])
def test_weights_that_the_user_has_stopped_stay(when):
    """By a rate of zero: all of them, or those of one group."""
    model = network()
    layers = [model[0], model[2], model[4]]
    stepper = torch.optim.SGD([{"params": list(m.parameters())} for m in layers], lr=0.1)
    koop = kc.attach(stepper, model, loss=loss_of(model), regime="smooth", window=6, stride=3)
    train(stepper, loss_of(model), when)
    stepper.param_groups[1]["lr"] = 0.0
    accepted, before = koop.stats.accepted, [p.detach().clone() for p in model[2].parameters()]
    train(stepper, loss_of(model), 60)
    assert koop.stats.accepted > accepted
    assert identical([p.detach() for p in model[2].parameters()], before)
    assert koop.recorded.left_out["2.weight"] == "its learning rate is 0"
    for group in stepper.param_groups:
        group["lr"] = 0.0
    steps, before = koop.stats.steps, [p.detach().clone() for p in model.parameters()]
    train(stepper, loss_of(model), 60)
    assert koop.stats.steps == steps
    assert identical([p.detach() for p in model.parameters()], before)


@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if n != "lbfgs"])
def test_jumps_lower_the_loss_with_every_first_order_optimizer(name):
    _, _, koop, losses = attached_run(name, 200)
    plain = network()
    reference = train(OPTIMIZERS[name](plain.parameters()), loss_of(plain), 200)
    assert koop.stats.accepted > 0
    assert losses[-1] < reference[-1]
    for record in koop.stats.history:
        if record.accepted:
            assert record.loss_after < record.loss_before
        else:
            assert record.loss_after == record.loss_before


def test_lbfgs_closures_go_on_working():
    """A quasi-Newton method has no linear trajectory to follow; it must only not be harmed."""
    _, _, koop, losses = attached_run("lbfgs", 100)
    assert koop.stats.accepted > 0
    assert losses[-1] < losses[0] / 10
    assert all(r.loss_after < r.loss_before for r in koop.stats.history if r.accepted)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("build", [network, noisy_network])
def test_a_run_of_rejected_jumps_is_bit_identical_to_plain_training(name, build):
    model, optimizer, koop, losses = attached_run(name, 80, build, margin=HOPELESS)
    plain = build()
    reference = OPTIMIZERS[name](plain.parameters())
    plain_losses = train(reference, loss_of(plain), 80)
    assert koop.stats.jumps > 1
    assert koop.stats.evaluations > koop.stats.jumps  # candidates were really tried
    assert koop.stats.accepted == 0
    assert losses == plain_losses
    assert identical(everything(model, optimizer), everything(plain, reference))


def every_optimizer():
    """All of torch.optim that take dense gradients."""
    kinds = [k for k in vars(torch.optim).values() if isinstance(k, type)]
    of_torch = [k for k in kinds if issubclass(k, torch.optim.Optimizer)]
    return [k for k in of_torch if k not in (torch.optim.Optimizer, torch.optim.SparseAdam)]


@pytest.mark.parametrize("kind", every_optimizer(), ids=lambda kind: kind.__name__)
def test_rejected_jumps_are_bit_identical_with_every_optimizer_of_torch(kind):
    runs = []
    for options in (None, {"margin": HOPELESS}):
        model = network()
        matrices = [p for p in model.parameters() if p.dim() == 2]  # Muon takes nothing else
        stepper = kind(matrices if kind.__name__ == "Muon" else model.parameters(), lr=1e-3)
        koop = None if options is None else kc.attach(
            stepper, model, loss=loss_of(model), **SHORT, **options
        )  # fmt: skip
        runs.append((train(stepper, loss_of(model), 60), everything(model, stepper)))
    assert koop.stats.jumps > 1
    assert koop.stats.evaluations > koop.stats.jumps
    assert runs[0][0] == runs[1][0]
    assert identical(runs[0][1], runs[1][1])


def test_sparse_gradients_are_no_exception():
    runs = []
    for options in (None, {"margin": HOPELESS}):
        torch.manual_seed(0)
        model = torch.nn.Embedding(10, 4, sparse=True)
        stepper = torch.optim.SparseAdam(model.parameters(), lr=1e-2)
        loss = lambda m=model: m(torch.arange(10)).square().mean()  # noqa: E731
        koop = None if options is None else kc.attach(
            stepper, model, loss=loss, **SHORT, **options
        )  # fmt: skip
        runs.append((train(stepper, loss, 60), everything(model, stepper)))
    assert koop.stats.jumps > 1
    assert runs[0][0] == runs[1][0]
    assert identical(runs[0][1], runs[1][1])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_can_be_attached_where_gradients_are_off(mode):
    model = network()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    with mode():
        koop = kc.attach(optimizer, model, loss=loss_of(model), averages=0.9, **SHORT)
    train(optimizer, loss_of(model), 40)
    assert koop.stats.accepted > 0


def test_the_evaluated_loss_never_rises_over_a_jump():
    model = network()
    loss = loss_of(model)
    optimizer = OPTIMIZERS["adagrad"](model.parameters())
    kc.attach(optimizer, model, loss=loss, **SHORT)
    seen = []

    def after(*_):
        seen.append(float(loss().detach()))

    before = []
    optimizer.register_step_pre_hook(lambda *_: before.append(float(loss().detach())))
    optimizer.register_step_post_hook(after)
    train(optimizer, loss, 60)
    # What the next step finds is what the hooks left: nothing moves between them.
    assert seen[:-1] == before[1:]


def test_a_jump_says_what_it_did():
    _, _, koop, _ = attached_run("adagrad", 120)
    record = next(r for r in koop.stats.history if r.accepted)
    assert record.kind in ("koopman", "line", "mean")
    assert record.stride == 3
    assert record.steps_skipped == record.horizon * 3
    assert record.evaluations >= 2
    assert record.hindcast >= 0
    assert 0 < record.seconds < koop.stats.seconds
    assert koop.stats.steps_skipped == sum(r.steps_skipped for r in koop.stats.history)
    assert koop.stats.evaluations == sum(r.evaluations for r in koop.stats.history)
    assert f"jumps: {koop.stats.accepted} of {koop.stats.jumps} accepted" in str(koop.stats)


@pytest.mark.parametrize("record", ["last", "mean"])
@pytest.mark.parametrize("storage", ["auto", "float32", "bfloat16"])
@pytest.mark.parametrize("observables", ["weights", "weights+update"])
def test_every_way_of_recording_gains(record, storage, observables):
    _, _, koop, losses = attached_run(
        "adagrad", 200, record=record, storage=storage, observables=observables
    )
    plain = network()
    reference = train(OPTIMIZERS["adagrad"](plain.parameters()), loss_of(plain), 200)
    assert koop.stats.accepted > 0
    assert losses[-1] < reference[-1]


@pytest.mark.parametrize(
    "partition",
    [
        "network",
        "layers",
        "nodes",
        "weights",
        lambda layout: kc.Partition.quasi_nodes(layout, 4),
        lambda layout: kc.Partition.groups(layout, ["0.*", "2.*"]),
    ],
    ids=["network", "layers", "nodes", "weights", "quasi_nodes", "groups"],
)
def test_every_partition_gains(partition):
    _, _, koop, _ = attached_run("adagrad", 100, partition=partition)
    assert koop.stats.accepted > 0


def test_without_a_loss_the_hindcast_decides():
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    koop = kc.attach(optimizer, model, **SHORT)
    train(optimizer, loss_of(model), 100)
    accepted = [r for r in koop.stats.history if r.accepted]
    assert accepted
    assert koop.stats.evaluations == 0
    assert all(r.loss_before is None and r.kind == "koopman" for r in koop.stats.history)
    # Error 0.1 over the hindcast error, in windows, is how far it may go; at least half a window.
    # (+ 0.1 windows: rounding to whole snapshots, of which a window spans five).
    assert all(0.5 <= r.horizon / 5 <= 0.1 / r.hindcast + 0.1 for r in accepted)


def test_a_schedule_jumps_once_and_where_it_says():
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    koop = kc.attach(optimizer, model, schedule=(20, 50, 40), stride=5)
    train(optimizer, loss_of(model), 120)
    assert [(r.step, r.horizon, r.steps_skipped) for r in koop.stats.history] == [(50, 8, 40)]
    assert koop.stats.snapshots == 7  # at steps 20, 25, ..., 50


def test_warmup_waits_and_auto_waits_for_a_predictable_trajectory():
    _, _, late, _ = attached_run("sgd", 60, warmup=40)
    assert late.stats.history[0].step == 40 + 6 * 3
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    koop = kc.attach(optimizer, model, loss=loss_of(model), warmup="auto", **SHORT)
    generator = torch.Generator().manual_seed(0)

    def jolt(*_):
        for p in model.parameters():
            p.data.add_(torch.randn(p.shape, generator=generator), alpha=0.05)

    handle = optimizer.register_step_pre_hook(jolt)
    train(optimizer, loss_of(model), 60)
    assert koop.stats.jumps > 0
    assert koop.stats.evaluations == 0
    assert "not predictable yet" in koop.stats.history[0].reason
    handle.remove()
    train(optimizer, loss_of(model), 300)
    assert koop.stats.evaluations > 0


def test_rejections_double_the_rest_between_attempts():
    _, _, koop, _ = attached_run("sgd", 600, margin=HOPELESS)
    steps = [r.step for r in koop.stats.history]
    gaps = [b - a for a, b in itertools.pairwise(steps)]
    # 6 snapshots 3 steps apart, after a rest of 1, 2, 4, 8, ... windows.
    assert (steps[0], gaps) == (18, [18 + 18, 18 + 36, 18 + 72, 18 + 144, 18 + 288][: len(gaps)])
    assert len(gaps) == 4
    assert koop.stats.snapshots <= 6 * 6


def test_gradient_accumulation_counts_optimizer_steps():
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    koop = kc.attach(optimizer, model, loss=loss_of(model), **SHORT)
    loss = loss_of(model)
    for batch in range(80):
        (loss() / 4).backward()
        if batch % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()
    assert koop.state_dict()["step"] == 20
    assert [r.step for r in koop.stats.history] == [18]


def test_a_scheduler_keeps_its_course():
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    koop = kc.attach(optimizer, model, loss=loss_of(model), **SHORT)
    rates = []
    for _ in range(100):
        train(optimizer, loss_of(model), 1)
        scheduler.step()
        rates.append(scheduler.get_last_lr()[0])
    assert koop.stats.accepted > 0
    assert rates[-1] == pytest.approx(0.0, abs=1e-12)  # the end of the cosine
    assert rates == sorted(rates, reverse=True)


def test_a_compiled_model_jumps_like_the_eager_one():
    model = network()
    compiled = torch.compile(model, backend="eager")
    optimizer = OPTIMIZERS["sgd"](compiled.parameters())
    koop = kc.attach(optimizer, compiled, loss=loss_of(compiled), **SHORT)
    train(optimizer, loss_of(compiled), 60)
    eager, _, same, _ = attached_run("sgd", 60)
    assert koop.stats.accepted == same.stats.accepted > 0
    assert identical(list(model.parameters()), list(eager.parameters()))


def test_parameter_groups_are_one_trajectory():
    model = network()
    groups = [
        {"params": model[0].parameters(), "lr": 0.1},
        {"params": model[2].parameters()},
        {"params": model[4].parameters(), "momentum": 0.5},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.05)
    koop = kc.attach(optimizer, model, loss=loss_of(model), **SHORT)
    train(optimizer, loss_of(model), 60)
    assert koop.stats.accepted > 0


@pytest.mark.parametrize("by_itself", [True, False])
def test_gradients_are_on_for_a_loss_that_differentiates(by_itself):
    model = noisy_network()
    x = torch.linspace(0, 1, 16)[:, None]
    on = []

    def residual():  # y' = -y, as a physics-informed loss writes it
        with torch.set_grad_enabled(by_itself or torch.is_grad_enabled()):
            at = x.clone().requires_grad_()
            y = model(at)
            (slope,) = torch.autograd.grad(y.sum(), at, create_graph=True)
            on.append(torch.is_grad_enabled())
            return ((slope + y) ** 2).mean() + (model(x[:1] + x).mean() - 1).square()

    optimizer = OPTIMIZERS["adagrad"](model.parameters())
    koop = kc.attach(optimizer, model, loss=residual, **SHORT)
    train(optimizer, residual, 100)
    assert koop.stats.accepted > 0
    assert isinstance(koop.stats.history[0].loss_before, float)


def test_the_optimizer_can_be_copied_and_saved_while_attached():
    _, optimizer, _, _ = attached_run("adam", 30)
    kept = optimizer.state_dict()
    torch.save(kept, io.BytesIO())
    assert identical(
        [v["exp_avg"] for v in kept["state"].values()],
        [v["exp_avg"] for v in copy.deepcopy(kept)["state"].values()],
    )


def test_lazy_modules_are_recorded_from_their_first_step_on():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.LazyLinear(8), torch.nn.Tanh(), torch.nn.LazyLinear(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    koop = kc.attach(optimizer, model, loss=loss_of(model), **SHORT)
    train(optimizer, loss_of(model), 60)
    assert koop.stats.accepted > 0


def test_frozen_and_excluded_parameters_do_not_move():
    model = network()
    model[0].weight.requires_grad_(False)
    optimizer = OPTIMIZERS["sgd"](p for p in model.parameters() if p.requires_grad)
    koop = kc.attach(optimizer, model, loss=loss_of(model), exclude="*.bias", **SHORT)
    train(optimizer, loss_of(model), 60)
    assert koop.recorded.names == ("2.weight", "4.weight")
    assert koop.stats.accepted > 0


def test_parameters_of_another_optimizer_are_left_to_it():
    model = network()
    first = torch.optim.SGD(model[0].parameters(), lr=0.05)
    second = torch.optim.SGD(model[2:].parameters(), lr=0.05)
    one = kc.attach(first, model, loss=loss_of(model), **SHORT)
    two = kc.attach(second, model, loss=loss_of(model), **SHORT)
    assert one.recorded.names == ("0.weight", "0.bias")
    assert two.recorded.names == ("2.weight", "2.bias", "4.weight", "4.bias")
    assert one.recorded.left_out["4.bias"] == "the optimizer does not hold it"


def test_tied_parameters_are_recorded_once():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    model[1].weight = model[0].weight
    koop = kc.attach(torch.optim.SGD(model.parameters(), lr=0.1), model)
    assert koop.recorded.names == ("0.weight", "0.bias", "1.bias")
    assert koop.recorded.left_out == {"1.weight": "tied to 0.weight"}
