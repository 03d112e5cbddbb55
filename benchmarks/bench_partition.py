"""What does the partition cost? The same 2.5 million parameters, grouped in four ways.

float32 snapshots, n = 16, horizon 100, affine model; one process, one run. Every fit is checked ten
snapshots ahead: a hundred are too many for groups of a hundred parameters rounded to float32.

    pytest benchmarks/bench_partition.py
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import koopcore as kc

HORIZON, CHECKED = 100, 10
LAYOUT = kc.Layout.from_shapes([(1000, 784, True), (1000, 1000, True), (700, 1000, True)])
PARTITIONS = {
    "network": kc.Partition.network(LAYOUT),
    "layers": kc.Partition.layers(LAYOUT),
    "nodes": kc.Partition.nodes(LAYOUT),
    "quasi_nodes(100)": kc.Partition.quasi_nodes(LAYOUT, 100),
}


@cache
def snapshots() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Snapshots (16, P) of three slow decays, and the truth CHECKED snapshots on."""
    rng = np.random.default_rng(3)
    times = np.append(np.arange(16), 15 + CHECKED)
    modes = rng.normal(size=(3, LAYOUT.size)) * 0.1
    rows = rng.normal(size=LAYOUT.size) + np.exp(-np.outer(times, [0.004, 0.02, 0.07])) @ modes
    return rows[:-1].astype(np.float32), rows[-1]


@pytest.mark.parametrize("name", PARTITIONS)
def test_fit_and_predict(benchmark: Any, name: str) -> None:
    rows, true = snapshots()
    part = PARTITIONS[name]
    benchmark.extra_info.update(workload="partitions", job=name, scale=1.0)
    benchmark.pedantic(
        lambda: kc.fit(rows, part).predict(HORIZON), rounds=15, warmup_rounds=1, iterations=1
    )
    out = kc.fit(rows, part).predict(CHECKED)
    error = np.linalg.norm(out - true) / np.linalg.norm(true - rows[-1])
    assert error < 0.02  # three exact modes; what is left is the rounding of float32
