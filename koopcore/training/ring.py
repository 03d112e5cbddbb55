"""Snapshot ring: tensors as rows of one time-major buffer, filled by one multi-tensor copy."""

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

#: Slots whose views are prepared once; a longer ring (the paper's has 10,000) makes them anew.
_CACHED_SLOTS = 256


class SnapshotRing:
    """Record a list of tensors as rows ``x_k`` of a ``(slots, size)`` buffer on their device.

    Row ``k`` holds the tensors one behind the other, each at its offset, padding zero. A capture is
    one ``torch._foreach_copy_`` into views prepared once; no memory is allocated and nothing is
    synchronized. When all slots are filled, the oldest is overwritten: :attr:`order` names the rows
    in time order, so ``kc.fit(ring.data, part, order=ring.order)`` reads the ring in place.

    Args:
        tensors: what to record: floating-point tensors of any shape on one device. They are held
            by reference, and are the default source of :meth:`capture`.
        slots: snapshots kept, at least 2.
        offsets: element at which each tensor starts in a row; default: in order, aligned to 32.
        size: elements of a row; default: up to the end of the last tensor, padded to 32.
        dtype: of the buffer; default float64 if any tensor is float64, else float32.

    Raises:
        ValueError: fewer than 2 slots, no tensors, several devices, or a non-floating dtype.
        MemoryError: the buffer does not fit; says how many bytes and what would shrink it.

    Cost: ``slots * size`` elements kept; a capture reads the tensors and writes one row. Do not use
    it for more than a few thousand slots of a large model: see ``storage="bfloat16"``
    (:class:`DifferenceRing`) and a longer stride first.
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
        self.data = allocate((slots, self.size), self.dtype, self.device)
        self._views: dict[int, list[Tensor]] = {}
        self.clear()

    def clear(self) -> None:
        """Forget all snapshots; the buffer stays."""
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
        """Bytes of the buffer."""
        return self.data.numel() * self.data.element_size()

    @property
    def order(self) -> list[int]:
        """Rows of :attr:`data` from the oldest snapshot to the newest."""
        first = self._head - self.count
        return [(first + k) % self.slots for k in range(self.count)]

    def snapshots(self) -> tuple[Tensor, list[int]]:
        """Return ``(data, order)``, the two arguments that ``kc.fit`` reads."""
        return self.data, self.order

    def newest(self) -> Tensor:
        """Return the newest row, a view of shape ``(size,)``."""
        if self.count == 0:
            raise ValueError("the ring is empty; capture a snapshot first")
        return self.data[(self._head - 1) % self.slots]

    def capture(self, tensors: Sequence[Tensor] | None = None) -> None:
        """Append one snapshot of ``tensors`` (default: those given at construction)."""
        self.blend(tensors)
        self.commit()

    def blend(self, tensors: Sequence[Tensor] | None = None) -> None:
        """Take ``tensors`` into the running mean of the snapshot that :meth:`commit` will append.

        ``mean_k = mean_{k-1} + (x - mean_{k-1}) / k``: one rounding per step, so that the small
        differences between snapshots survive, which a sum divided at the end would lose.
        """
        source = self.tensors if tensors is None else list(tensors)
        views = self.views(self._head)
        self._blended += 1
        with torch.no_grad():
            if self._blended == 1:
                torch._foreach_copy_(views, source)
                return
            if not all(t.dtype == self.dtype for t in source):
                source = [t.to(self.dtype) for t in source]
            torch._foreach_lerp_(views, source, 1.0 / self._blended)

    def commit(self) -> None:
        """Close the snapshot begun by :meth:`blend`."""
        if self._blended == 0:
            raise ValueError("commit without blend: there is no snapshot to append")
        self._blended = 0
        self._head = (self._head + 1) % self.slots
        self.count = min(self.count + 1, self.slots)

    def views(self, slot: int) -> list[Tensor]:
        """Return views of row ``slot`` in the tensors' shapes."""
        known = self._views.get(slot)
        if known is None:
            known = self.unflatten(self.data[slot])
            if self.slots <= _CACHED_SLOTS:
                self._views[slot] = known
        return known

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
        self.data[:, start:stop] *= factor

    def state_dict(self) -> dict[str, Any]:
        """Return the rows in use and where the ring stands; rows are copies."""
        return {
            "kind": type(self).__name__,
            "slots": self.slots,
            "size": self.size,
            "head": self._head,
            "count": self.count,
            "blended": self._blended,
            "data": self.data.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`; the ring must have the same slots and size."""
        check_state(self, state)
        self._head = int(state["head"])
        self.count = int(state["count"])
        self._blended = int(state["blended"])
        self.data.copy_(state["data"])
