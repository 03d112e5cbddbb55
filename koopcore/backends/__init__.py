"""Which backend runs which stage: a tuple of names per device, import, and getattr."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

ORDER = {
    "cpu": ("native_cpu", "numba_cpu", "reference"),
    "cuda": ("native_cuda", "cupy_cuda"),
}
MODULES = {
    "native_cpu": "koopcore.backends.native_cpu",
    "numba_cpu": "koopcore.backends.numba.backend",
    "reference": "koopcore.backends.reference",
    "native_cuda": "koopcore.backends.native_cuda.backend",
    "cupy_cuda": "koopcore.backends.cupy.backend",
}
FORCE = "KOOPCORE_BACKEND"


class BackendInfo(NamedTuple):
    """One line of `backends()`."""

    device: str
    name: str
    available: bool
    reason: str  # why not; empty where available
    stages: tuple[str, ...]


def backends() -> list[BackendInfo]:
    """What runs here, in the order in which it is tried, and why the rest does not.

    Returns one `BackendInfo` (device, name, available, reason, stages) per backend and device.
    The environment variable KOOPCORE_BACKEND, or ``fit(..., backend=name)``, forces one.
    """
    found = []
    for device, names in ORDER.items():
        for name in names:
            module, reason = _load(name)
            stages = tuple(getattr(module, "STAGES", ()))
            found.append(BackendInfo(device, name, module is not None, reason, stages))
    return found


def find(
    stage: str, device: str | None = None, backend: str | None = None
) -> Callable[..., Any] | None:
    """The first available backend's function for ``stage``, or None if no backend has it.

    Without ``device`` it is the one that ``backend`` is for, and the CPU without either.

    Raises ValueError for an unknown or unsuitable backend name, RuntimeError where the forced
    backend, or every backend of the device, is unavailable.
    """
    return _find(stage, device, backend)


def forced(backend: str | None) -> str | None:
    """The backend that the caller or KOOPCORE_BACKEND forces; None: the first available."""
    return backend or os.environ.get(FORCE) or None


def chosen(device: str, backend: str | None) -> str | None:
    """The backend to pass on for arrays on ``device``; None leaves the choice to every stage.

    On CUDA one backend does all stages, for results stay in its device's memory in between. Raises
    as `find` does.
    """
    on = forced(backend)
    find("gram", device, on)
    if device == "cpu" or on is not None:
        return on
    return next(name for name in ORDER[device] if hasattr(_load(name)[0], "gram"))


def stage(name: str, device: str | None = None, backend: str | None = None) -> Callable[..., Any]:
    """`find`, for the stages that every backend has."""
    function = find(name, device, backend)
    if function is None:
        raise RuntimeError(
            f"no backend for {device or 'cpu'} has the stage {name!r}; see koopcore info"
        )
    return function


@cache
def _find(stage: str, device: str | None, forced: str | None) -> Callable[..., Any] | None:
    if device is None:
        device = next((of for of, names in ORDER.items() if forced in names), "cpu")
    if device not in ORDER:
        raise ValueError(f"arrays on {device!r} are not supported; {' and '.join(ORDER)} are")
    names = ORDER[device]
    if forced is not None:
        if forced not in names:
            raise ValueError(f"backend {forced!r} does not run on {device}; {names} do")
        names = (forced,)
    reasons = []
    for name in names:
        module, reason = _load(name)
        if module is None:
            reasons.append(f"{name}: {reason}")
        elif hasattr(module, stage):
            function: Callable[..., Any] = getattr(module, stage)
            return function
    if len(reasons) == len(names):
        raise RuntimeError(f"no backend runs on {device} here. {'; '.join(reasons)}")
    return None


@cache
def _load(name: str) -> tuple[ModuleType | None, str]:
    """The backend's module, or None and its own reason."""
    try:
        module = import_module(MODULES[name])
    except ImportError as error:
        return None, str(error) or type(error).__name__
    reason = module.unavailable() if hasattr(module, "unavailable") else None
    return (None, reason) if reason else (module, "")


class _CallableModule(ModuleType):
    """``koopcore.backends()`` is the function, although importing this package binds that name."""

    def __call__(self) -> list[BackendInfo]:
        return backends()


sys.modules[__name__].__class__ = _CallableModule
