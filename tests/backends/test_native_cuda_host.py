"""What the host does for the CUDA kernels: launches, copies, memory, and its own time."""

from __future__ import annotations

import math
import time

import cuda_registers
import emulated_cuda
import numpy as np
import pytest
from backend_cases import pieced
from trajectories import generic

import koopcore as kc
from koopcore import arrays
from koopcore.backends.native_cuda.launch import Launch, divided
from koopcore.backends.protocol import Snapshots
from koopcore.partition.layout import Layout
from koopcore.partition.partition import Partition

pytestmark = pytest.mark.skipif(emulated_cuda.COMPILER is None, reason="needs g++")


@pytest.fixture
def runtime(kernels):
    return emulated_cuda.Runtime(kernels)


def counts(runtime, call):
    """(launches, copies from and to the device) of a call whose partition is there already."""
    call()
    found = runtime.counted(call)
    return found["launches"], found["uploads"], found["downloads"]


SMALL, LARGE, IN_ONE_PASS = [20, 48, 20], [20, 48, 9000], [300, 301]
WINDOW = 9


def window_of(sizes, altered=lambda x, part: None):
    """A ring of groups of such sizes, float32."""
    part = pieced(sizes)
    x = generic(WINDOW, part.size)
    altered(x, part)
    return Snapshots(x.astype(np.float32), np.arange(WINDOW)), part


@pytest.mark.parametrize(
    ("sizes", "launches"),
    [
        (SMALL, 5),  # gram, solve, rollout, deficient groups, combine
        (LARGE, 8),  # gram and combine of small and of large ones, and the sum of their pieces
        (IN_ONE_PASS, 3),  # one pass, deficient groups twice
        (SMALL + IN_ONE_PASS, 8),
    ],
)
def test_an_endpoint_is_these_launches_and_no_word_to_the_host(native, runtime, sizes, launches):
    snapshots, part = window_of(sizes)
    out = np.empty((2, part.size), np.float32)
    done = counts(runtime, lambda: native.endpoint(snapshots, part, True, [3, 8], out))
    assert done == (launches, 0, 0)


MANY = [9] * 2000


@pytest.mark.parametrize("sizes", [LARGE, IN_ONE_PASS, MANY], ids=["large", "one pass", "many"])
def test_deficient_groups_ask_no_more_of_an_endpoint(native, runtime, sizes):
    def altered(x, part):
        first, last = part.indices(0), part.indices(part.n_groups - 1)
        x[4, first] = x[3, first]  # a snapshot taken twice
        x[:, last] = x[0, last]  # what does not move

    whole, part = window_of(sizes)
    deficient, _ = window_of(sizes, altered)
    out = np.empty((1, part.size), np.float32)
    native.endpoint(whole, part, True, [8], out)
    asked = [
        runtime.counted(lambda x=x: native.endpoint(x, part, True, [8], out))
        for x in (whole, deficient)
    ]
    assert asked[0] == asked[1]
    assert asked[0]["bytes"] == 0
    resting = part.indices(part.n_groups - 1)
    assert np.array_equal(out[0, resting], deficient.array[-1, resting])


def test_a_fit_of_full_rank_is_two_launches_and_two_numbers(native, runtime, monkeypatch):
    """Whether all coefficients are finite, and the lowest rank: what NumPy has to know."""
    snapshots, part = window_of(SMALL)
    asked = []
    for name in ("sum", "min"):
        real = getattr(arrays.Resident, name)
        monkeypatch.setattr(
            arrays.Resident, name, lambda self, real=real: asked.append(1) or real(self)
        )
    with emulated_cuda.instead_of_the_cpu(native._cuda):
        ops = kc.fit(snapshots.array, part)
        asked.clear()
        assert counts(runtime, lambda: kc.fit(snapshots.array, part)) == (2, 0, 0)
        assert len(asked) == 4  # of two fits
        assert counts(runtime, lambda: ops.predict(5)) == (2, 0, 0)  # rollout and combine


def test_a_fit_with_a_deficient_group_sends_no_window_to_the_host(native, runtime):
    """Its projection is NumPy's; what goes to and fro is a row of fields of every group."""

    def altered(x, part):
        x[4, part.indices(0)] = x[3, part.indices(0)]

    snapshots, part = window_of(MANY, altered)
    with emulated_cuda.instead_of_the_cpu(native._cuda):
        kc.fit(snapshots.array, part)
        asked = runtime.counted(lambda: kc.fit(snapshots.array, part))
    columns = WINDOW - 2
    assert asked["launches"] == 6
    assert asked["bytes"] < 8 * (columns + 4) * len(MANY) + 8192
    assert asked["bytes"] < snapshots.array.nbytes / 3


def gpt2():
    """The nodes of GPT-2 with rows of 768 and 3072 weights, embeddings included."""
    block = [(2304, 768, True), (768, 768, True), (3072, 768, True), (768, 3072, True)]
    layout = Layout.from_shapes([(50257, 768, False), (1024, 768, False), *block * 12])
    return Partition.nodes(layout)


@pytest.mark.parametrize("what", ["endpoint", "fit"])
def test_the_hosts_own_time_does_not_grow_with_the_partition(native, runtime, monkeypatch, what):
    monkeypatch.setattr(  # nothing runs, so that nothing needs to be there
        emulated_cuda.HostMemory,
        "empty",
        lambda self, shape, dtype: np.broadcast_to(np.zeros(1, dtype), shape),
    )
    for name, value in (("sum", 0.0), ("min", 14)):
        monkeypatch.setattr(arrays.Resident, name, lambda self, value=value: value)

    def prepared(part):
        ring = np.broadcast_to(np.zeros(1, np.float32), (16, part.size))
        out = np.broadcast_to(np.zeros(1, np.float32), (1, part.size))
        snapshots = Snapshots(ring, np.arange(16))
        assert None not in divided(Launch(native._cuda, snapshots, part), [100])  # both ways
        call = {
            "endpoint": lambda: native.endpoint(snapshots, part, True, [100], out),
            "fit": lambda: kc.fit(ring, part),
        }[what]
        call()
        return call

    def seconds(call):
        started = time.perf_counter()
        call()
        return time.perf_counter() - started

    few = Partition.nodes(Layout.from_shapes([(5, 40, True), (5, 768, True)]))
    small = large = math.inf
    with runtime.idle(), emulated_cuda.instead_of_the_cpu(native._cuda):
        calls = prepared(few), prepared(gpt2())
        for turn in range(10_000):  # in turns, until neither is what else the machine does
            small, large = (min(t, seconds(c)) for t, c in zip((small, large), calls, strict=True))
            if turn >= 200 and large < 1.5 * small:
                break
    print(f"\n{what}: {1e6 * small:.1f} µs, {1e6 * large:.1f} µs")
    assert large < 1.5 * small


def test_shared_memory_of_kernels_is_what_the_tables_of_occupancy_take(kernels):
    for n in (3, 8, 16, 24, 32):
        assert kernels.solve_bytes(n) == cuda_registers.solve_bytes(n)
        assert kernels.deficient_bytes(n) == cuda_registers.deficient_bytes(n)
