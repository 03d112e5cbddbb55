"""CuPy, its devices, and arrays opened for it: what the stages of cupy_cuda share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from koopcore import arrays
from koopcore.partition.partition import Partition
from koopcore.types import IntArray

try:
    import cupy as _cupy
except ImportError as error:
    raise ImportError(
        "cupy is not installed (pip install koopcore[cuda12] or koopcore[cuda13])"
    ) from error

_columns: WeakKeyDictionary[Partition, dict[tuple[int, bytes], Any]] = WeakKeyDictionary()


def xp() -> ModuleType:
    """The array module of the stages."""
    module: ModuleType = _cupy
    return module


@cache
def available() -> str | None:
    """Why CuPy finds no device, or None."""
    try:
        count = int(_cupy.cuda.runtime.getDeviceCount())
    except _cupy.cuda.runtime.CUDARuntimeError as error:
        return f"CuPy finds no CUDA device ({error})"
    return None if count else "CuPy finds no CUDA device"


def on_host(array: Any) -> npt.NDArray[Any]:
    """A copy as NumPy array; waits for the current stream."""
    host: npt.NDArray[Any] = _cupy.asnumpy(array)
    return host


@contextlib.contextmanager
def opened(array: Any) -> Iterator[Any]:
    """``array`` as a CuPy array without a copy, on its device and on the caller's stream."""
    memory = arrays.memory(array)
    with _cupy.cuda.Device(memory.number), _cupy.cuda.ExternalStream(memory.stream, memory.number):
        yield array if isinstance(array, _cupy.ndarray) else _cupy.from_dlpack(array)


def group_columns(part: Partition, groups: IntArray) -> Any:
    """(n_groups, m) flat indices on the current device, kept as long as the partition lives."""
    known = _columns.setdefault(part, {})
    key = (int(_cupy.cuda.Device().id), np.ascontiguousarray(groups).tobytes())
    if key not in known:
        known[key] = _cupy.asarray(part.index_matrix(groups))
    return known[key]
