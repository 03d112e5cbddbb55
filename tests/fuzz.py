"""Random windows of many families against the singular value decomposition; a table of failures.

    python tests/fuzz.py --groups 1000000 --workers 1 --state counts.json     # goes on where it was
    python tests/fuzz.py --family "smooth+pause" --seed 7 --batch 31          # one batch again

A family is a motion and what is done to it (parameters that are dead, a step that was paused, an
offset, a scale …), in windows of up to 33 snapshots, or in long ones of some hundreds. A batch is
some hundred groups of one size, dtype, model, rank and ridge, or a tenth of so many long ones,
fitted in one call by every backend. What counts as a failure:

    crash      an exception, a warning of NumPy, no fit, or a prediction that is not finite
    silent     further from the answer than the movement, with growth below 10 and hindcast below
               1/2 or none: nothing tells
    wrong      further than the allowance, likewise
    apart      two backends differ by more than the allowance, and neither gives such a warning
    ahead      ``fit(horizon=T)``, or a device's `endpoint`, and ``fit().predict(T)`` differ by more
               than the allowance
    truth      ``predict(1)`` is not ``operator`` applied to the last snapshot

The allowance is 1e-3 of the movement, or ten times what the answer itself may be off, or, of
float32 snapshots, a tenth of what it moves if these are rounded otherwise in their last place.

What the answer may be off is the larger of its response to rounding of the columns and to other
cut-offs of the rank, which is what F'F⁺ and its powers make of them (`oracle.spread`), and of the
error of the singular value decomposition in float64, seen from one in extended precision. Both are
found only for groups in which something differs by more than half of 1e-3. Where the answer may be
off by more than 1e-2 of the movement only silent errors are looked for, and by more than a tenth at
every horizon, none: such groups are not judged.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import itertools
import json
import os
import sys
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from oracle import Answer, Method, answer, share, spread

import koopcore as kc
from koopcore import operators
from koopcore.backends.protocol import Snapshots

HORIZONS = (1, 5, 40)
CPU = ("native_cpu", "numba_cpu", "reference")
EMULATED = "emulated_cuda"  # the kernels of native_cuda, run by the host
SLOW = {"numba_cpu": 4, "reference": 16, EMULATED: 16}  # take every N-th round of the families
LONG = "long"  # the third name of families of long windows
SHORTER = 10  # times as many groups of windows that are not long
CLOSE = 1e-3  # of the movement: what an error may always be
OPEN = 0.1  # of the movement: an answer that may be off by so much is none
LAST_PLACE = 2.0**-25  # of a float32 number: what its rounding changes, half a unit at most
UNCERTAIN = 0.01  # of the movement: and by so much it is only good for finding silent errors
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
    is_long: bool = False

    @property
    def family(self) -> str:
        return "+".join([self.motion, self.change, *[LONG] * self.is_long])

    def __str__(self) -> str:
        size = f"--batch {self.groups * (SHORTER if self.is_long else 1)} --groups {self.groups}"
        return f"--family {self.family} --seed {self.seed} {size}"


@dataclass
class Problem:
    """The drawn problem of a batch."""

    x: np.ndarray  # (groups, n, m), in the dtype of the snapshots
    method: Method

    @property
    def snapshots(self) -> np.ndarray:
        groups, n, m = self.x.shape
        return np.ascontiguousarray(self.x.transpose(1, 0, 2)).reshape(n, groups * m)

    @property
    def part(self) -> kc.Partition:
        groups, _, m = self.x.shape
        numbers = np.arange(groups * m).reshape(groups, m)
        return kc.Partition.groups(groups * m, list(numbers))

    @property
    def model(self) -> str:
        return "affine" if self.method.affine else "linear"

    def __str__(self) -> str:
        _, n, m = self.x.shape
        _, rank, ridge = self.method
        return f"m={m} n={n} {self.x.dtype} {self.model} rank={rank} ridge={ridge:g}"


def drawn(batch: Batch) -> Problem:
    """The problem of a batch."""
    rng = np.random.default_rng([batch.seed, *map(ord, batch.family.replace("+", ""))])
    affine = bool(rng.random() < 0.5)
    n = int(
        rng.choice([128, 150, 200, 333, 500] if batch.is_long else [3, 4, 5, 9, 11, 16, 24, 33])
    )
    if batch.is_long:
        m = int(rng.integers(1, 25))
    elif rng.random() < 0.5:  # the feature side has fewer parameters than columns
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
    columns = n - 1 - affine
    if columns >= 1 and rng.random() < 0.25:
        rank = int(rng.integers(1, min(m, columns) + 1))
    elif rng.random() < 0.15:
        ridge = float(10.0 ** rng.uniform(-9, -1))
    return Problem(held, Method(affine, rank, ridge))


class Predicted(NamedTuple):
    """What one backend makes of a problem."""

    values: np.ndarray  # (n_horizons, groups, m) by fit and predict
    ahead: np.ndarray  # the same by fit(horizon=)
    endpoint: np.ndarray | None  # the same by `Backend.endpoint`, where there is one
    told: np.ndarray  # (n_horizons, groups) growth or hindcast are a warning
    lost: np.ndarray  # (groups,) no fit, or no numbers
    operator: np.ndarray | None  # (m, m) of one group


def predicted(problem: Problem, backend: str, probe: int) -> Predicted:
    """Fit in both ways and ask for everything; warnings are errors."""
    groups, _, m = problem.x.shape
    options = problem.model, *problem.method[1:], backend
    with warnings.catch_warnings(), in_use(backend):
        warnings.simplefilter("error")
        ops = kc.fit(problem.snapshots, problem.part, *options)
        values = ops.predict(HORIZONS)
        growth, status, hindcast = ops.growth(HORIZONS), ops.status, ops.hindcast_error
        matrix = ops.operator(probe) if status[probe] == 0 else None
        ahead = kc.fit(problem.snapshots, problem.part, *options, horizon=HORIZONS)
        made = values, ahead.predict(HORIZONS), endpoint(problem, backend)
    values, other, third = (
        None if y is None else y.astype(np.float64).reshape(len(HORIZONS), groups, m) for y in made
    )
    every = [y for y in (values, other, third) if y is not None]
    lost = ~np.isfinite(every).all(axis=(0, 1, 3)) | (status != 0)
    return Predicted(values, other, third, (hindcast >= 0.5) | (growth >= 10.0), lost, matrix)


def endpoint(problem: Problem, backend: str) -> np.ndarray | None:
    """What the backend makes of a problem without a word from the host, if it knows how."""
    (_, n, m), (affine, rank, ridge) = problem.x.shape, problem.method
    if rank is not None or ridge > 0.0 or not m >= n - 1 >= 1 + affine:
        return None
    x, part = problem.snapshots, problem.part
    out = np.full((len(HORIZONS), part.size), np.nan, x.dtype)
    window = Snapshots(x, np.arange(n))
    on = operators.backend_for("cpu", backend)
    return out if on.endpoint(window, part, affine, list(HORIZONS), out) else None


@contextlib.contextmanager
def in_use(backend: str) -> Iterator[None]:
    """Where the backend is no CPU one, it takes the CPU's place within."""
    if backend != EMULATED:
        yield
        return
    import emulated_cuda

    with emulated_cuda.instead_of_the_cpu(kernels()):
        yield


