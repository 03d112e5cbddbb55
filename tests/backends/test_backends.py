"""Which backend runs which stage: order, forcing, reasons, and what every backend must have."""

import inspect
import subprocess
import sys

import numpy as np
import pytest
from trajectories import CPU, generic, having

import koopcore as kc
from koopcore import backends
from koopcore.backends import find, forced, reference, stage
from koopcore.backends.protocol import Snapshots

PART = kc.Partition.groups(30, [range(20), range(20, 24)])


@pytest.fixture(autouse=True)
def _nothing_forced(monkeypatch):
    monkeypatch.delenv("KOOPCORE_BACKEND", raising=False)


def test_every_backend_is_listed_in_the_order_in_which_it_is_tried():
    found = backends.backends()
    assert [(info.device, info.name) for info in found] == [
        ("cpu", "native_cpu"),
        ("cpu", "numba_cpu"),
        ("cpu", "reference"),
        ("cuda", "native_cuda"),
        ("cuda", "cupy_cuda"),
    ]
    assert kc.backends() == found


def test_what_is_unavailable_says_why_and_the_rest_does_not():
    for info in kc.backends():
        assert info.available == (info.reason == ""), info
        assert info.available or info.stages == (), info


def test_the_reference_always_runs_and_has_every_stage():
    (info,) = [info for info in CPU if info.name == "reference"]
    assert info.stages == reference.STAGES
    for name in reference.STAGES:
        assert stage(name, backend="reference") is getattr(reference, name)


@pytest.mark.parametrize("info", CPU, ids=[info.name for info in CPU])
def test_stages_listed_are_stages_there(info):
    assert info.stages
    for name in info.stages:
        assert callable(stage(name, backend=info.name))


@pytest.mark.parametrize("name", reference.STAGES)
def test_backends_mirror_the_signatures_of_the_reference(name):
    expected = inspect.signature(getattr(reference, name))
    for backend in having(name):
        got = inspect.signature(inspect.unwrap(stage(name, backend=backend)))
        assert list(got.parameters) == list(expected.parameters), backend


def test_the_first_backend_with_the_stage_is_taken():
    for name in reference.STAGES:
        first = having(name)[0]
        assert find(name) is find(name, backend=first)


def test_a_stage_that_nobody_has():
    assert find("no_such_stage") is None
    with pytest.raises(RuntimeError, match=r"no backend for cpu has the stage 'no_such_stage'"):
        stage("no_such_stage")


@pytest.mark.parametrize(
    ("device", "backend", "error", "message"),
    [
        ("cpu", "gpu", ValueError, "backend 'gpu' does not run on cpu; .*native_cpu"),
        ("cpu", "native_cuda", ValueError, "'native_cuda' does not run on cpu"),
        ("cuda", "reference", ValueError, "'reference' does not run on cuda; .*cupy_cuda"),
        ("mps", None, ValueError, "arrays on 'mps' are not supported; cpu and cuda are"),
    ],
)
def test_unsuitable_backends_are_refused(device, backend, error, message):
    with pytest.raises(error, match=message):
        find("gram", device, backend)


@pytest.mark.parametrize(
    "info", [i for i in kc.backends() if not i.available], ids=lambda i: i.name
)
def test_a_forced_backend_that_is_unavailable_gives_its_reason(info):
    with pytest.raises(RuntimeError) as raised:
        find("gram", info.device, info.name)
    assert info.name in str(raised.value)
    assert info.reason in str(raised.value)


# -- forcing --------------------------------------------------------------------------------------


def test_the_environment_forces_one(monkeypatch):
    monkeypatch.setenv("KOOPCORE_BACKEND", "reference")
    assert forced(None) == "reference"
    kc.fit(generic(6, 30), PART)
    monkeypatch.setenv("KOOPCORE_BACKEND", "nonsense")
    with pytest.raises(ValueError, match="backend 'nonsense' does not run on cpu"):
        kc.fit(generic(6, 30), PART)
    monkeypatch.setenv("KOOPCORE_BACKEND", "")
    assert forced(None) is None
    kc.fit(generic(6, 30), PART)


def test_an_argument_goes_before_the_environment(monkeypatch):
    monkeypatch.setenv("KOOPCORE_BACKEND", "nonsense")
    assert forced("reference") == "reference"
    kc.fit(generic(6, 30), PART, backend="reference").predict(2)


def test_a_forced_fit_calls_no_other_backend(monkeypatch):
    called = []

    def watched(name, run):
        def noted(*args):
            called.append(name)
            return run(*args)

        return noted

    for name in reference.STAGES:
        monkeypatch.setattr(reference, name, watched(name, getattr(reference, name)))
    backends._find.cache_clear()
    try:
        kc.fit(generic(9, 30), PART, "affine", backend="reference").predict(2)
    finally:
        backends._find.cache_clear()
    assert {"gram", "solve", "feature_gram", "project"} <= set(called)
    assert {"rollout", "rollout_dense", "combine"} <= set(called)


def test_backends_agree_on_a_whole_fit():
    """Both sides at once; κ below 1e3 here, so κ² u of the movement."""
    x = generic(9, 30).astype(np.float32)
    expected = kc.fit(x, PART, "auto", backend="reference")
    for info in CPU:
        if not set(reference.STAGES) <= set(info.stages):
            continue
        ops = kc.fit(x, PART, "auto", backend=info.name)
        assert ops.model.tolist() == expected.model.tolist()
        np.testing.assert_allclose(ops.predict(4), expected.predict(4), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(ops.hindcast_error, expected.hindcast_error, rtol=1e-8)


def test_listing_backends_runs_no_kernel_and_needs_no_torch():
    code = "import sys, koopcore; koopcore.backends(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("info", CPU, ids=[info.name for info in CPU])
def test_an_empty_partition_is_no_special_case(info):
    none = PART.subset([])
    window = Snapshots(generic(5, 30), np.arange(5))
    if "gram" in info.stages:
        assert stage("gram", backend=info.name)(window, none).shape == (0, 15)
    if "solve" in info.stages:
        solved = stage("solve", backend=info.name)(np.empty((0, 15)), 5, True, 1)
        assert solved.coefficients.shape == (0, 3)
    if "combine" in info.stages:
        out = np.full((2, 30), np.nan)
        stage("combine", backend=info.name)(window, none, np.empty((2, 0, 5)), out)
        assert np.isnan(out).all()
