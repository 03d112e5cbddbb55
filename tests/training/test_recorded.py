"""What is recorded is what trains: looked at again at every window, moved only while it trains."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from small_training import OPTIMIZERS, identical, loss_of, network, train  # noqa: E402
from torch import nn  # noqa: E402

import koopcore as kc  # noqa: E402
from koopcore.training.recording.parameters import same_bits  # noqa: E402

SHORT = {"regime": "smooth", "window": 6, "stride": 3}
LAYERS = ("0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias")


def attached(optimizer="adam", model=None, **options):
    model = network() if model is None else model
    stepper = OPTIMIZERS[optimizer](model.parameters())
    koop = kc.attach(stepper, model, loss=loss_of(model), **{**SHORT, **options})
    return model, stepper, koop


@pytest.mark.parametrize("when", [1, 16, 17, 18, 19, 20])  # the first attempt is at step 18
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adagrad"])
def test_a_layer_frozen_in_mid_run_stays_where_it_is(when, optimizer):
    model, stepper, koop = attached(optimizer)
    train(stepper, loss_of(model), when)
    model[0].requires_grad_(False)
    stepper.zero_grad()
    there = [p.detach().clone() for p in model[0].parameters()]
    accepted = koop.stats.accepted
    train(stepper, loss_of(model), 100)
    assert koop.stats.accepted > accepted
    assert identical(there, [p.detach() for p in model[0].parameters()])
    assert koop.recorded.names == LAYERS[2:]
    assert koop.recorded.left_out["0.bias"] == "frozen: requires_grad is False"


def test_a_layer_frozen_for_a_while_is_recorded_again():
    model, stepper, koop = attached()
    for frozen in (True, False):
        train(stepper, loss_of(model), 25)
        model[2].requires_grad_(not frozen)
        train(stepper, loss_of(model), 60)
        assert ("2.weight" in koop.recorded.names) is not frozen
    assert koop.stats.accepted > 0


@pytest.mark.parametrize("by_group", [True, False])
def test_unfrozen_and_added_parameters_are_recorded(by_group):
    model = network()
    model[0].requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    stepper = torch.optim.Adam(trained if by_group else model.parameters(), lr=3e-3)
    koop = kc.attach(stepper, model, loss=loss_of(model), **SHORT)
    assert koop.recorded.names == LAYERS[2:]
    train(stepper, loss_of(model), 40)
    model[0].requires_grad_(True)
    if by_group:
        stepper.add_param_group({"params": list(model[0].parameters())})
    train(stepper, loss_of(model), 100)
    assert koop.recorded.names == LAYERS
    assert not koop.recorded.left_out
    before_hooks = []
    handle = stepper.register_step_post_hook(
        lambda *_: before_hooks.append(model[0].weight.detach().clone())
    )
    stepper._optimizer_step_post_hooks.move_to_end(handle.id, last=False)  # before koopcore's
    accepted = koop.stats.accepted
    while koop.stats.accepted == accepted:
        train(stepper, loss_of(model), 1)
    assert not torch.equal(model[0].weight, before_hooks[-1])


def test_a_module_added_with_its_group_is_recorded():
    model, stepper, koop = attached()
    train(stepper, loss_of(model), 10)
    model.append(nn.Linear(1, 1))
    stepper.add_param_group({"params": list(model[5].parameters())})
    train(stepper, loss_of(model), 60)
    assert koop.recorded.names == (*LAYERS, "5.weight", "5.bias")
    assert koop.stats.accepted > 0


def test_while_everything_is_frozen_nothing_happens_and_then_it_goes_on():
    model, stepper, koop = attached(averages=0.9)
    train(stepper, loss_of(model), 30)
    model.requires_grad_(False)
    stepper.zero_grad(set_to_none=False)  # gradients of zero stay, and Adam goes on moving
    jumps = koop.stats.jumps
    for _ in range(60):
        stepper.step()
    assert koop.stats.jumps == jumps
    assert koop.recorded.names == ()
    assert set(koop.recorded.left_out) == set(LAYERS)
    koop.load_state_dict(koop.state_dict())
    with pytest.raises(RuntimeError, match="no parameter is recorded"), koop.averaged():
        raise AssertionError("not reached")
    model.requires_grad_(True)
    train(stepper, loss_of(model), 60)
    assert koop.stats.jumps > jumps
    assert koop.recorded.names == LAYERS


def test_a_frozen_parameter_has_no_average():
    model, stepper, koop = attached(averages=0.5)
    train(stepper, loss_of(model), 12)
    model[0].requires_grad_(False)
    there = model[0].weight.detach().clone()
    free = model[2].weight.detach().clone()
    with koop.averaged(0.5):
        assert same_bits(model[0].weight, there)
        assert not same_bits(model[2].weight, free)


def test_a_replaced_layer_is_recorded_if_the_optimizer_has_it_and_named_if_not():
    model, stepper, koop = attached()
    train(stepper, loss_of(model), 10)
    model[0] = nn.Linear(1, 8)
    train(stepper, loss_of(model), 60)
    assert koop.recorded.names == LAYERS[2:]
    assert koop.recorded.left_out["0.weight"] == "the optimizer does not hold it"
    assert "left out: 0.weight (the optimizer does not hold it)" in str(koop.recorded)
    stepper.add_param_group({"params": list(model[0].parameters())})
    train(stepper, loss_of(model), 60)
    assert koop.recorded.names == LAYERS


@pytest.mark.parametrize(
    "change",
    [lambda m: [m.__setitem__(k, nn.Linear(1, 1)) for k in (0, 2, 4)], lambda m: m.to("meta")],
    ids=["layers", "device"],
)
def test_a_model_whose_parameters_were_all_replaced_is_an_error(change):
    model, stepper, _ = attached()
    train(stepper, loss_of(model), 17)
    change(model)
    with pytest.raises(RuntimeError, match=r"holds none of the 6 parameters.*replaced after"):
        stepper.step()


@pytest.mark.parametrize("when", [5, 17])
def test_a_model_that_changes_its_dtype_is_recorded_in_the_new_one(when):
    model, stepper, koop = attached("sgd", averages=0.9)
    train(stepper, loss_of(model), when)
    stepper.zero_grad()
    model.double()
    koop._jump.guarded.loss = loss_of(model, torch.float64)  # the user's batch, in double as well
    train(stepper, loss_of(model, torch.float64), 60)
    assert koop._recording.ring.dtype == torch.float64
    assert koop._averages.family.rows.dtype == torch.float64
    assert koop.stats.accepted > 0


@pytest.mark.parametrize("average", [(), 0.9])
def test_a_parameter_that_changes_its_shape_begins_a_new_window(average):
    model, stepper, koop = attached("sgd", averages=average)
    train(stepper, loss_of(model), 8)
    stepper.zero_grad()
    for module, shapes in ((model[0], [(9, 1), (9,)]), (model[2], [(8, 9)])):
        for p, shape in zip(module.parameters(), shapes, strict=False):
            p.data = torch.full(shape, 0.1)
    train(stepper, loss_of(model), 40)
    assert koop._recording.parameters.layout.tensors[0].shape == (9, 1)
    assert koop.stats.jumps > 0


def test_a_partition_that_cannot_follow_says_so():
    model = network()
    layout = kc.Layout.from_module(model, align=32)
    model, stepper, _ = attached(model=model, partition=kc.Partition.network(layout))
    train(stepper, loss_of(model), 20)
    model[0].requires_grad_(False)
    with pytest.raises(ValueError, match="build it from a function of the layout"):
        train(stepper, loss_of(model), 40)


def test_a_rank_above_what_remains_is_lowered():
    model, stepper, koop = attached(rank=4, include=["4.*", "2.weight"])
    train(stepper, loss_of(model), 20)
    for p in (model[2].weight, model[4].weight):
        p.requires_grad_(False)
    train(stepper, loss_of(model), 40)  # of the one bias that remains no rank above 1 exists
    assert koop.recorded.names == ("4.bias",)
    assert koop.stats.history[-1].step > 40


def test_parameters_held_by_another_optimizer_move_over():
    model = network()
    first = torch.optim.SGD(model[:3].parameters(), lr=0.05)
    second = torch.optim.SGD(model[4].parameters(), lr=0.05)
    koop = kc.attach(first, model, loss=loss_of(model), **SHORT)
    assert koop.recorded.left_out["4.weight"] == "the optimizer does not hold it"
    first.add_param_group(second.param_groups.pop())
    train(first, loss_of(model), 30)
    assert koop.recorded.names == LAYERS


# -- complex --------------------------------------------------------------------------------------


class Phases(nn.Module):
    """A complex linear map between a real one and the real part."""

    def __init__(self, dtype=torch.complex64):
        super().__init__()
        torch.manual_seed(0)
        self.wide = nn.Linear(1, 6, dtype=torch.empty(0, dtype=dtype).real.dtype)
        self.map = nn.Linear(6, 6, dtype=dtype)
        self.out = nn.Parameter(torch.randn(6, dtype=dtype))

    def forward(self, x):
        hidden = torch.tanh(self.wide(x)).to(self.out.dtype)
        return (self.map(hidden) * self.out).sum(1, keepdim=True).real


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam", "adagrad", "adadelta", "rmsprop"])
@pytest.mark.parametrize("observables", ["weights", "weights+update"])
def test_complex_parameters_are_recorded_and_moved(name, observables):
    model = Phases()
    stepper = OPTIMIZERS[name](model.parameters())
    options = {**SHORT, "observables": observables, "averages": 0.9}
    koop = kc.attach(stepper, model, loss=loss_of(model), **options)
    assert koop.recorded.names == ("out", "wide.weight", "wide.bias", "map.weight", "map.bias")
    moved = []
    for _ in range(300):
        accepted = koop.stats.accepted
        train(stepper, loss_of(model), 1)
        if koop.stats.accepted > accepted:
            record = koop.stats.history[-1]
            assert float(loss_of(model)().detach()) == pytest.approx(record.loss_after, rel=1e-5)
            moved.append(record.kind)
    assert moved
    apart = False
    for _ in range(20):  # a jump at the last step has begun the average anew
        train(stepper, loss_of(model), 1)
        before = model.out.detach().clone()
        with koop.averaged(0.9):
            apart |= not torch.equal(model.out, before)
            assert model.out.is_complex()
        assert same_bits(model.out, before)
    assert apart


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_rejected_jumps_leave_complex_parameters_bit_identical(dtype):
    real = torch.empty(0, dtype=dtype).real.dtype
    runs = []
    for margin in (None, 0.999):
        model = Phases(dtype)
        stepper = OPTIMIZERS["adam"](model.parameters())
        koop = None
        if margin is not None:
            koop = kc.attach(stepper, model, loss=loss_of(model, real), margin=margin, **SHORT)
        runs.append((train(stepper, loss_of(model, real), 60), [*model.parameters()]))
    assert koop.stats.jumps > 1
    assert runs[0][0] == runs[1][0]
    assert identical([p.detach() for p in runs[0][1]], [p.detach() for p in runs[1][1]])
    assert koop._recording.ring.dtype == real


@pytest.mark.parametrize("partition", ["layers", "nodes", "weights"])
def test_a_complex_node_holds_both_parts(partition):
    model = Phases()
    stepper = OPTIMIZERS["adagrad"](model.parameters())
    koop = kc.attach(stepper, model, loss=loss_of(model), partition=partition, **SHORT)
    train(stepper, loss_of(model), 60)
    assert koop.stats.accepted > 0


# -- lazy -----------------------------------------------------------------------------------------


class LateBranch(nn.Module):
    """A lazy layer that only later steps reach, beside one that all do."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.LazyLinear(1), nn.LazyLinear(1)
        self.late = False

    def forward(self, x):
        return self.first(x) + (self.second(x) if self.late else 0.0)


