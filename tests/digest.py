"""Are results the same, bit for bit, as before a change that should not touch them?

    python tests/digest.py before.json      # in the tree as it was
    python tests/digest.py after.json       # in the changed one
    python tests/digest.py --compare before.json after.json

Every CPU backend on the motions of the accuracy tables: all models, with rank and ridge, both
dtypes, predictions both ways, diagnostics and eigenvalues; with --cuda the stages of the CUDA
kernels as the host emulation runs them. A line per case: a hash of the bytes of each result.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from accuracy_tables import HORIZONS, KINDS, side_by_side

import koopcore as kc

BACKENDS = ("native_cpu", "numba_cpu", "reference")
WAYS = {
    "linear": {"model": "linear"},
    "affine": {"model": "affine"},
    "trend": {"model": "trend"},
    "auto": {"model": "auto"},
    "ridge": {"model": "linear", "ridge": 1e-6},
    "rank": {"model": "affine", "rank": 1},
}
SIZES = (1, 2, 11, 65)
WINDOWS = (3, 8, 16, 33)
FIELDS = ("status", "rank", "residual", "condition", "hindcast_error")


def digest(*arrays: object) -> str:
    """A hash of the arrays' bytes, dtypes and shapes."""
    found = hashlib.sha256()
    for array in map(np.ascontiguousarray, arrays):
        found.update(f"{array.dtype} {array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()[:16]


def of_fit(snapshots, part, backend, options) -> dict[str, str]:
    """Hashes of everything that a fit answers."""
    ops = kc.fit(snapshots, part, backend=backend, **options)
    ahead = kc.fit(snapshots, part, backend=backend, horizon=HORIZONS, **options)
    return {
        "predict": digest(ops.predict(HORIZONS)),
        "ahead": digest(ahead.predict(HORIZONS)),
        "trajectory": digest(ops.trajectory(5)),
        "growth": digest(ops.growth(HORIZONS)),
        "eigenvalues": digest(ops.eigenvalues()),
        **{name: digest(getattr(ops, name)) for name in FIELDS},
    }


def of_backends() -> dict[str, str]:
    out = {}
    for kind in KINDS:
        for dtype in ("float32", "float64"):
            for m in SIZES:
                for n in WINDOWS:
                    _, snapshots, part = side_by_side(kind, m, n, dtype)
                    for way, options in WAYS.items():
                        if way == "rank" and m == 1:
                            continue
                        for backend in BACKENDS:
                            case = f"{backend} {kind} {dtype} m={m} n={n} {way}"
                            for name, value in of_fit(snapshots, part, backend, options).items():
                                out[f"{case} {name}"] = value
        print(kind, len(out), file=sys.stderr)
    return out


def of_cuda() -> dict[str, str]:
    """The stages of the kernels in csrc/cuda, run by the host emulation."""
    import emulated_cuda

    from koopcore import arrays

    try:
        from koopcore.backends.protocol import Snapshots
    except ImportError:
        from koopcore.backends.stages import Snapshots

    arrays.memory = arrays.any_memory = emulated_cuda.host_memory
    arrays.where = lambda array: "CUDA device 0"
    out = {}
    with tempfile.TemporaryDirectory() as folder:
        on = emulated_cuda.backend(emulated_cuda.compiled(Path(folder)))
        for kind in KINDS:
            for dtype in ("float32", "float64"):
                for m, n in ((11, 8), (65, 16), (257, 33)):
                    _, snapshots, part = side_by_side(kind, m, n, dtype)
                    window = Snapshots(snapshots, np.arange(n))
                    for affine in (False, True):
                        gram = on.gram(window, part)
                        solved = on.solve(gram, n, affine, 2)
                        weights, growth = on.rollout(np.asarray(solved[0]), affine, HORIZONS)
                        ends = np.zeros((len(HORIZONS), snapshots.shape[1]), dtype)
                        on.combine(window, part, np.asarray(weights), ends)
                        direct = np.zeros_like(ends)
                        on.endpoint(window, part, affine, HORIZONS, direct)
                        case = f"cuda {kind} {dtype} m={m} n={n} affine={affine}"
                        out[f"{case} gram"] = digest(gram)
                        out[f"{case} solve"] = digest(*map(np.asarray, solved))
                        out[f"{case} rollout"] = digest(weights, growth)
                        out[f"{case} combine"] = digest(ends)
                        out[f"{case} endpoint"] = digest(direct)
                        if m < n - 1:
                            out[f"{case} feature_gram"] = digest(
                                on.feature_gram(window, part, affine, [n])
                            )
    return out


def compare(before: Path, after: Path) -> int:
    """Print what differs or is missing; the exit code."""
    old, new = json.loads(before.read_text()), json.loads(after.read_text())
    differing = [case for case in old if case in new and old[case] != new[case]]
    missing = sorted(set(old) ^ set(new))
    for case in [*differing, *missing][:40]:
        print("differs" if case in differing else "in one run only", case)
    print(
        f"{len(old)} results before, {len(new)} after: {len(differing)} differ, {len(missing)} "
        "are in one run only"
    )
    return bool(differing or missing)


def main() -> None:
    parser = argparse.ArgumentParser(description="Are results the same bits as before?")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--compare", action="store_true", help="compare two files")
    parser.add_argument("--cuda", action="store_true", help="the CUDA kernels, on the host")
    arguments = parser.parse_args()
    if arguments.compare:
        sys.exit(compare(*arguments.files))
    results = of_cuda() if arguments.cuda else of_backends()
    arguments.files[0].write_text(json.dumps(results, indent=0))


if __name__ == "__main__":
    main()
