"""What does recording cost, as a share of a training step, and a run that gains nothing at all?

A 10-million-parameter MLP (784-2048-2048-2048-10) on batches of 256, Adam. Steps and captures are
timed in turns in one process, the median of each, so that the ratio survives a varying clock; the
row recorded is compared with the parameters in the same run. With a stride of 10 a capture may
cost 10 % of a step at most: 1 % of the ten. Then whole runs in which every jump is rejected (noisy
minibatches, a margin that nothing meets; the loss is evaluated on a batch as large as the training
batch): what recording, fits, candidates and evaluations took, as a share of the rest of the run.

    pytest benchmarks/bench_capture.py                       # times, and the shares in extra_info
    pytest benchmarks/bench_capture.py --benchmark-disable   # each job once: a smoke run
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from itertools import pairwise
from time import perf_counter
from typing import Any

import pytest
import torch
from torch import nn

import koopcore as kc
from koopcore.training import DifferenceRing, SnapshotRing

STRIDE = 10
SLOTS = 9


def mlp(*widths: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def training_step(model: nn.Module, batch: int, rate: float) -> Callable[[], None]:
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    x, y = torch.randn(batch, 784), torch.randint(0, 10, (batch,))

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def medians(jobs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Seconds of each job, the median over rounds in which they take turns."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            begun = perf_counter()
            job()
            times[name].append(perf_counter() - begun)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


@pytest.mark.parametrize("kind", [SnapshotRing, DifferenceRing])
def test_capture_of_ten_million_parameters(benchmark: Any, kind: type[SnapshotRing]) -> None:
    model = mlp(784, 2048, 2048, 2048, 10)
    parameters = list(model.parameters())
    assert 9.9e6 < sum(p.numel() for p in parameters) < 1.1e7
    ring = kind(parameters, SLOTS)
    step = training_step(model, 256, 1e-3)
    step()
    ring.capture()
    step()
    before = [p.detach().clone() for p in parameters]
    ring.capture()
    for view, value in zip(ring.unflatten(ring.newest()), before, strict=True):
        # float32 rows are exact; bfloat16 differences are within 2^-8 of Adam's step of 1e-3, and
        # the rounding of weights below 1 in float32.
        bound = 0.0 if kind is SnapshotRing else 1e-3 * 2**-8 + 2**-24
        assert float((view - value).abs().max()) <= bound
    rounds = 1 if benchmark.disabled else 12
    seconds = medians({"step": step, "capture": ring.capture}, rounds)
    share = seconds["capture"] / (STRIDE * seconds["step"])
    benchmark.extra_info.update(seconds, share_at_stride_10=share, bytes=ring.nbytes)
    print(
        f"\n{kind.__name__}: step {seconds['step']:.4f} s, capture {seconds['capture']:.5f} s, "
        f"{100 * share:.2f} % at stride {STRIDE}, ring {ring.nbytes / 2**20:.0f} MiB"
    )
    benchmark.pedantic(ring.capture, rounds=rounds)
    if not benchmark.disabled and kind is SnapshotRing:
        assert share < 0.01


@pytest.mark.parametrize("width", [20, 512])
@pytest.mark.parametrize("steps", [2000, 6000])
def test_a_run_that_gains_nothing(benchmark: Any, width: int, steps: int) -> None:
    if benchmark.disabled:
        steps = 60
    model = mlp(784, width, width, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    x, y = torch.randn(2048, 784), torch.randint(0, 10, (2048,))
    held = slice(0, 64)

    def loss() -> torch.Tensor:
        return nn.functional.cross_entropy(model(x[held]), y[held])

    koop = kc.attach(optimizer, model, loss=loss, margin=0.999)

    def run() -> float:
        begun = perf_counter()
        for _ in range(steps):
            at = torch.randint(0, 2048, (64,), generator=generator)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[at]), y[at]).backward()
            optimizer.step()
        return perf_counter() - begun

    generator = torch.Generator().manual_seed(0)
    whole = benchmark.pedantic(run, rounds=1)
    spent = koop.stats.seconds
    share = spent / (whole - spent)
    benchmark.extra_info.update(share=share, jumps=koop.stats.jumps, seconds=whole)
    print(
        f"\nwidth {width}, {steps} steps: {koop.stats.jumps} attempts, {koop.stats.evaluations} "
        f"evaluations, {100 * share:.2f} % overhead"
    )
    assert koop.stats.jumps > 0
    assert koop.stats.accepted == 0
    if not benchmark.disabled:
        assert share < 0.03
