"""How does the cost grow with the number of groups?

Groups of 65 parameters (a unit of 64 inputs), n = 16 snapshots in float32, horizon 100: linear
above the cost of a call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from koopcore.lab.bench import plots
from koopcore.lab.bench.powers import powers_of
from koopcore.lab.bench.study import Case, Claim, Job, Row, Size, Study, Summary, series
from koopcore.lab.studies.decays import decays
from koopcore.lab.studies.endpoint_job import endpoint_job, equal_groups

if TYPE_CHECKING:
    from matplotlib.axes import Axes

N, M, HORIZON = 16, 65, 100
COUNTS = {
    Size.full: [1, 10, 100, 1000, 10_000, 100_000],
    Size.quick: [1, 10, 100, 1000, 10_000],
    Size.once: [1, 10, 30, 100, 300],
}


def cases(size: Size) -> list[Case]:
    return [Case("groups", f"{count} groups", count) for count in COUNTS[size]]


def build(case: Case) -> Job:
    part = equal_groups(int(case.x), M)
    return endpoint_job(decays(N, part.size), part, HORIZON)


def summary(rows: Sequence[Row]) -> Summary:
    powers = powers_of("fit and predict, groups", *series(rows, "groups"))
    text = "|exponent of the number of groups - 1|"
    claims = [Claim(text, abs(power.exponent - 1), 0.05, True) for power in powers.values()]
    return Summary(powers, claims, [])


def draw(axes: Axes, rows: Sequence[Row]) -> None:
    plots.power_law(axes, rows)


STUDY = Study("groups", __doc__.splitlines()[0], "groups of 65", cases, build, summary, draw)
