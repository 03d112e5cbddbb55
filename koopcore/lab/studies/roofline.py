"""How near do the whole job and each stage of the engine come to what the machine can do?

Two studies on the same workloads. ENDPOINT: snapshots in, one endpoint out, every backend; call
after call ("warm"), and after the caches were filled with something else ("cold"), for the engine
and for the probes alike. STAGE_BY_STAGE: gram, solve, rollout and combine one by one.

Flops are those that the algorithm needs, m n(n+1) for the Gram matrix of a group; conversions from
float32 and differences come on top. Bytes are what has to be read and written: of a single stage
also its Gram matrices or weights, of the whole job the snapshots and the endpoint only, because
everything between can stay in a cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from koopcore.backends import backend_for
from koopcore.backends.protocol import Snapshots, packed_size
from koopcore.lab.bench import machine, plots, probes
from koopcore.lab.bench.roofs import (
    PROBES,
    READS,
    Work,
    fastest,
    probe_job,
    roofs_of,
    share_of,
    sum_of,
    text_of,
)
from koopcore.lab.bench.study import (
    Case,
    Job,
    Row,
    Share,
    Size,
    Study,
    Summary,
    races_of,
    seconds_of,
    shared,
)
from koopcore.lab.studies.workloads import HORIZON, Workload, decays, endpoint_job, workload

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BACKENDS = ("native_cpu", "numba_cpu")
MARKERS = {"gram": "o", "solve": "s", "rollout": "D", "combine": "^"}
STAGES = tuple(MARKERS)
STAGE_LOADS = ("W1", "W2", "network")  # W3 is on the feature side: one stage does all of it
ENDPOINT_LOADS = ("W1", "W2", "W3", "network")
CHECKED = 30  # groups that the reference does again
SQUARING = 1024  # horizons above are reached by squaring polynomials, those below step by step


def holdout_of(n: int) -> int:
    """Snapshots that the second fit, for the hindcast, is not given."""
    return n // 4


def stage_work(load: Workload, horizons: Sequence[int] = (HORIZON,)) -> dict[str, Work]:
    """What each stage cannot do without, of groups with no fewer parameters than columns."""
    n, groups, size = load.n, load.partition().n_groups, load.partition().size
    columns, longest = n - 2, max(horizons)
    packed, snapshots = 8.0 * packed_size(n) * groups, 4.0 * n * size
    solves = sum(c**3 / 3 + 2 * c**2 for c in (columns, columns - holdout_of(n)))
    steps = 2.0 * columns * longest
    if longest > SQUARING:
        steps = 4.0 * columns**2 * np.log2(longest)
    weights = 8.0 * groups * n * len(horizons)
    return {
        "gram": Work(1.0 * size * n * (n + 1), snapshots + packed),
        "solve": Work(groups * solves, packed + 8.0 * groups * columns),
        "rollout": Work(groups * steps, 8.0 * groups * columns + weights),
        "combine": Work(
            2.0 * size * n * len(horizons), snapshots + weights + 4.0 * size * len(horizons)
        ),
    }


def feature_flops(load: Workload, horizon: int = HORIZON) -> float:
    """What groups of fewer parameters than columns need: two fits and the steps of the operator.

    Products F Fᵀ and F' Fᵀ (those of the fit for the hindcast by taking columns away), a Cholesky
    factorization with m right sides for each fit, and m² multiply-adds a step.
    """
    m, columns, holdout = load.m, load.n - 2, holdout_of(load.n)
    products = 2.0 * (m * (m + 1) / 2 + m**2) * (columns + holdout)
    fits = 2.0 * (m**3 / 3 + 2 * m**3)
    return load.groups * (products + fits + 2.0 * m**2 * (horizon + holdout))


def endpoint_work(load: Workload, horizons: Sequence[int] = (HORIZON,)) -> Work:
    """Fit and predict: the flops of all stages, the snapshots read and the endpoints written.

    The snapshots count twice, for Gram matrices and for the combination, between which the solve
    has to be; groups on the feature side need only the last one again.
    """
    part = load.partition()
    snapshots, out = 4.0 * load.n * part.size, 4.0 * part.size * len(horizons)
    if load.m < load.n - 2:
        return Work(feature_flops(load, max(horizons)), snapshots + out)
    return Work(sum_of(stage_work(load, horizons).values()).flops, 2.0 * snapshots + out)


def _endpoint_cases(size: Size) -> list[Case]:
    states = ("warm", "cold") if size is Size.full else ("warm",)
    return [
        Case(f"{name}, {state}", case, options=(workload(name, size), state))
        for name in ENDPOINT_LOADS
        for state in states
        for case in (*BACKENDS, *PROBES)
    ]


def _build_endpoint(case: Case) -> Job:
    load, state = case.options
    part = load.partition()
    data = decays(load.n, part.size)
    before = partial(probes.evict, machine.last_level_cache()) if state == "cold" else None
    if case.name in PROBES:
        return probe_job(case.name, data.rows, before)
    figures = endpoint_work(load).figures()
    return endpoint_job(data, part, backend=case.name, before=before, figures=figures, most=40)


def _endpoint_summary(rows: Sequence[Row]) -> Summary:
    notes = []
    for race in races_of(rows):
        roofs = roofs_of(rows, race)
        if roofs is not None:
            notes.append(f"{race}: {text_of(roofs)}")
        ratio = seconds_of(rows, race, BACKENDS[0]) / fastest(rows, race, READS)
        notes.append(f"{race}: {BACKENDS[0]} / one read of the snapshots = {ratio:.2f}")
    return Summary(shares=_shares(rows, BACKENDS), notes=notes)


def _shares(rows: Sequence[Row], cases: Sequence[str]) -> list[Share]:
    return [
        share_of(f"{row.race}: {row.case}", row, roofs_of(rows, row.race))
        for row in rows
        if row.case in cases
    ]


def _draw_endpoint(axes: Axes, rows: Sequence[Row]) -> None:
    shares = [share for share in _shares(rows, BACKENDS) if share.roof == share.roof]
    names, roofs = [share.text for share in shares], [share.roof for share in shares]
    plots.share_bars(axes, names, roofs, "share of the roof")


class Stages:
    """The stages of one workload, their inputs and results."""

    def __init__(self, load: Workload) -> None:
        self.load, self.part = load, load.partition()
        self.data = decays(load.n, self.part.size)
        self.window = Snapshots(self.data.rows, np.arange(load.n))
        self.n, self.groups = load.n, self.part.n_groups
        backend = backend_for("cpu")
        self.gram = backend.gram(self.window, self.part)
        self.solved = backend.solve(self.gram, load.n, True, holdout_of(load.n))
        self.weights = backend.rollout(self.solved.coefficients, True, [HORIZON])[0]
        self.out = np.empty((1, self.part.size), np.float32)

    def call(self, name: str, backend: str | None = None, groups: int | None = None) -> Any:
        """Run a stage on all groups, or the first ``groups``."""
        run, first = getattr(backend_for("cpu", backend), name), slice(groups)
        part = self.part if groups is None else self.part.subset(np.arange(groups))
        if name == "gram":
            return run(self.window, part)
        if name == "solve":
            return run(self.gram[first], self.n, True, holdout_of(self.n))
        if name == "rollout":
            return run(self.solved.coefficients[first], True, [HORIZON])[0]
        run(self.window, part, self.weights[:, first], self.out)
        return self.out

    def check(self, name: str) -> tuple[Callable[[Any], float], float]:
        """(error, bound) against the reference on the first groups, where well determined."""
        few = min(self.groups, CHECKED)
        if self.part.size > 10**6 and self.groups == 1 and name in ("gram", "combine"):
            return self._check_of_large_group(name)
        expected = self.call(name, "reference", few)
        if name == "combine":
            columns = np.concatenate([self.part.indices(g) for g in range(few)])
            expected = expected[:, columns].copy()
            # The result is rounded to float32, whose values here are below 8: 2^-22 of one.
            return lambda out: float(np.abs(out[:, columns] - expected).max()), 2.0**-20
        if name == "solve":
            # Coefficients of nearly dependent columns are not determined; their residual is.
            return lambda out: _difference(out.residual[:few], expected.residual), 1e-2
        if name == "rollout":
            return lambda out: _difference(out[:, :few], expected), 1e-6
        return lambda out: _difference(out[:few], expected), 1e-12

    def _check_of_large_group(self, name: str) -> tuple[Callable[[Any], float], float]:
        """In blocks, so that nothing of float64 is as large as the snapshots."""
        rows, size = self.data.rows, self.part.size
        if name == "gram":
            total = 0.0
            for begin in range(0, size, 1 << 18):
                d = np.diff(rows[:, begin : begin + (1 << 18)].astype(np.float64), axis=0)
                total += float(np.sum(d[-1] * d[-1]))
            # The last entry of the packed triangle is the square of the last difference.
            return lambda out: abs(out[0, -1] / total - 1.0), 1e-12
        w = self.weights[0, 0]
        columns = np.arange(0, size, 1009)
        d = np.diff(rows[:, columns].astype(np.float64), axis=0)
        expected = rows[-1, columns] + (w[0] - 1.0) * rows[0, columns] + (w[1:] - 1.0) @ d
        return lambda out: float(np.abs(out[0, columns] - expected).max()), 2.0**-20


def _difference(values: Any, expected: Any) -> float:
    """The largest, relative to the largest value."""
    return float(np.abs(values - expected).max() / np.abs(expected).max())


@shared
def _stages(load: Workload) -> Stages:
    return Stages(load)


def _stage_cases(size: Size) -> list[Case]:
    return [
        Case(name, case, options=workload(name, size))
        for name in STAGE_LOADS
        for case in (*PROBES, *STAGES)
    ]


def _build_stage(case: Case) -> Job:
    stages = _stages(case.options)
    if case.name in PROBES:
        return probe_job(case.name, stages.data.rows)
    error, bound = stages.check(case.name)
    return Job(
        call=lambda: stages.call(case.name),
        error=error,
        bound=bound,
        figures=stage_work(stages.load)[case.name].figures(),
        most=60,
    )


def _stage_summary(rows: Sequence[Row]) -> Summary:
    roofs = {race: roofs_of(rows, race) for race in races_of(rows)}
    notes = [f"{race}: {text_of(top)}" for race, top in roofs.items() if top is not None]
    return Summary(shares=_shares(rows, STAGES), notes=notes)


def _draw_stages(axes: Axes, rows: Sequence[Row]) -> None:
    """Every stage at its flops per byte, below its race's roofs."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    for k, race in enumerate(races_of(rows)):
        roofs = roofs_of(rows, race)
        if roofs is None:
            continue
        x, color = np.geomspace(0.05, 200, 200), f"C{k}"
        limit = np.minimum(roofs.flops, roofs.bytes * x) / 1e9
        axes.plot(x, limit, color=color, linewidth=1, label=f"{race}: roofs")
        for row in rows:
            if row.race == race and row.case in STAGES and row.seconds:
                flops = row.figures["flops"]
                at = (flops / row.figures["bytes"], flops / row.seconds / 1e9)
                axes.plot(*at, MARKERS[row.case], color=color)
                axes.annotate(row.case, at, textcoords="offset points", xytext=(5, 3), fontsize=7)
    axes.set_ylabel("GFLOP/s")
    plots.legend(axes)


ENDPOINT = Study(
    "endpoint",
    "How long does the whole job take, snapshots in and one endpoint out, beside the roofs?",
    "",
    _endpoint_cases,
    _build_endpoint,
    _endpoint_summary,
    _draw_endpoint,
)
STAGE_BY_STAGE = Study(
    "roofline",
    "How near does each stage of the engine come to what the machine can do?",
    "flops per byte",
    _stage_cases,
    _build_stage,
    _stage_summary,
    _draw_stages,
)