@cache
def kernels():
    """The emulated module, compiled once for all processes."""
    import emulated_cuda

    place = Path(os.environ.setdefault("KOOPCORE_EMULATED", tempfile.mkdtemp()))
    library = place / f"{emulated_cuda.MODULE}.so"
    if library.exists():
        return emulated_cuda.load(emulated_cuda.MODULE, library)
    return emulated_cuda.compiled(place)


@dataclass
class Tally:
    """Counts of a batch, and the worst of each kind of failure."""

    groups: int = 0
    judged: int = 0
    counts: Counter = field(default_factory=Counter)
    worst: dict[str, tuple[float, str]] = field(default_factory=dict)

    def note(self, kind: str, where: np.ndarray, size: np.ndarray, text: str) -> None:
        """Failures of the groups ``where``; size (n_horizons, groups)."""
        hits = np.flatnonzero(where)
        if not hits.size:
            return
        self.counts[kind] += len(hits)
        sizes = np.nan_to_num(size[:, hits].max(axis=0), nan=np.inf)
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


def judge(batch: Batch, backends: Iterable[str]) -> Tally:
    """Fit a batch with every backend and compare."""
    problem = drawn(batch)
    groups = batch.groups
    tally = Tally(groups=groups)
    probe = batch.seed % groups
    fits: dict[str, Predicted] = {}
    for name in backends:
        text = f"{batch} # {name} {problem}"
        try:
            fits[name] = predicted(problem, name, probe)
        except Exception as error:
            text = f"{text}: {type(error).__name__}: {error}"
            tally.note("crash", np.ones(1, dtype=bool), np.ones((1, 1)), text)
            continue
        tally.note("crash", fits[name].lost, np.ones((1, groups)), f"{text}: no fit")
    if not fits:
        return tally
    right = answer(problem.x, problem.method, HORIZONS)
    doubt, allowed = uncertainty(problem, right, fits.values())
    known, certain = doubt < OPEN, doubt < UNCERTAIN
    tally.judged = int(known.any(axis=0).sum())
    pairs = itertools.combinations(fits, 2)
    for name, fit in fits.items():
        text = f"{batch} # {name} {problem}"
        error = share(fit.values - right.values, right, problem.x.dtype)
        quiet = error * ~fit.told
        silent = ((quiet > np.maximum(allowed, 1.0)) & known).any(axis=0)
        tally.note("silent", silent, quiet * known, text)
        wrong = ((quiet > allowed) & certain).any(axis=0) & ~silent
        tally.note("wrong", wrong, quiet * certain, text)
        for other in (fit.ahead, fit.endpoint):
            if other is not None:
                between = share(fit.values - other, right, problem.x.dtype, 2) * certain
                tally.note("ahead", (between > allowed).any(axis=0), between, text)
        if fit.operator is not None and certain[0, probe]:
            check_operator(tally, problem, probe, fit, text)
    for one, other in pairs:
        quiet = certain & ~fits[one].told & ~fits[other].told
        apart = fits[one].values - fits[other].values
        gap = share(apart, right, problem.x.dtype, 2) * quiet
        text = f"{batch} # {one} and {other} {problem}"
        tally.note("apart", (gap > allowed).any(axis=0), gap, text)
    return tally


