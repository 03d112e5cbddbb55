"""What a run was measured on: processor, caches, memory, versions; no names and no paths."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from functools import cache
from importlib import import_module, metadata
from pathlib import Path

import koopcore
from koopcore.backends.threads import thread_count

ASSUMED_CACHE = 32 * 2**20  # bytes, where the system does not say

PACKAGES = ("numpy", "numba", "llvmlite", "scipy", "torch")


def describe() -> dict[str, str | int | float]:
    """The machine and the software, as a flat table of strings and numbers."""
    versions = {name: _version(name) for name in PACKAGES}
    return {
        "processor": processor(),
        "threads": thread_count(),
        "last_level_cache_bytes": last_level_cache(),
        "memory_bytes": memory()[0],
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "koopcore": koopcore.__version__,
        "instruction_set": _instruction_set(),
        "load_average": _load(),
        **{name: version for name, version in versions.items() if version},
    }


def in_words(machine: Mapping[str, str | int | float]) -> list[tuple[str, str]]:
    """What `describe` says, for people: names without underscores, sizes in GiB or MiB."""
    rows = []
    for name, value in machine.items():
        if name.endswith("_bytes"):
            gib = float(value) / 2**30
            size = f"{gib:.1f} GiB" if gib >= 1.0 else f"{1024 * gib:.0f} MiB"
            rows.append((name.removesuffix("_bytes").replace("_", " "), size))
        else:
            rows.append((name.replace("_", " "), str(value)))
    return rows


def processor() -> str:
    """The model name that the system gives, or what Python knows of it."""
    model = re.search(r"^model name\s*:\s*(.+)$", _text(Path("/proc/cpuinfo")), re.MULTILINE)
    return model[1].strip() if model else platform.processor() or platform.machine()


@cache
def last_level_cache() -> int:
    """Bytes of the largest cache of the first processor."""
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        size = re.match(r"(\d+)([KMG]?)", _text(path))
        if size:
            sizes.append(int(size[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[size[2]])
    return max(sizes) or ASSUMED_CACHE


def memory() -> tuple[int, int]:
    """Bytes of memory: all of it, and what can be had without swapping."""
    lines = re.findall(r"^(\w+):\s*(\d+) kB$", _text(Path("/proc/meminfo")), re.MULTILINE)
    sizes: dict[str, str] = dict(lines)
    if "MemTotal" in sizes:
        total = int(sizes["MemTotal"]) * 1024
        return total, int(sizes.get("MemAvailable", sizes["MemTotal"])) * 1024
    if hasattr(os, "sysconf"):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return total, total // 2
    return 0, 0


def _load() -> float:
    """Processes that wanted to run, on the average over the last minute; 0 where not known."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else 0.0


def _instruction_set() -> str:
    try:
        return str(import_module("koopcore._native._cpu").isa())
    except ImportError:
        return "no native module"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
