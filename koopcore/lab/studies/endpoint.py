"""How long does the whole job take, snapshots in and one endpoint out, beside one read of memory?

float32 snapshots, horizon 100, affine model, every backend. The read is of the same snapshots by
this machine's fastest reading loop, all threads; "warm" is call after call, "cold" after the
caches were filled with something else, for the engine and for the read alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import koopcore as kc
from koopcore.lab.bench import machine, machine_code, plots, probes
from koopcore.lab.bench.study import Case, Claim, Job, Row, Size, Study, Summary
from koopcore.lab.studies.decays import Decays, decays
from koopcore.lab.studies.endpoint_job import endpoint_job, one_group

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HORIZON = 100
BACKENDS = ("native_cpu", "numba_cpu")
READS = {f"read, {shape[0]} streams, {shape[2]} ahead": shape for shape in machine_code.READS}


class Workload(NamedTuple):
    """``groups`` units of ``fan_in`` inputs and a bias; fan_in 0: one group of everything."""

    groups: int
    fan_in: int
    n: int
    limit: float  # times one read that the job may take

    def partition(self) -> kc.Partition:
        if not self.fan_in:
            return one_group(self.groups)
        return kc.Partition.nodes(kc.Layout.from_shapes([(self.groups, self.fan_in, True)]))

    def smaller(self, factor: int) -> Workload:
        return self._replace(groups=max(self.groups // factor, 50))


WORKLOADS = {
    "W1": Workload(10_000, 64, 16, 1.5),
    "W2": Workload(2_000, 256, 24, 1.5),
    "W3": Workload(50_000, 10, 16, 3.0),
    "network": Workload(10_000_000, 0, 16, 1.5),
}
FACTOR = {Size.full: 1, Size.quick: 10, Size.once: 200}


def workload(name: str, size: Size) -> Workload:
    """A workload, its groups fewer where the run is small."""
    load = WORKLOADS[name]
    return load if size is Size.full else load.smaller(FACTOR[size])


def cases(size: Size) -> list[Case]:
    states = ("warm", "cold") if size is Size.full else ("warm",)
    return [
        Case(f"{name}, {state}", case, options=(workload(name, size), state))
        for name in WORKLOADS
        for state in states
        for case in (*BACKENDS, *READS)
    ]


def build(case: Case) -> Job:
    load, state = case.options
    part = load.partition()
    data = decays(load.n, part.size)
    before = partial(probes.evict, machine.last_level_cache()) if state == "cold" else None
    if case.name in READS:
        return read_job(data, READS[case.name], before)
    return endpoint_job(data, part, HORIZON, backend=case.name, before=before, most=40)


def read_job(
    data: Decays, shape: tuple[int, int, int], before: Callable[[], object] | None = None
) -> Job:
    """One read of the snapshots; right if it is the exclusive or of all the words it says."""
    rows = data.rows

    def error(result: tuple[int, int]) -> float:
        # What a loop leaves out at its end is less than a turn of every stream of every thread.
        missed = 1 - result[1] / rows.nbytes
        return missed if result == expected else float("nan")

    expected = probes.read(rows, shape)
    return Job(
        call=lambda: probes.read(rows, shape),
        error=error,
        bound=0.05,
        figures={"bytes": float(rows.nbytes)},
        before=before,
        most=40,
        engine=False,
    )


def fastest_read(rows: Sequence[Row], race: str) -> float:
    """Seconds of the fastest of the reading loops."""
    return min(
        (r.seconds for r in rows if r.race == race and r.case in READS and r.seconds),
        default=float("nan"),
    )


def summary(rows: Sequence[Row]) -> Summary:
    claims, notes = [], []
    for row in rows:
        if row.case in READS or row.seconds is None:
            continue
        times = row.seconds / fastest_read(rows, row.race)
        text = f"{row.race}: {row.case} / one read"
        if row.case == "native_cpu":
            claims.append(Claim(text, times, WORKLOADS[row.race.split(",")[0]].limit, True))
        else:
            notes.append(f"{text} = {times:.2f}")
    for race in dict.fromkeys(row.race for row in rows):
        size = next(row.figures.get("bytes", 0.0) for row in rows if row.race == race)
        rate = size / fastest_read(rows, race) / 1e9
        notes.append(f"{race}: one read is {size / 2**20:.0f} MiB at {rate:.1f} GB/s")
    return Summary({}, claims, notes)


def draw(axes: Axes, rows: Sequence[Row]) -> None:
    chosen = [row for row in rows if row.case not in READS and row.seconds]
    names = [f"{row.race}: {row.case}" for row in chosen]
    shares = [(row.seconds or 0.0) / fastest_read(rows, row.race) for row in chosen]
    plots.share_bars(axes, names, shares, "times one read of the snapshots")


STUDY = Study("endpoint", __doc__.splitlines()[0], "", cases, build, summary, draw)
