"""What shapes that were slow once cost now, each beside the goal that was set for it.

Long windows are those of the first paper's own network, 1-10-10-2: ten of them, 220 groups of 2 and
11 parameters over 10,000 snapshots. NumPy stands beside them with what a fit cannot do without, C,
E and a solve for each group, and without the prediction. Torch does batched Cholesky in blocks on
threads, as in the study "peers", and in one call on its own threads, as it is mostly written.
Whether any peer is faster anywhere is the question of the study "shapes".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import koopcore as kc
from koopcore.lab.bench import plots
from koopcore.lab.bench.study import Case, Claim, Job, Row, Size, Study, Summary, seconds_of, shared
from koopcore.lab.studies import roofline, several_horizons
from koopcore.lab.studies.peers import study as peers
from koopcore.lab.studies.peers.powers import powered, summed
from koopcore.lab.studies.roofline import BACKENDS
from koopcore.lab.studies.shapes import PULL, RIGHT, least_squares, missed
from koopcore.lab.studies.workloads import HORIZON, decays, endpoint_job, workload
from koopcore.types import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ENGINE = BACKENDS[0]
NETWORKS, SNAPSHOTS = {Size.full: 10, Size.quick: 2, Size.once: 1}, {Size.full: 10_000}
FEWER_SNAPSHOTS = 500  # of smaller runs
MILLISECONDS = {"float32": 8.0, "float64": 15.0}
TIMES_NUMPY = 12.0  # of float64
NUMPY = "NumPy: C, E and a solve per group"
KINDS = tuple(product(("float64", "float32"), ("linear", "affine")))
WEIGHTS = {Size.full: (1000, 999), Size.quick: (100, 999), Size.once: (10, 99)}  # of one layer
NETWORKS_A_WEIGHT = 4.0  # times
ROOFED, ROOF = ("W1", "W2", "network"), 0.7
BLOCKS, ONE_CALL = "torch batched Cholesky, blocks on threads", "torch batched Cholesky, one call"
TIMES_TORCH = {"W1": 35.0, "W2": 15.0, "W3": 35.0}
SMALL, MICROSECONDS = "small, one group of 152", 15.0
TIMES_ONE_HORIZON = 1.5
CHECKED = 7  # groups


def long_race(dtype: str, model: str) -> str:
    return f"long windows, {dtype}, {model}"


def cases(size: Size) -> list[Case]:
    window = NETWORKS[size], SNAPSHOTS.get(size, FEWER_SNAPSHOTS)
    found = [
        Case(long_race(*kind), name, options=partial(_long_job, *kind, *window))
        for kind in KINDS
        for name in (*BACKENDS, NUMPY)
    ]
    found += [
        Case("one layer, n = 16", name, options=partial(_layer_job, WEIGHTS[size]))
        for name in ("weights", "network")
    ]
    found += [
        Case(case.race, case.name, options=partial(_elsewhere, roofline.ENDPOINT, case))
        for case in roofline.ENDPOINT.cases(size)
        if case.race.split(",")[0] in ROOFED and case.name != BACKENDS[1]
    ]
    found += [
        Case(f"{load}, torch", name, options=partial(_torch_job, load, size))
        for load in TIMES_TORCH
        for name in (ENGINE, BLOCKS, ONE_CALL)
    ]
    found.append(Case(SMALL, ENGINE, options=partial(_small_job, size)))
    return found + [
        Case(case.race, case.name, case.x, partial(_elsewhere, several_horizons.STUDY, case))
        for case in several_horizons.STUDY.cases(size)
        if case.race.endswith("fit and predict")
    ]


def build(case: Case) -> Job:
    job: Job = case.options(case.name)
    return job


def _elsewhere(study: Study, case: Case, name: str) -> Job:
    return study.build(case)


# -- long windows ----------------------------------------------------------------------------------


@shared
def _long_window(
    networks: int, n: int, dtype: str
) -> tuple[npt.NDArray[Any], kc.Partition, list[npt.NDArray[Any]]]:
    """Snapshots, the nodes of all networks, and the columns of each."""
    one = kc.Layout.from_shapes([(10, 1, True), (10, 10, True), (2, 10, True)])
    nodes = kc.Partition.nodes(one)
    columns = [
        nodes.indices(g) + k * one.size for k in range(networks) for g in range(nodes.n_groups)
    ]
    x = np.random.default_rng(7).standard_normal((n, networks * one.size))
    for k in range(1, n):
        x[k] += PULL * x[k - 1]
    return x.astype(dtype), kc.Partition.groups(networks * one.size, columns), columns


def _long_job(dtype: str, model: str, networks: int, n: int, name: str) -> Job:
    x, part, columns = _long_window(networks, n, dtype)
    affine = model == "affine"
    some = [round(g) for g in np.linspace(0, len(columns) - 1, CHECKED)]
    if name == NUMPY:

        def operators() -> list[FloatArray]:
            return [_operator(x[:, of], affine) for of in columns]

        def worst(operators: list[FloatArray]) -> float:
            return max(
                _missed(x[:, columns[g]], affine, _rolled(x[:, columns[g]], affine, operators[g]))
                for g in some
            )

        return Job(operators, worst, RIGHT, most=10, engine=False)

    def call() -> Any:
        return kc.fit(x, part, model, backend=name, horizon=HORIZON).predict(HORIZON)

    def error(out: npt.NDArray[Any]) -> float:
        return max(_missed(x[:, columns[g]], affine, out[columns[g]]) for g in some)

    return Job(call, error, RIGHT, most=60)


def _operator(x: npt.NDArray[Any], affine: bool) -> FloatArray:
    """U, or A of the differences, of one group (n, m)."""
    rows = np.ascontiguousarray(x).astype(np.float64)
    d = np.diff(rows, axis=0) if affine else rows
    f, ahead = d[:-1], d[1:]
    operator: FloatArray = np.linalg.solve(f.T @ f, f.T @ ahead).T
    return operator


def _rolled(x: npt.NDArray[Any], affine: bool, operator: FloatArray) -> FloatArray:
    last = x[-1].astype(np.float64)
    if not affine:
        return powered(operator, last[:, None], HORIZON)[:, 0]
    step = operator @ (last - x[-2])
    return last + summed(operator, step[:, None], HORIZON)[:, 0]


def _missed(x: npt.NDArray[Any], affine: bool, predicted: npt.NDArray[Any]) -> float:
    return missed(predicted, least_squares(x, affine), x[-1])


# -- the others ------------------------------------------------------------------------------------


def _layer_job(shape: tuple[int, int], name: str) -> Job:
    layout = kc.Layout.from_shapes([(*shape, True)])
    part = kc.Partition.weights(layout) if name == "weights" else kc.Partition.network(layout)
    return endpoint_job(decays(16, part.size), part, backend=ENGINE)


def _small_job(size: Size, name: str) -> Job:
    load = workload("small", size)
    part = load.partition()
    return endpoint_job(decays(load.n, part.size), part, backend=name, most=20_000)


def _torch_job(load: str, size: Size, name: str) -> Job:
    of = "torch batched Cholesky" if name in (BLOCKS, ONE_CALL) else name
    job = peers.build(Case(load, of, options=workload(load, size)))
    if name != ONE_CALL:
        return job
    endpoint: Callable[..., npt.NDArray[Any]] = peers.PEERS[of].load()
    groups, _ = peers.grouped(workload(load, size))
    return Job(lambda: endpoint(groups, HORIZON), job.error, job.bound, most=12, engine=False)


def summary(rows: Sequence[Row]) -> Summary:
    claims, notes = [], []
    for dtype, model in KINDS:
        race = long_race(dtype, model)
        ours = seconds_of(rows, race, ENGINE)
        claims.append(Claim(f"{race}: ms", 1e3 * ours, MILLISECONDS[dtype], True))
        times = seconds_of(rows, race, NUMPY) / ours
        if dtype == "float64":
            claims.append(Claim(f"{race}: times NumPy", times, TIMES_NUMPY, False))
        compiled = 1e3 * seconds_of(rows, race, BACKENDS[1])
        notes.append(f"{race}: NumPy takes {times:.3g} times as long, numba_cpu {compiled:.3g} ms")
    layer = [seconds_of(rows, "one layer, n = 16", name) for name in ("weights", "network")]
    claims.append(Claim("weights / network", layer[0] / layer[1], NETWORKS_A_WEIGHT, True))
    shares = roofline.ENDPOINT.summary([row for row in rows if _is_roofed(row)]).shares
    claims += [Claim(f"{one.text}: of the roof", one.roof, ROOF, False) for one in shares]
    for load, goal in TIMES_TORCH.items():
        ours = seconds_of(rows, f"{load}, torch", ENGINE)
        for name in (ONE_CALL, BLOCKS):
            times = seconds_of(rows, f"{load}, torch", name) / ours
            if name == ONE_CALL:
                claims.append(Claim(f"{load}: {name} / {ENGINE}", times, goal, False))
            else:
                notes.append(f"{load}: {name} / {ENGINE} = {times:.3g}")
    small = 1e6 * seconds_of(rows, SMALL, ENGINE)
    claims.append(Claim(f"{SMALL}, fit and predict: µs", small, MICROSECONDS, True))
    for load in several_horizons.LOADS:
        race = f"{load}, fit and predict"
        times = seconds_of(rows, race, "eight horizons") / seconds_of(rows, race, "one horizon")
        claims.append(Claim(f"{race}: eight horizons / one", times, TIMES_ONE_HORIZON, True))
    return Summary(shares=shares, claims=[c for c in claims if math.isfinite(c.value)], notes=notes)


def _is_roofed(row: Row) -> bool:
    return row.race.split(",")[0] in ROOFED and row.race.endswith(("warm", "cold"))


def draw(axes: Axes, rows: Sequence[Row]) -> None:
    """Each claim as a share of its goal: left of 1 is not met."""
    claims = summary(rows).claims
    met = [c.limit / c.value if c.at_most else c.value / c.limit for c in claims]
    plots.bars(axes, [claim.text for claim in claims], met, "of the goal")


STUDY = Study(
    "goals",
    "What do shapes that were slow once cost now, beside the goals set for them?",
    "",
    cases,
    build,
    summary,
    draw,
    by_name=True,
)
