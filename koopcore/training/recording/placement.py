"""Where tensors stand in a row of snapshots, and the memory for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

#: Every tensor starts on a multiple of this many elements, so that kernels read aligned rows.
ALIGNMENT = 32


def check_slots(slots: int) -> int:
    """Return ``slots`` if an operator can be fitted on so many snapshots."""
    if isinstance(slots, bool) or not isinstance(slots, int) or slots < 2:
        raise ValueError(f"slots is {slots!r}; an operator needs at least 2 snapshots")
    return slots


def check_state(ring: Any, state: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` unless ``state`` was saved by a ring of the same kind and size."""
    given = tuple(state.get(key) for key in ("kind", "slots", "size"))
    here = (type(ring).__name__, ring.slots, ring.size)
    if given != here:
        raise ValueError(
            f"the saved ring is {given[0]} of {given[1]} slots x {given[2]} elements, this one "
            f"{here[0]} of {here[1]} x {here[2]}; attach with the window, storage and parameters "
            "of the run that saved it"
        )


def place(
    tensors: Sequence[Tensor], offsets: Sequence[int] | None, size: int | None
) -> tuple[list[int], int]:
    """Return where each tensor starts and how long a row is."""
    if not tensors:
        raise ValueError("there is nothing to record: the list of tensors is empty")
    starts: list[int] = []
    end = 0
    for index, tensor in enumerate(tensors):
        start = end if offsets is None else int(offsets[index])
        starts.append(start)
        end = start + tensor.numel()
        if offsets is None:
            end = -(-end // ALIGNMENT) * ALIGNMENT
    needed = max(s + t.numel() for s, t in zip(starts, tensors, strict=True))
    length = -(-needed // ALIGNMENT) * ALIGNMENT if size is None else int(size)
    if length < needed:
        raise ValueError(f"size is {length}, but the tensors reach up to element {needed}")
    return starts, length


def one_device(tensors: Sequence[Tensor]) -> torch.device:
    """Return the device that all tensors share."""
    devices = sorted({str(t.device) for t in tensors})
    if len(devices) != 1:
        raise ValueError(
            f"the tensors lie on {', '.join(devices)}; a ring holds one device: "
            "select with include= or exclude="
        )
    return tensors[0].device


def wide_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    """Return float64 if a tensor is float64, else float32, exact for narrower ones."""
    for tensor in tensors:
        if not tensor.dtype.is_floating_point:
            raise ValueError(
                f"a tensor of dtype {tensor.dtype} cannot be extrapolated; record real "
                "floating-point tensors only (exclude= leaves others out)"
            )
    wide = any(t.dtype == torch.float64 for t in tensors)
    return torch.float64 if wide else torch.float32


def allocate(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a zeroed buffer whose pages exist, or say how large it would have been."""
    try:
        # Written, not calloc'ed: page faults belong to the start, not to the first captures.
        return torch.empty(shape, dtype=dtype, device=device).zero_()
    except (RuntimeError, MemoryError) as error:
        width = torch.empty(0, dtype=dtype).element_size()
        raise MemoryError(
            f"the ring needs {shape[0] * shape[1] * width:,} bytes on {device} ({shape[0]} "
            f"snapshots x {shape[1]:,} elements x {width} bytes) and they could not be "
            "allocated; a smaller window, include=/exclude= for fewer parameters, "
            'storage="bfloat16" for half the memory, or observables="weights" shrink it'
        ) from error


class Slices:
    """Views of a flat vector in the tensors' shapes, by one split where they lie in order."""

    def __init__(self, shapes: Sequence[torch.Size], offsets: Sequence[int], size: int) -> None:
        self._shapes = list(shapes)
        self._offsets = list(offsets)
        self._sizes: list[int] = []
        end = 0
        for shape, start in zip(shapes, offsets, strict=True):
            if start < end:  # out of order: sliced one by one
                self._sizes = []
                return
            self._sizes += [start - end, shape.numel()]
            end = start + shape.numel()
        self._sizes.append(size - end)

    def of(self, vector: Tensor, count: int | None = None) -> list[Tensor]:
        """Return views of the first ``count`` tensors (default: all) in ``vector``."""
        shapes = self._shapes[:count]
        if self._sizes:
            parts = vector.split_with_sizes(self._sizes)[1::2]
        else:
            starts = zip(self._offsets, self._shapes, strict=True)
            parts = tuple(vector[a : a + shape.numel()] for a, shape in starts)
        return [
            part if len(shape) == 1 else part.view(shape)
            for part, shape in zip(parts, shapes, strict=False)
        ]
