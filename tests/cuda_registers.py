"""Registers, stack and spills of every CUDA kernel, as ptxas reports them, against a golden file.

python tests/cuda_registers.py            compiles csrc/cuda for every architecture and compares
python tests/cuda_registers.py --write    and keeps what it finds as the new golden file
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).with_name("cuda_registers.json")
SOURCES = tuple(path.stem for path in sorted((ROOT / "csrc/cuda").glob("*.cu")))
ARCHITECTURES = (80, 90, 100, 120)
NVCC = os.environ.get("CUDACXX") or shutil.which("nvcc")
# ptxas of another toolkit allocates a little differently; a tenth more is a change worth a look.
TOLERANCE = 1.1

_ENTRY = re.compile(r"Compiling entry function '(\S+)'")
_USED = re.compile(r"Used (\d+) registers")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")


def compile_one(source: str, architecture: int) -> dict[str, dict[str, int]]:
    """{kernel: {registers, stack, spills}} of one file for one architecture."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [
            *(str(NVCC), "-std=c++17", "-O3", f"-arch=sm_{architecture}", "-Xptxas", "-v"),
            *(
                "--diag-error=20011,20014",
                "-Werror",
                "all-warnings",
                f"-I{ROOT / 'csrc'}",
                "-cubin",
            ),
            *(str(ROOT / f"csrc/cuda/{source}.cu"), "-o", f"{scratch}/{source}.cubin"),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{source}.cu does not compile for sm_{architecture}:\n{done.stderr}")
    return parse(done.stderr)


def parse(report: str) -> dict[str, dict[str, int]]:
    """What ``ptxas -v`` prints, by kernel."""
    kernels: dict[str, dict[str, int]] = {}
    name, stack, spills = "", 0, 0
    for line in report.splitlines():
        if entry := _ENTRY.search(line):
            name = _readable(entry[1])
        elif found := _SPILLS.search(line):
            stack, spills = int(found[1]), int(found[2]) + int(found[3])
        elif (used := _USED.search(line)) and name:
            kernels[name] = {"registers": int(used[1]), "stack": stack, "spills": spills}
            name = ""
    return kernels


def _readable(mangled: str) -> str:
    """``gram_small<float, 2>`` from the mangled name of a kernel."""
    filt = shutil.which("c++filt") or shutil.which("cu++filt")
    if filt is None:
        raise RuntimeError("c++filt (binutils) is needed to read the names of kernels")
    name = subprocess.run([filt, mangled], capture_output=True, text=True).stdout.strip()
    name = name.replace("(anonymous namespace)::", "").replace("koopcore::cuda::", "")
    return name.partition("(")[0].removeprefix("void ")


def complaints(
    found: dict[str, dict[str, int]], golden: dict[str, dict[str, int]], place: str
) -> list[str]:
    """What is wrong with the kernels of one file and architecture; empty if nothing is."""
    wrong = []
    for name, now in found.items():
        if now["spills"] > 0:
            wrong.append(f"{place} {name}: {now['spills']} bytes of spills")
        if name not in golden:
            wrong.append(f"{place} {name}: not in the golden file (--write)")
        elif now["registers"] > TOLERANCE * golden[name]["registers"]:
            before = golden[name]["registers"]
            wrong.append(f"{place} {name}: {now['registers']} registers, {before} before")
    wrong += [f"{place} {name}: in the golden file only" for name in golden if name not in found]
    return wrong


def read_golden() -> dict[str, dict[str, dict[str, dict[str, int]]]]:
    """{sm_90: {gram: {kernel: {registers, stack, spills}}}}."""
    golden: dict[str, dict[str, dict[str, dict[str, int]]]] = json.loads(GOLDEN.read_text())
    return golden


def written(table: dict[str, dict[str, dict[str, dict[str, int]]]]) -> str:
    """The golden file: a line for every kernel."""
    text = json.dumps(table, indent=1, sort_keys=True)
    return re.sub(r"\{\s*(\"registers[^{}]*?)\s*\}", _on_one_line, text) + "\n"


def _on_one_line(match: re.Match[str]) -> str:
    return "{" + " ".join(match[1].split()) + "}"


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--write", action="store_true", help="keep what is found")
    write = arguments.parse_args().write
    if NVCC is None:
        print("no nvcc on PATH: nothing was compiled")
        return 0
    jobs = [(source, of) for of in ARCHITECTURES for source in SOURCES]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(lambda job: compile_one(*job), jobs))
    table: dict[str, dict[str, dict[str, dict[str, int]]]] = {}
    for (source, of), kernels in zip(jobs, results, strict=True):
        table.setdefault(f"sm_{of}", {})[source] = kernels
    if write:
        GOLDEN.write_text(written(table))
    golden = read_golden()
    wrong = [
        line
        for place, files in table.items()
        for source, kernels in files.items()
        for line in complaints(kernels, golden.get(place, {}).get(source, {}), place)
    ]
    print("\n".join(wrong) or f"{len(jobs)} compilations: no spills, registers as before")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
