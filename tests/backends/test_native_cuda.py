"""What only the CUDA kernels have: endpoints without the host, plans, streams, two-float sums."""

from __future__ import annotations

import os
import subprocess
import sys

import emulated_cuda
import numpy as np
import pytest
from backend_cases import RAGGED, REFERENCE, gram_error, pieced, ragged
from trajectories import PROJECTED, altered, assert_predicts_as, generic, projected_groups, smooth

import koopcore as kc
from koopcore import arrays, operators
from koopcore.backends.native_cuda.launch import Launch
from koopcore.backends.native_cuda.plan import make_plan
from koopcore.backends.native_cuda.queue import queue_gram
from koopcore.backends.protocol import Snapshots, packed_size
from koopcore.partition.partition import Partition

pytestmark = pytest.mark.skipif(
    emulated_cuda.COMPILER is None, reason="needs g++ to compile the kernels for the host"
)

LARGE = [9000, 12001]  # several pieces each


@pytest.mark.parametrize("affine", [False, True], ids=["linear", "affine"])
def test_endpoints_without_the_host(native, affine):
    n, part = (
        8,
        Partition.groups(400, [range(70), range(80, 150), range(150, 160), range(200, 400)]),
    )
    ring = generic(n, 400).astype(np.float64)
    ring[:, 80:150] = smooth(n, 70, rates=(0.5, 0.9))  # of rank 2: deficient in a window of 8
    ring[:, 150:160] = np.nan
    snapshots = Snapshots(ring, np.arange(n))
    out = np.full((2, 400), 7.0)
    rank = native.endpoint_in_stages(snapshots, part, affine, [5, 2], out)
    columns = n - 1 - affine
    assert rank[0] == rank[3] == columns
    assert rank[1] < columns
    clean = np.where(np.isfinite(ring), ring, 0.0)
    model = "affine" if affine else "linear"
    expected = kc.fit(clean, part, model, backend="reference").predict([5, 2])
    for group in (0, 1, 3):
        at = part.indices(group)
        # The deficient group lies in the plane of its motion up to cond² u; the others to n u.
        np.testing.assert_allclose(out[:, at], expected[:, at], rtol=1e-5, atol=1e-6)
    assert (out[:, 70:80] == 7.0).all()


@pytest.mark.parametrize("way", ["endpoint_in_stages", "endpoint_in_one_pass"])
@pytest.mark.parametrize("affine", [False, True], ids=["linear", "affine"])
def test_projected_endpoints_are_those_of_a_fit(native, affine, way):
    """All cases in one window, and good groups between them: a warp has several of them."""
    part = pieced([70] * 2 * len(PROJECTED))
    ring, horizons = projected_groups(part), [1, 40, 5]
    out = np.full((3, part.size), 7.0)
    getattr(native, way)(Snapshots(ring, np.arange(8)), part, affine, horizons, out)
    fit = kc.fit(ring, part, "affine" if affine else "linear", backend="reference")
    assert_predicts_as(out, fit.predict(horizons), ring, part)
    outside = np.delete(out, np.concatenate([part.indices(g) for g in part.numbers]), axis=1)
    assert (outside == 7.0).all()


def test_a_deficient_group_has_the_same_bits_alone_and_beside_others(native):
    """Whichever warp takes it, and whatever that took before."""
    part = pieced([70] * 2 * len(PROJECTED))
    ring = projected_groups(part)
    beside, alone = (np.full((2, part.size), 7.0) for _ in range(2))
    native.endpoint_in_stages(Snapshots(ring, np.arange(8)), part, True, [5, 40], beside)
    for group in range(part.n_groups):
        one = Partition.groups(part.size, [part.indices(group)])
        native.endpoint_in_stages(Snapshots(ring, np.arange(8)), one, True, [5, 40], alone)
    assert np.array_equal(beside, alone)


