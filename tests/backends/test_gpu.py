"""On a GPU: stages against the reference, streams, graphs, devices, sizes beyond 2^31."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from backend_cases import RAGGED, REFERENCE, gram_error, pieced, ragged, walks
from trajectories import generic, smooth

import koopcore as kc
from koopcore import arrays
from koopcore.backends import backend_for
from koopcore.backends.protocol import Snapshots
from koopcore.partition.partition import Partition
from koopcore.torch_ops import Endpoint

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _side_stream():
    """Everything on a stream that is not the default one, and nothing left behind."""
    with torch.cuda.stream(torch.cuda.Stream()):
        yield
        torch.cuda.synchronize()  # an error of the test shows in the test


def on_device(snapshots):
    return Snapshots(torch.from_numpy(snapshots.array).to(CUDA), snapshots.order)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [2, 8, 16, 17, 24, 32, 33, 64])
def test_gram(n, dtype):
    rng = np.random.default_rng(n)
    part = ragged(rng, [*RAGGED, 9000, 30000])
    snapshots = walks(rng, n, part.size, dtype)
    gram = backend_for("cuda").gram
    got = gram(on_device(snapshots), part)
    # fp64 sums in another order: m·u at most; sums in pairs of floats are allowed 128 u.
    bound = 1100 * 2.0**-53 if backend_for("cuda")._cuda.fast_double(0) else 1e-6
    assert gram_error(got, REFERENCE.gram(snapshots, part), n) < bound
    assert np.array_equal(got, gram(on_device(snapshots), part))


@pytest.mark.parametrize("model", ["linear", "affine", "trend", "auto"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fits_and_predictions(model, dtype):
    part = ragged(np.random.default_rng(0), [3, 20, 65, 300, 5])
    x = torch.from_numpy(generic(9, part.size)).to(dtype)
    x[:, part.indices(2)] = torch.from_numpy(smooth(9, 65, rates=(0.5, 0.9))).to(dtype)
    ops = kc.fit(x.to(CUDA), part, model)
    expected = kc.fit(x, part, model, backend="reference")
    for horizon in (1, 7):
        got = ops.predict(horizon)
        assert got.device == CUDA
        assert got.dtype == dtype
        rtol = 1e-4 if dtype == torch.float32 else 1e-7  # the conditioning of these windows
        torch.testing.assert_close(got.cpu(), expected.predict(horizon), rtol=rtol, atol=rtol)
    assert np.array_equal(ops.rank, expected.rank)


@pytest.mark.parametrize("affine", [False, True], ids=["linear", "affine"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [4, 16, 24, 32])
def test_one_pass_and_stages_predict_the_same(n, dtype, affine):
    native = backend_for("cuda", "native_cuda")
    rng = np.random.default_rng(n)
    sizes = [65, 129, 200, 257]
    part = pieced(sizes * 5)
    snapshots = walks(rng, n, part.size, dtype)
    snapshots.array[:, part.indices(1)] *= 0.0  # a deficient group
    window = on_device(snapshots)
    if torch.cuda.get_device_capability()[1] != 0:
        pytest.skip("one pass is for devices with fast fp64")
    outs = [
        torch.full((2, part.size), np.nan, dtype=window.array.dtype, device=CUDA) for _ in "123"
    ]
    native.endpoint_in_one_pass(window, part, affine, [3, 9], outs[0])
    native.endpoint_in_one_pass(window, part, affine, [3, 9], outs[1])
    native.endpoint_in_stages(window, part, affine, [3, 9], outs[2])
    assert torch.equal(outs[0].nan_to_num(7.0), outs[1].nan_to_num(7.0))
    rtol = 1e-5 if dtype is np.float32 else 1e-8
    torch.testing.assert_close(outs[0], outs[2], rtol=rtol, atol=rtol, equal_nan=True)
    model = "affine" if affine else "linear"
    expected = kc.fit(snapshots.array[snapshots.order], part, model).predict([3, 9])
    inside = np.concatenate([part.indices(g) for g in range(part.n_groups)])
    got = outs[0].cpu().numpy()[:, inside]
    np.testing.assert_allclose(got, expected[:, inside], rtol=rtol, atol=rtol)


@pytest.mark.parametrize("m", [65, 257], ids=["stages", "one pass"])
def test_a_graph_records_the_endpoint_and_replays_it(m):
    part = Partition.groups(16000, [range(m * g, m * g + m) for g in range(60)])
    ring = torch.from_numpy(generic(16, 16000)).float().to(CUDA)
    module = Endpoint(part, [10])
    first = module(ring)  # uploads the partition
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = module(ring)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, first)
    ring.copy_(torch.from_numpy(generic(16, 16000, seed=1)).float())
    graph.replay()
    torch.cuda.synchronize()
    expected = kc.fit(ring.cpu(), part).predict([10])
    torch.testing.assert_close(out.cpu(), expected, rtol=1e-4, atol=1e-4)


def test_two_streams_at_once():
    part = Partition.groups(20000, [range(200 * g, 200 * g + 200) for g in range(100)])
    rings = [torch.from_numpy(generic(12, 20000, seed)).float().to(CUDA) for seed in range(2)]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in rings]
    results = [[], []]
    for _ in range(20):
        for ring, stream, result in zip(rings, streams, results, strict=True):
            with torch.cuda.stream(stream):
                result.append(kc.fit(ring, part).predict(3))
    torch.cuda.synchronize()
    for ring, result in zip(rings, results, strict=True):
        expected = kc.fit(ring, part).predict(3)
        assert all(torch.equal(one, expected) for one in result)


def test_rings_beyond_two_to_the_31_elements():
    size, n = 2**29 + 1000, 5
    needed = 4 * size * n + 2**30
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of free GPU memory")
    ring = torch.zeros((n, size), device=CUDA)
    tail = torch.from_numpy(generic(n, 1000)).float()
    ring[:, -1000:] = tail.to(CUDA)
    part = Partition.groups(size, [range(size - 1000, size)])
    got = kc.fit(ring, part).predict(2)[-1000:].cpu()
    expected = kc.fit(tail, Partition.groups(1000, [range(1000)])).predict(2)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_mixed_places_leave_no_error_behind():
    part = Partition.groups(30, [range(30)])
    ring = torch.from_numpy(generic(5, 30)).float().to(CUDA)
    window = Snapshots(ring, np.arange(5))
    with pytest.raises(ValueError, match="out is on the CPU, the snapshots are on CUDA device 0"):
        backend_for("cuda").combine(window, part, np.ones((1, 1, 5)), np.zeros((1, 30), np.float32))
    assert torch.isfinite(kc.fit(ring, part).predict(1)).all()


def test_too_little_memory_says_how_much_and_goes_on():
    part = Partition.groups(30, [range(30)])
    ring = torch.from_numpy(generic(5, 30)).float().to(CUDA)
    ops = kc.fit(ring, part)
    with pytest.raises(MemoryError, match=r"has not the [\d,]+ bytes"):
        arrays.empty((2**40, 30), like=ring)
    assert torch.isfinite(ops.predict(1)).all()
