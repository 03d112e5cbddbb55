"""Which calls of ``step`` count, that copies and compilers see nothing, that detach leaves none."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
import warnings

import pytest

torch = pytest.importorskip("torch")

import torch.distributed.checkpoint.state_dict as checkpoint  # noqa: E402
from small_training import OPTIMIZERS, identical, loss_of, network, train  # noqa: E402
from torch import nn  # noqa: E402

import koopcore as kc  # noqa: E402

SHORT = {"regime": "smooth", "window": 6, "stride": 3}


def attached(stepper, model, **options):
    return kc.attach(stepper, model, loss=loss_of(model), **{**SHORT, **options})


def steps(koop):
    return koop.stats.steps


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_hidden_steps_of_checkpoint_functions_do_not_count(name):
    model = network()
    stepper = OPTIMIZERS[name](model.parameters())
    koop = attached(stepper, model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            state = checkpoint.get_optimizer_state_dict(model, stepper)
        except (TypeError, KeyError):  # of LBFGS, whose step wants a closure
            pytest.skip("torch cannot make the state of this optimizer by a hidden step")
    assert steps(koop) == 0
    train(stepper, loss_of(model), 4)
    assert steps(koop) == 4
    stepper.zero_grad()
    checkpoint.get_optimizer_state_dict(
        model, stepper
    )  # of SGD, which has no state, it steps again
    assert steps(koop) == 4
    if state["state"]:
        checkpoint.set_optimizer_state_dict(model, stepper, state)
    train(stepper, loss_of(model), 1)
    assert steps(koop) == 5


@pytest.mark.parametrize("rate", [0.0, torch.tensor(0.0)])
def test_at_a_rate_of_zero_there_are_no_steps(rate):
    model = network()
    stepper = torch.optim.Adam(model.parameters(), lr=rate)
    koop = attached(stepper, model)
    train(stepper, loss_of(model), 3)  # as in the first step of a warm-up: no weight moves
    assert steps(koop) == 0
    stepper.param_groups[0]["lr"] = 0.01
    train(stepper, loss_of(model), 3)
    assert steps(koop) == 3


def test_steps_without_any_gradient_do_not_count_but_those_on_few_do():
    model = network()
    stepper = OPTIMIZERS["adam"](model.parameters())
    koop = attached(stepper, model)
    stepper.step()
    assert steps(koop) == 0
    model[4].bias.grad = torch.ones(1)
    stepper.step()
    assert steps(koop) == 1
    stepper.zero_grad(set_to_none=False)
    stepper.step()  # gradients of zero at a rate: momentum goes on
    assert steps(koop) == 2


def test_gradients_taken_away_in_the_step_are_seen_before_and_those_made_in_it_after():
    model = network()
    stepper = OPTIMIZERS["sgd"](model.parameters())
    stepper.register_step_post_hook(lambda *_: stepper.zero_grad())
    koop = attached(stepper, model)
    loss_of(model)().backward()
    stepper.step()
    assert steps(koop) == 1
    train(stepper, loss_of(model), 1)  # with a closure
    assert steps(koop) == 2


class Doubling(torch.optim.SGD):
    """Calls the step of its base class, whose hooks run as well."""

    def step(self, closure=None):
        loss = super().step(closure)
        with torch.no_grad():
            for p in self.param_groups[0]["params"]:
                p.mul_(1.0)
        return loss


def test_a_step_that_calls_its_base_class_counts_once():
    model = network()
    torch.optim.SGD(model.parameters(), lr=1.0)  # has SGD.step run hooks
    stepper = Doubling(model.parameters(), lr=0.05)
    koop = attached(stepper, model)
    train(stepper, loss_of(model), 5)
    assert steps(koop) == 5


def test_a_step_that_fails_does_not_count_nor_does_it_hide_the_next():
    model = network()
    stepper = OPTIMIZERS["sgd"](model.parameters())
    koop = attached(stepper, model)

    def broken():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stepper.step(broken)
    assert steps(koop) == 0
    train(stepper, loss_of(model), 2)
    assert steps(koop) == 2


@pytest.mark.parametrize("unscaled", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda p, fused: torch.optim.SGD(p, lr=0.05, fused=fused),
        lambda p, fused: torch.optim.Adam(p, lr=3e-3, fused=fused),
        lambda p, fused: torch.optim.Adagrad(p, lr=0.05, fused=fused),
    ],
    ids=["sgd", "adam", "adagrad"],
)
@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_gradscaler_skips_does_not_count(fused, make, unscaled):
    model = network()
    stepper = make(model.parameters(), fused)
    koop = attached(stepper, model, window=6, stride=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    loss = loss_of(model)
    for k in range(6):
        stepper.zero_grad()
        scaler.scale(loss()).backward()
        if k % 2 == 0:  # the first as well
            model[0].weight.grad[0] = float("inf")
        if unscaled:
            scaler.unscale_(stepper)
        scaler.step(stepper)
        scaler.update()
    assert steps(koop) == 3
    assert koop.stats.snapshots == 3


class Wrapper(torch.optim.Optimizer):
    """As accelerate wraps optimizers: of the class, without its parts."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self, closure=None):
        return self.optimizer.step(closure)


