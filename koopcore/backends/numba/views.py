"""Arrays of any strides as flat memory and offsets, so that a kernel is compiled for one type."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from koopcore.backends.protocol import Snapshots
from koopcore.partition.partition import Partition
from koopcore.partition.segments import cut
from koopcore.types import IntArray

PIECE = 1 << 18  # parameters of a piece: enough work for a thread, and many in a network


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
        """What the kernels take."""
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
    """(memory, rows, step): snapshot k has parameter p at ``memory[rows[k] + p step]``."""
    memory, origin, (slot, step) = flat(snapshots.array)
    return memory, origin + np.asarray(snapshots.order, dtype=np.int64) * slot, step


def pieces(part: Partition) -> Pieces:
    """The groups, those of more than PIECE parameters cut into pieces of that size."""
    whole = np.arange(part.n_groups)
    pointer, start, length, stride = part.segments
    if part.n_groups == 0 or part.sizes.max() <= PIECE:
        return Pieces(*map(frozen, (pointer, start, length, stride, whole)))
    counts, owners, columns = [], [], []
    small_from = 0
    for group in np.append(np.flatnonzero(part.sizes > PIECE), part.n_groups).tolist():
        own = slice(int(pointer[small_from]), int(pointer[group]))
        counts.append(np.diff(pointer[small_from : group + 1]))
        owners.append(whole[small_from:group])
        columns.append((start[own], length[own], stride[own]))
        if group < part.n_groups:
            own = slice(int(pointer[group]), int(pointer[group + 1]))
            segment, within, size, chunk = cut(length[own], PIECE)
            counts.append(np.diff(chunk))
            owners.append(np.full(len(chunk) - 1, group))
            hop = stride[own][segment]
            columns.append((start[own][segment] + within * hop, size, hop))
        small_from = group + 1
    cut_pointer = np.concatenate(([0], np.cumsum(np.concatenate(counts))))
    joined = (np.concatenate(column) for column in zip(*columns, strict=True))
    return Pieces(*map(frozen, (cut_pointer, *joined, np.concatenate(owners))))


def piece_sizes(cut_up: Pieces) -> IntArray:
    """(n_pieces,) parameters."""
    return np.diff(np.concatenate(([0], np.cumsum(cut_up.length)))[cut_up.pointer])
