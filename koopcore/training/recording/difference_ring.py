"""Snapshot ring in half the memory: bfloat16 differences behind one full-precision newest row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from koopcore.training.recording.placement import allocate
from koopcore.training.recording.recorder import Recorder

#: Elements that are subtracted, rounded and added back at a time, while they are in the cache.
_PIECE = 1 << 18


class DifferenceRing(Recorder):
    """Record snapshots as bfloat16 differences ``d_k`` to the snapshot before.

    The newest snapshot is kept as the decoded anchor ``a_k = a_{k-1} + d_k`` in full precision, and
    ``d_k = bf16(x_k - a_{k-1})`` is taken against the anchor, not against ``x_{k-1}``: the rounding
    of one difference is corrected by the next (error feedback), so ``|x_k - a_k|`` stays below
    ``2^-8 |x_k - a_{k-1}|`` however many snapshots follow. Older rows are ``a_{k-1} = a_k - d_k``.

    Arguments and errors: :class:`Recorder`; same interface as :class:`SnapshotRing`. Memory:
    2 bytes per element and slot and 4 for the anchor, 8 with ``blend``; a capture reads the tensors
    and the anchor and writes both. :meth:`snapshots` decodes into a full-precision buffer that
    lives as long as the caller keeps it. Do not use it where hindcast errors below 0.4 % matter.
    """

    def _allocate(self) -> None:
        # The first snapshot is the anchor itself: n snapshots have n - 1 differences.
        self.differences = allocate((self.slots - 1, self.size), torch.bfloat16, self.device)
        self.anchor = allocate((1, self.size), self.dtype, self.device)[0]
        self._anchors = self.unflatten(self.anchor)
        self._mean: Tensor | None = None

    def snapshots(self) -> tuple[Tensor, list[int]]:
        """Decode all rows into a new ``(count, size)`` tensor; returns it with its time order."""
        rows = self.anchor.new_empty((self.count, self.size))
        if self.count:
            rows[-1] = self.anchor
        for k in range(self.count - 1, 0, -1):
            slot = (self._head - (self.count - k)) % (self.slots - 1)
            torch.sub(rows[k], self.differences[slot], out=rows[k - 1])
        return rows, list(range(self.count))

    @torch.no_grad()
    def capture(self, tensors: Sequence[Tensor] | None = None) -> None:
        """Append one snapshot of ``tensors``, without the buffer that :meth:`blend` needs."""
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
                self._by_pieces(tensor.reshape(-1), start, slot)
        self._head = (self._head + 1) % (self.slots - 1)
        self.count = min(self.count + 1, self.slots)

    def _by_pieces(self, values: Tensor, start: int, slot: Tensor) -> None:
        """Write one flat tensor's differences at ``start``, piece by piece through the cache."""
        for k in range(0, values.numel(), _PIECE):
            piece = values[k : k + _PIECE]
            at = slice(start + k, start + k + piece.numel())
            slot[at] = piece - self.anchor[at]
            self.anchor[at] += slot[at]

    @torch.no_grad()
    def blend(self, tensors: Sequence[Tensor] | None = None) -> None:
        """Take ``tensors`` into the running mean, in a full-precision row of its own."""
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

    def _append(self) -> None:
        assert self._mean is not None
        self.capture(self.unflatten(self._mean))

    def _newest(self) -> Tensor:
        return self.anchor

    def _stored(self) -> dict[str, Tensor | None]:
        return {"differences": self.differences, "anchor": self.anchor, "mean": self._mean}

    def _store(self, saved: Mapping[str, Tensor | None]) -> None:
        differences, anchor, mean = (saved[name] for name in ("differences", "anchor", "mean"))
        assert differences is not None
        assert anchor is not None
        self.differences.copy_(differences)
        self.anchor.copy_(anchor)
        self._mean = None if mean is None else mean.clone().to(self.device)
