"""Endpoint times on a GPU: koopcore, a copy, and what libraries offer, all in one run."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from koopcore.backends import backend_for
from koopcore.backends.protocol import Snapshots
from koopcore.lab.studies.peers.powers import summed
from koopcore.partition.layout import Layout
from koopcore.partition.partition import Partition
from koopcore.torch_ops import Endpoint

REPEATS = 7  # timed replays; the median is reported
CALLS = 10  # calls between two events, so that the events' own resolution does not matter


def window(workload: Any) -> Tensor:
    """Decaying motions with noise of float32 size: (n, groups·m) on the GPU."""
    generator = torch.Generator(device="cuda").manual_seed(0)
    size = workload.groups * workload.m
    rows = torch.empty((workload.n, size), device="cuda")
    fixed, *modes = (torch.randn(size, device="cuda", generator=generator) for _ in range(4))
    for k in range(workload.n):
        rows[k] = fixed + sum(
            0.1 * rate**k * mode for rate, mode in zip((0.99, 0.95, 0.8), modes, strict=True)
        )
        rows[k] += 1e-4 * torch.randn(size, device="cuda", generator=generator)
    return rows


def timed(run: Callable[[], Any], record: bool = True) -> float:
    """Median seconds of one call, by events around replays of its graph (or around calls)."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
        side.synchronize()
        again = run
        if record:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=side):
                run()
            again = graph.replay
        seconds = []
        for _ in range(REPEATS):
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record(side)
            for _ in range(CALLS):
                again()
            last.record(side)
            last.synchronize()
            seconds.append(first.elapsed_time(last) / 1e3 / CALLS)
    return statistics.median(seconds)


def cholesky(x: Tensor, workload: Any) -> Tensor:
    """(b) batched Gram, cholesky_ex and powers by doubling in torch, on differences in float64."""
    steps = differences(x, workload)
    products = steps[:, :, :-1].mT @ steps
    factor, _ = torch.linalg.cholesky_ex(products[:, :, :-1])
    a = torch.cholesky_solve(products[:, :, -1:], factor)
    companion = torch.diag_embed(torch.ones_like(a[:, 1:, 0]), offset=-1)
    companion[:, :, -1:] = a
    return moved(x, steps, summed(companion, a, workload.horizon))


def pinv(x: Tensor, workload: Any) -> Tensor:
    """(c) the papers' A = F'F⁺ by linalg.pinv, through F⁺F' of n x n: A^j F' = F' (F⁺F')^j."""
    steps = differences(x, workload)
    inverse = torch.linalg.pinv(steps[:, :, :-1])
    small, start = inverse @ steps[:, :, 1:], inverse @ steps[:, :, -1:]
    return moved(x, steps, summed(small, start, workload.horizon))


def differences(x: Tensor, workload: Any) -> Tensor:
    """(n_groups, m, n - 1) float64."""
    return x.view(workload.n, workload.groups, workload.m).diff(dim=0).permute(1, 2, 0).double()


def moved(x: Tensor, steps: Tensor, weights: Tensor) -> Tensor:
    return (x[-1] + (steps[:, :, 1:] @ weights).reshape(-1)).float()


def cupy_endpoint(x: Tensor, workload: Any, part: Partition) -> Tensor:
    """(d) the backend cupy_cuda through `fit`."""
    import koopcore as kc

    predicted: Tensor = kc.fit(x, part, backend="cupy_cuda").predict([workload.horizon])
    return predicted[0]


def ways(x: Tensor, workload: Any, part: Partition) -> dict[str, tuple[Callable[[], Any], bool]]:
    """The engine's two ways, whichever `endpoint` takes: by stages, and in one pass if it fits."""
    try:
        native_cuda: Any = backend_for("cuda", "native_cuda")
    except RuntimeError:
        return {}
    window, horizons = Snapshots(x, np.arange(workload.n)), [workload.horizon]

    def by(way: Callable[..., None]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            out = x[-1:].clone()
            way(window, part, True, horizons, out)
            return out[0]

        return run

    runs = {"in_stages": (by(native_cuda.endpoint_in_stages), True)}
    if native_cuda.fits_one_pass(window, part, horizons):
        runs["in_one_pass"] = (by(native_cuda.endpoint_in_one_pass), True)
    return runs


def methods(x: Tensor, workload: Any, part: Partition) -> dict[str, tuple[Callable[[], Any], bool]]:
    """Every method and whether a graph can record it."""
    engine = Endpoint(part, [workload.horizon])
    runs: dict[str, tuple[Callable[[], Any], bool]] = {
        "koopcore": (lambda: engine(x)[0], True),
        **ways(x, workload, part),
        "torch_cholesky": (lambda: cholesky(x, workload), False),
    }
    if 8 * workload.groups * workload.m * workload.n < 2**33:
        runs["torch_pinv"] = (lambda: pinv(x, workload), False)
    try:
        import cupy  # noqa: F401
    except ImportError:
        return runs
    runs["cupy"] = (lambda: cupy_endpoint(x, workload, part), False)
    return runs


def measure_one(workload: Any, bandwidth: float, deadline: float) -> dict[str, Any]:
    """Seconds of every method that agrees with the engine; notes on those that do not or cannot."""
    x = window(workload)
    shapes = [(workload.groups, workload.m, False)]
    part = Partition.nodes(Layout.from_shapes(shapes))
    seconds: dict[str, float] = {}
    notes: dict[str, str] = {}
    expected: Tensor | None = None
    for name, (run, record) in methods(x, workload, part).items():
        if time.monotonic() > deadline:
            notes[name] = "left out: no time left"
            continue
        try:
            result = run()
            if expected is None:
                expected = result
            moved = (expected - x[-1]).norm()
            error = float((result - expected).norm() / moved)
            if not error < 0.05:
                notes[name] = f"differs from koopcore by {error:.2g} of the movement"
            seconds[name] = timed(run, record)
        except (RuntimeError, MemoryError) as problem:  # out of memory, above all
            notes[name] = str(problem).splitlines()[0]
            torch.cuda.empty_cache()
    return {
        **workload._asdict(),
        "floor_seconds": workload.floor_bytes / bandwidth,
        "seconds": seconds,
        "notes": notes,
    }


def copy_bandwidth() -> float:
    """Bytes per second that a copy of 1 GiB reads and writes, taken together."""
    source = torch.empty(2**28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / timed(lambda: target.copy_(source))


def capture_bandwidth() -> float | None:
    """The same for the capture of 148 tensors of 1 M numbers; None without the native module."""
    try:
        from koopcore._native import _cuda
        from koopcore.backends.native_cuda.tensors import TensorTable
    except ImportError:
        return None
    tensors = [torch.randn(2**20, device="cuda") for _ in range(148)]
    row = torch.empty(148 * 2**20, device="cuda")
    captured = TensorTable(_cuda, tensors, range(0, row.numel(), 2**20))
    return 2 * row.numel() * 4 / timed(lambda: captured.capture(row))


def measure(
    workloads: list[Any], deadline: float, fits: Callable[[Any, int], bool]
) -> dict[str, Any]:
    """All workloads that fit, in their order, until the deadline."""
    bandwidth = copy_bandwidth()
    results, left_out = [], []
    for workload in workloads:
        free = torch.cuda.mem_get_info()[0]
        if time.monotonic() > deadline or not fits(workload, free):
            left_out.append(workload.name)
            continue
        results.append(measure_one(workload, bandwidth, deadline))
        torch.cuda.empty_cache()
    return {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(),
        "copy_bytes_per_second": bandwidth,
        "capture_bytes_per_second": capture_bandwidth(),
        "workloads": results,
        "left_out": left_out,
    }
