"""Cases of studies as tests; exponents, claims and ratios of times under every benchmark run."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest

from koopcore.lab.bench.study import Row, Size, Study

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
    """Times beside reads of the memory that were paired with their rounds, and beside peers."""
    session = getattr(config, "_benchmarksession", None)
    loads: dict[str, dict[str, Any]] = defaultdict(dict)
    for bench in getattr(session, "benchmarks", []):
        if "workload" in bench.extra_info and not bench.has_error:
            loads[bench.extra_info["workload"]][bench.extra_info["job"]] = bench
    if not loads:
        return
    terminalreporter.section("ratios, of best times and of medians")
    for workload, jobs in loads.items():
        for job, bench in jobs.items():
            info, stats = bench.extra_info, bench.stats
            best, median = stats.min * info["scale"], stats.median * info["scale"]
            line = f"{workload:10s} {job:14s} {best * 1e3:10.3f} {median * 1e3:10.3f} ms"
            if "read_best" in info:
                line += (
                    f"  {best / info['read_best']:6.2f} {median / info['read_median']:6.2f} "
                    "x one read"
                )
            for backend in ("native_cpu", "numba_cpu"):
                if job in ("torch", "numpy") and backend in jobs:
                    own = jobs[backend].stats
                    line += f"  {best / own.min:7.1f} {median / own.median:7.1f} x {backend}"
            terminalreporter.write_line(line)
