"""One command on a GPU machine: build, test, sanitize, time against floor and libraries, report.

python benchmarks/gpu_report.py [--output DIRECTORY] [--skip build tests sanitizer]

Ends inside eight minutes. Writes gpu-<name of the card>.json and prints a short table. Times are of
CUDA events around replays of a recorded graph where the work can be recorded, else around calls;
every method's result is compared with the engine's before it is timed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 8 * 60.0  # seconds that everything may take
STEPS = ("build", "tests", "sanitizer", "times")
# Seconds that a step may take at most; what is left of LIMIT is the other bound.
MOST = {"build": 150.0, "tests": 120.0, "sanitizer": 100.0, "times": 150.0}
SANITIZERS = ("memcheck", "racecheck", "initcheck")


class Workload(NamedTuple):
    """Groups of m parameters and a window of n snapshots."""

    name: str
    groups: int
    m: int
    n: int
    horizon: int = 100

    @property
    def read_bytes(self) -> int:
        """Bytes of the window in float32."""
        return 4 * self.groups * self.m * self.n

    @property
    def floor_bytes(self) -> int:
        """Bytes that any method moves: one read of the window, one write of the prediction."""
        return self.read_bytes + 4 * self.groups * self.m


NAMED = (
    Workload("W1", 10_000, 65, 16),
    Workload("W2", 100_000, 257, 24),
    Workload("W3", 134_225, 927, 16),
)
SWEEP = tuple(
    Workload(f"m={m} n={n} T={t}", max(64, 2**24 // (m * n)), m, n, t)
    for m, n, t in (
        *((m, 16, 100) for m in (16, 65, 257, 1025, 16_385, 1_000_001)),
        *((257, n, 100) for n in (8, 24, 32, 48)),
        *((257, 16, t) for t in (1, 1000, 10_000)),
    )
)


def fits(workload: Workload, free: int) -> bool:
    """Whether ring, prediction, Gram matrices and work space fit into ``free`` bytes."""
    gram = 8 * workload.groups * workload.n * (workload.n + 1) // 2
    return workload.floor_bytes + 2 * gram + 2**29 < free


def ratio(of: float | None, to: float | None) -> float | None:
    """of / to, None where either is unknown."""
    return None if of is None or not to else of / to


def rows(results: list[dict[str, Any]]) -> list[list[str]]:
    """The table that is printed: one line per workload."""

    def shown(value: float | None, unit: float, form: str = "{:.3g}") -> str:
        return "-" if value is None else form.format(value * unit)

    lines = [["workload", "floor µs", "koopcore µs", "/ floor", "stages", "one pass"]]
    lines[0] += ["torch chol", "pinv", "CuPy"]
    for result in results:
        own = result["seconds"].get("koopcore")
        line = [result["name"], shown(result["floor_seconds"], 1e6), shown(own, 1e6)]
        line.append(shown(ratio(own, result["floor_seconds"]), 1.0))
        for way in ("in_stages", "in_one_pass"):
            line.append(shown(ratio(result["seconds"].get(way), result["floor_seconds"]), 1.0))
        for other in ("torch_cholesky", "torch_pinv", "cupy"):
            line.append(shown(ratio(result["seconds"].get(other), own), 1.0, "{:.3g}x"))
        lines.append(line)
    return lines


def table(lines: list[list[str]]) -> str:
    """Columns padded to their widest entry."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ([cell.rjust(w) for cell, w in zip(line, widths, strict=True)] for line in lines)
    return "\n".join("  ".join(line) for line in padded)


def card() -> tuple[str, str]:
    """(name, compute capability as 90) of the first GPU; SystemExit with the reason without one."""
    if shutil.which("nvidia-smi") is None:
        raise SystemExit("gpu_report: no nvidia-smi on PATH; an NVIDIA GPU is needed")
    command = ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        raise SystemExit(f"gpu_report: nvidia-smi reports no GPU ({done.stdout or done.stderr})")
    name, _, capability = lines[0].rpartition(",")
    return name.strip(), capability.strip().replace(".", "")


def step(command: list[str], seconds: float, **env: str) -> dict[str, Any]:
    """Run a command for at most ``seconds``; how it ended, how long it took, its last lines."""
    started = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **env}, timeout=max(seconds, 1.0), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        code, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired as error:
        raw = error.stdout or b""
        code, output = 124, raw.decode(errors="replace") if isinstance(raw, bytes) else raw
    return {
        "command": " ".join(command),
        "passed": code == 0,
        "exit_code": code,
        "seconds": time.monotonic() - started,
        "last_lines": output.splitlines()[-15:],
    }


def commands(capability: str) -> dict[str, list[list[str]]]:
    """What every step but the times runs."""
    build = ["cmake", "--preset", "dev", f"-DCMAKE_CUDA_ARCHITECTURES={capability}"]
    small = [
        "-k",
        "test_gram or test_fits or test_one_pass",
        "tests/backends/test_gpu.py",
        "-x",
        "-q",
    ]
    sanitizer = shutil.which("compute-sanitizer")
    checks = [
        [str(sanitizer), "--tool", tool, "--error-exitcode", "9", "--target-processes", "all",
         *(sys.executable, "-m", "pytest", "-m", "gpu", *small)]
        for tool in SANITIZERS
    ]  # fmt: skip
    return {
        "build": [[*build, "-DKOOPCORE_CUDA=ON"], ["cmake", "--build", "--preset", "dev"]],
        "tests": [["pytest", "-m", "gpu", "tests"]],
        "sanitizer": checks if sanitizer else [],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results")
    parser.add_argument("--skip", nargs="*", choices=STEPS, default=[])
    arguments = parser.parse_args()
    started = time.monotonic()
    name, capability = card()
    report: dict[str, Any] = {"card": name, "compute_capability": capability}

    def left(of: str) -> float:
        return min(MOST[of], LIMIT - 10.0 - (time.monotonic() - started))

    for of, lines in commands(capability).items():
        if of in arguments.skip:
            continue
        deadline = time.monotonic() + left(of)
        report[of] = [
            step(line, deadline - time.monotonic(), KOOPCORE_REQUIRE_GPU="1") for line in lines
        ]
        print(of, "passed" if all(done["passed"] for done in report[of]) else "FAILED")
    if "times" not in arguments.skip:
        sys.path.insert(0, str(Path(__file__).parent))
        from gpu_times import measure

        report["times"] = measure([*NAMED, *SWEEP], time.monotonic() + left("times"), fits)
        print(table(rows(report["times"]["workloads"])))
    report["seconds"] = time.monotonic() - started
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f"gpu-{name.lower().replace(' ', '-')}.json"
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path} after {report['seconds']:.0f} s")
    return 0 if all(d["passed"] for s in STEPS[:3] for d in report.get(s, [])) else 1


if __name__ == "__main__":
    sys.exit(main())
