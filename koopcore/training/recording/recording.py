"""The recorded state: weights, normalized updates and live buffers as one row of the ring."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from koopcore.backends import backend_for
from koopcore.checks import check_fit
from koopcore.partition.layout import Layout
from koopcore.partition.partition import Partition
from koopcore.training.jumping.bounds import GroupBounds
from koopcore.training.parallel.processes import ALONE, Processes
from koopcore.training.recording.live_buffers import LiveBuffers
from koopcore.training.recording.normalized_update import normalized_update
from koopcore.training.recording.parameters import TrainableParameters
from koopcore.training.recording.probe import Probe
from koopcore.training.recording.ring import DifferenceRing, SnapshotRing, place
from koopcore.training.settings import PartitionLike, Settings
from koopcore.training.state import check_like


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
        self.n_groups = partition.n_groups
        self.width = parameters.layout.size
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
        kind: type[DifferenceRing | SnapshotRing]
        kind = DifferenceRing if settings.storage == "bfloat16" else SnapshotRing
        dtype = torch.float32 if settings.storage == "float32" else None
        self.probe = Probe(parameters.sources, processes)
        self._bounds: GroupBounds | None = None
        self.ring = kind(tensors, slots, offsets=offsets, size=size, dtype=dtype)
        affine = settings.operator == "affine"
        possible = max(1, min(slots - 1 - affine, self.partition.largest))
        self.rank = None if settings.rank is None else min(settings.rank, possible)

    def check(self, settings: Settings) -> None:
        """Raise what :func:`koopcore.fit` would raise for such windows and settings."""
        check_fit(
            self.ring.slots,
            self.ring.size,
            self.partition,
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
        movement = float(moved.norm()) / (len(order) - 1)
        update = float(rows[order[-1], self.width : 2 * self.width].norm())
        if movement > 0 and update > 0 and math.isfinite(movement) and math.isfinite(update):
            factor = 2.0 ** round(math.log2(movement / update))
            if factor != 1.0:
                self.ring.rescale(self.width, 2 * self.width, factor)
                self.scale *= factor

    def weights(self, row: Tensor) -> list[Tensor]:
        """Return the weights' part of a row, as views in the parameters' shapes."""
        return self.ring.unflatten(row, len(self.parameters.sources))

    def bound(self) -> Callable[[Tensor, int], Tensor]:
        """Return what keeps single groups of the window from spoiling a prediction of all."""
        if self._bounds is None:
            self._bounds = GroupBounds(self.partition, self.ring.device)
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

        Shapes depend on settings and parameters alone: the columns of live buffers, of which a
        fresh attachment knows none, are packed into bytes.
        """
        ring = self.ring.state_dict()
        packed = io.BytesIO()
        rows = {name: t for name, t in ring.items() if isinstance(t, Tensor)}
        torch.save({name: t[..., self._fixed :].cpu().clone() for name, t in rows.items()}, packed)
        ring |= {name: t[..., : self._fixed].contiguous() for name, t in rows.items()}
        return {
            "scale": self.scale,
            "ring": ring,
            "probe": self.probe.state_dict(),
            "buffers": list(self.buffers.names),
            "buffer_rows": packed.getvalue(),
        }

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise ValueError unless :meth:`load_state_dict` can go on from ``state``."""
        like = {"scale": 1.0, "ring": {}, "probe": {}, "buffers": [], "buffer_rows": b""}
        flat = {k: {} if k in ("ring", "probe") else v for k, v in state.items()}
        check_like(flat, like, "the recording in the saved state")
        self.probe.check_state(state["probe"])
        self.ring.check_state(_joined(state), "the ring in the saved state")
        if not 0 < state["scale"] < math.inf:
            raise ValueError(f"the scale in the saved state is {state['scale']}; give a number > 0")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self.ring.load_state_dict(_joined(state))
        self.probe.load_state_dict(state["probe"])
        self.scale = float(state["scale"])

    def _state(self) -> list[Tensor]:
        sources = self.parameters.sources
        if not self.with_update:
            return [*sources, *self.buffers.tensors] if self.buffers.tensors else sources
        updates = normalized_update(self.parameters.optimizer, self.parameters.stepped)
        if self.scale != 1.0:
            torch._foreach_mul_(updates, self.scale)
        return [*sources, *updates, *self.buffers.tensors]


def _joined(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of the ring, with the columns of live buffers behind the others."""
    try:
        packed = torch.load(io.BytesIO(state["buffer_rows"]), weights_only=True)
        ring = dict(state["ring"])
        for name, rows in packed.items():
            if rows.shape[-1]:
                ring[name] = torch.cat([ring[name], rows.to(ring[name])], dim=-1)
    except Exception as error:
        raise ValueError(
            f"the recorded buffers in the saved state cannot be read ({error}); was it altered?"
        ) from error
    return ring


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
