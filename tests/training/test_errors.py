"""Misuse of ``attach`` is refused with what was given, what is accepted and what to do."""

from __future__ import annotations

import subprocess
import sys

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

SHORT = {"regime": "smooth", "window": 6, "stride": 3}


def parts(name="sgd", build=network):
    model = build()
    return model, OPTIMIZERS[name](model.parameters())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"loss": 3.0}, TypeError, "loss is float; give a function"),
        ({"window": 2}, ValueError, "window is 2; give a whole number >= 3"),
        ({"window": 9.0}, ValueError, "window is 9.0"),
        ({"stride": 0}, ValueError, "stride is 0; give a whole number >= 1"),
        ({"stride": True}, ValueError, "stride is True"),
        ({"max_horizon": 0}, ValueError, "max_horizon is 0 windows; give a number > 0"),
        ({"max_horizon": float("inf")}, ValueError, "max_horizon is inf"),
        ({"warmup": -1}, ValueError, 'warmup is -1; give a whole number >= 0 or "auto"'),
        ({"warmup": "soon"}, ValueError, "warmup is 'soon'"),
        ({"partition": "neurons"}, ValueError, "accepted are network, layers, nodes, weights"),
        ({"partition": lambda layout: 3}, TypeError, "partition gave int"),
        ({"record": "first"}, ValueError, "accepted are last, mean"),
        ({"record": 0}, ValueError, "record is 0"),
        ({"storage": "int8"}, ValueError, "accepted are auto, float32, bfloat16"),
        ({"observables": "moments"}, ValueError, "accepted are weights, weights"),
        ({"moments": "forget"}, ValueError, "accepted are keep, reset, rescale"),
        ({"buffers": "drop"}, ValueError, "accepted are predict, reestimate, keep"),
        ({"candidates": ("guess",)}, ValueError, "give one or several of the names koopman, mean"),
        ({"candidates": ()}, ValueError, "candidates is empty"),
        (
            {"candidates": (1, 2, 4)},
            ValueError,
            r"candidates is \(1, 2, 4\), and 1 is no kind of them; .* koopman, .*max_horizon=",
        ),
        ({"ladder": 1}, ValueError, r"ladder is 1; give a factor between horizons in \(1, 16\]"),
        ({"slack": 1.0}, ValueError, r"slack is 1.0; give a share of the gain in \[0, 1\)"),
        ({"margin": -0.1}, ValueError, "margin is -0.1"),
        ({"schedule": (10, 20)}, ValueError, r"give \(t1, t2, T\)"),
        ({"schedule": (0, 200, 10)}, ValueError, "t1 of schedule is 0"),
        ({"schedule": (10, 11, 10)}, ValueError, "t2 of schedule is 11"),
        ({"schedule": (10, 200, 0)}, ValueError, "T of schedule is 0"),
        ({"include": "9.*"}, ValueError, "9"),
        ({"include": 3}, TypeError, "include is 3; give a pattern of parameter names"),
        ({"exclude": ["0.*", 1]}, TypeError, r"exclude is \['0.\*', 1\]; give a pattern"),
        ({"record": 12, "stride": 10}, ValueError, "record is 12 steps, more than the 10 of"),
        ({"partition": None}, ValueError, "partition is None; accepted are network"),
        ({"rank": 9}, ValueError, r"rank is 9; 9 snapshots of groups .* support ranks 1..7"),
        ({"rank": 2.5}, TypeError, "rank is 2.5"),
        ({"ridge": -1.0}, ValueError, "ridge is -1.0"),
        ({"backend": "numpy"}, ValueError, "backend 'numpy' does not run on cpu; native_cpu"),
        ({"exclude": "*"}, ValueError, "no parameter to record"),
        ({"masters": []}, ValueError, "masters has 0 tensors, the model 6"),
        ({"masters": {"7.weight": torch.ones(1)}}, ValueError, "names '7.weight'"),
        ({"masters": {"0.bias": torch.ones(3)}}, ValueError, "shapes must agree"),
    ],
)
def test_options_are_checked_before_any_work(options, error, message):
    model, optimizer = parts()
    with pytest.raises(error, match=message):
        kc.attach(optimizer, model, **options)
    assert not optimizer._optimizer_step_post_hooks


def test_a_partition_of_another_size_is_refused():
    model, optimizer = parts()
    unaligned = kc.Partition.network(kc.Layout.from_module(model))
    with pytest.raises(ValueError, match="covers 97 elements, the recorded layout 224"):
        kc.attach(optimizer, model, partition=unaligned)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"windw": 9},
            r"no option 'windw' \(did you mean 'window'\?\); there are loss, residuals",
        ),
        ({"module": None}, "no option 'module'"),
        ({"horizon": 3}, "window, stride, partition, operator, .*max_horizon, .*exclude"),
    ],
)
def test_unknown_options_are_named_beside_those_there_are(options, message):
    model, optimizer = parts()
    with pytest.raises(TypeError, match=message):
        kc.attach(optimizer, model, **options)
    assert not optimizer._optimizer_step_post_hooks


