"""How do koopcore.dmd and PyDMD compare, on the same data and in the same run?

    pip install "koopcore[bench]"
    python benchmarks/bench_dmd_peers.py [speed | forecasts | stream] [--row K] [--into FILE]

speed: milliseconds a system, of a batch here and of PyDMD in a loop over some of its systems, best
of several rounds that take turns. forecasts: errors over 40 snapshots after the data, at three
levels of noise, of PyDMD's variants and ours. stream: 10^6 snapshots of 1,000 features, made block
by block, with the memory that the process came to need. Prints JSON.
"""

import argparse
import json
import resource
import time
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
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


def decomposition(n: int, m: int, rounds: int) -> dict[str, Any]:
    """DMD with modes and amplitudes of 10,000 systems."""
    import pydmd

    x, _ = waves(10_000, n, m, 0.02)
    some = [row.T.copy() for row in x[:60]]

    def ours() -> Any:
        fitted = DMD(4).fit(x)
        return fitted.eigenvalues_, fitted.modes_, fitted.amplitudes_

    def theirs() -> None:
        for row in some:
            fitted = pydmd.DMD(svd_rank=4, exact=True, opt=True).fit(row)
            _ = fitted.eigs, fitted.modes, fitted.amplitudes

    return entry(ours, len(x), theirs, len(some), rounds)


def windows(rounds: int) -> dict[str, Any]:
    """The same of 10,000 windows of one series."""
    import pydmd

    series = waves(1, 10_015, 65, 0.02)[0][0]
    some = [series[k : k + 16].T.copy() for k in range(60)]

    def ours() -> Any:
        fitted = sliding(series, 16, rank=4)
        return fitted.eigenvalues_, fitted.modes_, fitted.amplitudes_

    def theirs() -> None:
        for row in some:
            fitted = pydmd.DMD(svd_rank=4, exact=True, opt=True).fit(row)
            _ = fitted.eigs, fitted.modes, fitted.amplitudes

    return entry(ours, 10_000, theirs, len(some), rounds)


def optimized(standing: bool, rounds: int) -> dict[str, Any]:
    """Optimized DMD of 2,000 systems, BOPDMD of some of them, and who finds the eigenvalues."""
    import pydmd

    x, truth = waves(2_000, 100, 65, 0.1, standing)
    times, estimator = STEP * np.arange(100), OptimizedDMD(4)
    found: list[np.ndarray] = []

    def theirs() -> None:
        found.clear()
        for row in x[:20]:
            fitted = pydmd.BOPDMD(svd_rank=4, num_trials=0).fit(row.T, times)
            found.append(np.exp(STEP * fitted.eigs))

    row = entry(lambda: estimator.fit(x), len(x), theirs, 20, min(rounds, 2))
    for name, values in (("koopcore", estimator.eigenvalues_), ("BOPDMD", found)):
        each = [right(a, b) for a, b in zip(truth, values, strict=False)]
        row[f"{name} right"] = float(np.mean(each))
    return row


def entry(
    ours: Callable[[], Any], systems: int, theirs: Callable[[], Any], some: int, rounds: int
) -> dict[str, Any]:
    mine, other = (1e3 * best for best in turns(ours, theirs, rounds))
    mine, other = mine / systems, other / some
    return {"koopcore ms": mine, "PyDMD ms": other, "ratio": other / mine}


ROWS: dict[str, Callable[[int], dict[str, Any]]] = {
    "DMD, 10,000 systems, 16 snapshots of 65": lambda rounds: decomposition(16, 65, rounds),
    "DMD, 10,000 systems, 65 snapshots of 16": lambda rounds: decomposition(65, 16, rounds),
    "10,000 windows of 16, 65 features": windows,
    "optimized, 2,000 systems, 100 snapshots of 65, travelling waves": lambda rounds: optimized(
        False, rounds
    ),
    "optimized, 2,000 systems, 100 snapshots of 65, a standing wave": lambda rounds: optimized(
        True, rounds
    ),
}


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("studies", nargs="*", metavar="speed | forecasts | stream")
    parser.add_argument("--row", type=int, help="of speed, from 0; without it all")
    parser.add_argument("--rounds", type=int, default=5, help="turns that a row of speed takes")
    parser.add_argument("--into", type=Path, help="JSON file that each result is added to at once")
    given = parser.parse_args()
    report: dict[str, Any] = {}
    if given.into and given.into.exists():
        report = json.loads(given.into.read_text())
    report |= {"PyDMD": metadata.version("pydmd"), "numpy": np.__version__}

    def keep() -> None:
        if given.into:
            given.into.write_text(json.dumps(report, indent=2) + "\n")

    for name in given.studies or ["speed", "forecasts", "stream"]:
        if name == "speed":
            for k, (row, measure) in enumerate(ROWS.items()):
                if given.row in (None, k):
                    report.setdefault(name, {})[row] = measure(given.rounds)
                    keep()
        else:
            report[name] = {"forecasts": forecasts, "stream": stream}[name]()
            keep()
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
