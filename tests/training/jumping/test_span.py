"""Jumps in the span of the snapshots: damped Gauss-Newton where residuals are known."""

from __future__ import annotations

import io
import re
import warnings

import pytest

torch = pytest.importorskip("torch")

from small_training import (  # noqa: E402
    OPTIMIZERS,
    everything,
    identical,
    loss_of,
    network,
    points,
    train,
)

import koopcore as kc  # noqa: E402
from koopcore.training.jumping.batched import BatchedResiduals  # noqa: E402
from koopcore.training.jumping.span import Residuals, pivots  # noqa: E402
from koopcore.training.policy import ALONE, BLOCK, INTERVAL, SpanPolicy  # noqa: E402


def residuals_of(model, dtype=torch.float32):
    """Whose squares sum to the mean squared error on the points."""
    x, y = points(dtype)
    return lambda: (model(x) - y) / len(x) ** 0.5


def in_pieces(model, size, dtype=torch.float32):
    x, y = points(dtype)

    def residuals():
        for k in range(0, len(x), size):
            yield (model(x[k : k + size]) - y[k : k + size]) / len(x) ** 0.5

    return residuals


def run(steps, name="adam", dtype=torch.float32, residuals=residuals_of, loss=True, **options):
    model = network(dtype=dtype)
    stepper = OPTIMIZERS[name](model.parameters())
    koop = None
    if residuals is not None:
        given = loss_of(model, dtype) if loss else None
        koop = kc.attach(stepper, model, loss=given, residuals=residuals(model), **options)
    losses = train(stepper, loss_of(model, dtype), steps)
    return model, stepper, koop, losses


@pytest.mark.parametrize(
    ("dtype", "together", "times"),
    # Measured: 1e2 to 1e5 times; of float32 residuals at all places at once, whose rounding differs
    # from a single call's, 8 to 1e3.
    [(torch.float32, False, 20), (torch.float32, True, 4), (torch.float64, True, 20)],
)
@pytest.mark.parametrize("name", ["sgd", "adam", "adagrad", "momentum", "rmsprop"])
def test_jumps_are_many_steps_of_plain_training(name, dtype, together, times, monkeypatch):
    if not together:
        monkeypatch.setattr(BatchedResiduals, "__call__", lambda *_: None)
    *_, koop, losses = run(200, name, dtype, lambda m: residuals_of(m, dtype))
    plain = run(200, name, dtype, None)[3]
    assert {r.kind for r in koop.stats.history if r.accepted} == {"span"}
    assert koop.stats.accepted > koop.stats.jumps / 2
    assert losses[-1] < plain[-1] / times
    for record in koop.stats.history:
        assert record.loss_after <= record.loss_before


