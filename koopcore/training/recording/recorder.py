"""What every snapshot ring shares: tensors placed in rows, a count, saving and loading."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from koopcore.training.recording.placement import (
    Slices,
    check_slots,
    check_state,
    one_device,
    place,
    wide_dtype,
)


class Recorder(ABC):
    """Rows of ``size`` elements that hold a list of tensors one behind the other, padding zero.

    The rings differ in how they store rows (:class:`SnapshotRing` whole, :class:`DifferenceRing`
    as bfloat16 differences); their arguments, what they raise and how they are used are these.

    Args:
        tensors: what to record: floating-point tensors of any shape on one device. They are held
            by reference, and are the default source of :meth:`capture`.
        slots: snapshots kept, at least 2.
        offsets: element at which each tensor starts in a row; default: in order, aligned to 32.
        size: elements of a row; default: up to the end of the last tensor, padded to 32.
        dtype: of a row; default float64 if any tensor is float64, else float32.

    Raises:
        ValueError: fewer than 2 slots, no tensors, several devices, or a non-floating dtype.
        MemoryError: the buffer does not fit; says how many bytes and what would shrink it.
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
        self._allocate()
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
        return sum(b.numel() * b.element_size() for b in self._stored().values() if b is not None)

    def newest(self) -> Tensor:
        """Return the newest snapshot, a view of shape ``(size,)``."""
        if self.count == 0:
            raise ValueError("the ring is empty; capture a snapshot first")
        return self._newest()

    def capture(self, tensors: Sequence[Tensor] | None = None) -> None:
        """Append one snapshot of ``tensors`` (default: those given at construction)."""
        self.blend(tensors)
        self.commit()

    def commit(self) -> None:
        """Close the snapshot begun by :meth:`blend`."""
        if self._blended == 0:
            raise ValueError("commit without blend: there is no snapshot to append")
        self._blended = 0
        self._append()

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
        for buffer in self._stored().values():
            if buffer is not None:
                buffer[..., start:stop] *= factor

    def state_dict(self) -> dict[str, Any]:
        """Return the rows in use and where the ring stands; rows are copies."""
        stored = {n: None if b is None else b.clone() for n, b in self._stored().items()}
        return {
            "kind": type(self).__name__,
            "slots": self.slots,
            "size": self.size,
            "head": self._head,
            "count": self.count,
            "blended": self._blended,
            **stored,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`; the ring must have the same slots and size."""
        check_state(self, state)
        self._head = int(state["head"])
        self.count = int(state["count"])
        self._blended = int(state["blended"])
        self._store({name: state[name] for name in self._stored()})

    @abstractmethod
    def blend(self, tensors: Sequence[Tensor] | None = None) -> None:
        """Take ``tensors`` into the running mean of the snapshot that :meth:`commit` appends.

        ``mean_k = mean_{k-1} + (x - mean_{k-1}) / k``: one rounding per step, so that the small
        differences between snapshots survive, which a sum divided at the end would lose.
        """

    @abstractmethod
    def snapshots(self) -> tuple[Tensor, list[int]]:
        """Return ``(rows, order)``, the two arguments that ``kc.fit`` reads."""

    @abstractmethod
    def _allocate(self) -> None:
        """Make the buffers, once places, device and dtype are known."""

    @abstractmethod
    def _append(self) -> None:
        """Make the blended mean the newest snapshot."""

    @abstractmethod
    def _newest(self) -> Tensor:
        """The newest of at least one snapshot."""

    @abstractmethod
    def _stored(self) -> dict[str, Tensor | None]:
        """Every buffer by the name it is saved under, the last dimension a row; None: not made."""

    @abstractmethod
    def _store(self, saved: Mapping[str, Tensor | None]) -> None:
        """Take over what :meth:`_stored` named."""
