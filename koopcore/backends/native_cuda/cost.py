"""What an endpoint costs by stages and in one pass: for which groups one pass is worth its work.

A model of seconds, linear in `Costs`. By stages the snapshots are read twice and a lane fits a
group, which takes as long for one group as for LANES of them. In one pass they are read once and a
warp fits a group, which takes as long for one as for WARPS of them, and longer where so few groups
fill the shared memory of a multiprocessor that it waits for them.

The constants are of one kind of device, not of the one that runs: which way groups go, and with it
the last bits of results, depends on sizes and windows alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

LANES = 30_000  # groups, a lane each, from which on more of them take longer
WARPS = 2_000  # the same, a warp each
ROOM = 16 * 1024  # bytes of a group up to which enough groups share a multiprocessor
WINDOW = 16  # the snapshots of a window that the constants of work are for


class Costs(NamedTuple):
    """Seconds."""

    launch: float  # of a kernel
    byte: float  # of memory, read or written
    solve: float  # a lane's factorization, as n³
    roll: float  # a lane's step of the rollout, as n
    fit: float  # a warp's factorization, one of many, as n²
    step: float  # a warp's step of the rollout, one of many


# Not measured: of an H100 by its bandwidth, by the instructions of the loops in machine code, and
# by how long lanes wait for shared memory (docs/notes-cuda-kernels.md). benchmarks/gpu_report.py
# measures them; what it has under "costs" belongs here.
COSTS = Costs(launch=2.5e-6, byte=3.3e-13, solve=36e-6, roll=2e-8, fit=2.8e-9, step=1.2e-11)


def stages(costs: Costs, groups: int, size: Any, n: int, steps: int, width: int) -> Any:
    """Seconds for equal groups of ``size`` numbers of ``width`` bytes; sizes may be an array."""
    bytes_of_all = groups * size * width * (2 * n + 1)
    waiting = max(1.0, groups / LANES)
    work = costs.solve * (n / WINDOW) ** 3 + costs.roll * (n / WINDOW) * steps
    return 5 * costs.launch + costs.byte * bytes_of_all + work * waiting


def one_pass(costs: Costs, groups: int, size: Any, n: int, steps: int, width: int) -> Any:
    """The same in one pass."""
    bytes_of_all = groups * size * width * (n + 1)
    busy = np.maximum(groups * np.maximum(1.0, n * size * width / ROOM), WARPS)
    work = costs.fit * (n / WINDOW) ** 2 + costs.step * steps
    return 3 * costs.launch + costs.byte * bytes_of_all + work * busy


def worthwhile(
    costs: Costs, sizes: npt.NDArray[Any], n: int, steps: int, width: int
) -> npt.NDArray[np.bool_]:
    """Which groups of such ``sizes`` are better off in one pass. Launches do not count: where both
    ways are gone, all of them are there anyway."""
    costs = costs._replace(launch=0.0)
    chosen = np.zeros(len(sizes), dtype=np.bool_)
    for _ in range(2):  # those for which one pass is not worth it wait with fewer others
        groups = int(np.count_nonzero(~chosen))
        of_rest = (groups, sizes.astype(np.float64), n, steps, width)
        chosen |= stages(costs, *of_rest) > one_pass(costs, *of_rest)
    return chosen


class Timing(NamedTuple):
    """Seconds of an endpoint of equal groups, by stages and in one pass."""

    groups: int
    size: int
    n: int
    steps: int
    width: int
    stages: float
    one_pass: float


def fitted(timings: list[Timing]) -> tuple[Costs, float]:
    """The costs by which the model is nearest to what was timed, and its largest relative error.

    Least squares of relative errors; what would be less than nothing is nothing.
    """
    rows = [
        np.array([way(unit, *timing[:5]) / seconds for unit in map(Costs._make, np.eye(6))])
        for timing in timings
        for way, seconds in ((stages, timing.stages), (one_pass, timing.one_pass))
    ]
    matrix = np.array(rows, dtype=np.float64)
    scale = np.linalg.norm(matrix, axis=0)
    used = scale > 0.0
    found = np.zeros(6)
    while used.any():
        found[:] = 0.0
        scaled = matrix[:, used] / scale[used]
        found[used] = np.linalg.lstsq(scaled, np.ones(len(rows)), rcond=None)[0] / scale[used]
        if (found >= 0.0).all():
            break
        used[int((found * scale).argmin())] = False
    return Costs(*map(float, found)), float(abs(matrix @ found - 1.0).max())
