"""How near does each stage of the engine come to what the machine can do?

Roofs: multiply-adds per second of all threads in registers, and bytes per second of reading the
snapshots themselves by the fastest of several loops, in the state in which the stages meet them:
call after call. Stages: gram, solve, rollout (one horizon of 100) and combine, on float32
snapshots. Flops are those that the algorithm needs, m n(n+1) for the Gram matrix of a group;
conversions from float32 and differences come on top. Bytes are what has to be read and written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from koopcore.backends import backend_for
from koopcore.backends.protocol import Snapshots, packed_size
from koopcore.lab.bench import plots, probes
from koopcore.lab.bench.machine_code import FMA_CHAINS
from koopcore.lab.bench.race_cache import shared
from koopcore.lab.bench.study import Case, Job, Row, Size, Study, Summary, races_of, seconds_of
from koopcore.lab.studies.decays import decays
from koopcore.lab.studies.endpoint import (
    HORIZON,
    READS,
    Workload,
    fastest_read,
    read_job,
    workload,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = {"gram": "o", "solve": "s", "rollout": "D", "combine": "^"}
STAGES = tuple(MARKERS)
LOOP, TURNS = "multiply-adds", 100_000
LOADS = ("W1", "W2", "network")  # W3 is on the feature side: one stage does all of it
CHECKED = 30  # groups that the reference does again


def cases(size: Size) -> list[Case]:
    return [
        Case(name, case, options=workload(name, size))
        for name in LOADS
        for case in (LOOP, *READS, *STAGES)
    ]


class Stages:
    """The stages of one workload, their inputs and results."""

    def __init__(self, load: Workload) -> None:
        self.part = load.partition()
        self.data = decays(load.n, self.part.size)
        self.window = Snapshots(self.data.rows, np.arange(load.n))
        self.n, self.groups = load.n, self.part.n_groups
        self.gram = backend_for("cpu").gram(self.window, self.part)
        self.solved = backend_for("cpu").solve(self.gram, load.n, True, self.holdout)
        self.weights = backend_for("cpu").rollout(self.solved.coefficients, True, [HORIZON])[0]
        self.out = np.empty((1, self.part.size), np.float32)

    @property
    def holdout(self) -> int:
        return self.n // 4

    def call(self, name: str, backend: str | None = None, groups: int | None = None) -> Any:
        """Run a stage on all groups, or the first ``groups``."""
        run, first = getattr(backend_for("cpu", backend), name), slice(groups)
        part = self.part if groups is None else self.part.subset(np.arange(groups))
        if name == "gram":
            return run(self.window, part)
        if name == "solve":
            return run(self.gram[first], self.n, True, self.holdout)
        if name == "rollout":
            return run(self.solved.coefficients[first], True, [HORIZON])[0]
        run(self.window, part, self.weights[:, first], self.out)
        return self.out

    def work(self, name: str) -> dict[str, float]:
        """Flops and bytes that the stage cannot do without."""
        n, groups, size = self.n, self.groups, self.part.size
        columns = n - 2
        packed, snapshots = 8.0 * packed_size(n) * groups, 4.0 * n * size
        # Two fits: one without the last quarter, for the hindcast.
        solves = sum(c**3 / 3 + 2 * c**2 for c in (columns, columns - self.holdout))
        return {
            "gram": {"flops": 1.0 * size * n * (n + 1), "bytes": snapshots + packed},
            "solve": {"flops": groups * solves, "bytes": packed + 8.0 * groups * columns},
            "rollout": {
                "flops": 2.0 * groups * columns * HORIZON,
                "bytes": 8.0 * groups * (columns + n),
            },
            "combine": {"flops": 2.0 * size * n, "bytes": snapshots + 4.0 * size},
        }[name]


@shared
def _stages(load: Workload) -> Stages:
    return Stages(load)


def build(case: Case) -> Job:
    stages = _stages(case.options)
    if case.name == LOOP:
        return Job(
            call=lambda: probes.multiply_add(TURNS),
            error=lambda fixed_point: abs(fixed_point - 1.0 * FMA_CHAINS),
            bound=1e-6,
            figures={"flops": probes.flops_of_loop(TURNS)},
            engine=False,
        )
    if case.name in READS:
        return read_job(stages.data, READS[case.name])
    name = case.name
    error, bound = _check(stages, name)
    return Job(lambda: stages.call(name), error, bound, 1.0, stages.work(name), None, 60)


def _check(stages: Stages, name: str) -> tuple[Callable[[Any], float], float]:
    """Against the reference on the first groups, each in what it determines well."""
    few = min(stages.groups, CHECKED)
    if stages.part.size > 10**6 and stages.groups == 1 and name in ("gram", "combine"):
        return _check_of_large_group(stages, name)
    expected = stages.call(name, "reference", few)
    if name == "combine":
        columns = np.concatenate([stages.part.indices(g) for g in range(few)])
        expected = expected[:, columns].copy()
        # The result is rounded to float32, whose values here are below 8: 2^-22 of one.
        return lambda out: float(np.abs(out[:, columns] - expected).max()), 2.0**-20
    if name == "solve":
        # Coefficients of nearly dependent columns are not determined; their residual is.
        return lambda out: _relative(out.residual[:few], expected.residual), 1e-2
    if name == "rollout":
        return lambda out: _relative(out[:, :few], expected), 1e-6
    return lambda out: _relative(out[:few], expected), 1e-12


def _check_of_large_group(stages: Stages, name: str) -> tuple[Callable[[Any], float], float]:
    """In blocks, so that nothing of float64 is as large as the snapshots."""
    rows, size = stages.data.rows, stages.part.size
    if name == "gram":
        total = 0.0
        for begin in range(0, size, 1 << 18):
            d = np.diff(rows[:, begin : begin + (1 << 18)].astype(np.float64), axis=0)
            total += float(np.sum(d[-1] * d[-1]))
        # The last entry of the packed triangle is the square of the last difference.
        return lambda out: abs(out[0, -1] / total - 1.0), 1e-12
    w = stages.weights[0, 0]
    columns = np.arange(0, size, 1009)
    d = np.diff(rows[:, columns].astype(np.float64), axis=0)
    expected = rows[-1, columns] + (w[0] - 1.0) * rows[0, columns] + (w[1:] - 1.0) @ d
    return lambda out: float(np.abs(out[0, columns] - expected).max()), 2.0**-20


def _relative(found: Any, expected: Any) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def roofs(rows: Sequence[Row], race: str) -> tuple[float, float] | None:
    """Flops and bytes per second of a race's probes; None where either has no time."""
    own = {row.case: row for row in rows if row.race == race and row.seconds}
    reads = [name for name in READS if name in own]
    if LOOP not in own or not reads:
        return None
    flops = own[LOOP].figures["flops"] / seconds_of(rows, race, LOOP)
    return flops, own[reads[0]].figures["bytes"] / fastest_read(rows, race)


