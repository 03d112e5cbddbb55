"""One case of a study under pytest-benchmark: built, timed, and checked before its time counts."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import pytest

from koopcore.lab.bench.measure import prepared
from koopcore.lab.bench.study import Case, Job, Row, Study, Unavailable

ROUNDS = 30  # at most; a slow case is timed for about a second
SECONDS = 1.0


def run_case(benchmark: Any, rows: list[Row], study: Study, case: Case) -> None:
    """Time ``case``, leave its row in ``rows``; fails on a wrong result, which has no time."""
    try:
        job = study.build(case)
    except Unavailable as reason:
        pytest.skip(str(reason))
    row = Row(case.race, case.name, case.x, figures=dict(job.figures), engine=job.engine)
    rows.append(row)
    row.bound = job.bound
    benchmark.group = f"{study.name}: {case.race}"
    row.error = job.error(prepared(job)())
    if not row.wrong:

        def setup() -> None:
            if job.before is not None:
                job.before()

        rounds = 1
        if not benchmark.disabled:
            rounds = max(3, min(ROUNDS, job.most, int(SECONDS / duration_of(job))))
        result = benchmark.pedantic(job.call, setup=setup, rounds=rounds)
        row.error = max(row.error, job.error(result))
    benchmark.extra_info.update(error=row.error, bound=row.bound, scale=job.scale, **row.figures)
    assert not row.wrong, (
        f"{case.race}: {case.name}: error {row.error:.3g}, at most {row.bound:.3g} is accepted"
    )
    if not benchmark.disabled:
        row.seconds = job.scale * benchmark.stats.stats.min
        row.median = job.scale * benchmark.stats.stats.median
        row.rounds = rounds


def duration_of(job: Job) -> float:
    """Seconds of one call, to choose how many are timed."""
    call = prepared(job)
    begin = perf_counter()
    call()
    return perf_counter() - begin