LAZY = {
    "linear": lambda: nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.LazyLinear(1)),
    "batch norm": lambda: nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.LazyLinear(1)),
    "statistics alone": lambda: nn.Sequential(
        nn.Linear(1, 8), nn.LazyBatchNorm1d(affine=False), nn.Linear(8, 1)
    ),
    "instance norm": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 1)), nn.LazyConvTranspose1d(4, 3), nn.LazyInstanceNorm1d(affine=True),
        nn.Flatten(), nn.LazyLinear(1),
    ),
    "transposed": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 1)), nn.LazyConvTranspose1d(4, 3), nn.Flatten(), nn.LazyLinear(1)
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LAZY)
def test_lazy_modules_train_as_without_koopcore_and_are_recorded(case):
    runs = []
    for options in (None, {"margin": 0.999}, {}):
        torch.manual_seed(0)
        model = LAZY[case]()
        stepper = torch.optim.SGD(model.parameters(), lr=0.02)
        koop = None
        if options is not None:
            koop = kc.attach(stepper, model, loss=loss_of(model), **SHORT, **options)
            assert koop.recorded.names == ()
        runs.append(train(stepper, loss_of(model), 60))
    assert runs[0] == runs[1]
    assert koop.stats.jumps > 0
    assert len(koop.recorded.names) == len(list(model.parameters()))


