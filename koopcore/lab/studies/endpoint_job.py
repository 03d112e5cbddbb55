"""The job that most studies time: snapshots in, one predicted endpoint out, by the public API."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import koopcore as kc
from koopcore.lab.bench.study import Job, Unavailable
from koopcore.lab.studies import decays
from koopcore.lab.studies.decays import Decays

THREADS = "KOOPCORE_NUM_THREADS"


def endpoint_job(
    data: Decays,
    part: kc.Partition,
    horizon: int,
    *,
    backend: str | None = None,
    threads: int | None = None,
    before: Callable[[], object] | None = None,
    model: str = "affine",
    most: int = 200,
) -> Job:
    """`koopcore.fit` with the horizon known, and `predict`, checked against the truth.

    threads: of koopcore; None: as the user has it. figures: bytes of the snapshots, parameters.
    Raises Unavailable where the backend does not run here.
    """
    for info in kc.available_backends():
        if info.name == backend and not info.available:
            raise Unavailable(f"{backend}: {info.reason}")

    def call() -> Any:
        ops = kc.fit(data.rows, part, model=model, backend=backend, horizon=horizon)
        return ops.predict(horizon)

    return Job(
        call=call if threads is None else with_threads(call, threads),
        error=lambda predicted: decays.error(data, part, predicted, horizon),
        bound=decays.bound(data, part, horizon),
        figures={"bytes": float(data.rows.nbytes), "parameters": float(part.size)},
        before=before,
        most=most,
    )


def with_threads(call: Callable[[], Any], threads: int) -> Callable[[], Any]:
    """``call`` with that many koopcore threads."""

    def limited() -> Any:
        with thread_limit(threads):
            return call()

    return limited


@contextmanager
def thread_limit(threads: int) -> Iterator[None]:
    """KOOPCORE_NUM_THREADS inside, what it was outside."""
    earlier = os.environ.get(THREADS)
    os.environ[THREADS] = str(threads)
    try:
        yield
    finally:
        if earlier is None:
            del os.environ[THREADS]
        else:
            os.environ[THREADS] = earlier


def equal_groups(groups: int, m: int) -> kc.Partition:
    """``groups`` groups of ``m`` parameters each, one behind the other."""
    return kc.Partition.nodes(kc.Layout.from_shapes([(groups, m, False)]))


def one_group(size: int) -> kc.Partition:
    """One group of all ``size`` parameters."""
    return kc.Partition.network(kc.Layout.from_shapes([(size, 1, False)]))
