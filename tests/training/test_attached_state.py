"""A run that is saved and resumed, in the middle of a window too, continues bit-identically."""

from __future__ import annotations

import io
import warnings

import pytest

torch = pytest.importorskip("torch")

import torch.distributed.checkpoint as dcp  # noqa: E402
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


def started(build, name, **options):
    model = build()
    optimizer = OPTIMIZERS[name](model.parameters())
    koop = kc.attach(optimizer, model, loss=loss_of(model), **{**SHORT, **options})
    return model, optimizer, koop


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


CASES = {
    "in the first window": (7, {}),
    "between two averaged steps": (8, {"record": "mean"}),
    "right after a jump": (18, {}),
    "in a later window": (50, {}),
    "while resting": (60, {"margin": 0.999}),
    "in a slid window": (100, {"margin": 0.05}),
    "before the warm-up ends": (5, {"warmup": 20}),
    "before it is ready": (25, {"warmup": "auto"}),
    "with one average": (50, {"averages": 0.9}),
    "without averages": (50, {"averages": ()}),
    "before the regime is known": (14, {"regime": "auto"}),
    "in a probe of a regime found": (75, {"regime": "auto"}),
    "at its own pace": (60, {"regime": "auto", "stride": None}),
    "under noise": (60, {"regime": "noise", "stride": None}),
    "with updates": (50, {"observables": "weights+update"}),
    "with bfloat16 differences": (50, {"storage": "bfloat16"}),
    "with bfloat16 means": (50, {"storage": "bfloat16", "record": "mean"}),
    "in a schedule": (30, {"schedule": (20, 50, 40)}),
    "after a schedule": (60, {"schedule": (20, 50, 40)}),
}


@pytest.mark.parametrize("build", [network, noisy_network])
@pytest.mark.parametrize("name", ["sgd", "adam"])
@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_continues_bit_identically(build, name, case):
    steps, options = CASES[case]
    model, optimizer, koop = started(build, name, **options)
    train(optimizer, loss_of(model), steps)
    saved = through_a_file(
        {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "koop": koop.state_dict(),
            "random": torch.get_rng_state(),
        }
    )
    expected = train(optimizer, loss_of(model), 60)
    jumps = [(r.step, r.kind, r.horizon, r.loss_after) for r in koop.stats.history]

    again, resumed, other = started(build, name, **options)
    again.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    other.load_state_dict(saved["koop"])
    torch.set_rng_state(saved["random"])
    got = train(resumed, loss_of(again), 60)

    assert got == expected
    assert identical(everything(again, resumed), everything(model, optimizer))
    assert [(r.step, r.kind, r.horizon, r.loss_after) for r in other.stats.history] == jumps
    assert other.stats.snapshots == koop.stats.snapshots


def test_the_state_may_be_loaded_before_the_model():
    model, optimizer, koop = started(noisy_network, "adam")
    train(optimizer, loss_of(model), 40)
    saved = through_a_file([koop.state_dict(), model.state_dict(), optimizer.state_dict()])
    random = torch.get_rng_state()
    expected = train(optimizer, loss_of(model), 40)
    again, resumed, other = started(noisy_network, "adam")
    other.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    resumed.load_state_dict(saved[2])
    torch.set_rng_state(random)
    assert train(resumed, loss_of(again), 40) == expected


def test_statistics_go_on_counting():
    model, optimizer, koop = started(network, "sgd")
    train(optimizer, loss_of(model), 50)
    again, resumed, other = started(network, "sgd")
    again.load_state_dict(model.state_dict())
    other.load_state_dict(koop.state_dict())
    assert other.stats == koop.stats
    train(resumed, loss_of(again), 50)
    assert other.stats.jumps > koop.stats.jumps
    assert other.state_dict()["step"] == 100


def test_saving_changes_nothing():
    model, optimizer, koop = started(network, "adam")
    train(optimizer, loss_of(model), 40)
    state = koop.state_dict()
    rows = state["recording"]["rows"]["data"]["0.weight"].clone()
    again = koop.state_dict()
    assert through_a_file(state).keys() == again.keys()
    train(optimizer, loss_of(model), 10)
    assert torch.equal(state["recording"]["rows"]["data"]["0.weight"], rows)
    assert state["step"] == 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 7}, "window=6"),
        ({"stride": 2}, "stride=3"),
        ({"record": "mean"}, "record=None"),
        ({"regime": "noise"}, "regime='smooth'"),
        ({"storage": "bfloat16"}, "storage='auto'"),
        ({"observables": "weights+update"}, "observables='weights'"),
        ({"schedule": (5, 50, 10)}, "schedule=None"),
        ({"exclude": "*.bias"}, "another layout"),
    ],
)
def test_a_state_saved_with_other_options_is_refused(options, message):
    model, optimizer, koop = started(network, "adam")
    train(optimizer, loss_of(model), 10)
    _, _, other = started(network, "adam", **options)
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(koop.state_dict())