@pytest.mark.parametrize(("n", "affine"), [(3, True), (4, False), (17, False), (50, True)])
def test_deficient_windows_of_any_length(native, n, affine):
    """One column, an even and an odd number of them, and more than shared memory has room for."""
    part = pieced([60, 61, 60])
    ring = generic(n, part.size).astype(np.float64)
    ring[n // 2] = ring[n // 2 - 1]
    ring[:, part.indices(2)] = smooth(n, 60, rates=(0.5, 0.9))
    out = np.full((2, part.size), 7.0)
    rank = native.endpoint_in_stages(Snapshots(ring, np.arange(n)), part, affine, [1, 12], out)
    assert (rank < n - 1 - affine).any()
    fit = kc.fit(ring, part, "affine" if affine else "linear", backend="reference")
    for group in range(3):
        at = part.indices(group)
        due = fit.predict([1, 12])[:, at]
        movement = np.abs(due - ring[-1, at]).max()
        np.testing.assert_allclose(out[:, at], due, rtol=0.0, atol=1e-7 * movement)


@pytest.mark.parametrize("way", ["endpoint_in_stages", "endpoint_in_one_pass"])
@pytest.mark.parametrize("affine", [False, True], ids=["linear", "affine"])
def test_a_second_pass_finds_what_the_gram_matrix_has_lost(native, affine, way):
    """Weak motions beside strong ones: without it errors are 1e-6 to 1e-3 of the movement."""
    turn = np.outer(np.cos(np.arange(8)), generic(1, 70, 9))
    windows = [
        altered(smooth(8, 70, rates=(0.5, 0.9)) + 1e-6 * generic(8, 70), repeat),
        altered(smooth(8, 70, rates=(0.5, 0.9)) + 1e-7 * generic(8, 70), repeat),
        altered(1e5 * turn + generic(8, 70), repeat),
        altered(1e6 * turn + generic(8, 70), repeat),
    ]
    part = Partition.groups(280, [range(70 * k, 70 * k + 70) for k in range(4)])
    ring, horizons, out = np.hstack(windows), [1, 5], np.zeros((2, 280))
    getattr(native, way)(Snapshots(ring, np.arange(8)), part, affine, horizons, out)
    fit = kc.fit(ring, part, "affine" if affine else "linear", backend="reference")
    assert (fit.rank == 6 - affine).all()
    error = np.abs(out - fit.predict(horizons)).reshape(2, 4, 70).max(axis=2)
    movement = np.abs(fit.predict(horizons) - ring[-1]).reshape(2, 4, 70).max(axis=2)
    assert (error < 1e-7 * movement).all()


def repeat(x):
    """A snapshot taken twice."""
    x[4] = x[3]


@pytest.mark.parametrize("affine", [False, True], ids=["linear", "affine"])
def test_ranks_where_the_gram_matrix_cannot_tell_are_the_references(native, monkeypatch, affine):
    """Full by its pivots, but not by the smallest eigenvalue; near the cut-off; no squares."""
    far = 1e12 * generic(1, 65, 1)
    windows = [
        *(smooth(16, 65, seed, rates=np.random.default_rng(seed).uniform(0, 1, 18))
          for seed in ((6, 9, 26, 33, 34) if affine else (2, 11, 20, 31, 33))),
        far + generic(16, 65), np.ldexp(generic(16, 65), 520), np.ldexp(generic(16, 65), -520),
        generic(16, 65),
    ]  # fmt: skip
    part = pieced([65] * len(windows))
    ring = np.zeros((16, part.size))
    for group, window in enumerate(windows):
        ring[:, part.indices(group)] = window
    snapshots = Snapshots(ring, np.arange(16))
    with np.errstate(over="ignore", invalid="ignore"):
        gram = REFERENCE.gram(snapshots, part)
    full = REFERENCE.solve(gram, 16, affine, 0).rank == 15 - affine
    assert full[-1]
    assert not full[:5].any()
    assert full[5] == affine
    assert not full[6:8].any()
    emulated_cuda.one_pass_for_all(monkeypatch)
    for solved in (
        native.solve(gram, 16, affine, 3),
        native.gram_solve(snapshots, part, affine, 3),
    ):
        assert np.array_equal(np.asarray(solved.rank) == 15 - affine, full)
        assert np.array_equal(np.isfinite(solved.condition), full)
        assert np.array_equal(np.isnan(solved.hindcast), ~full)


@pytest.mark.parametrize("model", ["linear", "affine", "trend", "auto"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_whole_fits_through_the_public_interface(native, monkeypatch, model, dtype):
    real = arrays.view
    monkeypatch.setattr(arrays, "view", lambda *a: real(*a)._replace(device="cuda"))
    monkeypatch.setattr(operators, "backend_for", lambda device, name: native)
    rng = np.random.default_rng(2)
    part = ragged(rng, [3, 20, 65, 4, 5])
    x = (np.cumsum(rng.normal(size=(9, part.size)), axis=0)).astype(dtype)
    if dtype is np.float64:  # of rank 2; in float32 its rounding would be a motion of its own
        x[:, part.indices(2)] = smooth(9, 65, rates=(0.5, 0.9))
    ops = kc.fit(x, part, model, horizon=[1, 4])
    got = (ops.predict([1, 4]), ops.predict(6), ops.rank, ops.hindcast_error, ops.growth(3))
    again = ops.operator(1), ops.modes(2), ops.eigenvalues()
    monkeypatch.undo()
    ops = kc.fit(x, part, model, backend="reference")
    expected = (ops.predict([1, 4]), ops.predict(6), ops.rank, ops.hindcast_error, ops.growth(3))
    assert got[0].dtype == dtype
    # Float32 outputs agree to an ulp or two; float64 ones to the conditioning of these windows.
    rtol = 1e-5 if dtype is np.float32 else 1e-7
    for made, due in zip(got, expected, strict=True):
        np.testing.assert_allclose(made, due, rtol=rtol, atol=rtol)
    assert again[0].shape == (20, 20)
    assert len(again[1]) == 65
    assert len(again[2]) == part.n_groups


def test_a_plan_takes_every_parameter_once():
    rng = np.random.default_rng(0)
    part = ragged(rng, RAGGED + LARGE)
    for wide in (False, True):
        plan = make_plan(part, wide)
        small = part.numbers if plan.small is None else plan.small
        assert (plan.small is None) == (len(small) == part.n_groups)
        taken = np.zeros(part.n_groups, dtype=np.int64)
        taken[small] += part.sizes[small]
        np.add.at(taken, plan.pieces[:, 0], plan.pieces[:, 3])
        assert np.array_equal(taken, part.sizes)
        assert plan.large_piece[-1] == len(plan.pieces) - plan.n_middle
        assert not wide or len(small) == 0


def test_many_moderate_groups_take_a_warp_each():
    part = Partition.groups(9000 * 300, [range(300 * g, 300 * g + 300) for g in range(9000)])
    assert make_plan(part, wide=False).small is None
    assert len(make_plan(part.subset(range(100)), wide=False).pieces) == 100


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda nc, s, p: nc.combine(s, p, np.ones((1, 1, 4)), np.zeros((2, 30), np.float32)),
         ValueError, r"out has shape \(2, 30\); \(1, 30\) is needed"),
        (lambda nc, s, p: nc.combine(s, p, np.ones((1, 1, 4)), np.zeros((1, 30), np.int32)),
         TypeError, "out has dtype int32; accepted are float32, float64, bfloat16"),
        (lambda nc, s, p: nc.gram(Snapshots(s.array[:, 1:], s.order), p),
         ValueError, "29 parameters a row, but the partition is of 30"),
        (lambda nc, s, p: nc.rollout(np.ones((1, 3)), False, [0]),
         ValueError, "a horizon is 0; horizons are at least 1 snapshot"),
    ],
)  # fmt: skip
def test_misuse(native, call, error, message):
    part = Partition.groups(30, [range(20)])
    snapshots = Snapshots(np.ones((4, 30), np.float32), np.arange(4))
    with pytest.raises(error, match=message):
        call(native, snapshots, part)