def test_a_loss_by_place_is_told_to_be_given_by_name():
    model, optimizer = parts()
    with pytest.raises(TypeError, match=r"attach\(optimizer, model, loss=...\); a third argument"):
        kc.attach(optimizer, model, lambda: 0.0)
    assert not optimizer._optimizer_step_post_hooks


def test_things_that_are_no_optimizer_or_no_module_are_refused():
    model, optimizer = parts()
    with pytest.raises(TypeError, match="first argument is Sequential"):
        kc.attach(model, optimizer)
    with pytest.raises(TypeError, match="list of models holds a Parameter"):
        kc.attach(optimizer, list(model.parameters()))


def test_an_optimizer_of_another_model_is_refused():
    _, optimizer = parts()
    with pytest.raises(ValueError, match="holds none of the 6 parameters of Sequential"):
        kc.attach(optimizer, network(seed=1))


def test_attaching_twice_is_refused():
    model, optimizer = parts()
    koop = kc.attach(optimizer, model)
    with pytest.raises(ValueError, match="attached to this optimizer already"):
        kc.attach(optimizer, model)
    koop.detach()
    kc.attach(optimizer, model)


def test_lbfgs_has_no_update_to_observe():
    model, optimizer = parts("lbfgs")
    with pytest.raises(ValueError, match="LBFGS keeps one flat history"):
        kc.attach(optimizer, model, observables="weights+update")


def test_too_large_a_ring_says_how_many_bytes_and_what_shrinks_it():
    model, optimizer = parts()
    message = r"needs 896,000,000,000,000 bytes on cpu .*smaller window.*exclude=.*bfloat16"
    with pytest.raises(MemoryError, match=message):
        kc.attach(optimizer, model, window=10**12)
    assert not optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize("name", ["loss", "residuals"])
def test_what_a_loss_raises_in_attach_is_said_to_be_of_the_loss(name):
    model, optimizer = parts()

    def empty():
        return [][0]

    message = "the loss failed when attach tried it: IndexError: list index out of range"
    with pytest.raises(ValueError, match=message) as raised:
        kc.attach(optimizer, model, **{name: empty})
    assert isinstance(raised.value.__cause__, IndexError)
    assert not optimizer._optimizer_step_post_hooks


def bad_losses(model):
    x = torch.ones(4, 1)

    def backward():
        with torch.enable_grad():
            value = model(x).mean()
            value.backward()
        return value

    def steps():
        with torch.no_grad():
            model[0].weight += 1e-3
        return 1.0

    def data():
        model[0].weight.data += 1e-3
        return 1.0

    def zeroes():
        for p in model.parameters():
            p.grad = None
        return 1.0

    return {
        "vector": (lambda: torch.ones(3), TypeError, r"shape \(3,\); return one real number"),
        "complex": (lambda: torch.ones(1) * 1j, TypeError, "complex64"),
        "nothing": (lambda: None, TypeError, "the loss returned NoneType"),
        "truth": (lambda: True, TypeError, "the loss returned bool"),
        "text": (lambda: "0.5", TypeError, "the loss returned str"),
        "nan": (lambda: float("nan"), ValueError, "the loss is nan at finite parameters"),
        "infinite": (lambda: torch.tensor(torch.inf), ValueError, "the loss is inf"),
        "backward": (backward, ValueError, r"0.weight.grad; leave backward\(\)"),
        "zero_grad": (zeroes, ValueError, r"0.weight.grad; leave backward\(\) and zero_grad"),
        "differentiates": (lambda: model(x).mean().backward(), ValueError, r"leave backward\(\)"),
        "in-place": (steps, ValueError, "changed the parameter '0.weight'"),
        "data": (data, ValueError, r"behind autograd's back"),
        "raises": (lambda: 1 / 0, ZeroDivisionError, "division"),
    }


def traces(model, optimizer):
    """All that a loss might leave behind."""
    gradients = [p.grad for p in model.parameters()]
    states = [torch.get_rng_state(), *[g.clone() for g in gradients if g is not None]]
    flags = [m.training for m in model.modules()]
    return everything(model, optimizer) + states, [id(g) for g in gradients], flags


@pytest.mark.parametrize("stepped", [False, True])
@pytest.mark.parametrize("case", [c for c in bad_losses(network()) if c != "zero_grad"])
def test_attach_names_what_is_wrong_with_a_loss_and_undoes_it(case, stepped):
    model, optimizer = parts("adam", noisy_network)
    if stepped:
        train(optimizer, loss_of(model), 1)  # leaves gradients
    before = traces(model, optimizer)
    loss, error, message = bad_losses(model)[case]
    if case == "raises":  # which is said to be of the loss
        error = ValueError
    with pytest.raises(error, match=message):
        kc.attach(optimizer, model, loss=loss, **SHORT)
    after = traces(model, optimizer)
    assert identical(after[0], before[0])
    assert after[1:] == before[1:]
    assert not optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize("case", bad_losses(network()))