def shares(rows: Sequence[Row]) -> dict[tuple[str, str], tuple[float, float]]:
    """(race, stage) -> its flops and its bytes per second, as shares of the roofs."""
    found = {}
    for row in rows:
        top = roofs(rows, row.race)
        if top is not None and row.case in STAGES and row.seconds:
            flops, size = row.figures["flops"], row.figures["bytes"]
            found[row.race, row.case] = (
                flops / row.seconds / top[0],
                size / row.seconds / top[1],
            )
    return found


def summary(rows: Sequence[Row]) -> Summary:
    notes = []
    for race in races_of(rows):
        found = roofs(rows, race)
        if found is not None:
            notes.append(f"{race}: roofs {found[0] / 1e9:.1f} GFLOP/s, {found[1] / 1e9:.1f} GB/s")
    for (race, name), (flops, rate) in shares(rows).items():
        notes.append(f"{race}: {name} {100 * flops:.0f} % of flops, {100 * rate:.0f} % of bytes")
    return Summary({}, [], notes)


def draw(axes: Axes, rows: Sequence[Row]) -> None:
    """Every stage at its flops per byte, below its race's roofs."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    for k, race in enumerate(races_of(rows)):
        top = roofs(rows, race)
        if top is None:
            continue
        x, color = np.geomspace(0.05, 200, 200), f"C{k}"
        limit = np.minimum(top[0], top[1] * x) / 1e9
        axes.plot(x, limit, color=color, linewidth=1, label=f"{race}: roofs")
        for row in rows:
            if row.race == race and row.case in STAGES and row.seconds:
                flops = row.figures["flops"]
                at = (flops / row.figures["bytes"], flops / row.seconds / 1e9)
                axes.plot(*at, MARKERS[row.case], color=color)
                axes.annotate(row.case, at, textcoords="offset points", xytext=(5, 3), fontsize=7)
    axes.set_ylabel("GFLOP/s")
    plots.legend(axes)


STUDY = Study("roofline", __doc__.splitlines()[0], "flops per byte", cases, build, summary, draw)
