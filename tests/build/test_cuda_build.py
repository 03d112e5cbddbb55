"""What the CUDA compiler makes of the kernels, and what the module that was built needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import cuda_registers
import pytest

from koopcore import _native, info
from koopcore._native import build_record

ROOT = cuda_registers.ROOT
needs_nvcc = pytest.mark.skipif(cuda_registers.NVCC is None, reason="needs nvcc on PATH")
FILE = next(Path(_native.__file__).parent.glob("_cuda*.so"), None)
needs_module = pytest.mark.skipif(FILE is None, reason="the CUDA module was not built here")


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize(("source", "architecture"), [("capture", 80), ("capture", 120)])
def test_kernels_have_no_spills_and_their_registers(source, architecture):
    # Those that compile quickly; .ci/run compiles all files for all architectures.
    found = cuda_registers.compile_one(source, architecture)
    golden = cuda_registers.read_golden()[f"sm_{architecture}"][source]
    assert cuda_registers.complaints(found, golden, f"sm_{architecture}") == []


def test_the_golden_file_has_every_source_and_architecture_without_spills():
    golden = cuda_registers.read_golden()
    assert set(golden) == {f"sm_{number}" for number in cuda_registers.ARCHITECTURES}
    for place, files in golden.items():
        assert set(files) == set(cuda_registers.SOURCES)
        for kernels in files.values():
            assert cuda_registers.complaints(kernels, kernels, place) == []


@pytest.mark.parametrize(
    ("of", "registers", "shared", "warps", "blocks"),
    [
        (80, 32, 0, 4, 16),  # 64 warps
        (90, 255, 0, 1, 8),  # registers come by 256: 8192 a warp
        (90, 32, 227 * 1024, 1, 1),  # a kibibyte of the 228 is the block's own
        (90, 32, 228 * 1024, 1, 0),
        (120, 32, 48 * 1024, 1, 2),
        (120, 16, 0, 1, 24),
    ],
)
def test_occupancy_by_the_rules(of, registers, shared, warps, blocks):
    assert cuda_registers.resident_blocks(of, registers, shared, warps) == blocks


def test_the_table_of_occupancy_is_the_one_in_the_notes():
    notes = (ROOT / "docs/notes-cuda-kernels.md").read_text(encoding="utf-8")
    for table in cuda_registers.occupancy().split("\n\n"):
        assert table in notes


@needs_nvcc
@pytest.mark.slow
def test_the_batched_solve_knows_where_its_numbers_are():
    """Of the kernel for shared memory most accesses say so; in PTX, which needs no disassembler."""
    command = [str(cuda_registers.NVCC), "-std=c++17", "-O3", "-arch=sm_90", "-ptx", "-o", "-"]
    command += [f"-I{ROOT / 'csrc'}", str(ROOT / "csrc/cuda/solve.cu")]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    _, *kernels = text.split(".entry ")
    [shared] = [body for name, body in (k.split("(", 1) for k in kernels) if "ILb1E" in name]
    [apart] = [body for name, body in (k.split("(", 1) for k in kernels) if "ILb0E" in name]
    body = shared[: shared.index("\n}")]
    assert body.count("ld.shared.f64") > 2 * body.count("ld.f64")  # those of the hindcast
    assert body.count("cp.async.ca.shared.global") >= 2
    assert "ld.f64" not in apart[: apart.index("\n}")]


REPORT = """\
ptxas info    : Compiling entry function '_ZN8koopcore4cuda5rollsIfEEvi' for 'sm_90'
ptxas info    : Function properties for _ZN8koopcore4cuda5rollsIfEEvi
    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 40 registers, used 0 barriers