def test_a_state_of_another_model_is_refused_and_changes_nothing():
    model, optimizer, koop = started(network, "adam")
    train(optimizer, loss_of(model), 10)
    other_model = torch.nn.Sequential(torch.nn.Linear(1, 9), torch.nn.Tanh(), torch.nn.Linear(9, 1))
    other_optimizer = OPTIMIZERS["adam"](other_model.parameters())
    other = kc.attach(other_optimizer, other_model, loss=loss_of(other_model), **SHORT)
    with pytest.raises(ValueError, match="another layout"):
        other.load_state_dict(koop.state_dict())
    assert other.state_dict()["step"] == 0
    assert other.stats.snapshots == 0
    train(other_optimizer, loss_of(other_model), 30)
    assert other.stats.jumps > 0


# -- the schema -----------------------------------------------------------------------------------


def paths(state, prefix=()):
    """Every key of a nested state, the inner ones too."""
    for key, value in state.items():
        yield (*prefix, key)
        if isinstance(value, dict):
            yield from paths(value, (*prefix, key))


def shape_of(value):
    if isinstance(value, dict):
        return {key: shape_of(inner) for key, inner in value.items()}
    return (value.shape, value.dtype) if isinstance(value, torch.Tensor) else type(value)


@pytest.mark.parametrize("build", [network, noisy_network])
@pytest.mark.parametrize("case", CASES)
def test_a_state_has_the_same_keys_and_shapes_at_any_time(build, case):
    steps, options = CASES[case]
    model, optimizer, koop = started(build, "adam", **options)
    fresh = shape_of(koop.state_dict())
    for _ in range(3):
        train(optimizer, loss_of(model), 1 + steps // 2)
        assert shape_of(koop.state_dict()) == fresh


def changed(state, path, change):
    """A copy of a nested state with one entry changed, or taken out where ``change`` is None."""
    out = dict(state)
    if len(path) > 1:
        out[path[0]] = changed(state[path[0]], path[1:], change)
    elif change is None:
        del out[path[0]]
    else:
        out[path[0]] = change(state[path[0]])
    return out


def wrong_shape(value):
    return value[..., :-1] if isinstance(value, torch.Tensor) and value.dim() else object()


NAN = float("nan")

CHANGES = {
    "missing": None,
    "None": lambda value: None if value is not None else "None",
    "another kind": lambda value: {"a": 1} if not isinstance(value, dict) else [value],
    "another shape": wrong_shape,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("options", [{"averages": 0.9}, {"storage": "bfloat16"}], ids=str)
def test_a_state_with_anything_wrong_is_refused_whole(change, options):
    model, optimizer, koop = started(noisy_network, "adam", **options)
    train(optimizer, loss_of(model), 50)
    good = koop.state_dict()
    other_model, other_optimizer, other = started(noisy_network, "adam", **options)
    train(other_optimizer, loss_of(other_model), 25)
    before = other.state_dict()
    average = [other._averages.family.rows.clone()] if other._averages.family else []
    for path in paths(good):
        bad = changed(good, path, CHANGES[change])
        with pytest.raises(ValueError, match=r"saved state|saved with|was recorded with"):
            other.load_state_dict(bad)
        now = other.state_dict()
        for each in paths(now):
            one, two = now, before
            for key in each:
                one, two = one[key], two[key]
            if isinstance(one, torch.Tensor):
                assert identical([one], [two]), (path, each)
            elif not isinstance(one, dict):
                assert one == two, (path, each)
    assert identical(average, [other._averages.family.rows] if other._averages.family else [])
    other.load_state_dict(good)
    assert other.stats == koop.stats


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("version",), 99, "version 99, this koopcore reads 3"),
        (("regime", "regime"), "calm", "is 'calm'; .* are known"),
        (("regime", "gap"), 1, r"\['gap'\] is 1"),
        (("regime", "strided"), [float("nan")], r"\['strided'\] is \[nan\]"),
        (("averages", "taken"), -1, r"\['taken'\] is -1"),
        (("averages", "lags"), [0.0], r"\['lags'\] is \[0.0\]; 4 numbers are needed"),
        (("step",), -1, r"\['step'\] is -1"),
        (("recording", "ring", "count"), 7, r"\['count'\] is 7; 0..6 is possible"),
        (("recording", "ring", "head"), 6, r"\['head'\] is 6; 0..5 is possible"),
        (("recording", "ring", "blended"), -1, r"\['blended'\] is -1"),
        (("recording", "buffers"), ["9.running_mean"], "'9.running_mean', which this model lacks"),
        (("recording", "buffers"), [], "saved ring is|the ring in the saved state"),
        (("recording", "buffer_rows"), b"broken", "recorded buffers in the saved state cannot be"),
        (("policy", "keep"), -3, r"\['keep'\] is -3"),
        (("policy", "stride"), 4, r"\['stride'\] is 4; 3..3 is possible"),
        (("policy", "last"), float("nan"), r"\['last'\] is nan"),
        (("statistics", "history"), [(1, 2)], r"record \(1, 2\), which is none of a jump"),
        (("statistics", "jumps"), True, "True; int is needed"),
        (("layout",), "", "a window but no layout"),
        (("extra",), 1, "has 'extra', which is not known here"),
        (
            ("recording", "rows", "data", "0.weight"),
            NAN,
            r"the ring in the saved state holds numbers that",
        ),
        (("recording", "scale"), 0.0, r"\['scale'\] is 0\.0; a number > 0 is needed"),
        (("averages", "averages", "0.99", "0.weight"), NAN, "averages in the saved state holds nu"),
    ],
)
def test_values_that_cannot_be_are_named(path, value, message):
    model, optimizer, koop = started(noisy_network, "adam")
    train(optimizer, loss_of(model), 50)
    good = koop.state_dict()
    if path != ("extra",):
        bad = changed(good, path, lambda old: torch.full_like(old, NAN) if value is NAN else value)
    else:
        bad = {**good, "extra": 1}
    _, _, other = started(noisy_network, "adam")
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(bad)
    assert other.stats.steps == 0


