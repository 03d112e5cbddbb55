"""Random windows of many families against the singular value decomposition; a table of failures.

    python tests/fuzz.py --groups 1000000              # about ten minutes on two cores
    python tests/fuzz.py --family "pause" --seed 7 --batch 31        # one batch again

A family is a motion and what is done to it (parameters that are dead, a step that was paused, an
offset, a scale …). A batch is some hundred groups of one size, dtype, model, rank and ridge, fitted
in one call by every backend. What counts as a failure:

    crash      an exception, a warning of NumPy, no fit, or a prediction that is not finite
    silent     further from the answer than the movement, with growth below 10 and hindcast below
               1/2 or none: nothing tells
    wrong      beyond ten times the answer's own uncertainty and 1e-3 of the movement, likewise
    apart      two backends differ by more than that while the answer is certain
    ahead      ``fit(horizon=T)`` and ``fit().predict(T)`` differ
    truth      ``predict(1)`` is not ``operator`` applied to the last snapshot

Groups whose answer moves by more than a tenth of the movement when the snapshots are rounded
otherwise, or the cut-offs are moved (`oracle.Answer.spread`), are counted as open and not judged.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import itertools
import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from oracle import answer

import koopcore as kc

HORIZONS = (1, 5, 40)
CPU = ("native_cpu", "numba_cpu", "reference")
UNCERTAIN = 0.1  # of the movement: such an answer is not compared with
CLOSE = 1e-3  # of the movement: what an error may always be
KINDS = ("crash", "silent", "wrong", "apart", "ahead", "truth")

# -- motions: (rng, groups, n, m) -> (groups, n, m) ---------------------------------------------

Motion = Callable[[np.random.Generator, int, int, int], np.ndarray]


def modes(rng, groups, n, m, values):
    """Σ_j v_j λ_jᵗ about a point, for eigenvalues (groups, k)."""
    powers = values[:, None, :] ** np.arange(n)[None, :, None]
    shapes = rng.normal(size=(groups, values.shape[1], m)) * 10.0 ** rng.uniform(
        -2, 0, (groups, values.shape[1], 1)
    )
    return rng.normal(size=(groups, 1, m)) + (powers @ shapes).real


def smooth(rng, groups, n, m):
    return modes(rng, groups, n, m, np.exp(-(10.0 ** rng.uniform(-3, 0, (groups, 4)))))


def growing(rng, groups, n, m):
    return modes(rng, groups, n, m, rng.uniform(0.7, 1.15, (groups, 3)))


def oscillating(rng, groups, n, m):
    angle = rng.uniform(0.05, 3.0, (groups, 2))
    turn = rng.uniform(0.8, 1.02, (groups, 2)) * np.exp(1j * angle)
    shapes = rng.normal(size=(groups, 2, m)) + 1j * rng.normal(size=(groups, 2, m))
    powers = turn[:, None, :] ** np.arange(n)[None, :, None]
    return rng.normal(size=(groups, 1, m)) + (powers @ shapes).real


def random_system(rng, groups, n, m):
    """x_{k+1} = U x_k with U of spectral radius 0.3 … 1.1."""
    k = min(m, 6)
    u = rng.normal(size=(groups, k, k)) / np.sqrt(k)
    radius = np.abs(np.linalg.eigvals(u)).max(axis=1)
    u *= (rng.uniform(0.3, 1.1, groups) / radius)[:, None, None]
    state, rows = rng.normal(size=(groups, k)), []
    for _ in range(n):
        rows.append(state)
        state = (u @ state[:, :, None])[:, :, 0]
    return np.stack(rows, axis=1) @ rng.normal(size=(groups, k, m))


def walk(rng, groups, n, m):
    return np.cumsum(rng.normal(size=(groups, n, m)), axis=1) * 0.01 + rng.normal(
        size=(groups, 1, m)
    )


def noisy(rng, groups, n, m):
    return smooth(rng, groups, n, m) + rng.normal(size=(groups, n, m)) * 10.0 ** rng.uniform(
        -7, -1, (groups, 1, 1)
    )


def low_rank(rng, groups, n, m):
    r = int(rng.integers(1, 4))
    return rng.normal(size=(groups, n, r)) @ rng.normal(size=(groups, r, m))


def integers(rng, groups, n, m):
    return rng.integers(-3, 4, (groups, n, m)).astype(np.float64)


def one_moves(rng, groups, n, m):
    x = np.repeat(rng.normal(size=(groups, 1, m)), n, axis=1)
    x[:, :, int(rng.integers(m))] = smooth(rng, groups, n, 1)[:, :, 0]
    return x


def periodic(rng, groups, n, m):
    period = int(rng.integers(1, 5))
    return np.tile(rng.normal(size=(groups, period, m)), (1, n // period + 1, 1))[:, :n]


def fast(rng, groups, n, m):
    """Steps that fall by orders of magnitude within the window."""
    return modes(rng, groups, n, m, rng.uniform(0.01, 0.4, (groups, 2)))


MOTIONS: dict[str, Motion] = {
    f.__name__: f
    for f in (
        smooth,
        growing,
        oscillating,
        random_system,
        walk,
        noisy,
        low_rank,
        integers,
        one_moves,
        periodic,
        fast,
    )
}

# -- what is done to them: (rng, x) -> x ---------------------------------------------------------

Change = Callable[[np.random.Generator, np.ndarray], np.ndarray]


def nothing(rng, x):
    return x


def dead(rng, x):
    """Some parameters are always zero: at least one lives."""
    x[:, :, rng.permutation(x.shape[2])[: int(rng.integers(x.shape[2]))]] = 0.0
    return x


def constant(rng, x):
    some = rng.permutation(x.shape[2])[: int(rng.integers(x.shape[2]))]
    x[:, :, some] = x[:, :1, some]
    return x


def repeated(rng, x):
    x[:, :, rng.integers(x.shape[2], size=x.shape[2] // 2)] = x[:, :, :1]
    return x


def pause(rng, x):
    """A snapshot stands twice, or more often, somewhere."""
    n = x.shape[1]
    first = int(rng.integers(n - 1))
    last = min(n, first + 1 + int(rng.integers(1, 4)))
    rest = x[:, first + 1 : n - (last - first - 1)].copy()
    x[:, first:last] = x[:, first : first + 1]
    if rng.random() < 0.7:  # the motion goes on where it was
        x[:, last:] = rest[:, : n - last]
    return x


def stop(rng, x):
    first = int(rng.integers(x.shape[1] // 2, x.shape[1]))
    x[:, first:] = x[:, first : first + 1]
    return x


def jump(rng, x):
    size = 10.0 ** rng.uniform(-6, 2)
    x[:, int(rng.integers(1, x.shape[1])) :] += size * rng.normal(size=(len(x), 1, x.shape[2]))
    return x


def offset(rng, x):
    return x + 10.0 ** rng.uniform(3, 10) * rng.normal(size=(len(x), 1, x.shape[2]))


def graded(rng, x):
    """Parameters of all sizes."""
    return x * 10.0 ** rng.uniform(-12, 0, (len(x), 1, x.shape[2]))


def scaled(rng, x):
    return np.ldexp(x, int(rng.integers(-1000, 1000)))


def permuted(rng, x):
    return np.ascontiguousarray(x[:, :, rng.permutation(x.shape[2])])


def few_bits(rng, x):
    return np.round(x * 64.0) / 64.0


def tiny_drift(rng, x):
    return x + 1e-9 * np.arange(x.shape[1])[None, :, None]


CHANGES: dict[str, Change] = {
    f.__name__: f
    for f in (
        nothing,
        dead,
        constant,
        repeated,
        pause,
        stop,
        jump,
        offset,
        graded,
        scaled,
        permuted,
        few_bits,
        tiny_drift,
    )
}

# -- one batch -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """What is fitted in one call; everything follows from these numbers."""

    motion: str
    change: str
    seed: int
    groups: int

    def __str__(self) -> str:
        return f"--family {self.motion}+{self.change} --seed {self.seed} --batch {self.groups}"


@dataclass
class Problem:
    """The drawn problem of a batch."""

    x: np.ndarray  # (groups, n, m), in the dtype of the snapshots
    model: str
    rank: int | None
    ridge: float

    @property
    def snapshots(self) -> np.ndarray:
        groups, n, m = self.x.shape
        return np.ascontiguousarray(self.x.transpose(1, 0, 2)).reshape(n, groups * m)

    @property
    def part(self) -> kc.Partition:
        groups, _, m = self.x.shape
        numbers = np.arange(groups * m).reshape(groups, m)
        return kc.Partition.groups(groups * m, list(numbers))

    def __str__(self) -> str:
        _, n, m = self.x.shape
        return f"m={m} n={n} {self.x.dtype} {self.model} rank={self.rank} ridge={self.ridge:g}"


def drawn(batch: Batch) -> Problem:
    """The problem of a batch."""
    rng = np.random.default_rng([batch.seed, *map(ord, batch.motion + batch.change)])
    model = str(rng.choice(["linear", "affine"]))
    n = int(rng.choice([3, 4, 5, 9, 11, 16, 24, 33]))
    if rng.random() < 0.5:  # the feature side has fewer parameters than columns
        m = int(rng.integers(1, max(2, n - 1)))
    else:
        m = int(rng.integers(max(1, n - 1), 40))
    x = CHANGES[batch.change](
        rng, MOTIONS[batch.motion](rng, batch.groups, n, m).astype(np.float64)
    )
    dtype = np.dtype(str(rng.choice(["float32", "float64"])))
    with np.errstate(over="ignore"):
        held = x.astype(dtype)
    held = np.where(np.isfinite(held), held, 0.0).astype(dtype)
    rank, ridge = None, 0.0
    columns = n - 1 - (model == "affine")
    if columns >= 1 and rng.random() < 0.25:
        rank = int(rng.integers(1, min(m, columns) + 1))
    elif rng.random() < 0.15:
        ridge = float(10.0 ** rng.uniform(-9, -1))
    return Problem(held, model, rank, ridge)


@dataclass
class Tally:
    """Counts of a batch, and where each kind of failure was seen first."""

    groups: int = 0
    judged: int = 0
    counts: Counter = field(default_factory=Counter)
    worst: dict[str, tuple[float, str]] = field(default_factory=dict)

    def note(self, kind: str, where: np.ndarray, size: np.ndarray, text: str) -> None:
        hits = np.flatnonzero(where)
        if not hits.size:
            return
        self.counts[kind] += len(hits)
        sizes = np.nan_to_num(size[hits], nan=np.inf)
        at = int(hits[sizes.argmax()])
        if float(sizes.max()) >= self.worst.get(kind, (-1.0, ""))[0]:
            self.worst[kind] = (float(sizes.max()), f"{text} group {at}")

    def add(self, other: Tally) -> None:
        self.groups += other.groups
        self.judged += other.judged
        self.counts.update(other.counts)
        for kind, found in other.worst.items():
            if found[0] >= self.worst.get(kind, (-1.0, ""))[0]:
                self.worst[kind] = found


def judge(batch: Batch, backends: tuple[str, ...]) -> Tally:
    """Fit a batch with every backend and compare."""
    problem = drawn(batch)
    tally = Tally(groups=batch.groups)
    affine = problem.model == "affine"
    right = answer(problem.x, affine, HORIZONS, problem.rank, problem.ridge)
    certain = right.spread < UNCERTAIN
    tally.judged = int(certain.any(axis=0).sum())
    groups, _, m = problem.x.shape
    found = {}
    for name in backends:
        text = f"{batch} # {name} {problem}"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                options = problem.model, problem.rank, problem.ridge, name
                ops = kc.fit(problem.snapshots, problem.part, *options)
                values = ops.predict(HORIZONS)
                growth, status, hindcast = ops.growth(HORIZONS), ops.status, ops.hindcast_error
                ahead = kc.fit(problem.snapshots, problem.part, *options, horizon=HORIZONS).predict(
                    HORIZONS
                )
                probe = int(batch.seed % groups)
                matrix = ops.operator(probe) if status[probe] == 0 else None
        except Exception as error:
            everyone = np.ones(1, dtype=bool)
            tally.note("crash", everyone, np.ones(1), f"{text}: {type(error).__name__}: {error}")
            continue
        values = values.astype(np.float64).reshape(len(HORIZONS), groups, m)
        ahead = ahead.astype(np.float64).reshape(values.shape)
        lost = ~np.isfinite(values).all(axis=(0, 2))
        tally.note("crash", lost, np.ones(groups), f"{text}: not finite")
        with np.errstate(over="ignore", invalid="ignore"):
            error = share(values - right.values, right.movement, problem.x.dtype, right.values)
            between = share(values - ahead, right.movement, problem.x.dtype, right.values)
        tally.note("crash", status != 0, np.ones(groups), f"{text}: no fit")
        told = (hindcast >= 0.5) | (growth >= 10.0)
        quiet = certain & ~told
        silent = (quiet & (error > 1.0)).any(axis=0)
        tally.note("silent", silent, (error * quiet).max(axis=0), text)
        allowed = np.maximum(CLOSE, 10.0 * right.spread)
        wrong = (quiet & (error > allowed)).any(axis=0) & ~silent
        tally.note("wrong", wrong, (error * quiet).max(axis=0), text)
        differs = (certain & (between > allowed)).any(axis=0)
        tally.note("ahead", differs, (between * certain).max(axis=0), text)
        for other, values_of_other in found.items():
            with np.errstate(over="ignore", invalid="ignore"):
                gap = share(values - values_of_other, right.movement, problem.x.dtype, right.values)
            apart = (certain & (gap > allowed)).any(axis=0)
            tally.note("apart", apart, (gap * certain).max(axis=0), f"{text} and {other}")
        found[name] = values
        if matrix is not None:
            check_operator(tally, problem, probe, matrix, values[0, probe], certain, text)
    return tally


def share(error, movement, dtype, values):
    """‖error‖ / movement (n_horizons, n_groups), less the rounding of predictions.

    To their dtype, and of the float64 steps up to T.
    """
    size = np.abs(values).max(axis=2, initial=0.0) * np.sqrt(error.shape[2])
    steps = 64.0 * np.asarray(HORIZONS)[:, None] * np.finfo(np.float64).eps
    room = (8.0 * np.finfo(dtype).eps + steps) * size + np.finfo(dtype).tiny
    limit = float(np.finfo(dtype).max)
    error = np.where(np.abs(values) > 0.5 * limit, 0.0, error)  # clipped to the largest number
    unit = np.maximum(np.abs(error).max(axis=2, keepdims=True), np.finfo(np.float64).tiny)
    norm = np.linalg.norm(error / unit, axis=2) * unit[:, :, 0]
    excess = np.maximum(norm - room, 0.0)
    return np.where(excess > 0.0, excess / np.maximum(movement, np.finfo(dtype).tiny), 0.0)


def check_operator(tally, problem, group, matrix, predicted, certain, text):
    """predict(1) by the operator's own matrix."""
    x = problem.x[group].astype(np.float64)
    if not certain[0, group] or np.abs(predicted).max() > 0.4 * np.finfo(problem.x.dtype).max:
        return
    unit = np.ldexp(1.0, -int(np.frexp(np.abs(x).max())[1]))
    x, predicted = x * unit, predicted * unit
    if problem.model == "affine":
        by_matrix = x[-1] + matrix @ (x[-1] - x[-2])
    else:
        by_matrix = matrix @ x[-1]
    step = max(np.linalg.norm(predicted - x[-1]), np.linalg.norm(x[-1] - x[-2]))
    room = 64 * len(x[0]) * np.finfo(problem.x.dtype).eps * np.abs(x[-1]).max()
    error = np.linalg.norm(by_matrix - predicted) - room * np.linalg.norm(matrix, 2)
    if error > 1e-2 * step:
        everyone = np.ones(1, dtype=bool)
        tally.note("truth", everyone, np.array([error / max(step, 1e-300)]), text)


