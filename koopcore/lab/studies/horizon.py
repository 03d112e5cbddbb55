"""How does the cost of an endpoint depend on the horizon T?

n = 16 snapshots in float32, T from 1 to 10^5 snapshots ahead: groups of 65, groups of 256, and one
group of everything. The recurrence takes T steps per group up to T = 1,024 and log T squarings of
a polynomial beyond; it never touches the snapshots. The decays are fast enough that an operator
fitted to float32 has no eigenvalue above one, whose powers would have no bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from koopcore.lab.bench import plots
from koopcore.lab.bench.study import Case, Claim, Job, Row, Size, Study, Summary, series, spread
from koopcore.lab.studies.decays import FAST_RATES, decays
from koopcore.lab.studies.endpoint_job import endpoint_job, equal_groups, one_group

if TYPE_CHECKING:
    from matplotlib.axes import Axes

N = 16
HORIZONS = (1, 10, 100, 1000, 10_000, 100_000)
RACES = {"groups of 65": 65, "groups of 256": 256, "one group": 0}
TOTAL = {Size.full: 10**6, Size.quick: 2 * 10**5, Size.once: 10**4}


def cases(size: Size) -> list[Case]:
    return [
        Case(race, f"T = {t}", t, (m, TOTAL[size])) for race, m in RACES.items() for t in HORIZONS
    ]


def build(case: Case) -> Job:
    m, total = case.options
    part = equal_groups(total // m, m) if m else one_group(total)
    return endpoint_job(decays(N, part.size, FAST_RATES), part, int(case.x))


def summary(rows: Sequence[Row]) -> Summary:
    claims = []
    for race in RACES:
        _, seconds = series(rows, race)
        slowest = spread(seconds, len(HORIZONS))
        claims.append(Claim(f"{race}: slowest / fastest horizon", slowest, 1.2, True))
    return Summary({}, claims, [])


def draw(axes: Axes, rows: Sequence[Row]) -> None:
    plots.connected(axes, rows)


STUDY = Study("horizon", __doc__.splitlines()[0], "horizon T", cases, build, summary, draw)