@pytest.mark.parametrize("regime", ["smooth", "auto"])
def test_any_number_that_is_altered_is_refused_or_the_run_goes_on(regime):
    model, optimizer, koop = started(network, "adam", regime=regime)
    train(optimizer, loss_of(model), 50)
    good = koop.state_dict()
    refused = set()
    for path in paths(good):
        value = good
        for key in path:
            value = value[key]
        if type(value) not in (int, float):
            continue
        other_model, other_optimizer, other = started(network, "adam", regime=regime)
        for wrong in (-1, -0.5, 10**30, NAN, float("inf"), -float("inf")):
            try:
                other.load_state_dict(changed(good, path, lambda _, wrong=wrong: wrong))
            except ValueError:
                refused.add((path, repr(wrong)))
                assert other.stats.steps == other.state_dict()["step"] == 0, (path, wrong)
                continue
            train(other_optimizer, loss_of(other_model), 12)
            assert all(bool(p.isfinite().all()) for p in other_model.parameters()), (path, wrong)
            other_model, other_optimizer, other = started(network, "adam", regime=regime)
        assert (path, "nan") in refused, path
        if type(value) is int:
            assert {(path, "-1"), (path, str(10**30))} <= refused, path


def test_a_probe_that_is_not_finite_is_refused_where_it_is_in_use():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    koop = kc.attach(optimizer, model, loss=loss_of(model))
    path = ("recording", "probe", "data")
    unused = changed(koop.state_dict(), path, lambda old: torch.full_like(old, NAN))
    koop.load_state_dict(unused)
    train(optimizer, loss_of(model), 3)
    bad = changed(koop.state_dict(), path, lambda old: torch.full_like(old, NAN))
    with pytest.raises(ValueError, match="the probe in the saved state holds numbers that"):
        koop.load_state_dict(bad)


@pytest.mark.parametrize("state", [None, [], "state", 3])
def test_what_is_no_state_is_refused(state):
    _, _, koop = started(network, "adam")
    with pytest.raises(ValueError, match=r"give what state_dict\(\) returned"):
        koop.load_state_dict(state)


def test_after_detach_there_is_no_state_any_more():
    model, optimizer, koop = started(network, "adam")
    train(optimizer, loss_of(model), 20)
    state = koop.state_dict()
    koop.detach()
    for call in (koop.state_dict, lambda: koop.load_state_dict(state)):
        with pytest.raises(RuntimeError, match=r"after detach\(\): the snapshots are freed"):
            call()
    assert koop.stats.steps == 20


