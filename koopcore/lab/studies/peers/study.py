"""How does koopcore compare with what one would use instead, in time and in prediction error?

The workloads W1 and W2 of the endpoint study, horizon 100. Everybody gets the same float32
snapshots in the same run: koopcore the flat rows of the ring, the others their groups as one
contiguous (groups, snapshots, parameters) array, whose making is not timed. Slow ones do a part of
the groups, spread over all, and their time is scaled; that is said. The error is the median over
sampled groups of ‖predicted - true‖ / ‖true movement‖. A peer's time stands whatever its error,
which stands beside it; koopcore's only if it predicts as well as orthogonal least squares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

import koopcore as kc
from koopcore.lab.bench import plots
from koopcore.lab.bench.race_cache import shared
from koopcore.lab.bench.study import (
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
)
from koopcore.lab.studies.decays import decays, relative_error
from koopcore.lab.studies.endpoint import HORIZON, Workload, workload
from koopcore.lab.studies.endpoint_job import endpoint_job

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEWEST = 10  # groups that a peer does
OURS = ("native_cpu", "numba_cpu")
INSTALL = 'pip install "koopcore[bench]"'


class Peer(NamedTuple):
    """``function`` of ``module`` does ``share`` of the groups with ``package``."""

    package: str
    module: str
    function: str
    share: float

    def load(self) -> Callable[[npt.NDArray[Any], int], npt.NDArray[Any]]:
        if find_spec(self.package) is None:
            raise Unavailable(f"{self.package} is not installed: {INSTALL}")
        module = import_module(f"koopcore.lab.studies.{self.module}")
        function: Callable[[npt.NDArray[Any], int], npt.NDArray[Any]]
        function = getattr(module, self.function)
        return function


PEERS = {
    "NumPy pinv, loop": Peer("numpy", "peer_numpy", "pinv_loop", 0.01),
    "NumPy pinv, stacked": Peer("numpy", "peer_numpy", "pinv_stack", 0.02),
    "torch pinv": Peer("torch", "peer_torch", "pinv", 0.02),
    "torch lstsq": Peer("torch", "peer_torch", "lstsq", 0.05),
    "torch batched Cholesky": Peer("torch", "peer_torch", "cholesky", 1.0),
    "PyDMD, loop": Peer("pydmd", "peer_libraries", "pydmd", 0.01),
    "kooplearn, loop": Peer("kooplearn", "peer_libraries", "kooplearn", 0.005),
    "deeptime, loop": Peer("deeptime", "peer_libraries", "deeptime", 0.01),
    "JAX vmap, compiled": Peer("jax", "peer_jax", "cholesky", 1.0),
}
CLAIMS = {
    "W1": {"torch batched Cholesky": 40, "NumPy pinv, loop": 400, "PyDMD, loop": 1000},
    "W2": {"NumPy pinv, loop": 1500},
}


def cases(size: Size) -> list[Case]:
    return [
        Case(name, case, options=workload(name, size))
        for name in CLAIMS
        for case in (*OURS, *PEERS)
    ]


@shared
def _grouped(load: Workload) -> tuple[npt.NDArray[np.float32], kc.Partition]:
    """(n_groups, n, m) contiguous, and where each group's columns stand in the rows."""
    part = load.partition()
    rows = decays(load.n, part.size).rows
    columns = np.concatenate([part.indices(g) for g in range(part.n_groups)])
    groups = rows[:, columns].reshape(load.n, part.n_groups, -1)
    return np.ascontiguousarray(groups.swapaxes(0, 1)), part


def build(case: Case) -> Job:
    load: Workload = case.options
    groups, part = _grouped(load)
    data = decays(load.n, part.size)
    if case.name in OURS:
        return endpoint_job(data, part, HORIZON, backend=case.name)
    peer = PEERS[case.name]
    endpoint = peer.load()
    count = max(round(peer.share * part.n_groups), min(part.n_groups, FEWEST))
    chosen = np.linspace(0, part.n_groups - 1, count).round().astype(np.int64)
    own = groups if count == part.n_groups else np.ascontiguousarray(groups[chosen])
    checked = np.unique(np.linspace(0, count - 1, 40).round().astype(np.int64))

    def error(predicted: npt.NDArray[Any]) -> float:
        errors = [
            relative_error(data, part.indices(int(chosen[k])), predicted[k], HORIZON)
            for k in checked
        ]
        return float(np.median(errors))

    return Job(
        call=lambda: endpoint(own, HORIZON),
        error=error,
        bound=float("inf"),
        scale=part.n_groups / count,
        figures={"groups_timed": float(count), "groups": float(part.n_groups)},
        most=8,
        engine=False,
    )


def summary(rows: Sequence[Row]) -> Summary:
    claims, notes = [], []
    for race in races_of(rows):
        ours = seconds_of(rows, race, "native_cpu")
        for row in rows:
            if row.race != race or row.case in OURS:
                continue
            if row.missing:
                notes.append(f"{race}: {row.case}: {row.missing}")
                continue
            ratio = (row.seconds or float("nan")) / ours
            limit = CLAIMS[race].get(row.case)
            text = f"{race}: {row.case} / native_cpu"
            if limit:
                claims.append(Claim(text, ratio, limit, False))
            else:
                notes.append(f"{text} = {ratio:.0f}, error {row.error:.2g}")
    return Summary({}, claims, notes)


def draw(axes: Axes, rows: Sequence[Row]) -> None:
    plots.time_bars(axes, rows)


STUDY = Study("peers", __doc__.splitlines()[0], "", cases, build, summary, draw)