def uncertainty(
    problem: Problem, right: Answer, fits: Iterable[Predicted]
) -> tuple[np.ndarray, np.ndarray]:
    """What ``right`` may be off by, and what is allowed: (n_horizons, groups), of the movement.

    Groups of which it has to be known only; ``right`` becomes a better answer where it matters.
    """
    doubt, allowed = np.zeros(right.movement.shape), np.full(right.movement.shape, CLOSE)
    predictions = [y for fit in fits for y in (fit.values, fit.ahead, fit.endpoint)]
    predictions = [y for y in predictions if y is not None]

    def differing():
        least = np.where(doubt < OPEN, allowed / 2.0, np.inf)  # half, as two of them may differ
        errors = [share(y - right.values, right, problem.x.dtype) for y in predictions]
        return np.flatnonzero(np.any([e > least for e in errors], axis=(0, 1)))

    at = differing()
    if not at.size:
        return doubt, allowed
    doubt[:, at] = spread(problem.x[at], problem.method, HORIZONS)
    allowed = np.maximum(allowed, 10.0 * doubt)
    at = differing()
    if not at.size:
        return doubt, allowed
    exact = answer(problem.x[at], problem.method, HORIZONS, np.longdouble)
    lost = share(right.values[:, at] - exact.values, exact, problem.x.dtype)
    doubt[:, at] = np.maximum(doubt[:, at], lost)
    right.values[:, at] = exact.values
    allowed = np.maximum(allowed, 10.0 * doubt)
    at = differing() if problem.x.dtype == np.float32 else at[:0]
    if at.size:
        own = spread(problem.x[at], problem.method, HORIZONS, rounding=LAST_PLACE)
        allowed[:, at] = np.maximum(allowed[:, at], 0.1 * own)
    return doubt, allowed