def test_a_stream_of_another_device(native, monkeypatch):
    # The emulation takes the stream at address 0x100 for one of device 1.
    monkeypatch.setattr(emulated_cuda.HostMemory, "stream", 0x100)
    with pytest.raises(ValueError, match="the stream is of device 1, the arrays are on device 0"):
        native.rollout(np.ones((1, 3)), False, [1])
    monkeypatch.undo()


def test_a_driver_that_cannot_say_whose_a_stream_is_is_no_error(kernels):
    """cudaStreamGetDevice came with CUDA 12.8; the module is for every driver of CUDA 12."""
    code = """
monkeypatch(emulated_cuda.HostMemory, stream=0x100)
print(native.rollout(np.ones((1, 3)), False, [2])[0].shape)
"""
    assert on_a_device_of_its_own(kernels, code, KOOPCORE_EMULATED_OLD_DRIVER="1") == "(1, 1, 4)\n"


@pytest.mark.parametrize("architecture", [90, 100, 120])
def test_what_runs_is_decided_by_what_was_compiled(two_float, architecture):
    """Code of 8.6, translated by the driver of a later device, is what the launches are for."""
    code = """
ring = np.cumsum(np.random.default_rng(0).normal(size=(9, 400)), axis=0).astype(np.float32)
part, out = Partition.groups(400, [range(400)]), np.full((1, 400), np.nan, np.float32)
native.endpoint(Snapshots(ring, np.arange(9)), part, True, [5], out)
expected = kc.fit(ring, part, backend="reference").predict([5])
assert np.abs(out - expected).max() < 1e-5 * np.abs(expected).max(), out
print(cuda.architecture(0), cuda.code(0), cuda.fast_double(0), cuda.gram_noise(0, 9, False))
"""
    said = on_a_device_of_its_own(two_float, code, KOOPCORE_EMULATED_ARCHITECTURE=str(architecture))
    assert said == f"{architecture} 86 False 128.0\n"


