"""Which backend runs on a device, and why the others do not.

protocol.py says what a backend is, composed.py makes the fused stages of the others, and each
further module or folder is one backend with a function ``load``.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import NamedTuple

from koopcore.backends.composed import Composed
from koopcore.backends.protocol import Backend
from koopcore.backends.threads import setting

ORDER = {
    "cpu": {
        "native_cpu": "koopcore.backends.native_cpu",
        "numba_cpu": "koopcore.backends.numba.backend",
        "reference": "koopcore.backends.reference",
    },
    "cuda": {
        "native_cuda": "koopcore.backends.native_cuda.backend",
        "cupy_cuda": "koopcore.backends.cupy.backend",
    },
}
"""Device -> names of its backends in the order in which they are tried, and their modules."""

FORCE = "KOOPCORE_BACKEND"


class BackendInfo(NamedTuple):
    """One line of `available_backends`."""

    device: str
    name: str
    available: bool
    reason: str  # why not; empty where available
    fused: tuple[str, ...]  # the stages that it does better than one by one


def available_backends() -> list[BackendInfo]:
    """What runs here, in the order in which it is tried, and why the rest does not.

    The environment variable KOOPCORE_BACKEND, or ``fit(..., backend=name)``, forces one.
    """
    lines = []
    for device, names in ORDER.items():
        for name in names:
            backend, reason = _load(device, name)
            lines.append(BackendInfo(device, name, backend is not None, reason, _fused(backend)))
    return lines


def backend_for(device: str, name: str | None = None) -> Backend:
    """The backend ``name``, or the one that KOOPCORE_BACKEND forces, or the first that runs.

    device: "cpu" or "cuda", where the arrays are. Raises ValueError for a device or a name that
    is not one, or does not go with the other; RuntimeError with every reason where none runs.
    """
    return _backend_for(device, name or setting(FORCE) or None)


@cache
def _backend_for(device: str, name: str | None) -> Backend:
    if device not in ORDER:
        raise ValueError(f"arrays on {device!r} are not supported; {' and '.join(ORDER)} are")
    names = tuple(ORDER[device])
    if name is not None:
        if name not in names:
            raise ValueError(f"backend {name!r} does not run on {device}; {', '.join(names)} do")
        names = (name,)
    reasons = []
    for each in names:
        backend, reason = _load(device, each)
        if backend is not None:
            return backend
        reasons.append(f"{each}: {reason}")
    raise RuntimeError(f"no backend runs on {device} here. {'; '.join(reasons)}")


@cache
def _load(device: str, name: str) -> tuple[Backend | None, str]:
    """The backend, or None and its own reason."""
    try:
        backend: Backend = import_module(ORDER[device][name]).load()
    except ImportError as error:
        return None, str(error) or type(error).__name__
    return backend, ""


def _fused(backend: Backend | None) -> tuple[str, ...]:
    """The stages of `Composed` that a backend has its own way to do."""
    if backend is None:
        return ()
    stages = [name for name in vars(Composed) if name in Backend.__abstractmethods__]
    return tuple(
        name for name in stages if getattr(type(backend), name) is not vars(Composed)[name]
    )
