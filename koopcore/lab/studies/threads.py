"""What does a second thread bring, and do torch's own threads get in the way?

Where memory is not the limit (n = 32, snapshots that stay in a cache) two threads should gain what
they gain in a loop of multiply-adds in registers, which shows what the machine can give at this
moment: two threads of one core share its units. The second race runs a product of torch matrices
on all of torch's threads right before every call: its threads then still wait for work, actively.
"""

from __future__ import annotations

from collections.abc import Sequence

from koopcore.backends.threads import thread_count
from koopcore.lab.bench import plots
from koopcore.lab.bench.roofs import MULTIPLY_ADDS, multiply_add_job
from koopcore.lab.bench.study import Case, Claim, Job, Row, Size, Study, Summary, seconds_of
from koopcore.lab.studies.workloads import decays, endpoint_job, equal_groups

TURNS = 400_000
LOADS = {"n = 32, m = 256": (32, 256), "n = 16, m = 65": (16, 65)}
TOTAL = {Size.full: 250_000, Size.quick: 100_000, Size.once: 20_000}
TORCH = "after work on torch's threads"


def cases(size: Size) -> list[Case]:
    """One thread and two; a machine of one processor has nothing to compare."""
    most = thread_count()
    counts = (1, 2) if most >= 2 else (1,)
    cases = [Case(MULTIPLY_ADDS, f"threads: {k}", k) for k in counts]
    for load, (n, m) in LOADS.items():
        options = (n, m, TOTAL[size], "")
        cases += [Case(load, f"threads: {k}", k, options) for k in counts]
        cases += [
            Case(f"{load}, {TORCH}", name, most, (n, m, TOTAL[size], name))
            for name in ("alone", "after torch")
        ]
    return cases


def build(case: Case) -> Job:
    threads = int(case.x)
    if case.race == MULTIPLY_ADDS:
        return multiply_add_job(TURNS, threads)
    n, m, total, beside = case.options
    part = equal_groups(total // m, m)
    before = _torch_product if beside == "after torch" else None
    return endpoint_job(decays(n, part.size), part, threads=threads, before=before)


def _torch_product() -> None:
    import torch

    side = torch.ones(512, 512)
    torch.mm(side, side)


def summary(rows: Sequence[Row]) -> Summary:
    claims, notes = [], []
    # Half the work each: the loop gives every thread all of it.
    machine = (
        2
        * seconds_of(rows, MULTIPLY_ADDS, "threads: 1")
        / seconds_of(rows, MULTIPLY_ADDS, "threads: 2")
    )
    notes.append(f"{MULTIPLY_ADDS}: two threads do {machine:.2f} times the work of one")
    for load, (n, _) in LOADS.items():
        gain = seconds_of(rows, load, "threads: 1") / seconds_of(rows, load, "threads: 2")
        notes.append(f"{load}: two threads take 1/{gain:.2f} of the time of one")
        if n == 32:
            text = f"{load}: gain of a second thread / that of the multiply-adds"
            claims.append(Claim(text, gain / machine, 0.9, False))
        race = f"{load}, {TORCH}"
        slower = seconds_of(rows, race, "after torch") / seconds_of(rows, race, "alone")
        claims.append(Claim(f"{load}: {TORCH} / alone", slower, 1.1, True))
    return Summary(claims=claims, notes=notes)


STUDY = Study("threads", __doc__.splitlines()[0], "threads", cases, build, summary, plots.time_bars)
