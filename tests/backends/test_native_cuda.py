"""What only the CUDA kernels have: endpoints without the host, plans, streams, two-float sums."""

from __future__ import annotations

import os
import subprocess
import sys

import emulated_cuda
import numpy as np
import pytest
from backend_cases import RAGGED, REFERENCE, gram_error, ragged
from trajectories import generic, smooth

import koopcore as kc
from koopcore import arrays, operators
from koopcore.backends.native_cuda.plan import make_plan
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
    for n in (16, 60):
        plan = make_plan(part, n)
        small = part.numbers if plan.small is None else plan.small
        assert (plan.small is None) == (len(small) == part.n_groups)
        taken = np.zeros(part.n_groups, dtype=np.int64)
        taken[small] += part.sizes[small]
        np.add.at(taken, plan.pieces[:, 0], plan.pieces[:, 3])
        assert np.array_equal(taken, part.sizes)
        assert plan.large_piece[-1] == len(plan.pieces) - plan.n_middle
        assert n <= 32 or len(small) == 0


def test_many_moderate_groups_take_a_warp_each():
    part = Partition.groups(9000 * 300, [range(300 * g, 300 * g + 300) for g in range(9000)])
    assert make_plan(part, 16).small is None
    assert len(make_plan(part.subset(range(100)), 16).pieces) == 100


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
        "hindcast = np.asarray(native.gram_solve(window, part, False, 3).hindcast)\n"
        "sys.stdout.write((gram.tobytes() + out.tobytes() + hindcast.tobytes()).hex())"
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
def test_sums_in_pairs_of_floats(two_float, monkeypatch, n):
    module = emulated_cuda.backend(two_float)
    assert two_float.gram_noise(0, n, False) == 128.0  # it is that module, and no other
    for name in ("memory", "any_memory"):
        monkeypatch.setattr(arrays, name, emulated_cuda.host_memory)
    part = Partition.groups(9400, [range(65), range(65, 322), range(400, 9400)])
    # Steps far below the values, as of weights in training: float32 differences are exact then.
    rng = np.random.default_rng(n)
    start = rng.normal(size=9400)
    x = start * (1.0 + 1e-3 * np.cumsum(rng.normal(size=(n, 9400)), axis=0) / n)
    snapshots = Snapshots(x.astype(np.float32), np.arange(n))
    expected = REFERENCE.gram(snapshots, part)
    got = module.gram(snapshots, part)
    # 128 u is what the pivot tolerance of these devices (gram_noise) allows for.
    assert gram_error(got, expected, n) < 128 * 2.0**-53
    # Float32 sums would be a million times worse.
    assert gram_error(got.astype(np.float32), expected, n) > 128 * 2.0**-53
    assert got.shape == (3, packed_size(n))
