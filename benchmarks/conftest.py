"""The table of ratios under every benchmark run: times beside one read of the memory, and peers."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Ratios of best times, of jobs that ran in this very run on the same data."""
    session = getattr(config, "_benchmarksession", None)
    times: dict[str, dict[str, float]] = defaultdict(dict)
    for bench in getattr(session, "benchmarks", []):
        info = bench.extra_info
        if "workload" in info and not bench.has_error:
            times[info["workload"]][info["job"]] = bench.stats.min * info["scale"]
    if not times:
        return
    terminalreporter.section("ratios of best times")
    for workload, jobs in times.items():
        read = jobs.get("one read")
        for job, seconds in jobs.items():
            line = f"{workload:10s} {job:14s} {seconds * 1e3:12.3f} ms"
            if read and job != "one read":
                line += f"  {seconds / read:9.2f} x one read"
            for backend in ("native_cpu", "numba_cpu"):
                if job in ("torch", "numpy") and backend in jobs:
                    line += f"  {seconds / jobs[backend]:8.1f} x {backend}"
            terminalreporter.write_line(line)
