"""Snapshot ring in half the memory: bfloat16 differences behind one full-precision newest row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from koopcore.training.placement import (
    Slices,
    allocate,
    check_slots,
    check_state,
    one_device,
    place,
    wide_dtype,
)

#: Elements that are subtracted, rounded and added back at a time, while they are in the cache.
_PIECE = 1 << 18


class DifferenceRing:
    """Record snapshots as bfloat16 differences ``d_k`` to the snapshot before.

    The newest snapshot is kept as the decoded anchor ``a_k = a_{k-1} + d_k`` in full precision, and
    ``d_k = bf16(x_k - a_{k-1})`` is taken against the anchor, not against ``x_{k-1}``: the rounding
    of one difference is corrected by the next (error feedback), so ``|x_k - a_k|`` stays below
    ``2^-8 |x_k - a_{k-1}|`` however many snapshots follow. Older rows are ``a_{k-1} = a_k - d_k``.

    Same interface and arguments as :class:`SnapshotRing` (``ring.py``), which it mirrors. Memory:
    2 bytes per element and slot and 4 for the anchor, 8 with ``blend``; a capture reads the tensors
    and the anchor and writes both. :meth:`snapshots` decodes into a full-precision buffer that
    lives as long as the caller keeps it. Do not use it where hindcast errors below 0.4 % matter.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        slots: int,
        *,
        offsets: Sequence[int] | None = None,
        size: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.tensors = list(tensors)
        self.slots = check_slots(slots)
        self.shapes = [t.shape for t in self.tensors]
        self.offsets, self.size = place(self.tensors, offsets, size)
        self._slices = Slices(self.shapes, self.offsets, self.size)
        self.device = one_device(self.tensors)
        self.dtype = dtype or wide_dtype(self.tensors)
        # The first snapshot is the anchor itself: n snapshots have n - 1 differences.
        self.differences = allocate((slots - 1, self.size), torch.bfloat16, self.device)
        self.anchor = allocate((1, self.size), self.dtype, self.device)[0]
        self._anchors = self.unflatten(self.anchor)
        self._mean: Tensor | None = None
        self.clear()

    def clear(self) -> None:
        """Forget all snapshots; the buffers stay."""
        self.count = 0
        self._head = 0
        self._blended = 0

    def keep(self, count: int) -> None:
        """Forget all but the newest ``count`` snapshots."""
        self.count = min(self.count, count)
        self._blended = 0

    @property
    def full(self) -> bool:
        """Whether every slot holds a snapshot."""
        return self.count == self.slots

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""
        buffers = [self.differences, self.anchor] + ([] if self._mean is None else [self._mean])
        return sum(b.numel() * b.element_size() for b in buffers)

    def snapshots(self) -> tuple[Tensor, list[int]]:
        """Decode all rows into a new ``(count, size)`` tensor; returns it with its time order."""
        rows = self.anchor.new_empty((self.count, self.size))
        if self.count:
            rows[-1] = self.anchor
        for k in range(self.count - 1, 0, -1):
            slot = (self._head - (self.count - k)) % (self.slots - 1)
            torch.sub(rows[k], self.differences[slot], out=rows[k - 1])
        return rows, list(range(self.count))

    def newest(self) -> Tensor:
        """Return the newest snapshot as decoded, a view of shape ``(size,)``."""
        if self.count == 0:
            raise ValueError("the ring is empty; capture a snapshot first")
        return self.anchor

    @torch.no_grad()
    def capture(self, tensors: Sequence[Tensor] | None = None) -> None:
        """Append one snapshot of ``tensors`` (default: those given at construction)."""
        source = [t.detach() for t in (self.tensors if tensors is None else tensors)]
        if self.count == 0:
            torch._foreach_copy_(self._anchors, source)
            self.count = 1
            return
        slot = self.differences[self._head]
        if self.size <= _PIECE:
            torch._foreach_copy_(self.unflatten(slot), torch._foreach_sub(source, self._anchors))
            self.anchor += slot
        else:
            for tensor, start in zip(source, self.offsets, strict=True):
                self._append(tensor.reshape(-1), start, slot)
        self._head = (self._head + 1) % (self.slots - 1)
        self.count = min(self.count + 1, self.slots)

    def _append(self, values: Tensor, start: int, slot: Tensor) -> None:
        """Write one flat tensor's differences at ``start``, piece by piece through the cache."""
        for k in range(0, values.numel(), _PIECE):
            piece = values[k : k + _PIECE]
            at = slice(start + k, start + k + piece.numel())
            slot[at] = piece - self.anchor[at]
            self.anchor[at] += slot[at]

    @torch.no_grad()
    def blend(self, tensors: Sequence[Tensor] | None = None) -> None:
        """Take ``tensors`` into the running mean of the snapshot that :meth:`commit` appends."""
        if self._mean is None:
            self._mean = allocate((1, self.size), self.dtype, self.device)[0]
        source = self.tensors if tensors is None else tensors
        means = self.unflatten(self._mean)
        self._blended += 1
        if self._blended == 1:
            torch._foreach_copy_(means, list(source))
        else:
            same = [t.detach().to(self.dtype) for t in source]
            torch._foreach_lerp_(means, same, 1.0 / self._blended)

    def commit(self) -> None:
        """Close the snapshot begun by :meth:`blend`."""
        if self._blended == 0 or self._mean is None:
            raise ValueError("commit without blend: there is no snapshot to append")
        self._blended = 0
        self.capture(self.unflatten(self._mean))

    def unflatten(self, vector: Tensor, count: int | None = None) -> list[Tensor]:
        """Return views of a ``(size,)`` vector in the (first ``count``) tensors' shapes."""
        return self._slices.of(vector, count)

    @torch.no_grad()
    def write(self, vector: Tensor, tensors: Sequence[Tensor] | None = None) -> None:
        """Copy a ``(size,)`` vector, for example ``ops.predict(T)``, back into ``tensors``."""
        target = self.tensors if tensors is None else list(tensors)
        torch._foreach_copy_(target, self.unflatten(vector))

    def rescale(self, start: int, stop: int, factor: float) -> None:
        """Multiply columns ``start .. stop - 1`` of all rows; exact for powers of two."""
        self.differences[:, start:stop] *= factor
        self.anchor[start:stop] *= factor
        if self._mean is not None:
            self._mean[start:stop] *= factor

    def state_dict(self) -> dict[str, Any]:
        """Return the rows in use and where the ring stands; rows are copies."""
        return {
            "kind": type(self).__name__,
            "slots": self.slots,
            "size": self.size,
            "head": self._head,
            "count": self.count,
            "blended": self._blended,
            "differences": self.differences.clone(),
            "anchor": self.anchor.clone(),
            "mean": None if self._mean is None else self._mean.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`; the ring must have the same slots and size."""
        check_state(self, state)
        self._head = int(state["head"])
        self.count = int(state["count"])
        self._blended = int(state["blended"])
        self.differences.copy_(state["differences"])
        self.anchor.copy_(state["anchor"])
        self._mean = None if state["mean"] is None else state["mean"].clone().to(self.device)