def test_looking_at_a_lazy_model_changes_nothing():
    runs = []
    for looks in (False, True):
        torch.manual_seed(0)
        model = LAZY["linear"]()
        stepper = torch.optim.SGD(model.parameters(), lr=0.02)
        koop = kc.attach(stepper, model, loss=loss_of(model), **SHORT)
        losses = []
        for _ in range(40):
            losses += train(stepper, loss_of(model), 1)
            if looks:
                koop.state_dict()
                assert koop.recorded.names
        runs.append((losses, [r.step for r in koop.stats.history]))
    assert runs[0] == runs[1]


def test_a_branch_that_is_reached_late_is_recorded_from_then_on():
    model = LateBranch()
    stepper = torch.optim.SGD(model.parameters(), lr=0.02)
    koop = kc.attach(stepper, model, loss=loss_of(model), **SHORT)
    train(stepper, loss_of(model), 30)
    assert koop.recorded.names == ("first.weight", "first.bias")
    assert koop.recorded.left_out["second.weight"].startswith("not initialized yet")
    model.late = True
    train(stepper, loss_of(model), 60)
    assert koop.recorded.names == ("first.weight", "first.bias", "second.weight", "second.bias")


def test_a_bad_loss_of_a_lazy_model_is_named_in_the_first_window():
    model = LAZY["linear"]()
    stepper = torch.optim.SGD(model.parameters(), lr=0.02)
    kc.attach(stepper, model, loss=lambda: torch.ones(3), **SHORT)
    with pytest.raises(TypeError, match="return one real number"):
        train(stepper, loss_of(model), 3)


