"""Registers, stack and spills of every CUDA kernel, as ptxas reports them, against a golden file.

python tests/cuda_registers.py            compiles csrc/cuda for every architecture and compares
python tests/cuda_registers.py --write    and keeps what it finds as the new golden file
python tests/cuda_registers.py --occupancy    a table from the golden file; compiles nothing
python tests/cuda_registers.py --instructions solve 90    what a file's machine code consists of
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
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).with_name("cuda_registers.json")
SOURCES = tuple(path.stem for path in sorted((ROOT / "csrc/cuda").glob("*.cu")))
ARCHITECTURES = (80, 90, 100, 120)
NVCC = os.environ.get("CUDACXX") or shutil.which("nvcc")
SHARED = {80: 164, 90: 228, 100: 228, 120: 100}  # KiB of shared memory of a multiprocessor
WARPS = {80: 64, 90: 64, 100: 64, 120: 48}  # that a multiprocessor holds
REGISTERS = 65536  # of a multiprocessor; warps get them by 256
RESERVED = 1024  # bytes of shared memory that every block takes beside its own
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


def resident_blocks(of: int, registers: int, shared: int, warps: int) -> int:
    """Blocks of a kernel that a multiprocessor holds, by the rules of the CUDA guide."""
    by_registers = REGISTERS // (-(-registers * 32 // 256) * 256) // warps
    by_shared = SHARED[of] * 1024 // (-(-shared // 128) * 128 + RESERVED)
    most = min(by_registers, by_shared, WARPS[of] // warps, 24 if of == 120 else 32)
    return most if shared <= SHARED[of] * 1024 - RESERVED else 0


def solve_bytes(n: int) -> int:
    """Shared memory of `solve_batches`: `solve_bytes` of csrc/cuda/solve.cu."""
    return (n * (n + 1) // 2 + 6 * n) * 32 * 8


def deficient_bytes(n: int) -> int:
    """The same of `deficient_groups` without an affine term: `deficient_bytes` of deficient.cu."""
    size = n - 1
    work = max(7 * size**2 + 4 * size, 6 * size**2 + size * n + 2 * size)
    return 8 * (n * (n + 1) // 2 + 5 * size**2 + 2 * size + (n + 1 + size) * 32 + work)


# Some that nothing limits but their registers, and the warps of their blocks.
BY_REGISTERS = {
    ("solve", "rollout_registers<16>"): 2,
    ("combine", "combine_planned<float, 1>"): 4,
    ("combine", "combine_planned<float, 8>"): 4,
    ("project", "project_batches"): 1,
    ("project", "rollout_dense_batches"): 1,
}


def occupancy() -> str:
    """Warps on a multiprocessor: of the kernels that shared memory limits, and of the others."""
    golden = read_golden()
    cards = " | ".join(f"sm_{of}" for of in SHARED)
    rule = "|---" * (2 + len(SHARED)) + "|"

    def registers(of: int, file: str, kernel: str) -> int:
        return golden[f"sm_{of}"][file][kernel]["registers"]

    tables = []
    for file, kernel, bytes_of in (
        ("solve", "solve_batches<true>", solve_bytes),
        ("deficient", "deficient_groups", deficient_bytes),
    ):
        lines = [f"| `{kernel.partition('<')[0]}`, n | KiB of a block | {cards} |", rule]
        for n in (8, 16, 24, 32):
            cells = []
            for of in SHARED:
                warps = resident_blocks(of, registers(of, file, kernel), bytes_of(n), 1)
                cells.append(str(warps) if warps else "in global memory")
            lines.append(f"| {n} | {bytes_of(n) / 1024:.1f} | " + " | ".join(cells) + " |")
        tables.append("\n".join(lines))
    lines = [f"| kernel | warps of a block | {cards} |", rule]
    for (file, kernel), warps in BY_REGISTERS.items():
        used = [registers(of, file, kernel) for of in SHARED]
        fit = [resident_blocks(of, r, 0, warps) * warps for of, r in zip(SHARED, used, strict=True)]
        cells = [f"{many} ({r})" for many, r in zip(fit, used, strict=True)]
        lines.append(f"| `{kernel}` | {warps} | " + " | ".join(cells) + " |")
    return "\n\n".join([*tables, "\n".join(lines)])


def instructions(source: str, architecture: int) -> dict[str, Counter[str]]:
    """{kernel: {LDS: 12, …}} of one file, by cuobjdump."""
    with tempfile.TemporaryDirectory() as scratch:
        cubin = f"{scratch}/{source}.cubin"
        command = [str(NVCC), "-std=c++17", "-O3", f"-arch=sm_{architecture}", "-cubin"]
        command += [f"-I{ROOT / 'csrc'}", str(ROOT / f"csrc/cuda/{source}.cu"), "-o", cubin]
        subprocess.run(command, check=True)
        command = [os.environ.get("CUOBJDUMP", "cuobjdump"), "-sass", cubin]
        listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, Counter[str]] = {}
    name = ""
    for line in listing.splitlines():
        if function := re.search(r"Function : (\S+)", line):
            name = _readable(function[1])
            found[name] = Counter()
        elif code := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z0-9_]+)", line):
            found[name][code[1]] += 1
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="keep what is found")
    parser.add_argument("--files", nargs="*", choices=SOURCES, default=SOURCES, metavar="FILE")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="compilations at once")
    parser.add_argument("--occupancy", action="store_true", help="warps on a multiprocessor")
    parser.add_argument("--instructions", nargs=2, metavar=("FILE", "ARCHITECTURE"))
    arguments = parser.parse_args()
    if arguments.occupancy:
        print(occupancy())
        return 0
    if arguments.instructions:
        source, of = arguments.instructions
        for name, counts in instructions(source, int(of)).items():
            print(name, dict(counts.most_common()))
        return 0
    write = arguments.write
    if NVCC is None:
        print("no nvcc on PATH: nothing was compiled")
        return 0
    jobs = [(source, of) for of in ARCHITECTURES for source in arguments.files]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        results = list(pool.map(lambda job: compile_one(*job), jobs))
    table: dict[str, dict[str, dict[str, dict[str, int]]]] = {}
    for (source, of), kernels in zip(jobs, results, strict=True):
        table.setdefault(f"sm_{of}", {})[source] = kernels
    golden = read_golden()
    if write:
        for place, files in table.items():
            golden[place].update(files)
        GOLDEN.write_text(written(golden))
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
