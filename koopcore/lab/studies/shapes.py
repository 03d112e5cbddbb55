"""Is there a shape for which a peer is faster, and how near to the roof is each?

A map over the size of a group m and the window n, for both dtypes, the linear and the affine
model, and two numbers of groups: as many as give every cell snapshots of equal bytes, and one. In
each cell koopcore stands beside NumPy group by group, stacked NumPy and torch's batched Cholesky
(in blocks on threads; of one group with the threads of their own libraries), and JAX where it is
installed, compiled before it is timed. Cells with m and n both above MOST are left out: one call
would take seconds.

Snapshots are noise that is pulled back to the origin, as weights under minibatches are. All methods
are accurate there, so that no peer is without a time because its squares lost what was asked for;
how they compare on slow decays, and in accuracy, is the question of the study "peers".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count, product
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

import koopcore as kc
from koopcore.backends.threads import thread_count
from koopcore.lab.bench.roofs import PROBES, Work, probe_job, roofs_of, share_of
from koopcore.lab.bench.study import (
    Case,
    Claim,
    Job,
    Row,
    Size,
    Study,
    Summary,
    Unavailable,
    shared,
)
from koopcore.lab.studies.peers.powers import powered, summed
from koopcore.lab.studies.peers.study import Peer, in_its_way
from koopcore.lab.studies.roofline import BACKENDS
from koopcore.lab.studies.workloads import HORIZON, equal_groups, sampled
from koopcore.types import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ENGINE = BACKENDS[0]
ROOFS = "roofs"
SIZES = {
    Size.full: (1, 2, 4, 11, 32, 100, 320, 1000, 10_000),
    Size.quick: (1, 4, 11, 100),
    Size.once: (1, 4, 11),
}
WINDOWS = {
    Size.full: (3, 8, 16, 64, 250, 1000, 4000, 20_000),
    Size.quick: (8, 16, 250, 4000),
    Size.once: (8, 30),
}
KINDS = {
    Size.full: tuple(product(("float32", "float64"), ("linear", "affine"))),
    Size.quick: (("float32", "affine"), ("float64", "linear")),
    Size.once: (("float32", "affine"), ("float64", "linear")),
}
BYTES = {Size.full: 16 << 20, Size.quick: 1 << 20, Size.once: 1 << 15}  # of a cell's snapshots
MOST = 1000  # of m and n, the smaller
LOOPED = 50  # groups that a loop does
SHARED = 3e7  # flops of one group from which on the threads of a library are worth waking
CHECKED = 3  # groups
FEW_STEPS, BOUNDED = 16, 100.0  # windows so short may predict more than so many times themselves
PULL = 0.9  # x_{k+1} = PULL x_k + noise
RIGHT = 1e-3  # relative error of a prediction, of groups near an instability too
VANISHED = 1e-6  # of the movement: a prediction so small
PEERS = {
    "NumPy, group by group": Peer("numpy", "numpy_peers", "gram_loop", "loop", 1.0),
    "NumPy, stacked": Peer("numpy", "numpy_peers", "gram_stack", "blocks", 1.0),
    "torch batched Cholesky": Peer("torch", "torch_peers", "cholesky", "blocks", 1.0),
    "JAX vmap, compiled": Peer("jax", "jax_peers", "cholesky", "whole", 1.0),
}
COMPILED, STACKED = "JAX vmap, compiled", "NumPy, stacked"


class Cell(NamedTuple):
    """``groups`` groups of ``m`` parameters in a window of ``n``."""

    m: int
    n: int
    dtype: str
    model: str
    groups: int

    @property
    def affine(self) -> bool:
        return self.model == "affine"

    @property
    def columns(self) -> int:
        """N, of the matrix F."""
        return self.n - 1 - self.affine

    def __str__(self) -> str:
        count = "one group" if self.groups == 1 else f"{self.groups:,} groups"
        return f"{count} of {self.m}, n = {self.n}, {self.dtype}, {self.model}"


def cells(size: Size) -> list[Cell]:
    """The map, each cell once."""
    found = []
    for m, n, (dtype, model) in product(SIZES[size], WINDOWS[size], KINDS[size]):
        many = max(BYTES[size] // (m * n * np.dtype(dtype).itemsize), 1)
        if min(m, n) <= MOST:
            found += [Cell(m, n, dtype, model, groups) for groups in sorted({many, 1})]
    return found


def cases(size: Size) -> list[Case]:
    """The probes of the roofs, and of each cell the engine and the peers that have a way of it."""
    probes = [Case(ROOFS, probe, options=BYTES[size]) for probe in PROBES]
    names = [ENGINE, *PEERS]
    if size is Size.once:  # compiled for half a second to be called once
        names.remove(COMPILED)
    return probes + [
        Case(str(cell), name, options=cell)
        for cell in cells(size)
        for name in names
        if not (name == STACKED and cell.groups == 1)
    ]


@shared
def _snapshots(cell: Cell) -> npt.NDArray[Any]:
    """(n, groups · m) of noise that is pulled back; the same for the same cell.

    One group whose prediction leaves all bounds is drawn again, as nothing could be checked.
    """
    for seed in count(7):
        rng = np.random.default_rng(seed)
        rows = rng.standard_normal((cell.n, cell.groups * cell.m), dtype=np.dtype(cell.dtype))
        for k in range(1, cell.n):
            rows[k] += PULL * rows[k - 1]
        if cell.groups > 1 or _is_bounded(cell, rows, least_squares(rows, cell.affine)):
            break
    return rows


def _is_bounded(cell: Cell, rows: npt.NDArray[Any], answer: FloatArray) -> bool:
    """Whether a group's prediction can be checked: of a few steps its operator may be unstable."""
    return cell.n > FEW_STEPS or bool(np.linalg.norm(answer) < BOUNDED * np.linalg.norm(rows))


