"""Snapshot ring: tensors as rows of one time-major buffer, filled by one multi-tensor copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from koopcore.training.recording.placement import allocate
from koopcore.training.recording.recorder import Recorder

#: Slots whose views are prepared once; a longer ring (the paper's has 10,000) makes them anew.
_CACHED_SLOTS = 256


class SnapshotRing(Recorder):
    """Record a list of tensors as rows ``x_k`` of a ``(slots, size)`` buffer on their device.

    Row ``k`` holds the tensors one behind the other, each at its offset, padding zero. A capture is
    one ``torch._foreach_copy_`` into views prepared once; no memory is allocated and nothing is
    synchronized. When all slots are filled, the oldest is overwritten: :attr:`order` names the rows
    in time order, so ``kc.fit(ring.data, part, order=ring.order)`` reads the ring in place.

    Arguments and errors: :class:`Recorder`. Cost: ``slots * size`` elements kept; a capture reads
    the tensors and writes one row. Do not use it for more than a few thousand slots of a large
    model: see ``storage="bfloat16"`` (:class:`DifferenceRing`) and a longer stride first.
    """

    def _allocate(self) -> None:
        self.data = allocate((self.slots, self.size), self.dtype, self.device)
        self._views: dict[int, list[Tensor]] = {}

    @property
    def order(self) -> list[int]:
        """Rows of :attr:`data` from the oldest snapshot to the newest."""
        first = self._head - self.count
        return [(first + k) % self.slots for k in range(self.count)]

    def snapshots(self) -> tuple[Tensor, list[int]]:
        """Return ``(data, order)``, in place."""
        return self.data, self.order

    def blend(self, tensors: Sequence[Tensor] | None = None) -> None:
        """Take ``tensors`` into the running mean, in the row that comes next."""
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

    def views(self, slot: int) -> list[Tensor]:
        """Return views of row ``slot`` in the tensors' shapes."""
        known = self._views.get(slot)
        if known is None:
            known = self.unflatten(self.data[slot])
            if self.slots <= _CACHED_SLOTS:
                self._views[slot] = known
        return known

    def _append(self) -> None:
        self._head = (self._head + 1) % self.slots
        self.count = min(self.count + 1, self.slots)

    def _newest(self) -> Tensor:
        return self.data[(self._head - 1) % self.slots]

    def _stored(self) -> dict[str, Tensor | None]:
        return {"data": self.data}

    def _store(self, saved: Mapping[str, Tensor | None]) -> None:
        data = saved["data"]
        assert data is not None
        self.data.copy_(data)
