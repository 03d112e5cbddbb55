"""Tensors that together make up a snapshot: copied to and from rows, or predicted into, at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from koopcore import arrays
from koopcore.backends.native_cuda.launch import KINDS, Launch


class TensorTable:
    """Where tensors are and where they stand in a row of snapshots; made once, used every step.

    tensors: contiguous float32, float64 or bfloat16 arrays on one device, held by reference.
    starts: the parameter at which each begins in a row, ascending. module: `_cuda`.

    Raises ValueError for tensors that are not contiguous, overlap in a row, or lie on different
    devices, TypeError for other dtypes. Cost of a copy: one read and one write of every number.
    """

    def __init__(self, module: Any, tensors: Sequence[Any], starts: Sequence[int]) -> None:
        self._module, self._tensors = module, list(tensors)
        if not self._tensors or len(self._tensors) != len(starts):
            raise ValueError(f"{len(self._tensors)} tensors and {len(starts)} starts; give as many")
        self._memory = arrays.memory(self._tensors[0])
        lengths = np.array([_length(self._memory, t) for t in self._tensors], dtype=np.int64)
        begins = np.asarray(starts, dtype=np.int64)
        if begins[0] < 0 or (begins[1:] < begins[:-1] + lengths[:-1]).any():
            raise ValueError("starts must ascend, and no tensor reach into the next one's place")
        self.size = int(begins[-1] + lengths[-1])
        blocks = np.concatenate(([0], np.cumsum(-(-lengths // module.tensor_block))))
        kinds = np.array([KINDS[arrays.dtype_name(t)] for t in self._tensors], dtype=np.int32)
        places = np.array([self._memory.address(t) for t in self._tensors], dtype=np.int64)
        self._arrays = [
            self._memory.upload(array) for array in (places, begins, lengths, kinds, blocks)
        ]
        pointers = map(self._memory.address, self._arrays)
        self._table = (len(self._tensors), *pointers, int(blocks[-1]))

    def table(self, on: Launch) -> tuple[Any, ...]:
        """The table as the kernels take it; for `backend.endpoint` beside it."""
        if on.number != self._memory.number:
            raise ValueError(
                f"the parameters are on CUDA device {self._memory.number}, the snapshots on "
                f"CUDA device {on.number}; move them to one device"
            )
        return self._table

    def capture(self, row: Any) -> None:
        """Copy all tensors into ``row`` (size,), converting to its dtype."""
        self._copy(row, into_row=True)

    def write(self, row: Any) -> None:
        """Copy ``row`` (size,) into all tensors, converting to their dtypes, kept finite."""
        self._copy(row, into_row=False)

    def _copy(self, row: Any, into_row: bool) -> None:
        if _length(self._memory, row) < self.size:
            raise ValueError(f"the row has {len(row)} numbers; the tensors reach up to {self.size}")
        target = (self._memory.number, self._memory.stream)
        kind = KINDS[arrays.dtype_name(row)]
        self._module.copy_tensors(self._table, self._memory.address(row), kind, into_row, target)


def _length(memory: arrays.DeviceMemory, tensor: Any) -> int:
    """The number of elements of a tensor that a kernel can walk through."""
    if arrays.memory(tensor).number != memory.number:
        raise ValueError(f"a tensor is on {arrays.where(tensor)}, the first is not; move them")
    kind = arrays.dtype_name(tensor)
    if kind not in KINDS:
        raise TypeError(f"a tensor has dtype {kind}; accepted are {', '.join(KINDS)}")
    expected = 2 if kind == "bfloat16" else np.dtype(kind).itemsize
    for size, stride in zip(tensor.shape[::-1], memory.strides(tensor)[::-1], strict=True):
        if size > 1 and stride != expected:
            raise ValueError(f"a tensor of shape {tuple(tensor.shape)} is not contiguous; copy it")
        expected *= max(size, 1)
    return int(np.prod(tensor.shape, dtype=np.int64))