@shared
def _grouped(cell: Cell) -> npt.NDArray[Any]:
    """The same as (groups, n, m), contiguous: what peers take."""
    rows = _snapshots(cell).reshape(cell.n, cell.groups, cell.m)
    return np.ascontiguousarray(rows.swapaxes(0, 1))


@shared
def _answers(cell: Cell, groups: tuple[int, ...]) -> dict[int, FloatArray]:
    """Least squares at some places of ``groups``."""
    answers: dict[int, FloatArray] = {}
    for k in np.linspace(0, len(groups) - 1, 8 * CHECKED).round().astype(int).tolist():
        rows = _grouped(cell)[groups[k]]
        if len(answers) < CHECKED and k not in answers:
            answer = least_squares(rows, cell.affine)
            if _is_bounded(cell, rows, answer):
                answers[k] = answer
    return answers


@np.errstate(over="ignore", invalid="ignore")
def least_squares(snapshots: npt.NDArray[Any], affine: bool) -> FloatArray:
    """The prediction of one group (n, m) by an orthogonal factorization in float64: (m,)."""
    x = snapshots.astype(np.float64)
    d = np.diff(x, axis=0) if affine else x
    f, ahead, newest = d[:-1].T, d[1:].T, d[-1][:, None]
    if f.shape[0] >= f.shape[1]:
        q, r = np.linalg.qr(f)
        a = np.linalg.solve(r, q.T @ newest)
        step = np.eye(len(a), k=-1)
        step[:, -1:] = a
        moved = ahead @ (summed(step, a, HORIZON) if affine else powered(step, a, HORIZON - 1))
    else:
        q, r = np.linalg.qr(f.T)
        step = np.linalg.solve(r, q.T @ ahead.T).T
        moved = powered(step, newest, HORIZON)
        if affine:
            moved = summed(step, step @ newest, HORIZON)
    end: FloatArray = moved[:, 0] + x[-1] * affine
    return end


def work(cell: Cell) -> Work:
    """What a cell cannot do without: on the snapshot side snapshots are read twice."""
    m, columns, count = float(cell.m), float(cell.columns), cell.groups
    snapshots = float(np.dtype(cell.dtype).itemsize) * count * m
    if cell.m >= cell.columns:
        each = m * cell.n * (cell.n + 3) + columns**3 / 3 + 2 * columns * HORIZON
        return Work(count * each, snapshots * (2 * cell.n + 1))
    products = (m * (m + 1) + 2 * m * m) * columns
    return Work(count * (products + 14 / 3 * m**3), snapshots * (cell.n + 1))


