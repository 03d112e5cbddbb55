"""How much memory do fit and predict take, beside the snapshots?

The most that a fresh process held at once during one call, less what it held before, as the system
counts it (Linux: VmHWM after a reset of the mark). n = 16 snapshots in float32, groups of 65 and
one group; the endpoint itself is 1/16 of the snapshots.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import koopcore as kc
from koopcore.lab.bench import plots
from koopcore.lab.bench.powers import Power, powers_of
from koopcore.lab.bench.study import Case, Job, Row, Size, Study, Summary, Unavailable
from koopcore.lab.studies.workloads import HORIZON, decays, endpoint_job, groups_of, one_group

if TYPE_CHECKING:
    from matplotlib.axes import Axes

N = 16
SIZES = {
    Size.full: [65 * 10**4, 65 * 3 * 10**4, 65 * 10**5, 65 * 3 * 10**5],
    Size.quick: [65 * 10**4],
    Size.once: [65 * 10**3],
}
RACES = {"groups of 65": 65, "one group": 0}
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""So that glibc keeps nothing that was freed, whose reuse would not be counted."""
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def cases(size: Size) -> list[Case]:
    return [Case(race, f"P = {p:.1e}", p, m) for race, m in RACES.items() for p in SIZES[size]]


def build(case: Case) -> Job:
    size = int(case.x)
    data, part = decays(N, size), groups_of(case.options, size)
    job = endpoint_job(data, part, most=5)
    # A fresh process: what an earlier case freed may still belong to this one.
    command = [sys.executable, "-m", __name__, str(case.options), str(size)]
    done = subprocess.run(command, env=os.environ | GIVEN_BACK, capture_output=True, text=True)
    if done.returncode:
        raise Unavailable(f"the peak of a process: {done.stderr.strip().splitlines()[-1]}")
    job.figures["peak_bytes"] = float(done.stdout)
    return job


def peak_of(call: Callable[[], Any]) -> int:
    """Bytes that the process held at most during ``call`` above what it held before.

    Raises OSError or KeyError where the system does not tell.
    """
    before = _kilobytes("VmRSS")
    RESET.write_text("5", encoding="ascii")
    call()
    return 1024 * (_kilobytes("VmHWM") - before)


def _kilobytes(name: str) -> int:
    for line in STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise KeyError(name)


def main(m: int, size: int) -> int:
    """The peak of fit and predict, after a small fit that loads all code."""
    small = decays(N, 65)
    kc.fit(small.rows, one_group(65), horizon=HORIZON).predict(HORIZON)
    data, part = decays(N, size), groups_of(m, size)
    return peak_of(lambda: kc.fit(data.rows, part, horizon=HORIZON).predict(HORIZON))


def summary(rows: Sequence[Row]) -> Summary:
    powers: dict[str, Power] = {}
    notes = []
    for race in dict.fromkeys(row.race for row in rows):
        timed = [row for row in rows if row.race == race and row.seconds is not None]
        for row in timed:
            snapshots, peak = row.figures["bytes"], row.figures["peak_bytes"]
            notes.append(f"{race}, {row.case}: {peak / snapshots:.2f} times the snapshots")
        peaks = [row.figures["peak_bytes"] for row in timed]
        fitted = powers_of(race, [row.x for row in timed], peaks, fixed=False)
        powers |= {label: power._replace(unit="bytes") for label, power in fitted.items()}
    return Summary(powers, notes=notes)


def draw(axes: Axes, rows: Sequence[Row]) -> None:
    timed = [row for row in rows if row.seconds is not None]
    names = [f"{row.race}, {row.case}" for row in timed]
    shares = [row.figures["peak_bytes"] / row.figures["bytes"] for row in timed]
    plots.share_bars(axes, names, shares, "times the snapshots")


STUDY = Study("memory", __doc__.splitlines()[0], "parameters", cases, build, summary, draw)

if __name__ == "__main__":
    print(main(*map(int, sys.argv[1:])))
