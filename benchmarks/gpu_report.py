"""One command on a GPU machine: build, test, time, sanitize, compare with libraries, report.

python benchmarks/gpu_report.py [--output DIRECTORY] [--skip build tests own sanitizer peers]

Ends inside seven minutes. gpu-<name of the card>.json is written anew, whole, after everything that
was done: a run that is killed leaves all but what it was at. Every timing is a process of its own
(gpu_times.py) with a time limit, so that none can take another's; own methods come first. Nothing
needs to be installed, and this file imports nothing but Python's own library. Exit code: 0, 1 where
something failed, 2 without a GPU, 3 where torch sees none.

With ``--rehearse MODULE`` everything runs on a few groups under the host emulation of the tests.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TIMES = str(ROOT / "benchmarks/gpu_times.py")
LIMIT = 420.0  # seconds that everything may take
PARTS = {"build": 90.0, "tests": 80.0, "own": 130.0, "sanitizer": 90.0, "peers": 60.0}
WRONG = 0.02  # error, as a share of the movement, of a result whose time says nothing
SANITIZERS = ("memcheck", "racecheck")
OWN = (
    "facts", "copy", "endpoint W1", "endpoint W2", "endpoint W3", "stages W1", "stages W2",
    "endpoint W1 few deficient", "endpoint W1 deficient", "stages W1 few deficient",
    "stages W1 deficient", "endpoint W1 misaligned", "endpoint W2 misaligned",
    "endpoint strided", "endpoint W2 T=1000", "capture", "costs",
)  # fmt: skip
PEERS = ("peer cholesky W1", "peer pinv of 256 groups of W1", "peer cholesky W2")


class Item(NamedTuple):
    """A command of one part of the report; what it prints last is a line of JSON, or is not."""

    part: str
    name: str
    command: list[str]
    seconds: float  # at most
    environment: dict[str, str]
    has_result: bool


def plan(capability: str, rehearse: str | None) -> list[Item]:
    """Everything in its order."""
    python = sys.executable
    timing = [python, TIMES]
    aside = ["--rehearse", rehearse] if rehearse else []
    build = [
        "cmake", "--preset", "dev", f"-DCMAKE_CUDA_ARCHITECTURES={capability}-real",
        "-DKOOPCORE_CUDA=ON", "-DKOOPCORE_CPU=OFF", f"-DPython_EXECUTABLE={python}",
    ]  # fmt: skip
    test = [python, "-m", "pytest", "-m", "gpu", "tests/backends/test_gpu.py", "-x", "-q"]
    items = []
    if not rehearse:  # there is nothing to build, and no card that the tests could run on
        items += [
            Item("build", "configure", build, 40.0, {}, False),
            Item("build", "compile", ["cmake", "--build", "--preset", "dev"], 90.0, {}, False),
            Item("tests", "gpu tests", test, 80.0, {"KOOPCORE_REQUIRE_GPU": "1"}, False),
        ]
    items += [Item("own", name, [*timing, name, *aside], 30.0, {}, True) for name in OWN]
    sanitizer = shutil.which("compute-sanitizer")
    tools = SANITIZERS[:1] if rehearse else SANITIZERS if sanitizer else ()
    for tool in tools:
        watch = [] if rehearse else [str(sanitizer), "--tool", tool, "--error-exitcode", "9"]
        # Without torch's caching allocator, which would hide a read beyond an array.
        bare = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        command = [*watch, *timing, "sanitized", *aside]
        items.append(Item("sanitizer", tool, command, 60.0, bare, not watch))
    peers = PEERS[:2] if rehearse else PEERS  # the third is the first, of another size
    items += [Item("peers", name, [*timing, name, *aside], 30.0, {}, True) for name in peers]
    return items


def run(item: Item, seconds: float) -> dict[str, Any]:
    """What became of an item in at most ``seconds``: whatever it started ends with it."""
    started = time.monotonic()
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with subprocess.Popen(
        item.command, cwd=ROOT, env={**environment, **item.environment}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            output, _ = process.communicate(timeout=seconds)
            code = process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, code = process.communicate()[0], 124
    lines = output.splitlines()
    done: dict[str, Any] = {
        "passed": code == 0,
        "exit_code": code,
        "wall_seconds": round(time.monotonic() - started, 3),
    }
    if item.has_result and code == 0:
        try:
            done["result"] = json.loads(lines[-1])
        except (IndexError, ValueError):
            done["passed"] = False
        else:
            errors = [x for name, x in done["result"].items() if name.startswith("error")]
            if all(x < WRONG for x in errors):
                return done
            done["passed"] = False  # a NaN is wrong too
    return done | {"command": " ".join(item.command), "last_lines": lines[-15:]}


def card() -> tuple[str, str]:
    """(name, compute capability as 90) of the first GPU; SystemExit with the reason without one."""
    if shutil.which("nvidia-smi") is None:
        return no_card("no nvidia-smi on PATH; an NVIDIA GPU is needed")
    command = ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        return no_card(f"nvidia-smi reports no GPU ({done.stdout or done.stderr})")
    name, _, capability = lines[0].rpartition(",")
    return name.strip(), capability.strip().replace(".", "")


def no_card(reason: str) -> Any:
    print(f"gpu_report: {reason}", file=sys.stderr)
    raise SystemExit(2)


def torch_sees_it() -> bool:
    """Whether torch is there, and with CUDA; asked in a process of its own."""
    code = "import torch, sys; sys.exit(0 if torch.cuda.is_available() else 3)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def driver() -> str:
    """The driver's version, as nvidia-smi has it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def table(report: dict[str, Any]) -> str:
    """A line for every way that was timed: µs by graph and from Python, and times the copy."""
    items = report["items"]
    rate = None
    if "result" in (done := items.get("own: copy", {})):
        seconds = done["result"]["seconds"]["copy"]
        rate = done["result"]["floor_bytes"] / (
            seconds["graph"] if "graph" in seconds else seconds["python"]
        )
    lines = [["item", "way", "graph µs", "python µs", "/ copy"]]
    for name, done in items.items():
        result = done.get("result", {})
        for way, seconds in result.get("seconds", {}).items():
            shown = [f"{1e6 * seconds[key]:.4g}" if key in seconds else "-"
                     for key in ("graph", "python")]  # fmt: skip
            best = seconds["graph"] if "graph" in seconds else seconds["python"]
            floor = f"{best * rate / result['floor_bytes']:.3g}" if rate else "-"
            lines.append([name, way, *shown, floor])
        if not done["passed"]:
            lines.append([name, f"FAILED ({done['exit_code']})", "", "", ""])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ([cell.ljust(w) for cell, w in zip(line, widths, strict=True)] for line in lines)
    return "\n".join("  ".join(line).rstrip() for line in padded)