# -- loaded in mid-window -------------------------------------------------------------------------


def load_model(model, stepper, other):
    model.load_state_dict(other[0].state_dict())


def load_layer(model, stepper, other):
    model[2].load_state_dict(other[0][2].state_dict())


def load_optimizer(model, stepper, other):
    stepper.load_state_dict(other[1].state_dict())


@pytest.mark.parametrize("load", [load_model, load_layer, load_optimizer])
@pytest.mark.parametrize("when", [10, 11, 17, 25])
def test_a_state_loaded_in_mid_window_begins_a_new_one(load, when):
    other = attached(warmup=10**6)[:2]
    train(other[1], loss_of(other[0]), 200)
    model, stepper, koop = attached(averages=0.9)
    train(stepper, loss_of(model), when)
    load(model, stepper, other)
    jumps = koop.stats.jumps
    train(stepper, loss_of(model), 17)
    assert koop.stats.jumps == jumps  # a whole window, of 6 x 3 steps, after the load
    train(stepper, loss_of(model), 1)
    assert koop.stats.jumps == jumps + 1


@pytest.mark.parametrize("layer", [False, True])
def test_weights_that_are_back_before_the_next_step_were_never_away(layer):
    other = network(seed=1)
    runs = []
    for swaps in (False, True):
        model, stepper, koop = attached()
        losses = []
        for _ in range(12):
            losses += train(stepper, loss_of(model), 5)
            if swaps:  # more often than a window is long
                watched, source = (model[2], other[2]) if layer else (model, other)
                mine = {k: v.clone() for k, v in watched.state_dict().items()}
                watched.load_state_dict(source.state_dict())
                watched.load_state_dict(mine)
        runs.append((losses, koop.stats.accepted))
    assert runs[0] == runs[1]
    assert runs[0][1] > 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit.script itself
