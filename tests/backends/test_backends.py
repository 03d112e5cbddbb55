"""Which backend runs: order, forcing, reasons, and what every backend must have."""

import importlib.util
import inspect
import subprocess
import sys
from abc import ABC

import numpy as np
import pytest
from trajectories import NAMES, generic

import koopcore as kc
from koopcore.backends import backend_for, reference
from koopcore.backends.composed import Composed
from koopcore.backends.protocol import Ahead, Backend, Projection, Snapshots

PART = kc.Partition.groups(30, [range(20), range(20, 24)])
STAGES = sorted(Backend.__abstractmethods__)
UNAVAILABLE = [info for info in kc.available_backends() if not info.available]


@pytest.fixture(autouse=True)
def _nothing_forced(monkeypatch):
    monkeypatch.delenv("KOOPCORE_BACKEND", raising=False)


def test_every_backend_is_listed_in_the_order_in_which_it_is_tried():
    assert [(info.device, info.name) for info in kc.available_backends()] == [
        ("cpu", "native_cpu"),
        ("cpu", "numba_cpu"),
        ("cpu", "reference"),
        ("cuda", "native_cuda"),
        ("cuda", "cupy_cuda"),
    ]


def test_what_is_unavailable_says_why_and_the_rest_does_not():
    for info in kc.available_backends():
        assert info.available == (info.reason == ""), info
        assert info.available or info.fused == (), info


def test_the_reference_always_runs_and_fuses_nothing():
    (info,) = [info for info in kc.available_backends() if info.name == "reference"]
    assert info.available
    assert info.fused == ()


def test_the_stages_that_are_not_composed_are_those_of_the_definition():
    """A backend that has these has everything."""
    written = {name for name in vars(reference.Reference) if name in STAGES}
    composed = {name for name in vars(Composed) if name in STAGES}
    assert written | composed == set(STAGES)
    assert not written & composed


def test_every_backend_has_every_stage(backend):
    assert isinstance(backend, Backend)


@pytest.mark.parametrize("name", NAMES)
def test_a_backend_is_one_instance_that_says_what_it_is(name):
    backend = backend_for("cpu", name)
    assert isinstance(backend, Backend)
    assert (backend.name, backend.device) == (name, "cpu")
    assert backend_for("cpu", name) is backend


@pytest.mark.parametrize("stage", STAGES)
def test_backends_have_the_signatures_of_the_protocol(stage):
    expected = list(inspect.signature(getattr(Backend, stage)).parameters)
    for name in NAMES:
        got = list(inspect.signature(getattr(type(backend_for("cpu", name)), stage)).parameters)
        assert got == expected, name


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_a_contract(stage):
    assert issubclass(Backend, ABC)
    assert len(getattr(Backend, stage).__doc__ or "") > 40


def test_the_first_that_runs_is_taken():
    assert backend_for("cpu").name == NAMES[0]


@pytest.mark.parametrize(
    ("device", "backend", "error", "message"),
    [
        ("cpu", "gpu", ValueError, "backend 'gpu' does not run on cpu; native_cpu, .* do"),
        ("cpu", "native_cuda", ValueError, "'native_cuda' does not run on cpu"),
        ("cuda", "reference", ValueError, "'reference' does not run on cuda; .*cupy_cuda"),
        ("mps", None, ValueError, "arrays on 'mps' are not supported; cpu and cuda are"),
    ],
)
def test_unsuitable_backends_are_refused(device, backend, error, message):
    with pytest.raises(error, match=message):
        backend_for(device, backend)


@pytest.mark.parametrize("info", UNAVAILABLE, ids=lambda info: info.name)
def test_a_forced_backend_that_is_unavailable_gives_its_reason(info):
    with pytest.raises(RuntimeError) as raised:
        backend_for(info.device, info.name)
    assert info.name in str(raised.value)
    assert info.reason in str(raised.value)


# -- forcing --------------------------------------------------------------------------------------


def test_the_environment_forces_one(monkeypatch):
    monkeypatch.setenv("KOOPCORE_BACKEND", "reference")
    assert backend_for("cpu").name == "reference"
    kc.fit(generic(6, 30), PART)
    monkeypatch.setenv("KOOPCORE_BACKEND", "nonsense")
    with pytest.raises(ValueError, match="backend 'nonsense' does not run on cpu"):
        kc.fit(generic(6, 30), PART)
    monkeypatch.setenv("KOOPCORE_BACKEND", "")
    assert backend_for("cpu").name == NAMES[0]
    kc.fit(generic(6, 30), PART)


def test_an_argument_goes_before_the_environment(monkeypatch):
    monkeypatch.setenv("KOOPCORE_BACKEND", "nonsense")
    kc.fit(generic(6, 30), PART, backend="reference").predict(2)


def test_the_environment_holds_for_the_exact_step_of_learning(monkeypatch):
    learning = pytest.importorskip("koopcore.learning")
    monkeypatch.setenv("KOOPCORE_BACKEND", "nonsense")
    learner = learning.AlternatingLearner(learning.Monomials(2, 2), k_step="exact")
    with pytest.raises(ValueError, match="backend 'nonsense' does not run on cpu"):
        learner.fit(generic(12, 2))