def test_a_wrapped_optimizer_is_attached_to_inside():
    model = network()
    inner = OPTIMIZERS["sgd"](model.parameters())
    wrapper = Wrapper.__new__(Wrapper)
    wrapper.optimizer = inner
    koop = attached(wrapper, model)
    assert koop.optimizer is inner
    loss_of(model)().backward()
    wrapper.step()
    assert steps(koop) == 1
    with pytest.raises(ValueError, match="attached to this optimizer already"):
        attached(inner, model)


# -- compilers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_compiled_step_does_not_trace_the_hooks(name):
    counters = torch._dynamo.utils.counters
    runs = {}
    for options in (None, {"margin": 0.999}, {}):
        torch._dynamo.reset()
        counters.clear()
        model = network()
        stepper = OPTIMIZERS[name](model.parameters())
        koop = None if options is None else attached(stepper, model, **options)
        step = torch.compile(stepper.step, backend="eager")
        losses = []
        for _ in range(60):
            stepper.zero_grad()
            value = loss_of(model)()
            value.backward()
            step()
            losses.append(float(value.detach()))
        graphs = counters["stats"]["unique_graphs"], counters["stats"]["calls_captured"]
        runs[str(options)] = losses, graphs, koop
    plain, rejected, jumping = runs.values()
    assert plain[1] == rejected[1] == jumping[1]  # not one graph more
    assert plain[0] == rejected[0]
    assert rejected[2].stats.steps == jumping[2].stats.steps == 60
    assert rejected[2].stats.jumps > 1
    assert jumping[2].stats.accepted > 0


def test_a_whole_training_step_can_be_compiled():
    torch._dynamo.reset()
    model = network()
    stepper = OPTIMIZERS["sgd"](model.parameters())
    koop = attached(stepper, model)

    @torch.compile(backend="eager")
    def training_step():
        stepper.zero_grad()
        loss_of(model)().backward()
        stepper.step()

    for _ in range(40):
        training_step()
    assert koop.stats.steps == 40
    assert koop.stats.accepted > 0


# -- copies ---------------------------------------------------------------------------------------


def test_attachments_say_how_to_copy_them():
    model = network()
    koop = attached(OPTIMIZERS["sgd"](model.parameters()), model)
    for copier in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match=r"attach\(\.\.\.\) to the copies, .*load_state_dict"):
            copier(koop)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_of_model_and_optimizer_are_plain_and_can_be_attached_to(copier):
    model = network()
    stepper = OPTIMIZERS["adam"](model.parameters())
    koop = attached(stepper, model)
    train(stepper, loss_of(model), 40)
    other, other_stepper = copier((model, stepper))
    steps_before = steps(koop)
    other.load_state_dict(other.state_dict())  # whose hooks are copied as well
    other[0].load_state_dict(model[0].state_dict())
    other_stepper.load_state_dict(other_stepper.state_dict())
    assert not koop._hooks.loaded
    train(other_stepper, loss_of(other), 1)
    assert steps(koop) == steps_before

    again, again_stepper = copier((model, stepper))
    resumed = attached(again_stepper, again)
    resumed.load_state_dict(koop.state_dict())
    expected = train(stepper, loss_of(model), 40)
    assert train(again_stepper, loss_of(again), 40) == expected
    assert identical([*model.state_dict().values()], [*again.state_dict().values()])


def test_a_pickled_model_needs_no_koopcore(tmp_path):
    model = nn.Linear(2, 1)
    kc.attach(torch.optim.SGD(model.parameters(), lr=0.1), model)
    torch.save(model, tmp_path / "model.pt")
    code = (
        "import sys; sys.modules['koopcore'] = None\n"
        "import torch; m = torch.load('model.pt', weights_only=False)\n"
        "m.load_state_dict(m.state_dict()); print(float(m(torch.zeros(1, 2))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(float(model.bias.detach()), rel=1e-6)


def test_detach_leaves_no_trace():
    model = network()
    stepper = OPTIMIZERS["adam"](model.parameters())

    def hooks():
        stores = [
            stepper._optimizer_step_pre_hooks,
            stepper._optimizer_step_post_hooks,
            stepper._optimizer_load_state_dict_post_hooks,
            *(m._load_state_dict_pre_hooks for m in model.modules()),
        ]
        return [dict(store) for store in stores]

    before = hooks(), stepper.__dict__.keys(), [m.__dict__.keys() for m in model.modules()]
    koop = attached(stepper, model)
    assert hooks() != before[0]
    koop.detach()
    koop.detach()
    after = hooks(), stepper.__dict__.keys(), [m.__dict__.keys() for m in model.modules()]
    assert after == before
    losses = train(stepper, loss_of(model), 60)
    plain = network()
    assert losses == train(OPTIMIZERS["adam"](plain.parameters()), loss_of(plain), 60)
    assert koop.stats.jumps == 0
    attached(stepper, model)  # and it can be attached again
    torch.save(stepper.state_dict(), io.BytesIO())
