"""The roofs of a race: probes that take turns with its cases, and what a job makes of them.

Multiply-adds per second of all threads in registers, and bytes per second of reading the very
snapshots that the engine reads, by the fastest of several loops, in the state in which the engine
meets them: left in a cache by the call before, or evicted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy.typing as npt

from koopcore.lab.bench import machine_code, probes
from koopcore.lab.bench.machine_code import FMA_CHAINS
from koopcore.lab.bench.study import Job, Row, Share, seconds_of

MULTIPLY_ADDS = "multiply-adds in registers"
READS = {f"read, {shape[0]} streams, {shape[2]} ahead": shape for shape in machine_code.READS}
PROBES = (MULTIPLY_ADDS, *READS)
TURNS = 100_000  # of the loop: some milliseconds


class Work(NamedTuple):
    """What a job cannot do without: floating-point operations, a multiply-add two; bytes moved."""

    flops: float
    bytes: float

    def figures(self) -> dict[str, float]:
        """As a `Job` carries it."""
        return {"flops": self.flops, "bytes": self.bytes}


class Roofs(NamedTuple):
    """The most that the machine does in a second."""

    flops: float
    bytes: float


def sum_of(works: Iterable[Work]) -> Work:
    """Both counts of all stages of a job added."""
    flops, size = zip(*works, strict=True)
    return Work(sum(flops), sum(size))


def multiply_add_job(turns: int = TURNS, threads: int | None = None) -> Job:
    """The loop in registers, whose fixed point is known."""
    return Job(
        call=lambda: probes.multiply_add(turns, threads),
        error=lambda fixed_point: abs(fixed_point - 1.0 * FMA_CHAINS),
        bound=1e-6,
        figures={"flops": probes.flops_of_loop(turns, threads)},
        engine=False,
    )


def read_job(
    array: npt.NDArray[Any], shape: tuple[int, int, int], before: Callable[[], object] | None = None
) -> Job:
    """One read of ``array``; right if it is the exclusive or of all the words it says."""

    def error(result: tuple[int, int]) -> float:
        # What a loop leaves out at its end is less than a turn of every stream of every thread.
        missed = 1 - result[1] / array.nbytes
        return missed if result == expected else float("nan")

    expected = probes.read(array, shape)
    return Job(
        call=lambda: probes.read(array, shape),
        error=error,
        bound=0.05,
        figures={"bytes": float(array.nbytes)},
        before=before,
        most=40,
        engine=False,
    )


def probe_job(
    case: str, array: npt.NDArray[Any], before: Callable[[], object] | None = None
) -> Job:
    """The job of one of PROBES."""
    if case == MULTIPLY_ADDS:
        return multiply_add_job()
    return read_job(array, READS[case], before)


def fastest(rows: Sequence[Row], race: str, cases: Iterable[str]) -> float:
    """Seconds of the fastest of some cases; NaN if none has a time."""
    times = [seconds_of(rows, race, case) for case in cases]
    return min((seconds for seconds in times if seconds == seconds), default=float("nan"))


def roofs_of(rows: Sequence[Row], race: str, movers: Iterable[str] = tuple(READS)) -> Roofs | None:
    """What the race's probes reached; None where either has no time.

    movers: cases that do nothing but move bytes, each as many as its figures say.
    """
    timed = {row.case: row for row in rows if row.race == race and row.seconds}
    rates = [
        timed[case].figures["bytes"] / (timed[case].seconds or 1.0)
        for case in movers
        if case in timed
    ]
    if MULTIPLY_ADDS not in timed or not rates:
        return None
    loop = timed[MULTIPLY_ADDS]
    return Roofs(loop.figures["flops"] / (loop.seconds or 1.0), max(rates))


def share_of(text: str, row: Row, roofs: Roofs | None) -> Share:
    """The row's work, which its figures hold, as shares of the roofs; NaN without a time."""
    if roofs is None or row.seconds is None:
        return Share(text, float("nan"), float("nan"))
    flops, size = row.figures["flops"], row.figures["bytes"]
    return Share(text, flops / row.seconds / roofs.flops, size / row.seconds / roofs.bytes)


def text_of(roofs: Roofs) -> str:
    return f"roofs {roofs.flops / 1e9:.1f} GFLOP/s, {roofs.bytes / 1e9:.1f} GB/s"