def test_operators_hold_the_backend_they_were_fitted_with(monkeypatch):
    ops = kc.fit(generic(6, 30), PART, backend="reference")
    expected = ops.predict(3)
    monkeypatch.setenv("KOOPCORE_BACKEND", "nonsense")
    np.testing.assert_array_equal(ops.predict(3), expected)


def test_a_forced_fit_calls_no_other_backend(monkeypatch):
    called = []

    def watched(name, run):
        def noted(*args):
            called.append(name)
            return run(*args)

        return noted

    for name in NAMES[:-1]:
        backend = type(backend_for("cpu", name))
        for stage in STAGES:
            monkeypatch.setattr(backend, stage, watched(f"{name}.{stage}", getattr(backend, stage)))
    for stage in STAGES:
        run = getattr(reference.Reference, stage)
        monkeypatch.setattr(reference.Reference, stage, watched(stage, run))
    for dtype in (np.float32, np.float64):  # of which the second needs no `project`
        kc.fit(generic(9, 30).astype(dtype), PART, "affine", backend="reference").predict(2)
    assert {"gram", "solve", "feature_gram", "project"} <= set(called)
    assert {"rollout", "rollout_dense", "combine"} <= set(called)
    assert set(called) <= set(STAGES)


def test_backends_agree_on_a_whole_fit():
    """Both sides at once; κ below 1e3 here, so κ² u of the movement."""
    x = generic(9, 30).astype(np.float32)
    expected = kc.fit(x, PART, "auto", backend="reference")
    for name in NAMES:
        ops = kc.fit(x, PART, "auto", backend=name)
        assert ops.model.tolist() == expected.model.tolist()
        np.testing.assert_allclose(ops.predict(4), expected.predict(4), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(ops.hindcast_error, expected.hindcast_error, rtol=1e-8)


def test_listing_backends_runs_no_kernel_and_needs_no_torch():
    code = "import sys, koopcore; koopcore.available_backends(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_an_empty_partition_is_no_special_case(backend):
    none = PART.subset([])
    window = Snapshots(generic(5, 30), np.arange(5))
    assert backend.gram(window, none).shape == (0, 15)
    assert backend.solve(np.empty((0, 15)), 5, True, 1).coefficients.shape == (0, 3)
    assert backend.gram_solve(window, none, True, 1).coefficients.shape == (0, 3)
    out = np.full((2, 30), np.nan)
    backend.combine(window, none, np.empty((2, 0, 5)), out)
    assert np.isnan(out).all()


def test_cupy_says_what_is_missing():
    if importlib.util.find_spec("cupy") is None:
        with pytest.raises(ImportError, match=r"pip install koopcore\[cuda12\]"):
            importlib.import_module("koopcore.backends.cupy.backend")


def stages_of(backend, window, part, affine):
    """Every stage that reads snapshots or rolls, of three groups of equal m."""
    m, n = int(part.sizes[0]), len(window.order)
    out = np.zeros((2, part.size), window.array.dtype)
    if m >= n - 1:
        backend.solve(backend.gram(window, part), n, affine, 2)
        backend.gram_solve(window, part, affine, 2, Ahead([1, 50], out))
        coefficients = np.zeros((3, n - 1 - affine))
        coefficients[0], coefficients[1] = 1e3, np.nan
        backend.rollout(coefficients, affine, [1, 2000, 7])
        backend.companion_endpoint(window, part, coefficients, affine, [2000, 3], out)
        backend.combine(window, part, np.full((2, 3, n), 1e300), out)
        return
    backend.feature_gram(window, part, affine, [n, n - 2])
    backend.feature_fit(window, part, affine, 2)
    backend.feature_fit(window, part, affine, 2, Ahead([1, 50], out))
    operator = np.stack([1e9 * np.eye(m), np.full((m, m), np.nan), np.zeros((m, m))])
    start = np.ones((3, m))
    backend.rollout_dense(operator, start, affine, [1, 2000, 7])
    projection = Projection(operator, operator, start, np.full(3, m), np.ones(3))
    backend.feature_endpoint(window, part, projection, operator, affine, [2000, 3], out)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("affine", [False, True], ids=["linear", "affine"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("m", [40, 4])
@pytest.mark.parametrize("name", NAMES)
def test_numbers_that_overflow_or_are_none_raise_no_warning(name, m, dtype, affine):
    limit = float(np.finfo(dtype).max)
    steps = generic(9, m) / 20
    part = kc.Partition.groups(3 * m, [range(k * m, k * m + m) for k in range(3)])
    for parts in (
        [steps, np.sqrt(limit) * steps, limit * steps],
        [steps, np.full((9, m), np.nan), np.full((9, m), np.inf)],
        [steps, np.zeros((9, m)), float(np.finfo(dtype).tiny) * steps],
    ):
        window = Snapshots(np.hstack(parts).astype(dtype), np.arange(9))
        stages_of(backend_for("cpu", name), window, part, affine)
