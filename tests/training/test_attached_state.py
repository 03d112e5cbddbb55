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


NAN, INFINITE, HUGE = float("nan"), float("inf"), 10**30

WRONG = (None, "x", True, -1, -0.5, HUGE, NAN, INFINITE, -INFINITE, [], {}, b"", torch.zeros(0))

#: What may stand in a state instead of what was saved: entries by their path, "*" for a number.
POSSIBLE = {
    "fresh": {True},
    "regime.doubt": {True},
    "regime.hindcasts.*": {HUGE, INFINITE},
    "regime.cosines.*": {-1, -0.5},
    "regime.strided": {"[]"},
    "regime.strided.*": {HUGE},
    "policy.last": {HUGE},
    "policy.bar": {INFINITE},
    "statistics.steps_skipped": {HUGE},
    "statistics.seconds": {HUGE},
    "statistics.seconds_recording": {HUGE},
    "statistics.history.*.3": {HUGE},
    "statistics.history.*.5": {None, -1, -0.5, HUGE, "nan", INFINITE, -INFINITE},
    "statistics.history.*.6": {None, -1, -0.5, HUGE, "nan", INFINITE, -INFINITE},
    "statistics.history.*.7": {HUGE, "nan", INFINITE},
    "statistics.history.*.9": {HUGE},
    "statistics.history.*.10": {"x"},
}


def everywhere(state, prefix=()):
    """Every place of a nested state and what is there, the first entry of each list too."""
    inner = state.items() if isinstance(state, dict) else enumerate(state[:1])
    for key, value in inner:
        yield (*prefix, key), value
        if isinstance(value, dict | list | tuple):
            yield from everywhere(value, (*prefix, key))


def with_entry(state, path, value):
    """A copy of a nested state with another value at one place."""
    key, rest = path[0], path[1:]
    value = with_entry(state[key], rest, value) if rest else value
    if isinstance(state, dict):
        return {**state, key: value}
    return [*state[:key], value, *state[key + 1 :]]


def wrong_values(old):
    for wrong in WRONG:
        if not (type(wrong) is type(old) and not isinstance(old, torch.Tensor) and wrong == old):
            yield wrong
    if isinstance(old, torch.Tensor):
        yield from (torch.full_like(old, NAN), old[..., :-1], old.to(torch.float16), old.tolist())


def possible(path, wrong):
    keys = ("*" if isinstance(key, int) and k == 2 else str(key) for k, key in enumerate(path))
    words = f"{wrong}" if isinstance(wrong, list) or wrong is NAN else wrong
    accepted = POSSIBLE.get(".".join(keys), set())
    return any(type(words) is type(one) and words == one for one in accepted)


def refusal(koop, state):
    """What is said of a state that is not taken; "" of one that is."""
    try:
        koop.load_state_dict(state)
    except ValueError as error:
        return str(error)
    return ""


def unchanged(koop, before):
    for path, value in everywhere(koop.state_dict()):
        old = before
        for key in path:
            old = old[key]
        same = identical([value], [old]) if isinstance(value, torch.Tensor) else None
        assert same is not False, path
        if same is None and not isinstance(value, dict | list | tuple):
            assert value == old or value != value, path


@pytest.mark.parametrize("storage", ["auto", "bfloat16"])
def test_a_state_with_anything_wrong_is_refused_whole(storage):
    options = {"regime": "auto", "stride": None, "storage": storage}
    model, optimizer, koop = started(network, "adam", **options)
    train(optimizer, loss_of(model), 50)
    good = koop.state_dict()
    other_model, other_optimizer, other = started(network, "adam", **options)
    train(other_optimizer, loss_of(other_model), 25)
    before = other.state_dict()
    for path, old in everywhere(good):
        if storage != "auto" and path[0] != "recording":
            continue  # the same as with the other
        name = next(key for key in reversed(path) if isinstance(key, str))
        for wrong in wrong_values(old):
            bad = with_entry(good, path, wrong)
            if possible(path, wrong):
                continue
            assert name in refusal(other, bad), (path, wrong)
            unchanged(other, before)
        if isinstance(old, dict):
            with pytest.raises(ValueError, match="has 'more', which is not known"):
                other.load_state_dict(with_entry(good, path, {**old, "more": 1}))
            for key in old:
                less = {k: v for k, v in old.items() if k != key}
                with pytest.raises(ValueError, match=r"lacks|is needed|belongs"):
                    other.load_state_dict(with_entry(good, path, less))
            unchanged(other, before)
    other.load_state_dict(good)
    assert other.stats == koop.stats