# -- many batches --------------------------------------------------------------------------------


def batches(groups: int, size: int, seed: int, family: str) -> Iterator[Batch]:
    """Batches of all families in turn, until there are enough groups."""
    families = [
        (motion, change)
        for motion, change in itertools.product(MOTIONS, CHANGES)
        if all(part in f"{motion}+{change}" for part in family.split("+"))
    ]
    if not families:
        raise SystemExit(f"no family has {family!r} in its name")
    for count, (motion, change) in enumerate(itertools.cycle(families)):
        if count * size >= groups:
            return
        yield Batch(motion, change, seed + count // len(families), size)


def judge_some(
    some: list[Batch], backends: tuple[str, ...], slow: int
) -> list[tuple[Batch, Tally]]:
    """Worker: `judge` for each; the reference, which is slow, for every ``slow``-th batch."""
    results = []
    for batch in some:
        names = (
            backends if batch.seed % slow == 0 else tuple(b for b in backends if b != "reference")
        )
        results.append((batch, judge(batch, names)))
    return results


def run(
    groups: int,
    size: int,
    seed: int,
    family: str,
    backends: tuple[str, ...],
    workers: int,
    slow: int,
) -> dict[str, Tally]:
    """Tallies by motion, by change, and of all."""
    work = list(batches(groups, size, seed, family))
    lots = [work[i : i + 8] for i in range(0, len(work), 8)]
    tallies: dict[str, Tally] = defaultdict(Tally)
    if workers == 1:
        done = (judge_some(lot, backends, slow) for lot in lots)
        collect(done, tallies)
        return tallies
    with concurrent.futures.ProcessPoolExecutor(workers) as pool:
        collect(
            pool.map(judge_some, lots, itertools.repeat(backends), itertools.repeat(slow)), tallies
        )
    return tallies


def collect(done, tallies: dict[str, Tally]) -> None:
    for results in done:
        for batch, tally in results:
            for key in (batch.motion, f"+ {batch.change}", "all"):
                tallies[key].add(tally)


def table(tallies: dict[str, Tally]) -> str:
    """One row a motion, one a change, and their sum."""
    head = ("family", "groups", "judged", *KINDS)
    rows = [head]
    order = [*MOTIONS, *(f"+ {change}" for change in CHANGES), "all"]
    for name in order:
        if name in tallies:
            tally = tallies[name]
            counts = (str(tally.counts[kind]) for kind in KINDS)
            rows.append((name, f"{tally.groups:,}", f"{tally.judged:,}", *counts))
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = []
    for row in rows:
        lines.append(
            "  ".join(
                cell.rjust(w) if i else cell.ljust(w)
                for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--groups", type=int, default=20_000, help="groups in all")
    parser.add_argument("--batch", type=int, default=250, help="groups in a fit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--family", default="", help="parts of names, joined by +: smooth+dead")
    parser.add_argument("--backends", default=",".join(CPU))
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--slow", type=int, default=16, help="the reference takes every N-th round")
    given = parser.parse_args()
    begun = time.perf_counter()
    backends = tuple(given.backends.split(","))
    tallies = run(
        given.groups, given.batch, given.seed, given.family, backends, given.workers, given.slow
    )
    print(table(tallies))
    for kind in KINDS:
        if kind in tallies["all"].worst:
            size, text = tallies["all"].worst[kind]
            print(f"{kind}, worst {size:.2g}: python tests/fuzz.py {text}")
    print(f"{time.perf_counter() - begun:.0f} s")
    return int(sum(tallies["all"].counts.values()) > 0)


if __name__ == "__main__":
    raise SystemExit(main())
