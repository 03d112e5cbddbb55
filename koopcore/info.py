"""What ``koopcore info`` prints: version, what was built, which backend runs what, and why not."""

from __future__ import annotations

import platform
from importlib import import_module, metadata
from typing import Any

import koopcore


def report() -> str:
    """The report as text; no backend that cannot run here makes it fail."""
    lines = [
        f"koopcore {koopcore.__version__}",
        f"Python {platform.python_version()}, {platform.platform()}",
        f"NumPy {_version('numpy')}, Numba {_version('numba')}, torch {_version('torch')}",
        "",
        "built",
        *(f"  {line}" for line in _built()),
        "",
        f"runs here: {_threads()}, {_instruction_set()}",
        *(f"  {line}" for line in _backends(koopcore.available_backends())),
        *(f"warning: {line}" for line in _uncovered()),
    ]
    return "\n".join(lines)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _threads() -> str:
    from koopcore.backends.threads import thread_count

    count = thread_count()
    return f"{count} thread" if count == 1 else f"{count} threads"


def _instruction_set() -> str:
    try:
        cpu = import_module("koopcore._native._cpu")
    except ImportError:
        return "no native module"
    return f"native code for {cpu.isa()}"


def _built() -> list[str]:
    from koopcore._native import build_record

    record = build_record()
    lines = []
    for device, part in record.items():
        if not isinstance(part, dict):
            continue
        made = ", ".join(part.get("instruction_sets") or part.get("architectures") or [])
        if part["built"]:
            lines.append(f"{device:5} {made} ({part['compiler']}, {record['build_type']})")
        else:
            lines.append(f"{device:5} not built: {part['reason']}")
    return lines


def _uncovered() -> list[str]:
    """CUDA devices in sight that the module has no code for, or code of another kind of device."""
    try:
        cuda = import_module("koopcore._native._cuda")
    except ImportError:
        return []
    warnings = []
    for number in range(cuda.device_count()):
        try:
            device, code = cuda.architecture(number), cuda.code(number)
        except RuntimeError as error:
            warnings.append(f"CUDA device {number}: {error}")
            continue
        if device // 10 != code // 10 or (cuda.fast_double(number) and device != code):
            warnings.append(
                f"CUDA device {number} has compute capability {device // 10}.{device % 10} and "
                f"runs code for {code // 10}.{code % 10}, which is right but may be slow; "
                f"CUDAARCHS={device} pip install --force-reinstall . builds for it "
                "(docs/building.md)"
            )
    return warnings


def _backends(found: list[Any]) -> list[str]:
    """Per device the backend that runs, then every backend and what is the matter with it."""
    lines = []
    for device in dict.fromkeys(backend.device for backend in found):
        here = [backend for backend in found if backend.device == device]
        running = next((backend.name for backend in here if backend.available), "nothing")
        lines.append(f"{device}: {running}")
        for backend in here:
            state = "available" if backend.available else f"not available: {backend.reason}"
            lines.append(f"  {backend.name:12} {state}")
    return lines
