"""What do several horizons cost beside one, and how near to the roofs are trajectories written?

n = 16 snapshots in float32. Eight horizons of one prediction share the rollout and the read of the
snapshots. A trajectory of T snapshots is T writes, each number of which takes n multiply-adds in
float64; its roofs are multiply-adds in registers, and zeros written to as much memory, past the
caches or not, whichever is faster: both into memory that is new to the process, as `trajectory`
returns it, and into an array that was written to before, as the stage `combine` itself is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import koopcore as kc
from koopcore.backends import backend_for
from koopcore.backends.protocol import Snapshots
from koopcore.lab.bench import plots, probes
from koopcore.lab.bench.roofs import MULTIPLY_ADDS, multiply_add_job, roofs_of, share_of
from koopcore.lab.bench.study import Case, Job, Row, Share, Size, Study, Summary, seconds_of, shared
from koopcore.lab.studies import workloads
from koopcore.lab.studies.workloads import Decays, groups_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

N, LONGEST, EIGHT = 16, 128, (1, 2, 4, 8, 16, 32, 64, 100)
LOADS = {"groups of 65": 65, "groups of 257": 257, "one group": 0}
ZEROS = {
    "zeros, new memory": (True, True),
    "zeros, new memory, by way of the caches": (True, False),
    "zeros": (False, True),
    "zeros, by way of the caches": (False, False),
}
"""Name -> whether the memory is new, whether the stores are non-temporal."""

WRITERS = {"combine": False, "trajectory": True}
"""What writes a trajectory, and whether its memory is new."""

TOTAL = {Size.full: 650_000, Size.quick: 100_000, Size.once: 10_000}


def cases(size: Size) -> list[Case]:
    cases = []
    for load, m in LOADS.items():
        options = (m, TOTAL[size])
        for what in ("fit and predict", "predict"):
            cases += [
                Case(f"{load}, {what}", "one horizon", 1, options),
                Case(f"{load}, {what}", "eight horizons", 8, options),
            ]
        cases += [
            Case(f"{load}, trajectory", name, LONGEST, options)
            for name in (*WRITERS, MULTIPLY_ADDS, *ZEROS)
        ]
    return cases


@shared
def _fitted(m: int, total: int) -> tuple[Decays, kc.Partition, Any]:
    part = groups_of(m, total)
    data = workloads.decays(N, part.size)
    return data, part, kc.fit(data.rows, part)


@shared
def _written(size: int) -> npt.NDArray[np.float32]:
    """Memory for a trajectory that the process has already."""
    return np.ones((LONGEST, size), np.float32)


def build(case: Case) -> Job:
    if case.name == MULTIPLY_ADDS:
        return multiply_add_job()
    data, part, ops = _fitted(*case.options)
    if case.race.endswith("trajectory"):
        if case.name in ZEROS:
            return _zeros_job(part.size, *ZEROS[case.name])
        return _trajectory_job(case, data, part, ops)
    horizons = EIGHT if case.x == 8 else EIGHT[-1:]
    predicts_only = case.race.endswith(", predict")

    def call() -> Any:
        fitted = ops if predicts_only else kc.fit(data.rows, part, horizon=horizons)
        return fitted.predict(horizons)

    return Job(
        call=call,
        error=lambda out: workloads.error(data, part, out[-1], horizons[-1]),
        bound=workloads.bound(data, part, horizons[-1]),
    )


def _zeros_job(size: int, new: bool, past_caches: bool) -> Job:
    def zeros() -> npt.NDArray[np.float32]:
        out = np.empty((LONGEST, size), np.float32) if new else _written(size)
        probes.write(out, past_caches)
        return out

    return Job(
        call=zeros,
        error=lambda out: float(np.abs(out[:, 32:-32]).max()),
        bound=0.0,
        figures={"bytes": 4.0 * LONGEST * size},
        engine=False,
    )


def _trajectory_job(case: Case, data: Decays, part: kc.Partition, ops: Any) -> Job:
    backend, window = backend_for("cpu"), Snapshots(data.rows, np.arange(N))
    solved = backend.solve(backend.gram(window, part), N, True, N // 4)
    weights = backend.rollout(solved.coefficients, True, list(range(1, LONGEST + 1)))[0]

    def combine() -> npt.NDArray[np.float32]:
        out = _written(part.size)
        backend.combine(window, part, weights, out)
        return out

    return Job(
        call=combine if case.name == "combine" else lambda: ops.trajectory(LONGEST),
        error=lambda out: workloads.error(data, part, out[-1], LONGEST),
        bound=workloads.bound(data, part, LONGEST),
        figures={"flops": 2.0 * LONGEST * N * part.size, "bytes": 4.0 * LONGEST * part.size},
    )


def _shares(rows: Sequence[Row]) -> list[Share]:
    shares = []
    for row in rows:
        if row.case in WRITERS:
            new = WRITERS[row.case]
            writers = [name for name, (fresh, _) in ZEROS.items() if fresh is new]
            roofs = roofs_of(rows, row.race, writers)
            shares.append(share_of(f"{row.race.split(',')[0]}: {row.case}", row, roofs))
    return shares


def summary(rows: Sequence[Row]) -> Summary:
    notes = []
    for load in LOADS:
        for what in ("fit and predict", "predict"):
            race = f"{load}, {what}"
            ratio = seconds_of(rows, race, "eight horizons") / seconds_of(rows, race, "one horizon")
            notes.append(f"{race}: eight horizons take {ratio:.2f} times as long as one")
    for row in rows:
        if row.seconds and row.case in (*WRITERS, *ZEROS):
            rate = row.figures["bytes"] / row.seconds / 1e9
            notes.append(f"{row.race}: {row.case} {rate:.1f} GB/s")
    return Summary(shares=_shares(rows), notes=notes)


def draw(axes: Axes, rows: Sequence[Row]) -> None:
    timed = [row for row in rows if row.seconds and row.case in (*WRITERS, *ZEROS)]
    names = [f"{row.race.split(',')[0]}: {row.case}" for row in timed]
    rates = [row.figures["bytes"] / (row.seconds or 1.0) / 1e9 for row in timed]
    plots.bars(axes, names, rates, "GB/s written")


STUDY = Study("several-horizons", __doc__.splitlines()[0], "", cases, build, summary, draw)
