"""Snapshot rings: tensors as rows of one time-major buffer, whole or as bfloat16 differences."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from koopcore.backends import backend_for
from koopcore.backends.native_cuda.tensors import TensorTable
from koopcore.training.state import Schema, check, one_of, same, whole

#: Every tensor starts on a multiple of this many elements, so that kernels read aligned rows.
ALIGNMENT = 32


def check_slots(slots: int) -> int:
    """Return ``slots`` if an operator can be fitted on so many snapshots."""
    if isinstance(slots, bool) or not isinstance(slots, int) or slots < 2:
        raise ValueError(f"slots is {slots!r}; an operator needs at least 2 snapshots")
    return slots


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
        return sum(b.numel() * b.element_size() for b in self._stored().values())

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
            buffer[..., start:stop] *= factor

    def state_dict(self) -> dict[str, Any]:
        """Return copies of all rows and where the ring stands; the shapes are always the same.

        Rows that hold no snapshot are zero.
        """
        used = self._in_use()
        stored = {name: torch.zeros_like(buffer) for name, buffer in self._stored().items()}
        for name, buffer in self._stored().items():
            stored[name][used[name]] = buffer[used[name]]
        return {**self._position(), **stored}

    def check_state(self, state: Mapping[str, Any], where: str = "the saved ring") -> None:
        """Raise ValueError unless :meth:`load_state_dict` can go on from ``state``."""
        position = self._position()
        names = ("kind", "slots", "size")
        if isinstance(state, Mapping) and all(n in state for n in names):
            given, here = [state[n] for n in names], [position[n] for n in names]
            if not same(given, here):
                raise ValueError(
                    f"{where} has (kind, slots, size) {tuple(given)}, {tuple(here)} is needed; "
                    "attach with the window, storage and parameters of the run that saved it"
                )
        check(state, {**self.schema(), **self._stored()}, where)

    def schema(self) -> dict[str, Schema]:
        """Return what a saved state may hold, but for its buffers."""
        return {
            **{name: one_of(value) for name, value in self._position().items()},
            "head": whole(0, self._turn - 1),
            "count": whole(0, self.slots),
            "blended": whole(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`; ValueError, nothing changed, if that cannot be."""
        self.check_state(state)
        self._head, self.count, self._blended = (state[n] for n in ("head", "count", "blended"))
        for name, buffer in self._stored().items():
            buffer.copy_(state[name])

    def _position(self) -> dict[str, Any]:
        return {
            "kind": type(self).__name__,
            "slots": self.slots,
            "size": self.size,
            "head": self._head,
            "count": self.count,
            "blended": self._blended,
        }

    @property
    def _turn(self) -> int:
        """After so many captures the same place is written again."""
        return self.slots

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
    def _in_use(self) -> dict[str, Any]:
        """Which rows of each buffer hold a snapshot; the others may hold anything."""

    @abstractmethod
    def _stored(self) -> dict[str, Tensor]:
        """Every buffer by the name it is saved under, the last dimension a row."""


#: Slots whose views are prepared once; a longer ring (the paper's has 10,000) makes them anew.
_CACHED_SLOTS = 256


class SnapshotRing(Recorder):
    """Record a list of tensors as rows ``x_k`` of a ``(slots, size)`` buffer on their device.

    Row ``k`` holds the tensors one behind the other, each at its offset, padding zero. A capture is
    one kernel where native_cuda runs, elsewhere one ``torch._foreach_copy_`` into views prepared
    once; no memory is allocated and nothing is synchronized. When all slots are filled, the oldest
    is overwritten: :attr:`order` names the rows in time order, so
    ``kc.fit(ring.data, part, order=ring.order)`` reads the ring in place.

    Arguments and errors: :class:`Recorder`. Cost: ``slots * size`` elements kept; a capture reads
    the tensors and writes one row. Do not use it for more than a few thousand slots of a large
    model: see ``storage="bfloat16"`` (:class:`DifferenceRing`) and a longer stride first.
    """

    def _allocate(self) -> None:
        self.data = allocate((self.slots, self.size), self.dtype, self.device)
        self._views: dict[int, list[Tensor]] = {}
        on_cuda = self.device.type == "cuda"
        self._kernel = KernelCapture(self.tensors, self.offsets) if on_cuda else None

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
        self._blended += 1
        first = self._blended == 1
        if first and self._kernel and self._kernel.into(self.data[self._head], source):
            return
        views = self.views(self._head)
        with torch.no_grad():
            if first:
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
        self._head = (self._head + 1) % self._turn
        self.count = min(self.count + 1, self.slots)

    def _newest(self) -> Tensor:
        return self.data[(self._head - 1) % self.slots]

    def _in_use(self) -> dict[str, Any]:
        return {"data": self.order + [self._head] * (self._blended > 0)}

    def _stored(self) -> dict[str, Tensor]:
        return {"data": self.data}


