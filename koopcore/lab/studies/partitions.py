"""What does the partition cost, on equal parameters?

The 2.5 million parameters of a network of four layers, n = 16 snapshots in float32, horizon 100,
grouped in five ways. A prediction of single weights is cheap and rarely right; it is left out of
the claim, as are groups too small for a fit on the snapshot side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import koopcore as kc
from koopcore.lab.bench import plots
from koopcore.lab.bench.study import Case, Claim, Job, Row, Size, Study, Summary, spread
from koopcore.lab.studies.decays import decays
from koopcore.lab.studies.endpoint_job import endpoint_job

if TYPE_CHECKING:
    from matplotlib.axes import Axes

N, HORIZON = 16, 100
SHAPES = {
    Size.full: [(1000, 784, True), (1000, 1000, True), (700, 1000, True)],
    Size.quick: [(300, 784, True), (300, 300, True), (300, 300, True)],
    Size.once: [(30, 78, True), (30, 30, True), (30, 30, True)],
}
PARTITIONS = ("network", "layers", "nodes", "quasi-nodes of 100", "weights")


def cases(size: Size) -> list[Case]:
    return [Case("partitions", name, options=size) for name in PARTITIONS]


def build(case: Case) -> Job:
    layout = kc.Layout.from_shapes(SHAPES[case.options])
    if case.name.startswith("quasi-nodes"):
        part = kc.Partition.quasi_nodes(layout, 100)
    else:
        part = getattr(kc.Partition, case.name)(layout)
    return endpoint_job(decays(N, layout.size), part, HORIZON)


def summary(rows: Sequence[Row]) -> Summary:
    seconds = {row.case: row.seconds for row in rows}
    whole = seconds.get("network") or float("nan")
    notes = [f"{name}: {s / whole:.2f} times network" for name, s in seconds.items() if s]
    slowest = spread([seconds.get(name) for name in PARTITIONS[:-1]], len(PARTITIONS) - 1)
    claim = Claim("slowest / fastest partition, weights apart", slowest, 1.3, True)
    return Summary({}, [claim], notes)


def draw(axes: Axes, rows: Sequence[Row]) -> None:
    plots.time_bars(axes, rows)


STUDY = Study("partitions", __doc__.splitlines()[0], "", cases, build, summary, draw)
