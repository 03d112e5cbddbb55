"""Times of a race: all cases in turns, results checked first and last, no time for a wrong one."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby

from koopcore.lab.bench import probes
from koopcore.lab.bench.study import Case, Job, Row, Size, Study, Unavailable, forget

PACE_TURNS = 20_000  # of the multiply-add loop: about a millisecond
FEWEST = 3  # turns of every case, unless they take PATIENCE times what was asked for
PATIENCE = 4.0
TURN = 0.02  # seconds that a case of short calls has before it is the next one's turn
MOST_A_TURN = 20


def run_study(
    study: Study,
    size: Size,
    seconds: float,
    tick: Callable[[Case], object] = lambda case: None,
    finished: Sequence[Row] = (),
    keep: Callable[[Sequence[Row]], object] = lambda rows: None,
) -> list[Row]:
    """Rows of all cases of a study.

    seconds: for the timing of each case, on the average over its race. tick: called after each.
    finished: rows of races that an interrupted run has measured. keep: called with all rows so far
    after each race.
    """
    rows = list(finished)
    known = {row.race for row in rows}
    for race, group in groupby(study.cases(size), key=lambda case: case.race):
        cases = list(group)
        if race in known:
            for case in cases:
                tick(case)
            continue
        rows += run_race(study, cases, seconds * study.share, tick)
        forget()  # the next race's snapshots may need the memory
        keep(rows)
    return rows


def run_race(
    study: Study, cases: Sequence[Case], seconds: float, tick: Callable[[Case], object]
) -> list[Row]:
    """Rows of cases that take turns until ``seconds`` per case are over."""
    rows, running = [], []
    for case in cases:
        row = Row(case.race, case.name, case.x)
        rows.append(row)
        try:
            job = study.build(case)
            row.bound, row.figures, row.engine = job.bound, dict(job.figures), job.engine
            row.error = job.error(prepared(job)())
        except Unavailable as reason:
            row.missing = str(reason)
            tick(case)
            continue
        if row.wrong:
            tick(case)
            continue
        running.append((case, job, row))
    times: dict[str, list[float]] = {row.case: [] for _, _, row in running}
    with without_collection():
        pace = min(_seconds(_pace) for _ in range(3))
        begin, budget = time.perf_counter(), seconds * len(running)
        turn = 0
        while running and not _over(turn, (time.perf_counter() - begin) / budget):
            still = [(j, r) for _, j, r in running if len(times[r.case]) < j.most]
            if not still:
                break
            pace = min(pace, _seconds(_pace))
            for job, row in still:
                times[row.case] += _turn(job)
            turn += 1
    for case, job, row in running:
        again = job.error(prepared(job)())
        row.error = again if again != again else max(row.error, again)
        row.rounds, row.pace, row.figures = len(times[row.case]), pace, dict(job.figures)
        if not row.wrong:
            row.seconds = job.scale * min(times[row.case])
            row.median = job.scale * statistics.median(times[row.case])
        tick(case)
    return rows


def _over(turns: int, spent: float) -> bool:
    """Whether ``turns`` turns are enough after ``spent`` times the time that was asked for."""
    return turns > 0 and spent >= (1.0 if turns >= FEWEST else PATIENCE)


def prepared(job: Job) -> Callable[[], object]:
    """The job's call, after what has to come before it."""
    if job.before is not None:
        job.before()
    return job.call


@contextmanager
def without_collection() -> Iterator[None]:
    """No garbage collection inside; objects freed by their last reference are freed as ever."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _turn(job: Job) -> list[float]:
    """Several short calls, or one long one."""
    taken: list[float] = []
    while not taken or (len(taken) < MOST_A_TURN and sum(taken) < TURN):
        call = prepared(job)
        taken.append(_seconds(call))
        if job.before is not None:
            break
    return taken


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    result = call()
    end = time.perf_counter()
    del result  # freeing it is not part of the call
    return end - begin


def _pace() -> None:
    probes.multiply_add(PACE_TURNS, threads=1)
