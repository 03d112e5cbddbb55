"""What the CUDA compiler makes of the kernels, and what the module that was built needs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import cuda_registers
import pytest

from koopcore import _native
from koopcore._native import build_record

needs_nvcc = pytest.mark.skipif(cuda_registers.NVCC is None, reason="needs nvcc on PATH")
FILE = next(Path(_native.__file__).parent.glob("_cuda*.so"), None)
needs_module = pytest.mark.skipif(FILE is None, reason="the CUDA module was not built here")


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "architecture"), [("capture", 80), ("solve", 90), ("capture", 120)]
)
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
