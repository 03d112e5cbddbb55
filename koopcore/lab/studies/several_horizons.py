"""What do several horizons cost beside one, and are trajectories written as fast as memory allows?

n = 16 snapshots in float32. Eight horizons of one prediction share the rollout and the read of the
snapshots. A trajectory of T snapshots is T writes for n reads; it is compared with zeros written
to as much memory, past the caches or not, whichever is faster: both into memory that is new to the
process, as `trajectory` returns it, and into an array that was written to before, as the stage
`combine` itself is given.
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
from koopcore.lab.bench.race_cache import shared
from koopcore.lab.bench.study import Case, Claim, Job, Row, Size, Study, Summary, seconds_of
from koopcore.lab.studies import decays
from koopcore.lab.studies.endpoint_job import equal_groups, one_group

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

TOTAL = {Size.full: 650_000, Size.quick: 100_000, Size.once: 10_000}


def cases(size: Size) -> list[Case]:
    found = []
    for load, m in LOADS.items():
        options = (m, TOTAL[size])
        for what in ("fit and predict", "predict"):
            found += [
                Case(f"{load}, {what}", "one horizon", 1, options),
                Case(f"{load}, {what}", "eight horizons", 8, options),
            ]
        found += [
            Case(f"{load}, trajectory", name, LONGEST, options)
            for name in ("trajectory", "combine", *ZEROS)
        ]
    return found


@shared
def _fitted(m: int, total: int) -> tuple[decays.Decays, kc.Partition, Any]:
    part = equal_groups(total // m, m) if m else one_group(total)
    data = decays.decays(N, part.size)
    return data, part, kc.fit(data.rows, part)


@shared
def _written(size: int) -> npt.NDArray[np.float32]:
    """Memory for a trajectory that the process has already."""
    return np.ones((LONGEST, size), np.float32)


def build(case: Case) -> Job:
    data, part, ops = _fitted(*case.options)
    if not case.race.endswith("trajectory"):
        horizons = EIGHT if case.x == 8 else EIGHT[-1:]
        call = (
            (lambda: ops.predict(horizons))
            if case.race.endswith(", predict")
            else lambda: kc.fit(data.rows, part, horizon=horizons).predict(horizons)
        )
        return Job(
            call=call,
            error=lambda out: decays.error(data, part, out[-1], horizons[-1]),
            bound=decays.bound(data, part, horizons[-1]),
        )
    size = 4.0 * LONGEST * part.size
    if case.name in ZEROS:
        fresh, past = ZEROS[case.name]

        def zeros() -> npt.NDArray[np.float32]:
            out = np.empty((LONGEST, part.size), np.float32) if fresh else _written(part.size)
            probes.write(out, past)
            return out

        return Job(
            call=zeros,
            error=lambda out: float(np.abs(out[:, 32:-32]).max()),
            bound=0.0,
            figures={"bytes": size},
            engine=False,
        )
    steps = range(1, LONGEST + 1)
    weights = _weights(data, part, steps)

    def combine() -> npt.NDArray[np.float32]:
        out = _written(part.size)
        backend_for("cpu").combine(_window(data), part, weights, out)
        return out

    return Job(
        call=combine if case.name == "combine" else lambda: ops.trajectory(LONGEST),
        error=lambda out: decays.error(data, part, out[-1], LONGEST),
        bound=decays.bound(data, part, LONGEST),
        figures={"bytes": size},
    )


def _window(data: decays.Decays) -> Snapshots:
    return Snapshots(data.rows, np.arange(len(data.rows)))


def _weights(data: decays.Decays, part: kc.Partition, steps: range) -> npt.NDArray[Any]:
    gram = backend_for("cpu").gram(_window(data), part)
    solved = backend_for("cpu").solve(gram, len(data.rows), True, 4)
    weights: npt.NDArray[Any] = backend_for("cpu").rollout(solved.coefficients, True, list(steps))[
        0
    ]
    return weights


def summary(rows: Sequence[Row]) -> Summary:
    claims, notes = [], []
    for load in LOADS:
        for what in ("fit and predict", "predict"):
            race = f"{load}, {what}"
            ratio = seconds_of(rows, race, "eight horizons") / seconds_of(rows, race, "one horizon")
            claims.append(Claim(f"{race}: eight horizons / one", ratio, 1.5, True))
        race = f"{load}, trajectory"
        for case, new in (("combine", False), ("trajectory", True)):
            probe = min(
                seconds_of(rows, race, z) for z, (fresh, _) in ZEROS.items() if fresh is new
            )
            share = probe / seconds_of(rows, race, case)
            where = "new memory" if new else "memory that is there"
            claims.append(Claim(f"{load}: {case} / writing zeros to {where}", share, 0.7, False))
    for row in rows:
        if row.seconds and "bytes" in row.figures:
            notes.append(
                f"{row.race}: {row.case} {row.figures['bytes'] / row.seconds / 1e9:.1f} GB/s"
            )
    return Summary({}, claims, notes)


def draw(axes: Axes, rows: Sequence[Row]) -> None:
    own = [row for row in rows if row.seconds and "bytes" in row.figures]
    names = [f"{row.race.split(',')[0]}: {row.case}" for row in own]
    rates = [row.figures["bytes"] / (row.seconds or 1.0) / 1e9 for row in own]
    plots.bars(axes, names, rates, "GB/s written")


STUDY = Study("several-horizons", __doc__.splitlines()[0], "", cases, build, summary, draw)
