"""How does koopcore compare with what one would use instead, in time and in prediction error?

Everybody gets the same float32 snapshots in the same run: koopcore the flat rows of the ring, the
others their groups as one contiguous (groups, snapshots, parameters) array, whose making is not
timed. Peers that work on batches get blocks of groups that stay in a cache, one after the other on
each of koopcore's threads, or blocks of columns of a single large group; their own threads, which
wait for each other in every small product, are off. Loops, which hold the interpreter, do a part
of the groups, spread over all, on one thread, and their time is that of as many processes as
threads, which is the most that processes could gain. Nobody has a time without a right answer:
1.2 times the error of orthogonal least squares for koopcore, 3 times for the others.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

import koopcore as kc
from koopcore.backends.threads import thread_count
from koopcore.lab.bench import plots
from koopcore.lab.bench.study import (
    INSTALL,
    Case,
    Claim,
    Job,
    Row,
    Size,
    Study,
    Summary,
    Unavailable,
    races_of,
    seconds_of,
    shared,
)
from koopcore.lab.studies.roofline import BACKENDS
from koopcore.lab.studies.workloads import (
    COLUMNS,
    HORIZON,
    Workload,
    bound,
    decays,
    endpoint_job,
    relative_error,
    workload,
)

LOADS = ("W1", "W2", "W3", "network", "small")
FEWEST = 10  # groups that a peer does
SMALL = 10**4  # numbers, which no threads can share
CHECKED = 40  # of them, at most
SLACK = 3.0  # times the error of least squares: other models of the same data may err by so much
BLOCK = 2 << 20  # bytes of differences in float64: what was fastest of 1 to 16 MiB


class Peer(NamedTuple):
    """``function`` of ``module`` in this folder does ``share`` of the groups with ``package``.

    way: "blocks" on threads, "loop" on one, or "whole": all groups in one call.
    """

    package: str
    module: str
    function: str
    way: Literal["blocks", "loop", "whole"]
    share: float
    loads: tuple[str, ...] = ("W1", "W2")

    def load(self) -> Callable[..., npt.NDArray[Any]]:
        """The function; raises Unavailable where the package is not installed."""
        if find_spec(self.package) is None:
            raise Unavailable(f"{self.package} is not installed: {INSTALL}")
        module = import_module(f"koopcore.lab.studies.peers.{self.module}")
        function: Callable[..., npt.NDArray[Any]] = getattr(module, self.function)
        return function


SMALL_GROUPS = ("W1", "W2", "W3")
PEERS = {
    "NumPy Gram matrices, stacked": Peer(
        "numpy", "numpy_peers", "gram_stack", "blocks", 1.0, SMALL_GROUPS
    ),
    "NumPy Gram matrices, loop": Peer("numpy", "numpy_peers", "gram_loop", "loop", 0.02, LOADS),
    "torch batched Cholesky": Peer("torch", "torch_peers", "cholesky", "blocks", 1.0, LOADS),
    "JAX vmap, compiled": Peer(
        "jax", "jax_peers", "cholesky", "whole", 1.0, (*SMALL_GROUPS, "small")
    ),
    "torch lstsq": Peer("torch", "torch_peers", "lstsq", "blocks", 0.1),
    "torch pinv": Peer("torch", "torch_peers", "pinv", "blocks", 0.1),
    "NumPy pinv, stacked": Peer("numpy", "numpy_peers", "pinv_stack", "blocks", 0.1),
    "NumPy pinv, loop": Peer("numpy", "numpy_peers", "pinv_loop", "loop", 0.02),
    "PyDMD, loop": Peer("pydmd", "libraries", "pydmd", "loop", 0.01),
    "deeptime, loop": Peer("deeptime", "libraries", "deeptime", "loop", 0.01),
    "kooplearn, loop": Peer("kooplearn", "libraries", "kooplearn", "loop", 0.005),
}


def cases(size: Size) -> list[Case]:
    return [
        Case(load, case, options=workload(load, size))
        for load in LOADS
        for case in (*BACKENDS, *(name for name, peer in PEERS.items() if load in peer.loads))
    ]


@shared
def grouped(load: Workload) -> tuple[npt.NDArray[np.float32], kc.Partition]:
    """(n_groups, n, m) contiguous, and where each group's columns stand in the rows."""
    part = load.partition()
    rows = decays(load.n, part.size).rows
    if part.n_groups == 1:
        return rows[None], part
    columns = np.concatenate([part.indices(g) for g in range(part.n_groups)])
    groups = rows[:, columns].reshape(load.n, part.n_groups, -1)
    return np.ascontiguousarray(groups.swapaxes(0, 1)), part


