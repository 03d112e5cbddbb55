"""How does the cost depend on the group size m, for equally many parameters?

n = 16 snapshots in float32, horizon 100, m from 1 to 10^4. Groups of fewer parameters than columns
(m < 14) are fitted on the feature side, m by m; the others share the cost of one small solve per
group, which matters less the larger m is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from koopcore.lab.bench import plots
from koopcore.lab.bench.study import Case, Job, Row, Size, Study, Summary
from koopcore.lab.studies.decays import decays
from koopcore.lab.studies.endpoint_job import endpoint_job, equal_groups

if TYPE_CHECKING:
    from matplotlib.axes import Axes

N, HORIZON = 16, 100
TOTAL = {Size.full: 2 * 10**6, Size.quick: 3 * 10**5, Size.once: 2 * 10**4}
GROUP_SIZES = (1, 2, 4, 8, 16, 32, 65, 128, 256, 1024, 4096, 10_000)


def cases(size: Size) -> list[Case]:
    sizes = GROUP_SIZES if size is Size.full else GROUP_SIZES[::3]
    return [Case("m", f"m = {m}", m, max(TOTAL[size] // m, 1)) for m in sizes]


def build(case: Case) -> Job:
    m, groups = int(case.x), int(case.options)
    part = equal_groups(groups, m)
    return endpoint_job(decays(N, part.size), part, HORIZON)


def summary(rows: Sequence[Row]) -> Summary:
    each = {row.case: 1e9 * row.seconds / row.figures["parameters"] for row in rows if row.seconds}
    return Summary({}, [], [f"{name}: {cost:.2f} ns a parameter" for name, cost in each.items()])


def draw(axes: Axes, rows: Sequence[Row]) -> None:
    plots.connected(axes, rows)


STUDY = Study(
    "group-size", __doc__.splitlines()[0], "parameters per group", cases, build, summary, draw
)