def save(report: dict[str, Any], path: Path) -> None:
    """The whole report in one step: whoever reads the file finds this one or the one before."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results")
    parser.add_argument("--skip", nargs="*", choices=PARTS, default=[])
    parser.add_argument("--rehearse", metavar="MODULE", help="the emulated module of the tests")
    arguments = parser.parse_args()
    started = time.monotonic()
    if arguments.rehearse:
        name, capability = "rehearsal", "90"
    else:
        name, capability = card()
        if not torch_sees_it():
            print("gpu_report: this Python has no torch that sees the GPU", file=sys.stderr)
            return 3
    report: dict[str, Any] = {
        "card": name,
        "compute_capability": capability,
        "driver": "" if arguments.rehearse else driver(),
        "items": {},
        "finished": False,
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f"gpu-{name.lower().replace(' ', '-')}.json"
    used = dict.fromkeys(PARTS, 0.0)
    for item in plan(capability, arguments.rehearse):
        if item.part in arguments.skip:
            continue
        left = LIMIT - 5.0 - (time.monotonic() - started)
        seconds = min(item.seconds, PARTS[item.part] - used[item.part], left)
        if arguments.rehearse:  # of a machine that may be busy with other things
            seconds = 10 * item.seconds
        key = f"{item.part}: {item.name}"
        if seconds < 3.0:
            done: dict[str, Any] = {"passed": True, "exit_code": 0, "left_out": "no time left"}
        else:
            done = run(item, seconds)
            used[item.part] += done["wall_seconds"]
        report["items"][key] = done
        report["seconds"] = round(time.monotonic() - started, 3)
        save(report, path)
        print(key, done.get("left_out") or ("passed" if done["passed"] else "FAILED"), flush=True)
    report["finished"] = True
    save(report, path)
    print(table(report))
    print(f"wrote {path} after {report.get('seconds', 0.0):.0f} s")
    return 0 if all(done["passed"] for done in report["items"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