@shared
def _right(load: Workload) -> float:
    """The error that a peer's answer may have."""
    part = load.partition()
    return bound(decays(load.n, part.size), part, HORIZON, SLACK)


def build(case: Case) -> Job:
    load: Workload = case.options
    part = load.partition()
    data = decays(load.n, part.size)
    if case.name in BACKENDS:
        return endpoint_job(data, part, backend=case.name)
    peer = PEERS[case.name]
    endpoint = peer.load()
    groups, part = grouped(load)
    count = min(max(round(peer.share * part.n_groups), FEWEST), part.n_groups)
    timed = np.linspace(0, part.n_groups - 1, count).round().astype(np.int64)
    batch = groups if count == part.n_groups else np.ascontiguousarray(groups[timed])
    checked = np.unique(np.linspace(0, count - 1, CHECKED).round().astype(np.int64))
    every = -(-load.m // COLUMNS)

    def error(predicted: npt.NDArray[Any]) -> float:
        errors = [
            relative_error(
                data, part.indices(int(timed[k]))[::every], predicted[k, ::every], HORIZON
            )
            for k in checked
        ]
        return float(np.median(errors))

    processes = thread_count() if peer.way == "loop" and count > 1 else 1
    return Job(
        call=in_its_way(peer.way, endpoint, batch),
        error=error,
        bound=_right(load),
        scale=part.n_groups / count / processes,
        figures={"groups_timed": float(count), "groups": float(part.n_groups)},
        most=200 if part.size * load.n < SMALL else 12,
        engine=False,
    )


def in_its_way(
    way: str, endpoint: Callable[..., npt.NDArray[Any]], groups: npt.NDArray[Any]
) -> Callable[[], npt.NDArray[Any]]:
    """The call that is timed: blocks on threads, or everything here; see the head of this file."""
    count, n, m = groups.shape
    if way == "whole":
        return lambda: endpoint(groups, HORIZON)
    if count * n * m < SMALL:

        def short_call() -> npt.NDArray[Any]:
            with one_torch_thread():
                return endpoint(groups, HORIZON)

        return short_call
    threads = thread_count() if way == "blocks" or count == 1 else 1
    size = max(BLOCK // (8 * n * m), 1)
    size = min(size, -(-count // threads)) if way == "blocks" else count
    blocks = [groups[k : k + size] for k in range(0, count, size)]
    pool = ThreadPoolExecutor(threads)

    def call() -> npt.NDArray[Any]:
        with one_thread_each():
            if count == 1:
                return endpoint(groups, HORIZON, pool.map)
            return np.concatenate(list(pool.map(lambda block: endpoint(block, HORIZON), blocks)))

    return call


@contextmanager
def one_thread_each() -> Iterator[None]:
    """No threads of BLAS and torch inside, where there are any to switch off."""
    blas = _libraries().limit(limits=1) if find_spec("threadpoolctl") else nullcontext()
    with blas, one_torch_thread():
        yield


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Torch alone: a microsecond, where BLAS takes twenty."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@shared
def _libraries() -> Any:
    """What threadpoolctl knows of the libraries that are loaded by now."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def summary(rows: Sequence[Row]) -> Summary:
    claims, notes = [], []
    for race in races_of(rows):
        ours = seconds_of(rows, race, BACKENDS[0])
        peers = [row for row in rows if row.race == race and row.case not in BACKENDS]
        ratios = {row.case: row.seconds / ours for row in peers if row.seconds}
        notes += [
            f"{race}: {row.case} / {BACKENDS[0]} = {ratios[row.case]:.3g}, error {row.error:.2g}"
            for row in peers
            if row.case in ratios
        ]
        fastest = min(ratios, key=lambda case: ratios[case], default="a peer")
        text = f"{race}: the fastest peer ({fastest}) / {BACKENDS[0]}"
        claims.append(Claim(text, ratios.get(fastest, float("nan")), 1.0, False))
    return Summary(claims=claims, notes=notes)


STUDY = Study(
    "peers",
    "How does koopcore compare with what one would use instead, in time and in prediction error?",
    "",
    cases,
    build,
    summary,
    plots.time_bars,
)