def test_a_run_goes_on_from_whatever_is_possible():
    model, optimizer, koop = started(network, "adam", regime="auto", stride=None)
    train(optimizer, loss_of(model), 50)
    good = koop.state_dict()
    for path, old in everywhere(good):
        for wrong in wrong_values(old):
            if not possible(path, wrong):
                continue
            other_model, other_optimizer, other = started(
                network, "adam", regime="auto", stride=None
            )
            try:
                other.load_state_dict(with_entry(good, path, wrong))
            except ValueError:  # it does not fit what else is there
                continue
            train(other_optimizer, loss_of(other_model), 12)
            assert all(bool(p.isfinite().all()) for p in other_model.parameters()), (path, wrong)
            str(other.stats), other.state_dict()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("version",), 99, "version 99, this koopcore reads 3"),
        (("regime", "regime"), "calm", r"\['regime'\] is 'calm'; 'smooth' is needed"),
        (("regime", "gap"), 1, r"\['gap'\] is 1"),
        (
            ("regime", "strided"),
            [float("nan")],
            r"\['strided'\]\[0\] is nan; a number >= 0 is needed",
        ),
        (("averages", "taken"), -1, r"\['taken'\] is -1"),
        (("averages", "lags"), [0.0], r"\['lags'\] is \[0.0\]; 4 entries are needed"),
        (("step",), -1, r"\['step'\] is -1"),
        (("recording", "ring", "count"), 7, r"\['count'\] is 7; a whole number 0..6 is needed"),
        (("recording", "ring", "head"), 6, r"\['head'\] is 6; a whole number 0..5 is needed"),
        (("recording", "ring", "blended"), -1, r"\['blended'\] is -1"),
        (("recording", "buffers"), ["9.running_mean"], "'9.running_mean', which this model lacks"),
        (("recording", "buffers"), [], r"\['data'\] is a tensor"),
        (("recording", "buffer_rows"), b"broken", r"\['buffer_rows'\] cannot be read"),
        (("policy", "keep"), -3, r"\['keep'\] is -3"),
        (("policy", "stride"), 4, r"\['stride'\] is 4; 3 is needed"),
        (("policy", "last"), float("nan"), r"\['last'\] is nan"),
        (
            ("statistics", "history"),
            [(1, 2)],
            r"\[0\] is \(1, 2\); 11 entries are needed",
        ),
        (("statistics", "jumps"), True, "True; a whole number >= 0 is needed"),
        (("layout",), "", "a window but no layout"),
        (("policy", "bar"), -1, r"\['bar'\] is -1; inf.* is needed"),
        (("statistics", "seconds"), -1, r"\['seconds'\] is -1; a number >= 0 is needed"),
        (("statistics", "history"), [], r"\['history'\] is \[\]; \d+ entries are needed"),
        (("statistics", "accepted"), HUGE, r"\['accepted'\] is 1000"),
        (("settings", "more"), 1, r"\['settings'\] has 'more', which is not known"),
        (("step",), 49, r"\['step'\] is 49; 50 is needed"),
        (("extra",), 1, "has 'extra', which is not known here"),
        (
            ("recording", "rows", "data", "0.weight"),
            NAN,
            r"\['data'\]\['0.weight'\] holds numbers that are not finite",
        ),
        (("recording", "scale"), 0.0, r"\['scale'\] is 0\.0; a power of two is needed"),
        (
            ("averages", "averages", "0.99", "0.weight"),
            NAN,
            r"\['0.weight'\] holds numbers",
        ),
    ],
)
def test_values_that_cannot_be_are_named(path, value, message):
    model, optimizer, koop = started(noisy_network, "adam")
    train(optimizer, loss_of(model), 50)
    good = koop.state_dict()
    old = good
    for key in path[: -1 if path == ("settings", "more") or path == ("extra",) else None]:
        old = old[key]
    bad = with_entry(good, path, torch.full_like(old, NAN) if value is NAN else value)
    _, _, other = started(noisy_network, "adam")
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(bad)
    assert other.stats.steps == 0


def test_rows_that_hold_no_snapshot_are_saved_as_zeros():
    model, optimizer, koop = started(network, "adam", regime="auto")
    koop._recording.ring.data.fill_(NAN)
    koop._recording.probe.ring.data.fill_(NAN)
    koop.load_state_dict(koop.state_dict())
    train(optimizer, loss_of(model), 30)
    assert koop.stats.jumps > 0


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


def test_a_state_from_before_anything_was_recorded_begins_the_averages_again():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.LazyLinear(8), torch.nn.Tanh(), torch.nn.LazyLinear(1))
    optimizer = OPTIMIZERS["adam"](model.parameters())
    koop = kc.attach(optimizer, model, loss=loss_of(model), regime="noise")
    fresh = koop.state_dict()
    assert (fresh["layout"], fresh["averages"]) == ("", {})
    train(optimizer, loss_of(model), 150)
    assert koop.state_dict()["averages"]["taken"] > 0
    koop.load_state_dict(fresh)
    averages = koop.state_dict()["averages"]
    assert averages["taken"] == koop.stats.steps == 0
    assert averages["lags"] == [0.0] * 4
    for named in averages["averages"].values():
        for name, parameter in model.named_parameters():
            assert torch.equal(named[name], parameter.detach())
    train(optimizer, loss_of(model), 30)
    assert koop.state_dict()["averages"]["taken"] == 30
    koop.load_state_dict(koop.state_dict())  # which is one that can be


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
    whole = {**saved, "policy": {**saved["policy"], "last": 2}}
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
