"""What does a second thread bring, and do torch's own threads get in the way?

Where memory is not the limit (n = 32, snapshots that stay in a cache) two threads should take half
the time of one; the same is asked of a loop of multiply-adds in registers, which shows what the
machine can give at this moment. The second race runs a product of torch matrices on all of torch's
threads right before every call: its threads then still wait for work, actively.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from koopcore.backends.threads import thread_count
from koopcore.lab.bench import plots, probes
from koopcore.lab.bench.machine_code import FMA_CHAINS
from koopcore.lab.bench.study import Case, Claim, Job, Row, Size, Study, Summary, seconds_of
from koopcore.lab.studies.decays import decays
from koopcore.lab.studies.endpoint_job import endpoint_job, equal_groups

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HORIZON, TURNS = 100, 400_000
LOADS = {"n = 32, m = 256": (32, 256), "n = 16, m = 65": (16, 65)}
TOTAL = {Size.full: 250_000, Size.quick: 100_000, Size.once: 20_000}
LOOP, TORCH = "multiply-adds in registers", "after work on torch's threads"


def cases(size: Size) -> list[Case]:
    """One thread and two; a machine of one processor has nothing to compare."""
    most = thread_count()
    counts = (1, 2) if most >= 2 else (1,)
    found = [Case(LOOP, f"threads: {k}", k) for k in counts]
    for load, (n, m) in LOADS.items():
        options = (n, m, TOTAL[size], "")
        found += [Case(load, f"threads: {k}", k, options) for k in counts]
        found += [
            Case(f"{load}, {TORCH}", name, most, (n, m, TOTAL[size], name))
            for name in ("alone", "after torch")
        ]
    return found


def build(case: Case) -> Job:
    threads = int(case.x)
    if case.race == LOOP:
        return Job(
            call=lambda: probes.multiply_add(TURNS, threads),
            error=lambda fixed_point: abs(fixed_point - 1.0 * FMA_CHAINS),
            bound=1e-6,
            figures={"flops": probes.flops_of_loop(TURNS, threads)},
            engine=False,
        )
    n, m, total, beside = case.options
    part = equal_groups(total // m, m)
    before = _torch_product if beside == "after torch" else None
    return endpoint_job(decays(n, part.size), part, HORIZON, threads=threads, before=before)


def _torch_product() -> None:
    import torch

    side = torch.ones(512, 512)
    torch.mm(side, side)


def summary(rows: Sequence[Row]) -> Summary:
    claims, notes = [], []
    machine = seconds_of(rows, LOOP, "threads: 1") / seconds_of(rows, LOOP, "threads: 2")
    # Half the work each: the loop gives every thread all of it.
    notes.append(f"{LOOP}: two threads do {2 * machine:.2f} times the work of one")
    for k, load in enumerate(LOADS):
        ratio = seconds_of(rows, load, "threads: 1") / seconds_of(rows, load, "threads: 2")
        if k == 0:
            claims.append(Claim(f"{load}: two threads / one", ratio, 1.9, False))
        else:
            notes.append(f"{load}: two threads / one = {ratio:.2f}")
        race = f"{load}, {TORCH}"
        slower = seconds_of(rows, race, "after torch") / seconds_of(rows, race, "alone")
        claims.append(Claim(f"{load}: {TORCH} / alone", slower, 1.1, True))
    return Summary({}, claims, notes)


def draw(axes: Axes, rows: Sequence[Row]) -> None:
    plots.time_bars(axes, rows)


STUDY = Study("threads", __doc__.splitlines()[0], "threads", cases, build, summary, draw)