def test_a_scripted_model_is_attached_to_but_not_watched():
    model = torch.jit.script(network())
    stepper = OPTIMIZERS["sgd"](model.parameters())
    koop = kc.attach(stepper, model, loss=loss_of(model), **SHORT)
    train(stepper, loss_of(model), 40)
    assert koop.stats.accepted > 0


def test_the_average_begins_at_what_was_loaded():
    other = network(seed=1)
    model, stepper, koop = attached("sgd", averages=0.999)
    train(stepper, loss_of(model), 12)
    model.load_state_dict(other.state_dict())
    train(stepper, loss_of(model), 1)
    here = [p.detach().clone() for p in model.parameters()]
    with koop.averaged(0.999):
        assert identical([p.detach() for p in model.parameters()], here)


def test_reset_is_for_weights_changed_by_hand():
    model, stepper, koop = attached("sgd", averages=0.9)
    train(stepper, loss_of(model), 12)
    nn.utils.vector_to_parameters(torch.linspace(-1, 1, 97), model.parameters())
    koop.reset()
    train(stepper, loss_of(model), 17)
    assert koop.stats.jumps == 0
    train(stepper, loss_of(model), 1)
    assert koop.stats.jumps == 1


def test_a_schedule_records_its_whole_window_again():
    model, stepper, koop = attached("sgd", schedule=(20, 50, 40), stride=5)
    train(stepper, loss_of(model), 40)
    model.load_state_dict(network(seed=1).state_dict())
    train(stepper, loss_of(model), 100)
    assert [r.step for r in koop.stats.history] == [40 + 7 * 5]


# -- all of it at once ----------------------------------------------------------------------------


def wild_run(seed, koop_options):
    """A run in which anything happens between steps; with or without koopcore, the same things."""
    generator = torch.Generator().manual_seed(seed)

    def draw(n):
        return int(torch.randint(n, (), generator=generator))

    model = network()
    stepper = OPTIMIZERS[("sgd", "momentum", "adam", "adagrad")[seed % 4]](model.parameters())
    koop = None
    if koop_options is not None:
        koop = kc.attach(stepper, model, loss=loss_of(model), **SHORT, **koop_options)
    losses = []
    for _ in range(25):
        layer = model[2 * draw(3)]
        action = draw(9)
        if action == 0:
            layer.requires_grad_(False)
        elif action in (1, 2):
            layer.requires_grad_(True)
        elif action == 3:
            other = network(seed=draw(5))
            layer.load_state_dict(dict(zip(model, other, strict=True))[layer].state_dict())
        elif action == 4:
            model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()})
        elif action == 5 and koop is not None:
            koop.load_state_dict(koop.state_dict())
        elif action == 6 and koop is not None:
            assert set(koop.recorded.names).isdisjoint(koop.recorded.left_out)
            if koop.recorded.names and koop.stats.steps:
                with koop.averaged():
                    loss_of(model)()
        elif action == 7 and koop is not None:
            koop.reset()
        if any(p.requires_grad for p in model.parameters()):
            frozen = [(p, p.detach().clone()) for p in model.parameters() if not p.requires_grad]
            stepper.zero_grad()
            losses += train(stepper, loss_of(model), 1 + draw(12))
            assert all(same_bits(p.detach(), before) for p, before in frozen)
    return losses, [p.detach() for p in model.parameters()], koop


@pytest.mark.parametrize("seed", range(24))
def test_whatever_happens_rejected_jumps_change_nothing_and_frozen_layers_stay(seed):
    losses, parameters, _ = wild_run(seed, None)
    rejected, same, koop = wild_run(seed, {"margin": 0.999, "averages": 0.9})
    assert rejected == losses
    assert identical(same, parameters)
    assert koop.stats.accepted == 0
    _, _, jumping = wild_run(seed, {"averages": 0.9})
    assert jumping.stats.steps == len(losses)
