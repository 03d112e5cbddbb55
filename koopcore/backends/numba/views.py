"""Arrays of any strides as flat memory and offsets, so that a kernel is compiled for one type.

What belongs together is handed to a kernel as one plain tuple, which the kernel names by its first
line: ``w = Window(*window)``. Handed over as the named tuple itself it would do the same, but every
call would take a microsecond longer to recognise each.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from koopcore.backends.protocol import Snapshots
from koopcore.partition.partition import Partition
from koopcore.partition.segments import cut
from koopcore.types import IntArray

PIECE = 1 << 18  # parameters of a piece: enough work for a thread, and many in a network


class Window(NamedTuple):
    """Snapshot k has parameter p at ``memory[rows[k] + p step]``."""

    memory: npt.NDArray[Any]  # 1-D, float32 or float64
    rows: IntArray  # (n,)
    step: int


class Target(NamedTuple):
    """Parameter p of horizon i goes to ``memory[rows[i] + p step]``, clipped to ±limit."""

    memory: npt.NDArray[Any]  # 1-D, float32 or float64
    rows: IntArray  # (n_horizons,)
    step: int
    limit: float


class Flat(NamedTuple):
    """Element (i, j, …) of an array is ``memory[origin + i strides[0] + j strides[1] + …]``."""

    memory: npt.NDArray[Any]  # 1-D, contiguous
    origin: int
    strides: tuple[int, ...]  # in elements


class Pieces(NamedTuple):
    """A partition whose large groups are cut; ``owner`` is the group of every piece."""

    pointer: IntArray
    start: IntArray
    length: IntArray
    stride: IntArray
    owner: IntArray

    @property
    def segments(self) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        """Those of `Segments`."""
        return self.pointer, self.start, self.length, self.stride


def frozen(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """C-contiguous and read-only: Numba compiles a kernel once more for every other kind."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


def flat(array: npt.NDArray[Any], writeable: bool = False) -> Flat:
    """The memory of an array without a copy, unless its strides are no multiples of its items."""
    if array.size == 0:
        return Flat(np.zeros(1, array.dtype), 0, (0,) * array.ndim)
    if any(stride % array.itemsize for stride in array.strides) or not array.flags.aligned:
        if writeable:
            raise ValueError("out is not aligned to its items; give an ordinary array")
        array = np.ascontiguousarray(array)
    strides = tuple(stride // array.itemsize for stride in array.strides)
    lowest = tuple(
        slice(extent - 1 if stride < 0 else 0, None)
        for extent, stride in zip(array.shape, strides, strict=True)
    )
    reach = [(extent - 1) * stride for extent, stride in zip(array.shape, strides, strict=True)]
    memory = np.lib.stride_tricks.as_strided(
        array[lowest], (sum(map(abs, reach)) + 1,), (array.itemsize,), writeable=writeable
    )
    return Flat(memory, -sum(r for r in reach if r < 0), strides)


def window(snapshots: Snapshots) -> tuple[npt.NDArray[Any], IntArray, int]:
    """The fields of a `Window`."""
    memory, origin, (slot, step) = flat(snapshots.array)
    return memory, origin + np.asarray(snapshots.order, dtype=np.int64) * slot, step


def target(out: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], IntArray, int, float]:
    """The fields of a `Target` of predictions (n_horizons, size)."""
    memory, origin, (row, step) = flat(out, writeable=True)
    return memory, origin + np.arange(len(out)) * row, step, float(np.finfo(out.dtype).max)


def segments(part: Partition) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    """The fields of the partition's `Segments`."""
    group_ptr, start, length, stride = map(frozen, part.segments)
    return group_ptr, start, length, stride


def pieces(part: Partition) -> Pieces:
    """The groups, those of more than PIECE parameters cut into pieces of that size."""
    whole = np.arange(part.n_groups)
    pointer, start, length, stride = part.segments
    if part.n_groups == 0 or part.sizes.max() <= PIECE:
        return Pieces(*map(frozen, (pointer, start, length, stride, whole)))
    counts, owners, columns = [], [], []
    small_from = 0
    for group in np.append(np.flatnonzero(part.sizes > PIECE), part.n_groups).tolist():
        small = slice(int(pointer[small_from]), int(pointer[group]))
        counts.append(np.diff(pointer[small_from : group + 1]))
        owners.append(whole[small_from:group])
        columns.append((start[small], length[small], stride[small]))
        if group < part.n_groups:
            large = slice(int(pointer[group]), int(pointer[group + 1]))
            segment, within, size, chunk = cut(length[large], PIECE)
            counts.append(np.diff(chunk))
            owners.append(np.full(len(chunk) - 1, group))
            hop = stride[large][segment]
            columns.append((start[large][segment] + within * hop, size, hop))
        small_from = group + 1
    cut_pointer = np.concatenate(([0], np.cumsum(np.concatenate(counts))))
    joined = (np.concatenate(column) for column in zip(*columns, strict=True))
    return Pieces(*map(frozen, (cut_pointer, *joined, np.concatenate(owners))))


def piece_sizes(cut_up: Pieces) -> IntArray:
    """(n_pieces,) parameters."""
    return np.diff(np.concatenate(([0], np.cumsum(cut_up.length)))[cut_up.pointer])