def build(case: Case) -> Job:
    if case.race == ROOFS:
        return probe_job(case.name, np.ones(case.options // 8))
    cell: Cell = case.options
    figures = {**work(cell).figures(), "m": float(cell.m), "n": float(cell.n)}
    if case.name == ENGINE:
        rows, part = _snapshots(cell), equal_groups(cell.groups, cell.m)

        def predicted() -> Any:
            fitted = kc.fit(rows, part, model=cell.model, backend=ENGINE, horizon=HORIZON)
            return fitted.predict(HORIZON)

        every = tuple(range(cell.groups))
        return Job(predicted, partial(_error, cell, every), RIGHT, figures=figures)
    peer = PEERS[case.name]
    endpoint = partial(peer.load(), affine=cell.affine)
    batch, timed = _grouped(cell), tuple(range(cell.groups))
    processes = 1
    if peer.way == "loop" and cell.groups > 1:
        timed = tuple(sampled(equal_groups(cell.groups, 1), LOOPED))
        batch = batch[list(timed)]
        processes = min(thread_count(), cell.groups)
    alone = cell.groups == 1 and work(cell).flops < SHARED
    way = "loop" if alone else peer.way if cell.groups > 1 else "whole"
    return Job(
        partial(_answer, in_its_way(way, endpoint, batch)),
        partial(_error, cell, timed),
        RIGHT,
        scale=cell.groups / len(timed) / processes,
        figures=figures,
        most=30,
        engine=False,
    )


def _answer(call: Callable[[], npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """What a peer predicts; `Unavailable` where one singular group leaves it without any."""
    try:
        return call()
    except np.linalg.LinAlgError as reason:
        raise Unavailable(f"no answer: {reason}") from None


def _error(cell: Cell, groups: tuple[int, ...], predicted: npt.NDArray[Any]) -> float:
    """The median of `missed` over some of ``groups``."""
    answers = _answers(cell, groups)
    mine = np.asarray(predicted).reshape(len(groups), cell.m)
    errors = [
        missed(mine[k], answer, _grouped(cell)[groups[k], -1]) for k, answer in answers.items()
    ]
    return float(np.median(errors))


def missed(predicted: npt.NDArray[Any], answer: npt.NDArray[Any], last: npt.NDArray[Any]) -> float:
    """‖predicted - answer‖ / ‖answer‖ of one group, whose last snapshot is ``last``.

    An answer that has all but vanished, as that of the linear model may, counts as VANISHED of the
    movement: its digits are those of an underflow.
    """
    size = max(np.linalg.norm(answer), VANISHED * np.linalg.norm(answer - last))
    return float(np.linalg.norm(predicted - answer) / size)


class Standing(NamedTuple):
    """What one cell came to."""

    text: str
    m: int
    n: int
    peer: str
    times: float  # the fastest peer's time over koopcore's; NaN where either has none
    roof: float


def standings(rows: Sequence[Row]) -> list[Standing]:
    """All cells in which the engine has a time."""
    roofs = roofs_of(rows, ROOFS)
    peers: dict[str, dict[str, float]] = {}
    for row in rows:
        if not row.engine and row.race != ROOFS and row.seconds is not None:
            peers.setdefault(row.race, {})[row.case] = row.seconds
    found = []
    for row in rows:
        if row.case != ENGINE or row.seconds is None:
            continue
        times = peers.get(row.race, {})
        peer = min(times, key=lambda name: times[name], default="")
        ratio = times.get(peer, math.nan) / row.seconds
        m, n = int(row.figures["m"]), int(row.figures["n"])
        roof = share_of(row.race, row, roofs).roof
        found.append(Standing(row.race, m, n, peer, ratio, roof))
    return found


def summary(rows: Sequence[Row]) -> Summary:
    found = [cell for cell in standings(rows) if cell.times == cell.times]
    behind = sorted((cell for cell in found if cell.times < 1.0), key=lambda cell: cell.times)
    notes = [f"{cell.text}: {cell.peer} takes {cell.times:.2f} of the time" for cell in behind]
    count = float(len(behind)) if found else math.nan
    if found:
        middle = float(np.median([cell.times for cell in found]))
        notes.append(f"{len(found)} cells: the fastest peer takes {middle:.3g} times as long")
    return Summary(claims=[Claim("cells in which a peer is faster", count, 0.0, True)], notes=notes)


def draw(axes: Axes, rows: Sequence[Row]) -> None:
    """Times faster and share of the roof, each the least over dtypes, models, numbers of groups."""
    found = standings(rows)
    axes.set_axis_off()
    sizes, windows = sorted({c.m for c in found}), sorted({c.n for c in found})
    if not found:
        return
    shape = len(windows), len(sizes)
    times, roofs = np.full(shape, np.nan), np.full(shape, np.nan)
    for cell in found:
        at = windows.index(cell.n), sizes.index(cell.m)
        times[at] = np.fmin(times[at], cell.times)
        roofs[at] = np.fmin(roofs[at], 100 * cell.roof)
    maps = (("times faster than the fastest peer", times), ("% of the roof", roofs))
    for k, (title, values) in enumerate(maps):
        inset = axes.inset_axes((0.08 + 0.5 * k, 0.1, 0.41, 0.76))
        middle = 1.0 if k == 0 else 50.0
        shade = np.log(values) - math.log(middle) if k == 0 else values / middle - 1.0
        inset.imshow(shade, cmap="RdYlGn", vmin=-1.0, vmax=1.0, origin="lower", aspect="auto")
        for (i, j), value in np.ndenumerate(values):
            if value == value:
                inset.text(j, i, f"{value:.2g}", ha="center", va="center", fontsize=6)
        inset.set_xticks(range(len(sizes)), [str(m) for m in sizes], fontsize=6, rotation=45)
        inset.set_yticks(range(len(windows)), [str(n) for n in windows], fontsize=6)
        inset.set_xlabel("m", fontsize=7)
        inset.set_ylabel("n" if k == 0 else "", fontsize=7)
        inset.set_title(f"{title}, the least", fontsize=7)


STUDY = Study(
    "shapes",
    "Is there a shape for which a peer is faster, and how near to the roof is each?",
    "",
    cases,
    build,
    summary,
    draw,
    share=0.2,
    by_name=True,
)
