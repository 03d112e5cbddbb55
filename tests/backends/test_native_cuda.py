"""The CUDA kernels, run by the host emulation, against the reference: stages and whole fits."""

from __future__ import annotations

import os
import subprocess
import sys
from weakref import WeakKeyDictionary

import emulated_cuda
import numpy as np
import pytest
from ragged_groups import RAGGED, gram_error, pieced, ragged, walks
from trajectories import (
    PROJECTED,
    altered,
    assert_predicts_as,
    generic,
    projected_groups,
    smooth,
)

import koopcore as kc
from koopcore import arrays, operators
from koopcore.backends.native_cuda import launch as native_cuda_launch
from koopcore.backends.native_cuda import plan as native_cuda_plan
from koopcore.backends.native_cuda.launch import Launch
from koopcore.backends.native_cuda.plan import make_plan
from koopcore.backends.native_cuda.queue import queue_gram
from koopcore.backends.protocol import Snapshots, packed_size
from koopcore.backends.reference import Reference
from koopcore.partition.partition import Partition

reference = Reference()


pytestmark = pytest.mark.skipif(
    emulated_cuda.COMPILER is None, reason="needs g++ to compile the kernels for the host"
)

LARGE = [9000, 12001]  # several pieces each


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [2, 3, 8, 9, 16, 17, 24, 25, 32])
def test_gram_of_ragged_groups(native, n, dtype):
    rng = np.random.default_rng(n)
    part = ragged(rng, RAGGED + LARGE)
    snapshots = walks(rng, n, part.size, dtype)
    expected = reference.gram(snapshots, part)
    # Sums of m terms in another order: an error of m·u at most, and in practice far below.
    assert gram_error(native.gram(snapshots, part), expected, n) < 1100 * 2.0**-53


@pytest.mark.parametrize("n", [33, 70])
def test_gram_of_windows_too_long_for_one_warp(native, n):
    rng = np.random.default_rng(n)
    part = ragged(rng, [5, 40, 130])
    snapshots = walks(rng, n, part.size, np.float32)
    expected = reference.gram(snapshots, part)
    assert gram_error(native.gram(snapshots, part), expected, n) < 1100 * 2.0**-53


@pytest.mark.parametrize("misaligned", [0, 1, 3], ids=lambda k: f"from column {k}")
@pytest.mark.parametrize("transposed", [False, True])
def test_rings_of_any_strides_and_alignment(native, misaligned, transposed):
    rng = np.random.default_rng(3)
    part = Partition.groups(90, [range(64), range(66, 90)])
    wide = rng.normal(size=(9, 96)).astype(np.float32)
    array = (np.asfortranarray(wide) if transposed else wide)[:, misaligned : misaligned + 90]
    for order in ([4, 0, 8, 2, 7], [7, 8, 0, 1], [*range(9), *range(9), 0]):
        snapshots = Snapshots(array, np.array(order))
        expected, n = reference.gram(snapshots, part), len(order)
        assert gram_error(native.gram(snapshots, part), expected, n) < 1100 * 2.0**-53
        assert np.array_equal(native.gram(snapshots, part), native.gram(snapshots, part))