def test_a_trap_ends_the_launch_with_an_error(two_float):
    """Should the host ever launch one pass for such code again, its kernel says so."""
    code = """
from koopcore.backends.native_cuda.launch import Launch
from koopcore.backends.native_cuda.queue import queue_one_pass
ring, part = np.ones((9, 200), np.float32), Partition.groups(200, [range(200)])
on = Launch(cuda, Snapshots(ring, np.arange(9)), part)
out = on.output(np.zeros((1, 200), np.float32), 1)
try:
    queue_one_pass(on, True, 0, [3], (0, on.space(1), 0, 0, 0), 0, out, ())
except RuntimeError as error:
    print(error)
"""
    said = on_a_device_of_its_own(two_float, code, KOOPCORE_EMULATED_SAYS="90")
    assert said == "fit and prediction in one pass: an emulated error\n"


def on_a_device_of_its_own(module, code, **environment):
    """What ``code`` prints with an emulated device that reads ``environment`` as it starts."""
    begin = (
        "import sys, numpy as np, emulated_cuda\n"
        "from pathlib import Path\n"
        "import koopcore as kc\n"
        "from koopcore import arrays\n"
        "from koopcore.partition.partition import Partition\n"
        "from koopcore.backends.protocol import Snapshots\n"
        f"cuda = emulated_cuda.load({module.__name__!r}, Path({module.__file__!r}))\n"
        "native = emulated_cuda.backend(cuda)\n"
        "arrays.memory = arrays.any_memory = emulated_cuda.host_memory\n"
        "arrays.where = lambda array: 'CUDA device 0'\n"
        "def monkeypatch(of, **values):\n"
        "    for name, value in values.items(): setattr(of, name, value)\n"
    )
    places = os.pathsep.join([".", os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", begin + code], capture_output=True, text=True,
        cwd=emulated_cuda.ROOT / "tests",
        env={**os.environ, "PYTHONPATH": places, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_missing_barriers_would_show(kernels):
    """The same results when the threads of a block run in the opposite order."""
    code = """
x = np.cumsum(np.random.default_rng(0).normal(size=(16, 20000)), axis=0)
part = Partition.groups(20000, [range(70), range(100, 400), range(500, 20000)])
window = Snapshots(x.astype(np.float32), np.arange(16))
gram = native.gram(window, part)
part = part.subset([0, 1])
out = np.zeros((2, 20000), np.float32)
native.endpoint_in_one_pass(window, part, True, [4, 9], out)
x[:, :70] += 1e8 * x[3, :70]  # a second pass for one, a unit of its own for the other
x[4, :70] = x[3, :70]
x[:, 100:400] *= 2.0**600
again = np.zeros((2, 20000))
native.endpoint_in_stages(Snapshots(x, np.arange(16)), part, True, [4, 9], again)
hindcast = np.asarray(native.gram_solve(window, part, False, 3).hindcast)
print(b"".join(array.tobytes() for array in (gram, out, again, hindcast)).hex())
"""
    forwards = on_a_device_of_its_own(kernels, code)
    assert len(forwards) > 1000
    assert forwards == on_a_device_of_its_own(kernels, code, KOOPCORE_EMULATION_BACKWARDS="1")


@pytest.mark.parametrize("n", [5, 16, 24, 32])
def test_sums_in_pairs_of_floats(native_two_float, n):
    part = Partition.groups(9400, [range(65), range(65, 322), range(400, 9400)])
    # Steps far below the values, as of weights in training: float32 differences are exact then.
    rng = np.random.default_rng(n)
    start = rng.normal(size=9400)
    x = start * (1.0 + 1e-3 * np.cumsum(rng.normal(size=(n, 9400)), axis=0) / n)
    snapshots = Snapshots(x.astype(np.float32), np.arange(n))
    expected = REFERENCE.gram(snapshots, part)
    on = Launch(native_two_float._cuda, snapshots, part)
    assert on.noise == 128.0  # it is that module, and no other
    got = on.empty(3, packed_size(n))
    queue_gram(on, on.address(got), side_by_side=False)
    # 128 u is what the pivot tolerance of these devices (gram_noise) allows for.
    assert gram_error(got, expected, n) < 128 * 2.0**-53
    # Float32 sums would be a million times worse.
    assert gram_error(got.astype(np.float32), expected, n) > 128 * 2.0**-53
    # What is projected is summed in fp64.
    got = native_two_float.gram(snapshots, part)
    assert gram_error(got, expected, n) < 1100 * 2.0**-53 / 64


@pytest.mark.parametrize(("n", "horizons"), [(5, 1), (16, 3), (40, 8)])
def test_predictions_in_pairs_of_floats(native, native_two_float, n, horizons):
    """n u² of the products; the numbers of fp64 where one of them has no place among floats."""
    rng = np.random.default_rng(n)
    part = Partition.groups(9368, [range(3), range(3, 68), range(68, 368), range(368, 9368)])
    scale = np.exp2(rng.integers(-30, 30, part.size))
    x = (scale * (rng.normal(size=part.size) + 0.1 * rng.normal(size=(n, part.size)))).astype(
        np.float32
    )
    snapshots = Snapshots(x, np.arange(n))
    weights = 100.0 * rng.normal(size=(horizons, 4, n))

    def ends(backend, snapshots=snapshots, weights=weights, dtype=np.float64):
        out = np.full((horizons, part.size), np.nan, dtype)
        backend.combine(snapshots, part, weights, out)
        return out

    expected = ends(native)
    products = np.abs(x[-1]).astype(np.float64) + np.zeros((horizons, 1))
    steps = np.abs(np.diff(x.astype(np.float64), axis=0, prepend=0.0))
    for group in range(4):
        at = part.indices(group)
        products[:, at] += np.abs(weights[:, group] - 1.0) @ steps[:, at]
    error = np.abs(ends(native_two_float) - expected) / products
    assert 0.0 < error.max() < n * 2.0**-47
    rounded = ends(native_two_float, dtype=np.float32)
    np.testing.assert_allclose(rounded, expected, rtol=2.0**-23, atol=n * 2.0**-47 * products.max())

    extreme = x.copy()
    extreme[:, :40] *= np.float32(2.0**-110)
    extreme[n // 2, 50] = np.nan
    huge = weights.copy()
    huge[:, 2] *= 1e60
    huge[:, 3, 0] = 1e300
    given = Snapshots(extreme, np.arange(n)), huge
    for dtype in (np.float32, np.float64):
        there, here = ends(native_two_float, *given, dtype), ends(native, *given, dtype)
        by_fp64 = np.r_[0:40, 50, part.indices(2), part.indices(3)]
        np.testing.assert_array_equal(there[:, by_fp64], here[:, by_fp64])


@pytest.mark.parametrize("affine", [False, True], ids=["linear", "affine"])
def test_devices_with_slow_fp64_project_by_the_same_rules(native_two_float, affine):
    """Float32 windows: at a cut-off 128 times higher directions of the motion would be lost."""
    rng = np.random.default_rng(0)
    far = 1e3 * rng.normal(size=70)
    cases = [
        altered(generic(8, 70), lambda x: np.copyto(x[4], x[3])),
        altered(far + generic(8, 70), lambda x: np.copyto(x[4], x[3])),
        altered(far + generic(8, 70), lambda x: np.copyto(x[:, 3:], x[0, 3:])),
        smooth(8, 70),
        generic(8, 70),
    ]
    part = pieced([70] * len(cases))
    ring = np.zeros((8, part.size), dtype=np.float32)
    for group, window in enumerate(cases):
        ring[:, part.indices(group)] = window
    out = np.zeros((2, part.size))
    native_two_float.endpoint(Snapshots(ring, np.arange(8)), part, affine, [1, 6], out)
    # The same numbers in float64: the reference's second pass is for any loss of digits there.
    expected = kc.fit(
        ring.astype(np.float64), part, "affine" if affine else "linear", backend="reference"
    ).predict([1, 6])
    for group in range(part.n_groups):
        at = part.indices(group)
        movement = np.abs(expected[:, at] - ring[-1, at]).max()
        # 2^-6, which float32 windows may lose in their smallest direction, of a hundredth of it.
        assert np.abs(out[:, at] - expected[:, at]).max() < 2e-4 * movement, group
