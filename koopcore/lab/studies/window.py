"""How does the cost grow with the window n?

A million parameters in groups of 256, float32, horizon 100, n from 4 to 64. Reading is linear in n
and the Gram matrices take P n(n+1) flops: between linear, where memory is the limit, and square.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from koopcore.lab.bench import plots
from koopcore.lab.bench.powers import powers_of
from koopcore.lab.bench.study import Case, Job, Row, Size, Study, Summary, series
from koopcore.lab.studies.decays import decays
from koopcore.lab.studies.endpoint_job import endpoint_job, equal_groups

if TYPE_CHECKING:
    from matplotlib.axes import Axes

M, HORIZON = 256, 100
GROUPS = {Size.full: 4000, Size.quick: 400, Size.once: 40}
WINDOWS = (4, 6, 8, 12, 16, 24, 32, 48, 64)


def cases(size: Size) -> list[Case]:
    windows = WINDOWS if size is Size.full else WINDOWS[::2]
    return [Case("n", f"n = {n}", n, GROUPS[size]) for n in windows]


def build(case: Case) -> Job:
    part = equal_groups(int(case.options), M)
    return endpoint_job(decays(int(case.x), part.size), part, HORIZON)


def summary(rows: Sequence[Row]) -> Summary:
    return Summary(powers_of("fit and predict, n", *series(rows, "n"), fixed=False), [], [])


def draw(axes: Axes, rows: Sequence[Row]) -> None:
    plots.power_law(axes, rows, fixed=False)


STUDY = Study("window", __doc__.splitlines()[0], "snapshots per fit", cases, build, summary, draw)