def test_a_state_of_a_lazy_model_goes_into_one_that_has_been_run():
    def lazy(seed):
        torch.manual_seed(seed)
        model = torch.nn.Sequential(torch.nn.LazyLinear(8), torch.nn.Tanh(), torch.nn.LazyLinear(1))
        optimizer = OPTIMIZERS["adam"](model.parameters())
        return model, optimizer, kc.attach(optimizer, model, loss=loss_of(model), **SHORT)

    model, optimizer, koop = lazy(0)
    fresh = koop.state_dict()
    train(optimizer, loss_of(model), 40)
    again, resumed, other = lazy(1)
    with pytest.raises(ValueError, match="after its first forward pass"):
        other.load_state_dict(koop.state_dict())
    other.load_state_dict(fresh)
    loss_of(again)()
    again.load_state_dict(model.state_dict())
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    other.load_state_dict(koop.state_dict())
    assert train(resumed, loss_of(again), 40) == train(optimizer, loss_of(model), 40)


def test_a_state_after_freezing_goes_into_a_model_that_is_frozen_the_same():
    model, optimizer, koop = started(network, "adam")
    train(optimizer, loss_of(model), 30)
    model[0].requires_grad_(False)
    optimizer.zero_grad()
    train(optimizer, loss_of(model), 10)
    state = koop.state_dict()
    again, resumed, other = started(network, "adam")
    with pytest.raises(ValueError, match="the same parameters frozen"):
        other.load_state_dict(state)
    again[0].requires_grad_(False)
    again.load_state_dict(model.state_dict())
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    other.load_state_dict(state)
    assert train(resumed, loss_of(again), 40) == train(optimizer, loss_of(model), 40)


# -- torch.distributed.checkpoint -----------------------------------------------------------------


@pytest.mark.parametrize("build", [network, noisy_network])
@pytest.mark.parametrize("case", CASES)
def test_distributed_checkpoints_continue_bit_identically(build, case, tmp_path):
    steps, options = CASES[case]
    model, optimizer, koop = started(build, "adam", **options)
    train(optimizer, loss_of(model), steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one process is taken for all
        dcp.save({"koop": koop, "model": model}, checkpoint_id=tmp_path)
    rest = through_a_file([optimizer.state_dict(), torch.get_rng_state()])
    expected = train(optimizer, loss_of(model), 60)
    again, resumed, other = started(build, "adam", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load({"koop": other, "model": again}, checkpoint_id=tmp_path)
    resumed.load_state_dict(rest[0])
    torch.set_rng_state(rest[1])
    assert train(resumed, loss_of(again), 60) == expected
    assert identical(everything(again, resumed), everything(model, optimizer))
    assert len(other.stats.history) == len(koop.stats.history)


def test_a_distributed_checkpoint_of_other_options_is_refused(tmp_path):
    model, optimizer, koop = started(network, "adam")
    train(optimizer, loss_of(model), 20)
    _, _, other = started(network, "adam", stride=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"koop": koop}, checkpoint_id=tmp_path)
        with pytest.raises(ValueError, match=r"stride=3.*stride=4"):
            dcp.load({"koop": other}, checkpoint_id=tmp_path)
    assert other.stats.steps == 0


def test_whole_numbers_where_floats_belong_do_not_shut_out_floats_later():
    model, optimizer, koop = started(network, "sgd")
    train(optimizer, loss_of(model), 50)
    saved = koop.state_dict()
    whole = {**saved, "policy": {**saved["policy"], "last": 2, "bar": 1}}
    whole["statistics"] = {**saved["statistics"], "seconds": 3}
    koop.load_state_dict(whole)
    assert type(koop.state_dict()["policy"]["last"]) is float
    koop.load_state_dict(saved)
    again = koop.state_dict()
    assert again["policy"] == saved["policy"]
    assert again["statistics"] == saved["statistics"]


@pytest.mark.parametrize(
    "path", [("version",), ("settings", "window"), ("recording", "ring", "slots")]
)
def test_a_tensor_in_the_place_of_a_number_is_refused(path):
    model, optimizer, koop = started(network, "sgd")
    train(optimizer, loss_of(model), 30)
    state = koop.state_dict()
    inner = state
    for name in path[:-1]:
        inner[name] = inner = dict(inner[name])
    inner[path[-1]] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"saved"):
        koop.load_state_dict(state)
