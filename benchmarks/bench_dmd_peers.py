"""How do koopcore.dmd and PyDMD compare, on the same data and in the same run?

    pip install "koopcore[bench]"
    python benchmarks/bench_dmd_peers.py [speed | forecasts | stream]

speed: milliseconds a system, of a batch here and of PyDMD in a loop over some of its systems, best
of several rounds that take turns. forecasts: errors over 40 snapshots after the data, at three
levels of noise, of PyDMD's variants and ours. stream: 10^6 snapshots of 1,000 features, made block
by block, with the memory that the process came to need. Prints JSON.
"""

import json
import resource
import sys
import time
import warnings
from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np

from koopcore.dmd import DMD, OptimizedDMD, sliding

warnings.simplefilter("ignore")
STEP = 0.15


def waves(
    systems: int, n: int, m: int, noise: float, standing: bool = False, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Two waves in each system (systems, n, m), and their four eigenvalues."""
    rng = np.random.default_rng(seed)
    x, t = np.linspace(0.0, 1.0, m), STEP * np.arange(n)[:, None]
    series, eigenvalues = np.empty((systems, n, m)), np.empty((systems, 4), dtype=complex)
    for s in range(systems):
        slow, fast, long = rng.uniform(1.5, 2.2), rng.uniform(3.5, 5.0), rng.uniform(1.0, 2.0)
        phase = 2.0 * np.pi * long * x
        first = np.cos(slow * t) * np.sin(phase) if standing else np.sin(phase - slow * t)
        series[s] = first + 0.7 * np.sin(14.0 * x + fast * t)
        eigenvalues[s] = np.exp(1j * STEP * np.array([slow, -slow, fast, -fast]))
    return series + noise * rng.standard_normal(series.shape), eigenvalues


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def turns(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> tuple[float, float]:
    """The best times of both, taken in turns."""
    ours()
    both = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
    return min(a for a, _ in both), min(b for _, b in both)


def right(truth: np.ndarray, got: np.ndarray) -> bool:
    """Whether every true eigenvalue has one within 0.01."""
    return bool(np.abs(truth[:, None] - got[None]).min(axis=1).max() < 0.01)


def speed() -> dict[str, Any]:
    import pydmd

    result: dict[str, Any] = {}

    def entry(name: str, ours: float, systems: int, theirs: float, some: int, **more: Any) -> None:
        mine, other = 1e3 * ours / systems, 1e3 * theirs / some
        result[name] = {"koopcore ms": mine, "PyDMD ms": other, "ratio": other / mine, **more}

    for name, n, m in (("16 snapshots of 65", 16, 65), ("65 snapshots of 16", 65, 16)):
        x, _ = waves(10_000, n, m, 0.02)
        some = [row.T.copy() for row in x[:60]]

        def ours(x: np.ndarray = x) -> Any:
            fitted = DMD(4).fit(x)
            return fitted.eigenvalues_, fitted.modes_, fitted.amplitudes_

        def theirs(some: list[np.ndarray] = some, optimal: bool = True) -> None:
            for row in some:
                fitted = pydmd.DMD(svd_rank=4, exact=True, opt=optimal).fit(row)
                _ = fitted.eigs, fitted.modes, fitted.amplitudes

        entry(f"DMD, 10,000 systems, {name}", *with_counts(turns(ours, theirs, 3), 10_000, 60))

    series = waves(1, 10_015, 65, 0.02)[0][0]
    windows = [series[k : k + 16].T.copy() for k in range(60)]

    def slide() -> Any:
        fitted = sliding(series, 16, rank=4)
        return fitted.eigenvalues_, fitted.modes_, fitted.amplitudes_

    def loop() -> None:
        for row in windows:
            fitted = pydmd.DMD(svd_rank=4, exact=True, opt=True).fit(row)
            _ = fitted.eigs, fitted.modes, fitted.amplitudes

    entry("10,000 windows of 16, 65 features", *with_counts(turns(slide, loop, 3), 10_000, 60))

    for standing in (False, True):
        x, truth = waves(2_000, 100, 65, 0.1, standing)
        times = STEP * np.arange(100)
        optimized = OptimizedDMD(4)
        found: list[np.ndarray] = []

        def bop(
            x: np.ndarray = x,
            found: list[np.ndarray] = found,
            times: np.ndarray = times,
        ) -> None:
            found.clear()
            for row in x[:20]:
                fitted = pydmd.BOPDMD(svd_rank=4, num_trials=0).fit(row.T, times)
                found.append(np.exp(STEP * fitted.eigs))

        def mine(x: np.ndarray = x, optimized: OptimizedDMD = optimized) -> None:
            optimized.fit(x)

        best = turns(mine, bop, 2)
        shares = {
            "koopcore right": float(
                np.mean([right(a, b) for a, b in zip(truth, optimized.eigenvalues_, strict=True)])
            ),
            "BOPDMD right": float(
                np.mean([right(a, b) for a, b in zip(truth, found, strict=False)])
            ),
        }
        name = "a standing wave" if standing else "travelling waves"
        entry(
            f"optimized, 2,000 systems, 100 snapshots of 65, {name}",
            *with_counts(best, 2_000, 20),
            **shares,
        )
    return result


def with_counts(best: tuple[float, float], ours: int, theirs: int) -> tuple[float, int, float, int]:
    return best[0], ours, best[1], theirs


def forecasts() -> dict[str, Any]:
    """Median error over the 40 snapshots after 60, relative, of 40 systems of 65 features."""
    import pydmd

    result: dict[str, Any] = {}
    for standing in (False, True):
        clean = waves(40, 100, 65, 0.0, standing)[0]
        for noise in (0.0, 0.02, 0.1):
            x = clean + noise * np.random.default_rng(1).standard_normal(clean.shape)
            row: dict[str, float] = {}
            for name, make in {
                "PyDMD DMD()": lambda: pydmd.DMD(),
                "PyDMD DMD(4)": lambda: pydmd.DMD(svd_rank=4, exact=True, opt=True),
                "PyDMD FbDMD(4)": lambda: pydmd.FbDMD(svd_rank=4, exact=True, opt=True),
                "PyDMD HankelDMD(4, d=20)": lambda: pydmd.HankelDMD(svd_rank=4, d=20),
                "PyDMD BOPDMD(4)": lambda: pydmd.BOPDMD(svd_rank=4, num_trials=0),
            }.items():
                row[name] = median_error([peer(make(), one[:60]) for one in x], clean[:, 60:])
            for name, estimator in {
                "DMD()": DMD(),
                "DMD(4)": DMD(4),
                "DMD(4, modes='refit')": DMD(4, modes="refit"),
                "DMD(4, tls=True)": DMD(4, tls=True),
                "DMD(4, forward_backward=True)": DMD(4, forward_backward=True),
                "DMD(4, noise='median')": DMD(4, noise="median"),
                "DMD(4, delays=20)": DMD(4, delays=20),
                "DMD(4, delays=20, modes='refit')": DMD(4, delays=20, modes="refit"),
                "OptimizedDMD()": OptimizedDMD(),
                "OptimizedDMD(4)": OptimizedDMD(4),
            }.items():
                ahead = estimator.fit(x[:, :60]).forecast(horizon=40)
                row[name] = median_error(ahead, clean[:, 60:])
            kind = "a standing wave" if standing else "travelling waves"
            result[f"{kind}, noise {noise}"] = row
    return result


def peer(estimator: Any, x: np.ndarray) -> np.ndarray:
    """The 40 states after x as PyDMD sees them."""
    if type(estimator).__name__ == "BOPDMD":
        estimator.fit(x.T, STEP * np.arange(len(x)))
        return np.asarray(estimator.forecast(STEP * np.arange(60, 100))).T.real
    estimator.fit(x.T.copy())
    estimator.dmd_time["tend"] = 99 * estimator.dmd_time["dt"]
    return np.asarray(estimator.reconstructed_data).T[60:100].real


def median_error(ahead: Any, truth: np.ndarray) -> float:
    with np.errstate(all="ignore"):
        errors = np.linalg.norm(np.asarray(ahead) - truth, axis=(1, 2))
        errors /= np.linalg.norm(truth, axis=(1, 2))
    return float(np.median(np.nan_to_num(errors, nan=np.inf)))


def stream() -> dict[str, Any]:
    """Seconds of `partial_fit` alone, and of copying the same blocks in memory."""
    n, m, block = 1_000_000, 1_000, 10_000
    rng = np.random.default_rng(0)
    x = np.linspace(0.0, 1.0, m)
    noise = 0.1 * rng.standard_normal((block, m)).astype(np.float32)
    estimator, spent, copied = DMD(4), 0.0, 0.0
    space = np.stack([np.sin(6 * x), np.cos(6 * x), np.sin(9 * x), np.cos(9 * x)])
    kept = np.empty((block, m), dtype=np.float32)
    early = 0
    for begin in range(0, n, block):
        t = STEP * np.arange(begin, begin + block)[:, None]
        time_ = np.hstack([np.cos(2 * t), np.sin(2 * t), np.cos(3 * t), np.sin(3 * t)])
        rows = (time_ @ space).astype(np.float32)
        rows += noise[rng.permutation(block)]
        copied += seconds(lambda rows=rows: np.copyto(kept, rows))
        spent += seconds(lambda rows=rows: estimator.partial_fit(rows))
        if begin == 9 * block:
            early = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    truth = np.exp(1j * STEP * np.array([2.0, -2.0, 3.0, -3.0]))
    got = estimator.eigenvalues_
    return {
        "snapshots": n,
        "features": m,
        "dtype": "float32",
        "bytes": 4 * n * m,
        "seconds": spent,
        "GB/s": 4e-9 * n * m / spent,
        "GB/s of a copy": 4e-9 * n * m / copied,
        "MB after a tenth": early / 1024,
        "MB at the end": most / 1024,
        "eigenvalue error": float(np.abs(truth[:, None] - got[None]).min(axis=1).max()),
    }


if __name__ == "__main__":
    studies = {"speed": speed, "forecasts": forecasts, "stream": stream}
    names = sys.argv[1:] or list(studies)
    report: dict[str, Any] = {"PyDMD": metadata.version("pydmd"), "numpy": np.__version__}
    print(json.dumps(report | {name: studies[name]() for name in names}, indent=2))
