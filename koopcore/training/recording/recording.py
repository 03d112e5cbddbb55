"""The recorded state: weights, normalized updates and live buffers as one row of the ring."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from koopcore.backends import backend_for
from koopcore.checks import check_fit
from koopcore.operators import KoopmanOperators, fit
from koopcore.partition.layout import Layout
from koopcore.partition.partition import Partition
from koopcore.training.jumping.bounds import GroupBounds
from koopcore.training.parallel.processes import ALONE, Processes
from koopcore.training.parallel.shards import LocalGroups, SpreadOperators
from koopcore.training.recording.live_buffers import LiveBuffers
from koopcore.training.recording.normalized_update import normalized_update
from koopcore.training.recording.parameters import TrainableParameters
from koopcore.training.recording.probe import Probe
from koopcore.training.recording.ring import DifferenceRing, SnapshotRing, place
from koopcore.training.settings import PartitionLike, Settings
from koopcore.training.state import BYTES, PART, TEXT, Leaf, Schema, Several, check, same


class Recording:
    """A ring whose rows are ``[weights | scaled updates | live buffers]``, and their partition.

    An update belongs to the group of its weight; every buffer tensor is a group of its own, behind
    the others. Updates are multiplied by a power of two (exact) that brings them to the size of
    the weights' movement per snapshot, so that both count alike in one Gram matrix.

    Args:
        parameters: those recorded. buffers: the live ones beside them.
        settings: its partition, storage and observables. slots: snapshots in the ring.
        processes: those that decide together, and hold the parameters' other shards.

    Raises ValueError for a partition of another layout, MemoryError where the ring does not fit.
    """

    def __init__(
        self,
        parameters: TrainableParameters,
        buffers: LiveBuffers,
        settings: Settings,
        slots: int,
        processes: Processes = ALONE,
    ) -> None:
        partition = partition_of(parameters.layout, settings.partition)
        self.processes = processes
        self.parameters = parameters
        self.buffers = buffers
        shards = parameters.shards
        self._whole = partition
        self._groups: LocalGroups | None = None
        self.width = parameters.width
        if shards is not None:
            self._groups = shards.groups_here(partition, parameters.offsets, self.width)
            partition = self._groups.part
            self.width = partition.size
        self.n_groups = partition.n_groups
        self.with_update = settings.observables == "weights+update"
        self.scale = 1.0
        copies = 2 if self.with_update else 1
        offsets = [start + k * self.width for k in range(copies) for start in parameters.offsets]
        size = copies * self.width
        tensors = parameters.sources * copies
        self._fixed = size  # columns that do not depend on which buffers are live
        if buffers.tensors:
            starts, length = place(buffers.tensors, None, None)
            offsets += [size + start for start in starts]
            size += length
            tensors += buffers.tensors
        self.partition = with_updates_and_buffers(
            partition, self.with_update, offsets, tensors, size, buffers.tensors
        )
        if self._groups is not None:
            counted = with_updates_and_buffers(
                self._groups.counted, self.with_update, offsets, tensors, size, []
            )
            self._groups = self._groups._replace(counted=counted)
        kind: type[DifferenceRing | SnapshotRing]
        kind = DifferenceRing if settings.storage == "bfloat16" else SnapshotRing
        dtype = torch.float32 if settings.storage == "float32" else None
        self.probe = Probe(parameters.sources, processes, shards)
        self._bounds: GroupBounds | None = None
        self._counted: Tensor | None = None  # columns of the weights that are counted here
        self.ring = kind(tensors, slots, offsets=offsets, size=size, dtype=dtype)
        affine = settings.operator == "affine"
        largest = max(self.partition.largest, copies * self._whole.largest)
        possible = max(1, min(slots - 1 - affine, largest))
        self.rank = None if settings.rank is None else min(settings.rank, possible)

    def check(self, settings: Settings) -> None:
        """Raise what :func:`koopcore.fit` would raise for such windows and settings."""
        part = self.partition if self._groups is None else self._whole
        check_fit(
            self.ring.slots,
            part.size,
            part,
            settings.operator,
            settings.rank,
            settings.ridge,
        )
        backend_for(self.ring.device.type, settings.backend)

    def blend(self) -> None:
        """Take the present state into the snapshot being averaged."""
        self.ring.blend(self._state())

    def balance(self) -> None:
        """Rescale the recorded updates to the size of the weights' movement per snapshot."""
        if not self.with_update or self.ring.count < 2:
            return
        rows, order = self.ring.snapshots()
        moved = rows[order[-1], : self.width] - rows[order[0], : self.width]
        movement = self.norm(moved) / (len(order) - 1)
        update = self.norm(rows[order[-1], self.width : 2 * self.width])
        if movement > 0 and update > 0 and math.isfinite(movement) and math.isfinite(update):
            factor = 2.0 ** round(math.log2(movement / update))
            if factor != 1.0:
                self.ring.rescale(self.width, 2 * self.width, factor)
                self.scale *= factor

    def norm(self, row: Tensor) -> float:
        """Return the norm of ``width`` columns, over all shards of the weights."""
        if self._groups is None:
            return float(row.norm())
        if self._counted is None:
            counted = np.zeros(self.width, dtype=np.bool_)
            for group in range(self._groups.counted.n_groups):
                columns = self._groups.counted.indices(group)
                counted[columns[columns < self.width]] = True
            self._counted = torch.from_numpy(counted).to(row.device)
        squares = float(row[self._counted].double().square().sum())
        return math.sqrt(float(self.processes.total(np.array([squares]))[0]))

    def operators(self, settings: Settings) -> KoopmanOperators | SpreadOperators:
        """Return the operators of the window, those of groups that cross shards fitted together."""
        rows, order = self.ring.snapshots()
        options: dict[str, Any] = {
            "model": settings.operator,
            "ridge": settings.ridge,
            "backend": settings.backend,
            "order": order,
        }
        if self._groups is None:
            return fit(rows, self.partition, rank=self.rank, **options)
        return SpreadOperators(
            rows, self.partition, self._groups, self.processes, self.rank, **options
        )

    def weights(self, row: Tensor) -> list[Tensor]:
        """Return the weights' part of a row, as views in the parameters' shapes."""
        return self.ring.unflatten(row, len(self.parameters.sources))

    def bound(self) -> Callable[[Tensor, int], Tensor]:
        """Return what keeps single groups of the window from spoiling a prediction of all."""
        if self._bounds is None:
            self._bounds = GroupBounds(self.partition, self.ring.device)
            if self._groups is not None:
                self._bounds.share(self._groups.counted, self._groups.shared, self.processes)
        bounds = self._bounds
        rows, order = self.ring.snapshots()
        newest, oldest, span = rows[order[-1]], rows[order[0]], len(order) - 1
        return lambda vector, horizon: bounds(vector, newest, oldest, horizon / span)

    def buffer_values(self, row: Tensor) -> list[Tensor]:
        """Return the predicted buffers of a row, clipped by what the window has seen."""
        count = len(self.buffers.tensors)
        if not count:
            return []
        rows, order = self.ring.snapshots()
        start, shapes = self.ring.offsets[-count:], self.ring.shapes[-count:]
        windows = [
            rows[:, a : a + s.numel()][order].view(len(order), *s)
            for a, s in zip(start, shapes, strict=True)
        ]
        return self.buffers.clip(self.ring.unflatten(row)[-count:], windows)

    def state_dict(self) -> dict[str, Any]:
        """Return the ring and the scale of the updates.

        Shapes depend on settings and parameters alone, not on how these are spread over processes:
        each parameter has its own rows, a DTensor where it is one. The columns of live buffers, of
        which a fresh attachment knows none, are packed into bytes.
        """
        ring = self.ring.state_dict()
        packed = io.BytesIO()
        rows = {name: t for name, t in ring.items() if isinstance(t, Tensor)}
        torch.save({name: t[..., self._fixed :].cpu().clone() for name, t in rows.items()}, packed)
        position = {name: value for name, value in ring.items() if name not in rows}
        return {
            "scale": self.scale,
            "ring": position | {"size": self._whole.size},
            "rows": {name: self._by_name(t) for name, t in rows.items()},
            "probe": self.probe.state_dict(),
            "buffers": list(self.buffers.names),
            "buffer_rows": packed.getvalue(),
        }

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise ValueError unless :meth:`load_state_dict` can go on from ``state``."""
        where = "the saved state['recording']"
        schema: dict[str, Schema] = {
            "scale": _SCALE,
            "ring": PART,
            "rows": PART,
            "probe": PART,
            "buffers": Several(TEXT),
            "buffer_rows": BYTES,
        }
        check(state, schema, where)
        self.probe.check_state(state["probe"])
        here = {n: self._by_name(t) for n, t in self.ring.state_dict().items() if _is_rows(t)}
        ring = f"{where}['ring']"
        if not same(state["ring"].get("kind"), type(self.ring).__name__):
            raise ValueError(
                f"{ring}['kind'] is {state['ring'].get('kind')!r}, {type(self.ring).__name__!r} is "
                "needed; attach with the storage of the run that saved it"
            )
        check(state["rows"], here, f"{where}['rows']")
        self.ring.check_state(self._joined(state), ring)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self.ring.load_state_dict(self._joined(state))
        self.probe.load_state_dict(state["probe"])
        self.scale = float(state["scale"])

    def _names(self) -> list[tuple[str, int]]:
        """Name and number of each tensor that is recorded whatever buffers are live."""
        names = list(enumerate(self.parameters.names))
        updates = [(f"update of {name}", k) for k, name in names] if self.with_update else []
        return [*((name, k) for k, name in names), *updates]

    def _by_name(self, rows: Tensor) -> dict[str, Tensor]:
        """The columns of each tensor, in its own shape behind the rows' other axes."""
        shards = self.parameters.shards
        named = {}
        for (name, k), start, shape in zip(
            self._names(), self.ring.offsets, self.ring.shapes, strict=False
        ):
            columns = rows[..., start : start + shape.numel()].clone()
            columns = columns.view(*rows.shape[:-1], *shape)
            named[name] = columns if shards is None else shards.whole(k, columns)
        return named

    @torch.no_grad()
    def _joined(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The state of the ring: the columns of all tensors, and of the live buffers, in rows."""
        shards = self.parameters.shards
        ring = dict(state["ring"])
        if same(ring.get("size"), self._whole.size):
            ring["size"] = self.ring.size
        here = {kind: rows for kind, rows in self.ring.state_dict().items() if _is_rows(rows)}
        packed = _unpacked(state["buffer_rows"], here)
        for kind, rows in here.items():
            rows.zero_()
            for (name, k), start, shape in zip(
                self._names(), self.ring.offsets, self.ring.shapes, strict=False
            ):
                given = state["rows"][kind][name]
                columns = given if shards is None else shards.piece_of(k, given)
                rows[..., start : start + shape.numel()] = columns.reshape(*rows.shape[:-1], -1)
            last = packed[kind].to(rows)
            if last.shape == rows[..., self._fixed :].shape:
                rows[..., self._fixed :] = last
            elif last.shape[-1]:
                rows = torch.cat([rows[..., : self._fixed], last], dim=-1)  # refused by its size
            ring[kind] = rows
        return ring

    def _state(self) -> list[Tensor]:
        sources = self.parameters.sources
        if not self.with_update:
            return [*sources, *self.buffers.tensors] if self.buffers.tensors else sources
        updates = normalized_update(self.parameters.optimizer, self.parameters.stepped)
        if self.scale != 1.0:
            torch._foreach_mul_(updates, self.scale)
        return [*sources, *updates, *self.buffers.tensors]


#: Of updates: they are multiplied exactly.
_SCALE = Leaf(
    lambda v: type(v) in (int, float) and 0 < v < math.inf and math.frexp(v)[0] == 0.5,
    "a power of two",
)


def _is_rows(value: Any) -> bool:
    return isinstance(value, Tensor)


def _unpacked(packed: bytes, names: Iterable[str]) -> dict[str, Tensor]:
    """The columns of live buffers, by the names under which the ring keeps its rows."""
    try:
        columns = dict(torch.load(io.BytesIO(packed), weights_only=True))
        return {name: columns[name] for name in names}
    except Exception as error:
        raise ValueError(
            f"the saved state['recording']['buffer_rows'] cannot be read ({error}); what "
            "state_dict() packed is needed: was it altered?"
        ) from error


def partition_of(layout: Layout, choice: PartitionLike) -> Partition:
    """Return the partition that a name, a partition or a function makes of ``layout``."""
    if isinstance(choice, str):
        named: Callable[[Layout], Partition] = getattr(Partition, choice)
        return named(layout)
    partition = choice if isinstance(choice, Partition) else choice(layout)
    if not isinstance(partition, Partition):
        raise TypeError(f"partition gave {type(partition).__name__}; a Partition is needed")
    if partition.size != layout.size:
        raise ValueError(
            f"the partition covers {partition.size} elements, the recorded layout {layout.size} "
            "(tensors aligned to 32); build it from a function of the layout"
        )
    return partition


def with_updates_and_buffers(
    partition: Partition,
    with_update: bool,
    offsets: list[int],
    tensors: list[Tensor],
    size: int,
    buffers: list[Tensor],
) -> Partition:
    """Return ``partition`` with each group's updates added to it and a group per buffer."""
    if size == partition.size:
        return partition
    counts = np.diff(partition.group_ptr)
    start, length, stride = partition.start, partition.length, partition.stride
    if with_update:
        # Segments of a group stay together: [its weights, its updates].
        group = np.repeat(np.arange(counts.size), counts)
        order = np.argsort(np.concatenate((group, group)), kind="stable")
        start = np.concatenate((start, start + partition.size))[order]
        length = np.concatenate((length, length))[order]
        stride = np.concatenate((stride, stride))[order]
        counts = 2 * counts
    if buffers:
        start = np.concatenate((start, offsets[-len(buffers) :]))
        length = np.concatenate((length, [b.numel() for b in buffers]))
        stride = np.concatenate((stride, np.ones(len(buffers))))
        counts = np.concatenate((counts, np.ones(len(buffers))))
    pointer = np.concatenate(([0], np.cumsum(counts)))
    whole = [np.asarray(a, dtype=np.int64) for a in (pointer, start, length, stride)]
    return Partition(size, whole[0], whole[1], whole[2], whole[3], name=partition.name)