"""


@pytest.mark.skipif(shutil.which("c++filt") is None, reason="needs c++filt (binutils)")
def test_the_report_of_ptxas_is_read():
    found = cuda_registers.parse(REPORT)
    assert found == {"rolls<float>": {"registers": 40, "stack": 16, "spills": 12}}


@pytest.mark.parametrize(
    ("now", "before", "complaint"),
    [
        ({"k": {"registers": 44, "stack": 0, "spills": 0}}, {"k": {"registers": 40}}, None),
        ({"k": {"registers": 45, "stack": 0, "spills": 0}}, {"k": {"registers": 40}}, "40 before"),
        ({"k": {"registers": 40, "stack": 8, "spills": 8}}, {"k": {"registers": 40}}, "8 bytes"),
        ({"k": {"registers": 40, "stack": 0, "spills": 0}}, {}, "not in the golden file"),
        ({}, {"k": {"registers": 40}}, "in the golden file only"),
    ],
)
def test_what_the_gate_complains_about(now, before, complaint):
    wrong = cuda_registers.complaints(now, before, "sm_90")
    assert (wrong == []) if complaint is None else (complaint in wrong[0])


@needs_module
@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf (binutils)")
def test_the_module_needs_no_library_of_cuda_or_torch():
    done = subprocess.run(["readelf", "-d", str(FILE)], capture_output=True, text=True, check=True)
    needed = [
        line.split("[")[1].rstrip("]") for line in done.stdout.splitlines() if "NEEDED" in line
    ]
    assert needed
    for name in ("cuda", "cublas", "cusolver", "torch", "c10"):
        assert [library for library in needed if name in library.lower()] == []


@needs_module
def test_the_module_loads_without_a_driver(tmp_path):
    code = (
        "from koopcore._native import _cuda\n"
        "count, problem = _cuda.device_count(), _cuda.device_problem()\n"
        "assert (count == 0) == bool(problem), (count, problem)\n"
        "print(problem)"
    )
    # Away from any driver: the loader finds none, whatever the machine has.
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
        env={"CUDA_VISIBLE_DEVICES": "", "PATH": "/usr/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@needs_module
def test_the_record_says_what_it_was_built_for():
    record = build_record()["cuda"]
    assert record["built"] is True
    assert record["architectures"]
    assert record["compiler"].startswith("nvcc ")


def configured(build, path, *options):
    """What CMake says of the CUDA code alone, with the nvidia-smi that ``path`` finds."""
    command = ["cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", *options]
    environment = {name: value for name, value in os.environ.items() if name != "CUDAARCHS"}
    environment |= {"PATH": path, "CUDACXX": str(cuda_registers.NVCC)}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@needs_nvcc
@pytest.mark.slow
def test_what_is_built_is_for_the_cards_in_sight_else_for_all(tmp_path):
    tools = {Path(str(shutil.which(name))).parent for name in ("cmake", "ninja", "g++")}
    path = os.pathsep.join(map(str, tools))
    done = configured(tmp_path / "build", path, "-DKOOPCORE_CUDA=LIBRARY")
    assert "native CUDA module for 80;90-real (no card in sight; CUDAARCHS" in done.stdout
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nprintf '9.0\\n8.6\\n9.0\\n99.1\\n'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{path}"
    done = configured(
        tmp_path / "build", path, "-DKOOPCORE_CUDA=LIBRARY", "-UCMAKE_CUDA_ARCHITECTURES",
        "-UNVIDIA_SMI",
    )  # fmt: skip
    # PTX of 8.0 for the card that this nvcc does not know.
    assert "native CUDA module for 90-real;86-real;80 (the cards in sight; CUDA" in done.stdout


def test_a_library_that_is_not_there_is_an_error(tmp_path):
    if shutil.which("g++") is None or cuda_registers.NVCC is None:
        pytest.skip("needs g++ and the CUDA toolkit")
    place = f"-DKOOPCORE_CUDA_LIBRARY={tmp_path}"
    done = configured(tmp_path / "build", os.environ["PATH"], "-DKOOPCORE_CUDA=LIBRARY", place)
    assert done.returncode != 0
    assert "holds no koopcore_cuda.cmake" in " ".join(done.stderr.split())


class Cards:
    """A module for code 90, on cards of the given compute capabilities."""

    def __init__(self, *cards, code=90):
        self.cards, self.compiled = cards, code

    def device_count(self):
        return len(self.cards)

    def architecture(self, number):
        if self.cards[number] < 80:
            raise RuntimeError("no code for this GPU")
        return self.cards[number]

    def code(self, number):
        return self.compiled

    def fast_double(self, number):
        return self.compiled in {80, 90, 100}


@pytest.mark.parametrize(
    ("cards", "code", "warnings"),
    [
        ((90, 90), 90, []),
        ((), 90, []),
        ((75,), 80, ["CUDA device 0: no code for this GPU"]),
        ((90, 120), 90, ["device 1 has compute capability 12.0 and runs code for 9.0", "=120 pip"]),
        ((86,), 80, ["device 0 has compute capability 8.6 and runs code for 8.0"]),
        ((89,), 86, []),  # both sum in pairs of floats
    ],
)
def test_info_warns_of_cards_that_are_not_covered(monkeypatch, cards, code, warnings):
    monkeypatch.setitem(sys.modules, "koopcore._native._cuda", Cards(*cards, code=code))
    said = "\n".join(info._uncovered())
    assert bool(said) == bool(warnings)
    for warning in warnings:
        assert warning in said
