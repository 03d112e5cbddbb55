"""How long does the whole job take, snapshots in and one predicted endpoint out, and against what?

float32 snapshots, horizon 100, affine model. Every row runs in one process on the same data: the
backends, (a) torch: batched Gram, `cholesky_ex`, rollout of the small matrices, (b) NumPy:
F' pinv(F) and 100 products for every group, and (c) one read of the snapshot memory, taken right
before every round of a backend, because the speed of a shared machine drifts. A backend whose
prediction is not as good as float64 least squares reports no time: its row is an error.

    pytest benchmarks/bench_endpoint.py                # times, and the ratios at the end
    pytest benchmarks/bench_endpoint.py --benchmark-disable   # each job once: a smoke run
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
from endpoint_peers import least_squares, numpy_pinv, torch_cholesky

import koopcore as kc

HORIZON = 100


class Workload(NamedTuple):
    groups: int
    fan_in: int  # parameters of a group besides its bias; 0: one group of everything
    n: int
    numpy_groups: int  # so many are timed for (b), and the time scaled to all

    @property
    def parameters(self) -> int:
        return self.groups * (self.fan_in + 1)


WORKLOADS = {
    "W1": Workload(10_000, 64, 16, 200),
    "W2": Workload(2_000, 256, 24, 50),
    "W3": Workload(50_000, 10, 16, 1000),
    "network": Workload(10_000_000, 0, 16, 0),
}


@cache
def snapshots_of(name: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Snapshots (n, P), three slow decays about a fixed point, and the true endpoint."""
    load = WORKLOADS[name]
    rng = np.random.default_rng(7)
    size = load.parameters
    fixed = rng.normal(size=size).astype(np.float32)
    modes = rng.normal(size=(3, size)).astype(np.float32) * np.float32(0.1)
    times = np.append(np.arange(load.n), load.n - 1 + HORIZON)
    powers = np.exp(-np.outer(times, [0.004, 0.02, 0.07])).astype(np.float32)
    rows = np.empty((load.n + 1, size), np.float32)
    for row, power in zip(rows, powers, strict=True):
        np.add(fixed, power @ modes, out=row)
    return rows[:-1], rows[-1].astype(np.float64)


@cache
def partition_of(name: str) -> kc.Partition:
    load = WORKLOADS[name]
    if not load.fan_in:
        return kc.Partition.network(kc.Layout.from_shapes([(load.groups, 1, False)]))
    return kc.Partition.nodes(kc.Layout.from_shapes([(load.groups, load.fan_in, True)]))


def sampled_groups(name: str) -> list[int]:
    return list(range(0, WORKLOADS[name].groups if WORKLOADS[name].fan_in else 1, 97))[:40]


@cache
def oracle_errors(name: str) -> npt.NDArray[np.float64]:
    """Relative endpoint errors of orthogonal least squares for the sampled groups."""
    rows, _ = snapshots_of(name)
    part = partition_of(name)
    predicted = [least_squares(rows, part.indices(g), HORIZON) for g in sampled_groups(name)]
    return relative_errors(name, predicted)


def relative_errors(name: str, predicted: list[npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
    """‖predicted - true‖ / ‖true movement‖ of the sampled groups."""
    rows, true = snapshots_of(name)
    part = partition_of(name)
    errors = []
    for group, value in zip(sampled_groups(name), predicted, strict=True):
        columns = part.indices(group)
        movement = np.linalg.norm(true[columns] - rows[-1, columns])
        errors.append(np.linalg.norm(value - true[columns]) / movement)
    return np.array(errors)


def check(name: str, predicted: list[npt.NDArray[Any]]) -> None:
    """No time without a right answer: the median error of least squares times 1.2, or 1e-4."""
    error = float(np.median(relative_errors(name, predicted)))
    bound = max(1.2 * float(np.median(oracle_errors(name))), 1e-4)
    assert error <= bound, f"{name}: median relative error {error:.3g}, least squares {bound:.3g}"


def timed(
    benchmark: Any,
    name: str,
    job: str,
    function: Callable[[], Any],
    rounds: int,
    before: Callable[[], None] | None = None,
) -> Any:
    """Time ``function``, and leave what the table at the end needs."""
    benchmark.group = name
    benchmark.extra_info.update(workload=name, job=job, scale=1.0)
    return benchmark.pedantic(function, setup=before, rounds=rounds, warmup_rounds=1, iterations=1)


class PairedReads:
    """(c): the sum of all snapshots by torch, all threads, timed before every round of a job."""

    def __init__(self, rows: npt.NDArray[np.float32]) -> None:
        self.rows = torch.from_numpy(rows)
        self.seconds: list[float] = []

    def __call__(self) -> None:
        start = time.perf_counter()
        total = self.rows.sum()
        self.seconds.append(time.perf_counter() - start)
        assert torch.isfinite(total)


@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize("backend", ["native_cpu", "numba_cpu"])
def test_backend(benchmark: Any, name: str, backend: str) -> None:
    """fit(horizon=100) and predict(100), from the public API."""
    if backend not in [info.name for info in kc.backends() if info.available]:
        pytest.skip(f"{backend} is not available here (koopcore info says why)")
    rows, part = snapshots_of(name)[0], partition_of(name)

    def job() -> Any:
        ops = kc.fit(rows, part, model="affine", backend=backend, horizon=HORIZON)
        return ops.predict(HORIZON)

    reads = PairedReads(rows)
    out = timed(benchmark, name, backend, job, 21, reads)
    benchmark.extra_info.update(
        read_best=min(reads.seconds), read_median=float(np.median(reads.seconds))
    )
    check(name, [out[part.indices(g)] for g in sampled_groups(name)])


@pytest.mark.parametrize("name", WORKLOADS)
def test_torch_cholesky(benchmark: Any, name: str) -> None:
    """(a), and its answer is held to the same check."""
    load = WORKLOADS[name]
    rows, _ = snapshots_of(name)
    tensor = torch.from_numpy(rows)
    arguments = (tensor, load.groups if load.fan_in else 1, load.fan_in, HORIZON)
    out = timed(benchmark, name, "torch", lambda: torch_cholesky(*arguments), 3)
    check(name, [out[g].numpy() for g in sampled_groups(name)])


@pytest.mark.parametrize("name", ["W1", "W2"])
def test_numpy_pinv(benchmark: Any, name: str) -> None:
    """(b) on the first groups, scaled to all; the linear model of the paper."""
    load = WORKLOADS[name]
    rows, _ = snapshots_of(name)
    arguments = (rows, load.groups, load.fan_in, HORIZON, load.numpy_groups)
    out = timed(benchmark, name, "numpy", lambda: numpy_pinv(*arguments), 3)
    benchmark.extra_info["scale"] = load.groups / load.numpy_groups
    assert np.isfinite(out).all()


def test_one_small_group(benchmark: Any) -> None:
    """152 parameters, 17 snapshots, one group: fit and predict, Python included."""
    rng = np.random.default_rng(0)
    powers = np.exp(-np.outer(np.arange(17), [0.01, 0.05, 0.2]))
    rows = (rng.normal(size=152) + powers @ rng.normal(size=(3, 152))).astype(np.float32)
    part = kc.Partition.network(
        kc.Layout.from_shapes([(10, 1, True), (10, 10, True), (2, 10, True)])
    )
    benchmark.group = "one group of 152"
    benchmark.extra_info.update(workload="one group", job="fit + predict", scale=1.0)
    out = benchmark(lambda: kc.fit(rows, part, model="affine").predict(HORIZON))
    assert np.isfinite(out).all()
