"""The CUDA backend on the host: csrc/cuda compiled by g++ against tests/cuda_emulation."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from weakref import WeakKeyDictionary

import numpy as np

from koopcore import arrays, operators
from koopcore.backends.native_cuda import launch, plan
from koopcore.backends.native_cuda.backend import NativeCuda

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "csrc/cuda").glob("*.c*"))
COMPILER = shutil.which("g++")
MODULE = "_cuda_emulated"


class HostMemory:
    """`DeviceMemory` over NumPy arrays: what the emulated kernels take for a device."""

    number = 0
    stream = 0
    # Copies between host and device, and their bytes, since `Runtime.counted` began.
    uploads = downloads = bytes = allocated = 0

    def empty(self, shape, dtype):
        out = np.empty(shape, dtype=dtype)
        out.view(np.uint8).fill(0xFF)  # NaN: what is read without having been written shows
        HostMemory.allocated += out.nbytes
        return out

    def upload(self, array):
        HostMemory.uploads += 1
        HostMemory.bytes += array.nbytes
        return np.array(array)

    def download(self, array):
        HostMemory.downloads += 1
        HostMemory.bytes += array.nbytes
        return np.array(array)

    def address(self, array):
        return array.ctypes.data

    def strides(self, array):
        return array.strides

    def keep(self, array):
        pass


class Calls(ctypes.Structure):
    """`emulation::Calls` of cuda_runtime.h."""

    _fields_ = [
        (name, ctypes.c_int64) for name in ("launches", "blocks", "attributes", "stream_queries")
    ]


class Runtime:
    """The emulated CUDA runtime of one module: what it was asked for, and running nothing."""

    def __init__(self, cuda: ModuleType) -> None:
        self._library = ctypes.CDLL(cuda.__file__)
        self._library.koopcore_emulated_calls.restype = ctypes.POINTER(Calls)
        self._calls = self._library.koopcore_emulated_calls().contents

    def counted(self, call) -> dict[str, int]:
        """What ``call()`` asks the runtime and the memory for."""
        transfers = ("uploads", "downloads", "bytes", "allocated")
        for name, _ in Calls._fields_:
            setattr(self._calls, name, 0)
        for name in transfers:
            setattr(HostMemory, name, 0)
        call()
        counts = {name: getattr(self._calls, name) for name, _ in Calls._fields_}
        return counts | {name: getattr(HostMemory, name) for name in transfers}

    @contextlib.contextmanager
    def idle(self):
        """Within, launches are counted and nothing runs: what takes time is the host's part."""
        self._library.koopcore_emulated_idle(1)
        try:
            yield
        finally:
            self._library.koopcore_emulated_idle(0)


def compiled(directory: Path, name: str = MODULE, *flags: str) -> ModuleType:
    """The module _cuda, its kernels run by fibers on the CPU. pybind11 knows modules by name."""
    flags = (f"-DKOOPCORE_CUDA_MODULE={name}", *flags)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda source: compile_one(source, directory, *flags), SOURCES))
    library = directory / f"{name}.so"
    run([COMPILER, "-shared", "-o", str(library), *sorted(map(str, directory.glob("*.o")))])
    return load(name, library)


def compiled_without_fast_double(directory: Path) -> ModuleType:
    """The same as GPUs without fast fp64 have it: other sums of Gram matrices, no one pass."""
    flags = ("-DKOOPCORE_TWO_FLOAT=1", "-DKOOPCORE_EMULATED_CODE=86")
    return compiled(directory, f"{MODULE}_without_fast_double", *flags)


def compile_one(source: Path, directory: Path, *flags: str) -> None:
    """One object file, without a CUDA compiler."""
    import pybind11

    places = [ROOT / "tests/cuda_emulation", ROOT / "csrc", pybind11.get_include()]
    includes = [f"-I{place}" for place in (*places, sysconfig.get_paths()["include"])]
    # -O1 compiles in half the time of -O2 and runs these small cases as fast.
    base = [COMPILER, "-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", *flags, *includes]
    run([*base, "-x", "c++", "-c", str(source), "-o", str(directory / f"{source.name}.o")])


def run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:4000]


def load(name: str, path: Path) -> ModuleType:
    """A module from a file, under a name of its own."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def backend(cuda: ModuleType) -> NativeCuda:
    """The backend whose kernels are those of ``cuda``."""
    return NativeCuda(cuda)


def one_pass_for_all(monkeypatch, least=0):
    """One pass takes every group of more than ``least`` parameters that fits it."""
    monkeypatch.setattr(plan, "ONE_PASS_SIZE", least)
    monkeypatch.setattr(plan, "COSTS", plan.COSTS._replace(fit=0.0, step=0.0))
    monkeypatch.setattr(launch, "_divided", WeakKeyDictionary())


def host_memory(array=None):
    """Stands in for `arrays.memory` and `arrays.any_memory`."""
    return arrays.TorchMemory(array.device) if hasattr(array, "data_ptr") else HostMemory()


@contextlib.contextmanager
def instead_of_the_cpu(cuda: ModuleType):
    """Within, `koopcore.fit` of NumPy arrays runs the kernels of ``cuda``."""
    view = arrays.view
    standing_in = {
        (arrays, "view"): lambda *given: view(*given)._replace(device="cuda"),
        (arrays, "memory"): host_memory,
        (arrays, "any_memory"): host_memory,
        (arrays, "where"): lambda array: "CUDA device 0",
        (operators, "backend_for"): lambda device, name: backend(cuda),
    }
    before = {(module, name): getattr(module, name) for module, name in standing_in}
    try:
        for (module, name), value in standing_in.items():
            setattr(module, name, value)
        yield
    finally:
        for (module, name), value in before.items():
            setattr(module, name, value)