@pytest.mark.parametrize("affine", [False, True], ids=["linear", "affine"])
@pytest.mark.parametrize("n", [4, 16, 17, 33])
def test_companion_fits(native, n, affine):
    rng = np.random.default_rng(n)
    part = ragged(rng, [n + 10 + k for k in range(37)])  # more than one batch, the last not full
    snapshots = walks(rng, n, part.size, np.float32)
    gram = reference.gram(snapshots, part)
    expected = reference.solve(gram, n, affine, max(1, n // 5))
    for got in (
        native.solve(gram, n, affine, max(1, n // 5)),
        native.gram_solve(snapshots, part, affine, max(1, n // 5)),
    ):
        assert np.array_equal(got.rank, expected.rank)
        # Backward stable on a Gram matrix: errors of cond² n u, and cond is below 1e3 here.
        size = np.abs(expected.coefficients).max()
        assert np.abs(got.coefficients - expected.coefficients).max() < 1e-8 * size
        assert np.asarray(got.condition) == pytest.approx(expected.condition, rel=1e-8)
        assert np.asarray(got.residual) == pytest.approx(expected.residual, rel=1e-8)
        hindcast = pytest.approx(expected.hindcast, rel=1e-8, nan_ok=True)
        assert np.asarray(got.hindcast) == hindcast


@pytest.mark.parametrize("affine", [False, True], ids=["linear", "affine"])
@pytest.mark.parametrize("columns", [1, 7, 8, 15, 24, 30])
@pytest.mark.parametrize("horizons", [[1], [100, 3, 3, 1], [2000, 5], list(range(1, 81))], ids=len)
def test_rollout(native, columns, affine, horizons):
    rng = np.random.default_rng(columns)
    a = rng.normal(size=(35, columns))
    a /= np.abs(a).sum(axis=1, keepdims=True) * 1.001  # stable: the roots are inside the circle
    a[3] *= 40.0  # and one that grows beyond every limit
    got, growth = native.rollout(a, affine, horizons)
    expected, expected_growth = reference.rollout(a, affine, horizons)
    scale = np.abs(expected).max(axis=2, keepdims=True)
    # Rounding of the horizon's steps: T n u relative to the largest weight on the way.
    assert np.abs(got - expected).max() <= 1e-9 * scale.max()
    finite = np.isfinite(expected_growth)
    assert np.array_equal(np.isfinite(growth), finite)
    small = finite & (expected_growth > 1e-12)  # below, both are what rounding leaves
    assert growth[small] == pytest.approx(expected_growth[small], rel=1e-6)


@pytest.mark.parametrize("out_dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_horizons", [1, 3, 13])
def test_combine(native, n_horizons, out_dtype):
    rng = np.random.default_rng(1)
    part = ragged(rng, RAGGED + LARGE)
    snapshots = walks(rng, 9, part.size, np.float32)
    weights = 1.0 + rng.normal(size=(n_horizons, part.n_groups, 9))
    weights[0, 0] = 1e300  # kept within what the output can hold
    got = np.full((n_horizons, part.size), 7.0, dtype=out_dtype)
    expected = got.copy()
    native.combine(snapshots, part, weights, got)
    with np.errstate(over="ignore", invalid="ignore"):
        reference.combine(snapshots, part, weights, expected)
    # Sums of n terms in fp64, rounded once: an ulp of the output, or n u of the terms.
    rtol = 2e-7 if out_dtype is np.float32 else 1e-13
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("affine", [False, True], ids=["linear", "affine"])
@pytest.mark.parametrize(("n", "m"), [(4, 1), (12, 5), (40, 7)])
def test_dense_stages_of_small_groups(native, n, m, affine):
    rng = np.random.default_rng(m)
    part = ragged(rng, [m] * 35)
    snapshots = walks(rng, n, part.size, np.float32)
    moments = reference.feature_gram(snapshots, part, affine, [n, n - 1])
    got = native.feature_gram(snapshots, part, affine, [n, n - 1])
    np.testing.assert_allclose(got, moments, rtol=1e-10, atol=1e-12 * np.abs(moments).max())
    c, e = (np.ascontiguousarray(moments[0, :, i]) for i in (0, 1))
    start = rng.normal(size=(35, m))
    expected = reference.project(c, e, start, None, 0.0, False)
    projection = native.project(c, e, start, None, 0.0, False)
    assert np.array_equal(projection.rank, expected.rank)
    # A⁺ and what acts on the data do not depend on the basis that the whitener has chosen.
    for made, due in (
        (
            projection.whitener @ projection.whitener.transpose(0, 2, 1),
            expected.whitener @ expected.whitener.transpose(0, 2, 1),
        ),
        (
            projection.whitener @ projection.start[:, :, None],
            expected.whitener @ expected.start[:, :, None],
        ),
    ):
        np.testing.assert_allclose(made, due, rtol=1e-6, atol=1e-9 * np.abs(due).max())
    states, growth = native.rollout_dense(expected.operator, expected.start, affine, [7, 1, 70])
    with np.errstate(over="ignore", invalid="ignore"):
        due = reference.rollout_dense(expected.operator, expected.start, affine, [7, 1, 70])
    np.testing.assert_allclose(states, due[0], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(growth, due[1], rtol=1e-6, atol=1e-9)


def test_gather_and_scatter(native):
    rng = np.random.default_rng(0)
    part = ragged(rng, [6] * 11)
    snapshots = walks(rng, 5, part.size, np.float32)
    rows = native.gather(snapshots, part, [-1, 0, 2])
    columns = part.index_matrix(part.numbers)
    assert np.array_equal(rows, snapshots.array[snapshots.order[[-1, 0, 2]]][:, columns])
    out = np.full((3, part.size), -1.0, dtype=np.float32)
    native.scatter(part, rows * 1e300, out)
    limit = float(np.finfo(np.float32).max)
    assert np.array_equal(out[:, columns], np.clip(rows * 1e300, -limit, limit))
    assert (np.delete(out, columns.ravel(), axis=1) == -1.0).all()


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


@pytest.mark.parametrize("options", [{}, {"rank": 2}, {"ridge": 1e-6}], ids=str)
@pytest.mark.parametrize("model", ["linear", "affine"])
def test_projected_fits_are_the_references(native, monkeypatch, model, options):
    part = pieced([70] * 2 * len(PROJECTED))
    ring = projected_groups(part)
    real = arrays.view
    monkeypatch.setattr(arrays, "view", lambda *a: real(*a)._replace(device="cuda"))
    monkeypatch.setattr(operators, "backend_for", lambda device, name: native)
    ops = kc.fit(ring, part, model, **options)
    got, rank = ops.predict([1, 40, 5]), ops.rank
    monkeypatch.undo()
    expected = kc.fit(ring, part, model, backend="reference", **options)
    assert_predicts_as(got, expected.predict([1, 40, 5]), ring, part)
    assert np.array_equal(rank, expected.rank)


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
        gram = reference.gram(snapshots, part)
    full = reference.solve(gram, 16, affine, 0).rank == 15 - affine
    assert full[-1]
    assert not full[:5].any()
    assert full[5] == affine
    assert not full[6:8].any()
    monkeypatch.setattr(native_cuda_plan, "ONE_PASS_SIZE", 0)
    monkeypatch.setattr(native_cuda_launch, "_divided", WeakKeyDictionary())
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


def test_missing_barriers_would_show(kernels):
    """The same results when the threads of a block run in the opposite order."""
    code = (
        "import sys, numpy as np, emulated_cuda\n"
        "from pathlib import Path\n"
        "from koopcore import arrays\n"
        "from koopcore.partition.partition import Partition\n"
        "from koopcore.backends.protocol import Snapshots\n"
        f"cuda = emulated_cuda.load('_cuda_emulated', Path({kernels.__file__!r}))\n"
        "native = emulated_cuda.backend(cuda)\n"
        "from koopcore.backends.native_cuda import plan as native_cuda_plan\n"
        "native_cuda_plan.ONE_PASS_SIZE = 0\n"
        "arrays.memory = arrays.any_memory = emulated_cuda.host_memory\n"
        "arrays.where = lambda array: 'CUDA device 0'\n"
        "x = np.cumsum(np.random.default_rng(0).normal(size=(16, 20000)), axis=0)\n"
        "part = Partition.groups(20000, [range(70), range(100, 400), range(500, 20000)])\n"
        "window = Snapshots(x.astype(np.float32), np.arange(16))\n"
        "gram = native.gram(window, part)\n"
        "part = part.subset([0, 1])\n"
        "out = np.zeros((2, 20000), np.float32)\n"
        "native.endpoint_in_one_pass(window, part, True, [4, 9], out)\n"
        "x[:, :70] += 1e8 * x[3, :70]\n"  # a second pass for one, a unit of its own for the other
        "x[4, :70] = x[3, :70]\n"
        "x[:, 100:400] *= 2.0**600\n"
        "again = np.zeros((2, 20000))\n"
        "native.endpoint_in_stages(Snapshots(x, np.arange(16)), part, True, [4, 9], again)\n"
        "hindcast = np.asarray(native.gram_solve(window, part, False, 3).hindcast)\n"
        "sys.stdout.write((gram.tobytes() + out.tobytes() + again.tobytes() + "
        "hindcast.tobytes()).hex())"
    )
    places = os.pathsep.join([".", os.environ.get("PYTHONPATH", "")])
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            cwd=emulated_cuda.ROOT / "tests", env={**os.environ, "PYTHONPATH": places, **extra},
        ).stdout
        for extra in ({}, {"KOOPCORE_EMULATION_BACKWARDS": "1"})
    ]  # fmt: skip
    assert outputs[0]
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("n", [5, 16, 24, 32])
def test_sums_in_pairs_of_floats(native_two_float, n):
    part = Partition.groups(9400, [range(65), range(65, 322), range(400, 9400)])
    # Steps far below the values, as of weights in training: float32 differences are exact then.
    rng = np.random.default_rng(n)
    start = rng.normal(size=9400)
    x = start * (1.0 + 1e-3 * np.cumsum(rng.normal(size=(n, 9400)), axis=0) / n)
    snapshots = Snapshots(x.astype(np.float32), np.arange(n))
    expected = reference.gram(snapshots, part)
    on = Launch(native_two_float._cuda, snapshots, part)
    assert on.noise == 128.0  # it is that module, and no other
    got = on.empty(3, packed_size(n))
    queue_gram(on, got, side_by_side=False)
    # 128 u is what the pivot tolerance of these devices (gram_noise) allows for.
    assert gram_error(got, expected, n) < 128 * 2.0**-53
    # Float32 sums would be a million times worse.
    assert gram_error(got.astype(np.float32), expected, n) > 128 * 2.0**-53
    # What is projected is summed in fp64.
    got = native_two_float.gram(snapshots, part)
    assert gram_error(got, expected, n) < 1100 * 2.0**-53 / 64


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