class KernelCapture:
    """Copies always the same CUDA tensors into rows, by one kernel over a table of their addresses.

    The table is uploaded once and again when a tensor has moved (``p.data = ...``), which is looked
    for at every capture: 0.1 us a tensor. Without native_cuda, or for tensors that its kernel does
    not take (float16, not contiguous), there is no table, and torch copies.
    """

    def __init__(self, tensors: Sequence[Tensor], offsets: Sequence[int]) -> None:
        self._tensors = tensors
        self._offsets = offsets
        self._places: list[tuple[int, bool]] = []
        self._table: TensorTable | None = None

    def into(self, row: Tensor, source: Sequence[Tensor]) -> bool:
        """Copy ``source`` into ``row``; returns False, nothing copied, where torch has to."""
        if not all(map(operator.is_, source, self._tensors)):
            return False
        places = [(t.data_ptr(), t.is_contiguous()) for t in source]
        if places != self._places:
            self._places = places
            self._table = tensor_table(source, self._offsets)
        if self._table is None:
            return False
        self._table.capture(row)
        return True


def tensor_table(tensors: Sequence[Tensor], starts: Sequence[int]) -> TensorTable | None:
    """Return the table of addresses that native_cuda's kernel reads; None where it cannot."""
    try:
        if backend_for("cuda").name != "native_cuda":
            return None
        return TensorTable(import_module("koopcore._native._cuda"), tensors, starts)
    except (TypeError, ValueError, RuntimeError):  # of the tensors; or no backend runs
        return None


#: Elements that are subtracted, rounded and added back at a time, while they are in the cache.
_PIECE = 1 << 18


class DifferenceRing(Recorder):
    """Record snapshots as bfloat16 differences ``d_k`` to the snapshot before.

    The newest snapshot is kept as the decoded anchor ``a_k = a_{k-1} + d_k`` in full precision, and
    ``d_k = bf16(x_k - a_{k-1})`` is taken against the anchor, not against ``x_{k-1}``: the rounding
    of one difference is corrected by the next (error feedback), so ``|x_k - a_k|`` stays below
    ``2^-8 |x_k - a_{k-1}|`` however many snapshots follow. Older rows are ``a_{k-1} = a_k - d_k``.

    Arguments and errors: :class:`Recorder`; same interface as :class:`SnapshotRing`. Memory:
    2 bytes per element and slot, and 8 for the anchor and the running mean; a capture reads the
    tensors and the anchor and writes both. :meth:`snapshots` decodes into a full-precision buffer
    that lives as long as the caller keeps it. Do not use it where hindcast errors below 0.4 %
    matter.
    """

    def _allocate(self) -> None:
        # The first snapshot is the anchor itself: n snapshots have n - 1 differences.
        self.differences = allocate((self._turn, self.size), torch.bfloat16, self.device)
        self.anchor = allocate((1, self.size), self.dtype, self.device)[0]
        self._anchors = self.unflatten(self.anchor)
        self._mean = torch.zeros_like(self.anchor)

    def snapshots(self) -> tuple[Tensor, list[int]]:
        """Decode all rows into a new ``(count, size)`` tensor; returns it with its time order."""
        rows = self.anchor.new_empty((self.count, self.size))
        if self.count:
            rows[-1] = self.anchor
        for k in range(self.count - 1, 0, -1):
            slot = (self._head - (self.count - k)) % self._turn
            torch.sub(rows[k], self.differences[slot], out=rows[k - 1])
        return rows, list(range(self.count))

    @torch.no_grad()
    def capture(self, tensors: Sequence[Tensor] | None = None) -> None:
        """Append one snapshot of ``tensors``, without the detour over their running mean."""
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
        self._head = (self._head + 1) % self._turn
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
        source = self.tensors if tensors is None else tensors
        means = self.unflatten(self._mean)
        self._blended += 1
        if self._blended == 1:
            torch._foreach_copy_(means, list(source))
        else:
            same = [t.detach().to(self.dtype) for t in source]
            torch._foreach_lerp_(means, same, 1.0 / self._blended)

    def _append(self) -> None:
        self.capture(self.unflatten(self._mean))

    def _newest(self) -> Tensor:
        return self.anchor

    @property
    def _turn(self) -> int:
        return self.slots - 1

    def _in_use(self) -> dict[str, Any]:
        steps = [(self._head - 1 - k) % self._turn for k in range(self.count - 1)]
        whole_row, nothing = slice(None), slice(0)
        return {
            "differences": steps,
            "anchor": whole_row if self.count else nothing,
            "mean": whole_row if self._blended else nothing,
        }

    def _stored(self) -> dict[str, Tensor]:
        return {"differences": self.differences, "anchor": self.anchor, "mean": self._mean}