def test_a_linear_least_squares_problem_is_solved_in_its_span():
    """Of 3 weights, 4 snapshots span all: a jump with little damping is the solution."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    target = torch.randn(20, generator=generator, dtype=torch.float64)
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    stepper = torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.5)
    koop = kc.attach(stepper, module, residuals=lambda: matrix @ module.weight - target)
    loss = lambda: (matrix @ module.weight - target).square().sum()  # noqa: E731
    train(stepper, loss, 120)
    best = torch.linalg.lstsq(matrix, target).solution
    assert torch.allclose(module.weight.detach(), best, atol=1e-5)
    assert koop.stats.accepted > 0


@pytest.mark.parametrize("size", [5, 32])
def test_pieces_give_what_the_whole_gives(size):
    """But for the correction of the steps, which only one piece allows."""
    dtype = torch.float64
    whole = run(60, dtype=dtype, residuals=lambda m: residuals_of(m, dtype))[2].stats.history
    parts = run(60, dtype=dtype, residuals=lambda m: in_pieces(m, size, dtype))[2].stats.history
    assert parts[0].loss_before == pytest.approx(whole[0].loss_before, rel=1e-12)
    assert parts[-1].loss_after < parts[0].loss_before / 10
    if size == 32:  # a generator of one piece
        assert [r.loss_after for r in parts] == [r.loss_after for r in whole]
        assert [r.evaluations for r in parts] == [r.evaluations for r in whole]
    else:
        assert 3 <= whole[0].evaluations - parts[0].evaluations <= 6


def outside(model, *_):
    """Residuals of a weight that is read where no batch can be put in its place."""
    inner = residuals_of(model)
    first = model[0].weight
    return lambda: torch.cat((inner().flatten(), 1e-2 * first.flatten()))


def by_numpy(model, *_):
    inner = residuals_of(model)
    return lambda: torch.from_numpy(inner().numpy())


def with_dropout(model, *_):
    inner = residuals_of(model)
    return lambda: inner() * torch.nn.functional.dropout(torch.ones(32, 1), 0.1, True)


def with_a_warning(model, *_):
    def residuals():
        warnings.warn("slow", stacklevel=2)
        return residuals_of(model)()

    return residuals


@pytest.mark.parametrize(
    ("residuals", "together"),
    [
        (residuals_of, True),
        (lambda m: in_pieces(m, 32), True),
        (lambda m: in_pieces(m, 5), False),
        (outside, False),
        (by_numpy, False),
        (with_dropout, False),
    ],
)
def test_many_places_at_once_where_that_gives_the_same(residuals, together, monkeypatch):
    """Otherwise one by one, and the jumps are the same."""
    options = {"residuals": residuals, "loss": False, "regime": "smooth"}
    *_, koop, losses = run(60, **options)
    assert koop._jump._batched.usable is together
    assert koop.stats.accepted > 2
    monkeypatch.setattr(BatchedResiduals, "__call__", lambda *_: None)
    *_, alone, one_by_one = run(60, **options)
    if not together:
        assert losses == one_by_one
    first, other = koop.stats.history[0], alone.stats.history[0]
    assert first.evaluations == other.evaluations + together
    assert first.loss_after == pytest.approx(other.loss_after, rel=1e-3)


def test_residuals_that_warn_are_computed_one_by_one():
    with pytest.warns(UserWarning, match="slow"):
        koop = run(40, residuals=with_a_warning, regime="smooth")[2]
    assert koop.stats.accepted > 0
    assert not koop._jump._batched.usable


@pytest.mark.parametrize("name", ["sgd", "adam", "adagrad", "lbfgs"])
def test_jumps_in_vain_leave_every_bit_as_it_was(name, monkeypatch):
    monkeypatch.setattr(
        "koopcore.training.jumping.span.SpanJump._losses",
        lambda self, recording, places, rows: [float("inf")] * len(places),
    )
    model, stepper, koop, losses = run(80, name)
    plain, reference, _, plain_losses = run(80, name, residuals=None)
    assert koop.stats.jumps > 3
    assert koop.stats.accepted == 0
    assert losses == plain_losses
    assert identical(everything(model, stepper), everything(plain, reference))


def test_an_exception_in_the_residuals_puts_everything_back():
    model = network()
    stepper = OPTIMIZERS["adam"](model.parameters())
    left = [-1]

    def residuals():
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return residuals_of(model)()

    kc.attach(stepper, model, loss=loss_of(model), residuals=residuals, regime="smooth")
    train(stepper, loss_of(model), 19)
    plain, reference, *_ = run(20, residuals=None)
    left[0] = 1
    with pytest.raises(KeyboardInterrupt):
        train(stepper, loss_of(model), 1)
    assert identical(everything(model, stepper), everything(plain, reference))


@pytest.mark.parametrize("when", [7, 33, 290])
def test_a_resumed_run_continues_bit_identically(when):
    def started():
        model = network()
        stepper = OPTIMIZERS["adam"](model.parameters())
        return model, stepper, kc.attach(stepper, model, residuals=residuals_of(model))

    model, stepper, koop = started()
    train(stepper, loss_of(model), when)
    file = io.BytesIO()
    torch.save([model.state_dict(), stepper.state_dict(), koop.state_dict()], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    expected = train(stepper, loss_of(model), 60)
    again, resumed, other = started()
    again.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    other.load_state_dict(saved[2])
    assert train(resumed, loss_of(again), 60) == expected
    saved[2]["jumps"]["damping"] = float("nan")
    with pytest.raises(ValueError, match=r"\['damping'\] is nan"):
        other.load_state_dict(saved[2])


def test_minibatches_are_noise_here_too():
    x, y = points()
    runs = []
    for attaches in (False, True):
        model = network()
        stepper = OPTIMIZERS["adam"](model.parameters())
        koop = kc.attach(stepper, model, residuals=residuals_of(model)) if attaches else None
        generator = torch.Generator().manual_seed(0)
        for _ in range(150):
            some = torch.randint(len(x), (8,), generator=generator)
            train(stepper, lambda s=some, m=model: (m(x[s]) - y[s]).square().mean(), 1)
        runs.append([p.detach() for p in model.parameters()])
    assert koop.regime == "noise"
    assert identical(runs[0], runs[1])


def test_pivots_are_independent_rows_the_longest_first():
    rows = torch.tensor([[1.5, 0, 0], [0, 2, 0], [1, 2, 0], [0, 0, 1e-3]], dtype=torch.float64)
    assert pivots(rows @ rows.T, 4, 1e-10) == [2, 0, 3]
    assert pivots(rows @ rows.T, 2, 1e-10) == [2, 0]
    assert pivots(rows @ rows.T, 4, 1e-4) == [2, 0]
    assert pivots(torch.zeros(0, 0), 4, 1e-4) == []


def paid(plain_gain, rounds=6):
    """Attempts that gain 0.1 at a cost of 20 units, between steps that gain ``plain_gain`` each."""
    policy = SpanPolicy(None)
    step, loss, attempts = 0, 0.0, []
    while len(attempts) < rounds * BLOCK:
        loss -= plain_gain * (policy.next - step)
        step = policy.next
        policy.attempted(step, 0.0, 2.0**loss, 2.0 ** (loss - 0.1), 30)
        loss -= 0.1
        attempts.append(step)
    return policy, attempts


def test_jumps_that_pay_go_on_and_others_make_room():
    policy, steps = paid(0.0)
    assert policy.blocks > 2
    assert steps[-1] < 6 * BLOCK * 10 + 6 * ALONE
    policy, steps = paid(0.02)
    assert policy.alone > 10 * ALONE
    assert steps[-1] > 6 * BLOCK * 10 + 20 * ALONE


@pytest.mark.parametrize("attempts", [0, 7, BLOCK])
@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_an_attempt_whose_loss_is_not_finite_counts_neither_for_jumps_nor_for_steps(attempts, loss):
    policy = SpanPolicy(None)
    for k in range(attempts):
        policy.attempted(policy.next, 0.0, 2.0**-k, 2.0 ** (-k - 1), 30)
    step = policy.next
    before = policy.state_dict()
    policy.attempted(step, 0.0, loss, loss, 30)
    assert policy.state_dict() == {**before, "next": step + INTERVAL}
    policy.check_state(policy.state_dict())


BAD = {
    "no function": (lambda m: 3.0, TypeError, "residuals is float; give a function"),
    "arguments": (lambda m: lambda x: x, TypeError, "cannot be called without arguments"),
    "a number": (lambda m: lambda: 3.0, TypeError, "residuals returned float; return a tensor"),
    "integers": (lambda m: lambda: torch.ones(3, dtype=torch.long), TypeError, "torch.int64"),
    "no tensors": (lambda m: lambda: [1.0, 2.0], TypeError, "residuals returned float"),
    "not scaled": (
        lambda m: lambda: residuals_of(m)() * 2,
        ValueError,
        r"squares of the residuals sum to .*, but the loss is .*residuals / sqrt\(n\)",
    ),
    "nan": (lambda m: lambda: residuals_of(m)() * float("nan"), ValueError, "sum to nan"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_residuals_are_named_in_attach(case):
    model = network()
    stepper = OPTIMIZERS["adam"](model.parameters())
    residuals, error, message = BAD[case]
    with pytest.raises(error, match=message):
        kc.attach(stepper, model, loss=loss_of(model), residuals=residuals(model))
    assert not stepper._optimizer_step_post_hooks


def test_residuals_that_do_not_sum_to_the_loss_are_shown_with_both_numbers():
    model = network()
    stepper = OPTIMIZERS["adam"](model.parameters())
    loss = float(loss_of(model)().detach())
    twice = lambda: residuals_of(model)() * 2  # noqa: E731
    with pytest.raises(ValueError, match="the squares of the residuals") as error:
        kc.attach(stepper, model, loss=loss_of(model), residuals=twice)
    squares, given = re.findall(r"\d\.\d+", str(error.value))
    assert (float(squares), float(given)) == pytest.approx((4 * loss, loss), rel=1e-5)


def test_a_changing_number_of_residuals_is_named():
    model = network()
    count = [32]
    pieces = Residuals(lambda: residuals_of(model)()[: count[0]])
    pieces()
    count[0] = 31
    with pytest.raises(ValueError, match="piece 1 has 31, the first time 32"):
        pieces()
    whole = Residuals(lambda: iter([torch.ones(3)] * count[0]))
    whole()
    count[0] = 2
    with pytest.raises(ValueError, match="there are 2 pieces, the first time 31"):
        whole()


def test_places_where_residuals_are_not_finite_are_no_places():
    model = network()
    stepper = OPTIMIZERS["adam"](model.parameters())
    bound = [float("inf")]

    def residuals():
        values = residuals_of(model)()
        return values / (values.square().sum() <= bound[0])  # 0/0 and x/0 beyond the bound

    koop = kc.attach(stepper, model, loss=loss_of(model), residuals=residuals, regime="smooth")
    train(stepper, loss_of(model), 15)
    bound[0] = 0.0
    train(stepper, loss_of(model), 30)
    assert koop.stats.jumps > 2
    assert koop.stats.accepted == 0
