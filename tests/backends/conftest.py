"""`backend`: every backend in turn, each in the form in which it can run here."""

import contextlib
import importlib
import sys
from types import ModuleType, SimpleNamespace

import emulated_cuda
import numpy as np
import pytest
from backend_cases import EVERY

from koopcore.backends import backend_for

_FAMILY = ("backend", "device", "batches")


@pytest.fixture(params=EVERY)
def backend(request):
    """An instance; native_cpu in one instruction set."""
    name, _, isa = request.param.partition("-")
    if name == "native_cuda" and emulated_cuda.COMPILER is None:
        pytest.skip("needs g++ to compile the kernels for the host")
    if name in {"native_cuda", "cupy_cuda"}:
        yield request.getfixturevalue({"native_cuda": "native", "cupy_cuda": "cupy"}[name])
        return
    if isa:
        from koopcore._native import _cpu

        _cpu.force_isa(isa)
    yield backend_for("cpu", name)
    if isa:
        _cpu.force_isa("")


@pytest.fixture
def cupy(monkeypatch):
    """cupy_cuda on a stand-in that has CuPy's names and NumPy's functions."""
    stand_in = ModuleType("cupy")
    stand_in.__dict__.update({name: getattr(np, name) for name in np.__all__})
    stand_in.asnumpy = np.asarray
    runtime = SimpleNamespace(getDeviceCount=lambda: 1, CUDARuntimeError=RuntimeError)
    device = lambda number=0: contextlib.nullcontext()  # noqa: E731
    stand_in.cuda = SimpleNamespace(runtime=runtime, Device=device)
    monkeypatch.setitem(sys.modules, "cupy", stand_in)
    for name in _FAMILY:
        monkeypatch.delitem(sys.modules, f"koopcore.backends.cupy.{name}", raising=False)
    module = importlib.import_module("koopcore.backends.cupy.backend")
    monkeypatch.setattr(module, "opened", contextlib.nullcontext)
    monkeypatch.setattr(module, "group_columns", lambda part, groups: part.index_matrix(groups))
    monkeypatch.setattr(module, "BLOCK", 500)  # several blocks
    yield module.load()
    for name in _FAMILY:
        sys.modules.pop(f"koopcore.backends.cupy.{name}", None)