def test_a_loss_that_turns_bad_is_named_and_leaves_the_run_as_it_was(case):
    model, optimizer = parts("adam")
    later, error, message = bad_losses(model)[case]
    bad = [False]
    koop = kc.attach(
        optimizer, model, loss=lambda: later() if bad[0] else loss_of(model)(), **SHORT
    )
    train(optimizer, loss_of(model), 17)
    plain, reference = parts("adam")
    train(reference, loss_of(plain), 18)
    bad[0] = True
    if case in ("nan", "infinite"):  # only costs the jump
        train(optimizer, loss_of(model), 1)
    elif case == "data":  # seen in attach, where it is looked for
        return
    else:
        with pytest.raises(error, match=message):
            train(optimizer, loss_of(model), 1)
    assert identical(everything(model, optimizer), everything(plain, reference))
    assert koop.stats.accepted == 0


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (torch.nn.MSELoss(), r"loss MSELoss\(input.*cannot be called without arguments"),
        (lambda x, y: x, r"loss <lambda>\(x, y\) cannot be called without arguments"),
        (torch.nn.functional.mse_loss, "loss mse_loss.*cannot be called without arguments"),
    ],
    ids=["module", "lambda", "function"],
)
def test_a_loss_that_wants_arguments_is_explained(loss, message):
    model, optimizer = parts()
    with pytest.raises(TypeError, match=message + r".*loss=lambda: criterion\(model\(x\), y\)"):
        kc.attach(optimizer, model, loss=loss)


def fresh_batches():
    generator = torch.Generator().manual_seed(0)
    numbers = iter(range(100))
    values = iter(torch.utils.data.DataLoader(torch.linspace(0, 1, 100)[:, None], batch_size=8))
    return {
        "its own generator": lambda m: m(torch.randn(8, 1, generator=generator)).square().mean(),
        "next(loader)": lambda m: m(next(values)).square().mean(),
        "a counter": lambda m: m(torch.full((2, 1), float(next(numbers)))).square().mean(),
    }


@pytest.mark.parametrize("case", fresh_batches())
def test_a_random_loss_is_named_as_random(case):
    model, optimizer = parts()
    loss = fresh_batches()[case]
    with pytest.raises(ValueError, match=r"the loss is random: .* and then .*generators="):
        kc.attach(optimizer, model, loss=lambda: loss(model))


def test_what_is_put_back_before_each_call_is_not_random():
    generator = torch.Generator().manual_seed(0)
    model, optimizer = parts(build=noisy_network)
    kc.attach(
        optimizer,
        model,
        loss=lambda: model(torch.randn(8, 1, generator=generator) * torch.rand(1)).mean(),
        generators=generator,
    )


@pytest.mark.parametrize("calls", [1, 2, 3, 4])
def test_an_exception_anywhere_in_a_search_puts_everything_back(calls):
    model, optimizer = parts("adam", noisy_network)
    left = [-1]

    def interrupted():
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return loss_of(model)()

    kc.attach(optimizer, model, loss=interrupted, **SHORT)
    train(optimizer, loss_of(model), 17)
    plain, reference = parts("adam", noisy_network)
    train(reference, loss_of(plain), 17)
    random = torch.get_rng_state()
    train(reference, loss_of(plain), 1)
    torch.set_rng_state(random)
    left[0] = calls
    with pytest.raises(KeyboardInterrupt):
        train(optimizer, loss_of(model), 1)
    assert identical(everything(model, optimizer), everything(plain, reference))
    left[0] = -1
    train(optimizer, loss_of(model), 40)  # and the run goes on


def test_a_run_that_diverges_by_itself_is_left_alone():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    koop = kc.attach(optimizer, model, loss=loss_of(model), **SHORT)
    train(optimizer, loss_of(model), 10)
    with torch.no_grad():
        model[0].weight.fill_(torch.nan)
    train(optimizer, loss_of(model), 40)
    assert koop.stats.jumps > 0
    assert koop.stats.accepted == 0
    assert koop.stats.history[0].reason == "the parameters are not finite"


def test_a_loss_that_turns_non_finite_later_only_costs_the_jump():
    model, optimizer = parts()
    broken = [False]

    def loss():
        return torch.tensor(torch.nan) if broken[0] else loss_of(model)()

    koop = kc.attach(optimizer, model, loss=loss, **SHORT)
    train(optimizer, loss_of(model), 30)
    accepted = koop.stats.accepted
    broken[0] = True
    train(optimizer, loss_of(model), 60)
    assert koop.stats.accepted == accepted > 0
    assert koop.stats.history[-1].reason == "the present loss is nan"


def test_what_the_loss_of_a_script_raises_is_said_to_be_of_the_loss(tmp_path):
    script = tmp_path / "script.py"  # where __package__ is None
    script.write_text(
        "import torch, koopcore\n"
        "model = torch.nn.Linear(3, 1)\n"
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "def loss():\n    raise KeyError('mine')\n"
        "koopcore.attach(optimizer, model, loss=loss)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert "the loss failed when attach tried it: KeyError: 'mine'" in done.stderr


def test_residuals_without_a_number_are_refused():
    model, optimizer = parts()
    with pytest.raises(ValueError, match="residuals returned no number"):
        kc.attach(optimizer, model, residuals=lambda: [])