def check_operator(tally: Tally, problem: Problem, group: int, fit: Predicted, text: str) -> None:
    """predict(1) by the operator's own matrix."""
    x, value, matrix = problem.x[group].astype(np.float64), fit.values[0, group], fit.operator
    if np.abs(value).max() > 0.4 * np.finfo(problem.x.dtype).max:
        return
    unit = np.ldexp(1.0, -int(np.frexp(np.abs(x).max())[1]))
    x, value = x * unit, value * unit
    by_matrix = x[-1] + matrix @ (x[-1] - x[-2]) if problem.method.affine else matrix @ x[-1]
    step = max(np.linalg.norm(value - x[-1]), np.linalg.norm(x[-1] - x[-2]))
    room = 64 * len(x[0]) * np.finfo(problem.x.dtype).eps * np.abs(x[-1]).max()
    room += len(x[0]) * unit * float(np.finfo(problem.x.dtype).smallest_subnormal)
    error = np.linalg.norm(by_matrix - value) - room * np.linalg.norm(matrix, 2)
    if error > 1e-2 * step:
        tally.note(
            "truth", np.ones(1, dtype=bool), np.full((1, 1), error / max(step, 1e-300)), text
        )


# -- many batches --------------------------------------------------------------------------------


def batches(groups: int, size: int, seed: int, family: str) -> list[Batch]:
    """Batches of all families in turn, until there are enough groups."""
    names = list(filter(None, family.split("+")))
    short = {*names} & {*MOTIONS} and {*names} & {*CHANGES} and LONG not in names
    families = [
        (motion, change, is_long)
        for is_long, motion, change in itertools.product([False, True], MOTIONS, CHANGES)
        if all(name in (motion, change, *[LONG] * is_long) for name in names)
        and not (is_long and short)
    ]
    if not families:
        raise SystemExit(f"no family is {family!r}: {', '.join([*MOTIONS, *CHANGES, LONG])}")
    work: list[Batch] = []
    for count, (motion, change, is_long) in enumerate(itertools.cycle(families)):
        if groups <= 0:
            return work
        some = max(1, size // SHORTER) if is_long else size
        work.append(Batch(motion, change, seed + count // len(families), some, is_long))
        groups -= some
    return work


def judge_some(some: list[Batch], backends: tuple[str, ...]) -> list[tuple[str, Tally]]:
    """Worker: `judge` for each, by those of the backends whose turn it is."""
    return [
        (batch.family, judge(batch, [b for b in backends if batch.seed % SLOW.get(b, 1) == 0]))
        for batch in some
    ]


def run(
    work: list[Batch], backends: tuple[str, ...], workers: int, tallies: dict[str, Tally]
) -> Iterator[int]:
    """Add to the tallies of families; yields how many batches are done, now and then."""
    lots = [work[i : i + 8] for i in range(0, len(work), 8)]
    with contextlib.ExitStack() as stack:
        if workers == 1:
            results = (judge_some(lot, backends) for lot in lots)
        else:
            pool = stack.enter_context(concurrent.futures.ProcessPoolExecutor(workers))
            results = pool.map(judge_some, lots, itertools.repeat(backends))
        done = 0
        for result in results:
            for family, tally in result:
                tallies[family].add(tally)
            done += len(result)
            yield done


def table(tallies: dict[str, Tally]) -> str:
    """One row a motion, one a change, one of long windows, and their sum."""
    sums: dict[str, Tally] = defaultdict(Tally)
    for family, tally in tallies.items():
        motion, *changes = family.split("+")
        for key in (motion, *(f"+ {change}" for change in changes), "all"):
            sums[key].add(tally)
    rows = [("family", "groups", "judged", *KINDS)]
    for name in [*MOTIONS, *(f"+ {change}" for change in [*CHANGES, LONG]), "all"]:
        if name in sums:
            tally = sums[name]
            counts = (str(tally.counts[kind]) for kind in KINDS)
            rows.append((name, f"{tally.groups:,}", f"{tally.judged:,}", *counts))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(w) for cell, w in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    for kind in KINDS:
        if kind in sums["all"].worst:
            size, text = sums["all"].worst[kind]
            lines.append(f"{kind}, worst {size:.2g}: python tests/fuzz.py {text}")
    return "\n".join(lines)


class State:
    """What a long run has counted, in a file, so that it goes on where it was."""

    def __init__(self, path: Path | None, given: dict[str, object]) -> None:
        self.path, self.given = path, given
        self.done, self.seconds = 0, 0.0
        self.tallies: dict[str, Tally] = defaultdict(Tally)
        if path is None or not path.exists():
            return
        held = json.loads(path.read_text())
        if held["given"] != given:
            raise SystemExit(f"{path} is of another run: {held['given']}, not {given}")
        self.done, self.seconds = held["batches"], held["seconds"]
        for family, tally in held["families"].items():
            worst = {kind: (size, text) for kind, (size, text) in tally["worst"].items()}
            counts = Counter(tally["counts"])
            self.tallies[family] = Tally(tally["groups"], tally["judged"], counts, worst)

    def save(self, done: int, seconds: float) -> None:
        if self.path is None:
            return
        families = {family: vars(tally) for family, tally in sorted(self.tallies.items())}
        held = {"given": self.given, "batches": done, "seconds": seconds, "families": families}
        beside = self.path.with_suffix(".part")
        beside.write_text(json.dumps(held, indent=1))
        beside.replace(self.path)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--groups", type=int, default=20_000, help="groups in all")
    parser.add_argument("--batch", type=int, default=250, help="groups in a fit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--family", default="", help="names of a motion, a change, or both: a+b")
    parser.add_argument("--backends", default=",".join(CPU), help=f"also: {EMULATED}")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--state", type=Path, help="a JSON file of the counts, to go on from")
    parser.add_argument("--table", type=Path, help="a text file that the table is written to")
    given = parser.parse_args()
    backends = tuple(given.backends.split(","))
    if EMULATED in backends:
        kernels()
    names = "batch", "seed", "family", "backends"
    state = State(given.state, {name: getattr(given, name) for name in names})
    work = batches(given.groups, given.batch, given.seed, given.family)
    begun = saved = time.perf_counter()
    before, earlier = state.done, state.seconds
    for done in run(work[before:], backends, given.workers, state.tallies):
        now = time.perf_counter()
        if now - saved > 20.0 or before + done == len(work):
            state.save(before + done, earlier + now - begun)
            saved = now
    print(table(state.tallies))
    if given.table is not None:
        asked = {name: getattr(given, name) for name in ("groups", *names)}
        how = " ".join(f"--{name} {value}" for name, value in asked.items() if value != "")
        given.table.write_text(f"python tests/fuzz.py {how}\n\n{table(state.tallies)}\n")
    print(f"{earlier + time.perf_counter() - begun:.0f} s")
    return int(any(tally.counts.total() for tally in state.tallies.values()))


if __name__ == "__main__":
    raise SystemExit(main())
