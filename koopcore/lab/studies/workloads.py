"""What most studies time: slow decays in, one predicted endpoint out, by the public API.

Each parameter is its fixed point plus a few shared decays with amplitudes of its own, as weights
are late in training: x(t) = c + Σ_j a_j exp(-r_j t), rounded to float32, so that the future is
known exactly. Correctness is judged by the movement: ‖predicted - true‖ / ‖true - x_n‖, beside
that of orthogonal least squares in float64 on the same snapshots, which is what an exact method
can have.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import koopcore as kc
from koopcore.lab.bench.study import Job, Size, Unavailable, shared
from koopcore.lab.studies.peers.powers import summed
from koopcore.types import FloatArray, IntArray

HORIZON = 100  # snapshots ahead, unless a study asks for another
RATES = (0.004, 0.02, 0.07)  # per snapshot
FAST_RATES = (0.05, 0.15, 0.4)  # far enough from a standstill for any horizon
ACCEPTED = 1e-4  # relative error that is right, whatever least squares reaches
SLACK = 1.2  # times the error of least squares: another method's rounding, not another answer
SAMPLED = 15  # groups whose prediction is checked
COLUMNS = 100_000  # of a larger group, evenly spaced, are enough to check it and to fit it exactly
BLOCK = 1 << 20  # parameters made at a time, to stay in a cache
THREADS = "KOOPCORE_NUM_THREADS"


class Workload(NamedTuple):
    """``groups`` units of ``fan_in`` inputs and a bias; fan_in 0: one group of ``groups``."""

    groups: int
    fan_in: int
    n: int

    @property
    def m(self) -> int:
        """Parameters of a group."""
        return self.fan_in + 1 if self.fan_in else self.groups

    def partition(self) -> kc.Partition:
        if not self.fan_in:
            return one_group(self.groups)
        return kc.Partition.nodes(kc.Layout.from_shapes([(self.groups, self.fan_in, True)]))

    def __str__(self) -> str:
        count = f"{self.groups:,} groups" if self.fan_in else "one group"
        return f"{count} of {self.m:,}, n = {self.n}"


WORKLOADS = {
    "W1": Workload(10_000, 64, 16),
    "W2": Workload(2_000, 256, 24),
    "W3": Workload(50_000, 10, 16),
    "network": Workload(10_000_000, 0, 16),
    "small": Workload(152, 0, 17),
}
FACTOR = {Size.full: 1, Size.quick: 10, Size.once: 200}
FEWEST = 50  # groups that a smaller workload keeps


def workload(name: str, size: Size) -> Workload:
    """A workload, its groups fewer where the run is small."""
    load = WORKLOADS[name]
    fewest = min(load.groups, FEWEST if load.fan_in else WORKLOADS["small"].groups)
    return load._replace(groups=max(load.groups // FACTOR[size], fewest))


def equal_groups(groups: int, m: int) -> kc.Partition:
    """``groups`` groups of ``m`` parameters each, one behind the other."""
    return kc.Partition.nodes(kc.Layout.from_shapes([(groups, m, False)]))


def one_group(size: int) -> kc.Partition:
    """One group of all ``size`` parameters."""
    return kc.Partition.network(kc.Layout.from_shapes([(size, 1, False)]))


def groups_of(m: int, total: int) -> kc.Partition:
    """About ``total`` parameters in groups of ``m``; m = 0: in one group."""
    return equal_groups(total // m, m) if m else one_group(total)


class Decays(NamedTuple):
    """Snapshots (n, P) float32, and what generated them."""

    rows: npt.NDArray[np.float32]
    fixed: npt.NDArray[np.float32]  # (P,)
    amplitudes: npt.NDArray[np.float32]  # (len(rates), P)
    rates: tuple[float, ...]

    def after(self, horizon: int, columns: IntArray) -> FloatArray:
        """The true values ``horizon`` snapshots after the last, in some columns."""
        powers = _powers(np.array([len(self.rows) - 1 + horizon]), self.rates)
        return self.fixed[columns] + (powers @ self.amplitudes[:, columns])[0]


@shared
def decays(n: int, size: int, rates: tuple[float, ...] = RATES) -> Decays:
    """``n`` snapshots of ``size`` parameters; the same numbers for the same arguments."""
    rng = np.random.default_rng(7)
    rows = np.empty((n, size), np.float32)
    fixed = np.empty(size, np.float32)
    amplitudes = np.empty((len(rates), size), np.float32)
    powers = _powers(np.arange(n), rates).astype(np.float32)
    for begin in range(0, size, BLOCK):
        part = slice(begin, begin + BLOCK)
        width = len(fixed[part])
        fixed[part] = rng.standard_normal(width, np.float32)
        amplitudes[:, part] = 0.1 * rng.standard_normal((len(rates), width), np.float32)
        rows[:, part] = fixed[part] + powers @ amplitudes[:, part]
    return Decays(rows, fixed, amplitudes, rates)


def _powers(times: npt.NDArray[Any], rates: tuple[float, ...]) -> FloatArray:
    powers: FloatArray = np.exp(-np.outer(times, rates))
    return powers


def endpoint_job(
    data: Decays,
    part: kc.Partition,
    horizon: int = HORIZON,
    *,
    backend: str | None = None,
    threads: int | None = None,
    before: Callable[[], object] | None = None,
    figures: dict[str, float] | None = None,
    most: int = 200,
) -> Job:
    """`koopcore.fit` with the horizon known, and `predict`, checked against the truth.

    threads: of koopcore; None: as the user has it. figures: besides the bytes of the snapshots and
    the number of parameters. Raises Unavailable where the backend does not run here.
    """
    for info in kc.available_backends():
        if info.name == backend and not info.available:
            raise Unavailable(f"{backend}: {info.reason}")

    def call() -> Any:
        return kc.fit(data.rows, part, backend=backend, horizon=horizon).predict(horizon)

    def limited(threads: int) -> Any:
        with thread_limit(threads):
            return call()

    return Job(
        call=call if threads is None else partial(limited, threads),
        error=lambda predicted: error(data, part, predicted, horizon),
        bound=bound(data, part, horizon),
        figures={"bytes": float(data.rows.nbytes), "parameters": float(part.size)}
        | (figures or {}),
        before=before,
        most=most,
    )


@contextmanager
def thread_limit(threads: int) -> Iterator[None]:
    """KOOPCORE_NUM_THREADS inside, what it was outside."""
    earlier = os.environ.get(THREADS)
    os.environ[THREADS] = str(threads)
    try:
        yield
    finally:
        del os.environ[THREADS]
        if earlier is not None:
            os.environ[THREADS] = earlier


def sampled(part: kc.Partition, most: int = SAMPLED) -> list[int]:
    """At most ``most`` groups, spread over all."""
    count = min(part.n_groups, most)
    return sorted({round(g) for g in np.linspace(0, part.n_groups - 1, count)})


def columns_of(part: kc.Partition, group: int) -> IntArray:
    """The columns of a group, at most about COLUMNS of them."""
    columns = part.indices(group)
    return columns[:: -(-len(columns) // COLUMNS)]


def error(data: Decays, part: kc.Partition, predicted: npt.NDArray[Any], horizon: int) -> float:
    """The median over sampled groups of ‖predicted - true‖ / ‖true movement‖."""
    errors = []
    for g in sampled(part):
        columns = columns_of(part, g)
        errors.append(relative_error(data, columns, predicted[columns], horizon))
    return float(np.median(errors))


def relative_error(
    data: Decays, columns: IntArray, predicted: npt.NDArray[Any], horizon: int
) -> float:
    """‖predicted - true‖ / ‖true movement‖ of one group."""
    true = data.after(horizon, columns)
    movement = np.linalg.norm(true - data.rows[-1, columns])
    with np.errstate(over="ignore", invalid="ignore"):  # wrong by so much is wrong all the same
        return float(np.linalg.norm(predicted - true) / movement)


def bound(data: Decays, part: kc.Partition, horizon: int, slack: float = SLACK) -> float:
    """The error that a right answer may have: ``slack`` times that of least squares, or ACCEPTED.

    Least squares itself overflows in a group whose operator is unstable by a rounding error, at
    horizons of 10^4 and more: such a group counts as infinitely wrong, and the median decides. If
    that is infinite too, only ACCEPTED remains.
    """
    errors = []
    for g in sampled(part):
        columns = columns_of(part, g)
        with np.errstate(over="ignore", invalid="ignore"):
            predicted = least_squares(data.rows[:, columns], horizon)
            errors.append(relative_error(data, columns, predicted, horizon))
    middle = float(np.median(np.where(np.isnan(errors), np.inf, errors)))
    return max(slack * middle, ACCEPTED) if np.isfinite(middle) else ACCEPTED


def least_squares(snapshots: npt.NDArray[Any], horizon: int) -> FloatArray:
    """The affine prediction of one group (n, m) by orthogonal least squares in float64: (m,)."""
    x = snapshots.astype(np.float64)
    d = np.diff(x, axis=0)
    f, ahead = d[:-1].T, d[1:].T
    if f.shape[0] >= f.shape[1]:
        a = np.linalg.lstsq(f, d[-1], rcond=None)[0]
        step = np.eye(len(a), k=-1)
        step[:, -1] = a
        total: FloatArray = x[-1] + ahead @ summed(step, a[:, None], horizon)[:, 0]
        return total
    operator = np.linalg.lstsq(f.T, ahead.T, rcond=None)[0].T
    end: FloatArray = x[-1] + summed(operator, (operator @ d[-1])[:, None], horizon)[:, 0]
    return end
