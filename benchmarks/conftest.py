"""Cases of studies as tests; exponents, claims and ratios of times under every benchmark run."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest

from koopcore.studies.study import Row, Size, Study

ROWS = pytest.StashKey[dict[str, tuple[Study, list[Row]]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = {}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per case of the module's STUDY; tiny ones where nothing is timed."""
    if "case" not in metafunc.fixturenames:
        return
    size = Size.once if metafunc.config.getoption("benchmark_disable") else Size.full
    cases = metafunc.module.STUDY.cases(size)
    metafunc.parametrize("case", cases, ids=[f"{case.race}: {case.name}" for case in cases])


@pytest.fixture
def study_rows(request: pytest.FixtureRequest) -> list[Row]:
    """The rows of the module's study so far; its summary is printed at the end of the run."""
    study: Study = request.module.STUDY
    return request.config.stash[ROWS].setdefault(study.name, (study, []))[1]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """What the studies conclude, and ratios of best times of jobs that ran on the same data."""
    for name, (study, rows) in config.stash[ROWS].items():
        if not any(row.seconds for row in rows):
            continue
        terminalreporter.section(name)
        summary = study.summary(rows)
        lines = [f"{label}: {power}" for label, power in summary.powers.items()]
        for claim in summary.claims:
            target = f"{'<=' if claim.at_most else '>='} {claim.limit:g}"
            verdict = "met" if claim.met else "NOT MET"
            lines.append(f"{claim.text} = {claim.value:.3g} ({target}: {verdict})")
        for line in [*lines, *summary.notes]:
            terminalreporter.write_line(line)
    ratios(terminalreporter, config)


def ratios(terminalreporter: Any, config: pytest.Config) -> None:
    """Times beside one read of the memory, and beside peers."""
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
