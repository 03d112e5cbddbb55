"""Every case of every study under pytest-benchmark: timed, and no time without a right answer.

``koopcore bench`` runs the same studies, in races whose cases take turns, and draws conclusions.

    pytest benchmarks/bench_studies.py -k 'horizon and 65'
    pytest benchmarks/bench_studies.py --benchmark-disable     # each case once, at its smallest
"""

from collections.abc import Iterator
from time import perf_counter
from typing import Any

import pytest

from koopcore.lab.bench.measure import prepared
from koopcore.lab.bench.study import Case, Job, Size, Study, Unavailable, forget
from koopcore.lab.studies.catalogue import studies

ROUNDS = 30  # at most; a slow case is timed for about a second
SECONDS = 1.0


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per case; tiny ones where nothing is timed."""
    size = Size.once if metafunc.config.getoption("benchmark_disable") else Size.full
    cases = [(study, case) for study in studies() for case in study.cases(size)]
    ids = [f"{study.name}: {case.race}: {case.name}" for study, case in cases]
    metafunc.parametrize(("study", "case"), cases, ids=ids)


@pytest.fixture(scope="module", autouse=True)
def memory() -> Iterator[None]:
    """What the last race shared may be gigabytes."""
    yield
    forget()


def test_case(benchmark: Any, study: Study, case: Case) -> None:
    try:
        job = study.build(case)
    except Unavailable as reason:
        pytest.skip(str(reason))
    benchmark.group = f"{study.name}: {case.race}"
    rounds = 1 if benchmark.disabled else rounds_of(job)
    result = benchmark.pedantic(job.call, setup=job.before or (lambda: None), rounds=rounds)
    error = job.error(result)
    benchmark.extra_info.update(error=error, bound=job.bound, scale=job.scale, **job.figures)
    assert error <= job.bound


def rounds_of(job: Job) -> int:
    """How many calls are timed, after one that is not and whose result is right."""
    call = prepared(job)
    begin = perf_counter()
    result = call()
    seconds = perf_counter() - begin
    assert job.error(result) <= job.bound
    return max(1, min(ROUNDS, job.most, max(3, int(SECONDS / seconds))))
