"""Parameters that are spread over processes: which part is here, and which groups cross shards."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from koopcore.backends.spread import Shares
from koopcore.operators import KoopmanOperators, fit
from koopcore.partition.layout import Layout
from koopcore.partition.partition import Partition
from koopcore.training.parallel.processes import Processes
from koopcore.types import IntArray

#: First and last index + 1 along each axis of the whole tensor, of what is here.
Piece: TypeAlias = tuple[tuple[int, int], ...]

_PAD = 32


class Shards:
    """Where the pieces that this process holds of each tensor lie in the whole one.

    A piece that several processes hold (replicated over a mesh dimension, or plain beside sharded
    ones) is counted by the first of them.

    Args:
        layout: of the whole tensors. stepped: in its order, DTensors or plain ones.
        processes: all that hold pieces.

    Raises ValueError where the processes' pieces are not every element once: of a placement that is
    not known, or with a process group that is not the mesh's.
    """

    def __init__(self, layout: Layout, stepped: Sequence[Tensor], processes: Processes) -> None:
        self.layout = layout
        self.stepped = list(stepped)
        self.processes = processes
        self.pieces = [
            _piece(t, tensor.shape) for t, tensor in zip(stepped, layout.tensors, strict=True)
        ]
        ranks = processes.gather("shards", lambda: self.pieces)
        self.counted: list[bool] = []
        for k, tensor in enumerate(layout.tensors):
            first: dict[Piece, int] = {}
            for rank, pieces in enumerate(ranks):
                first.setdefault(pieces[k], rank)
            covered = sum(_numel(piece) for piece in first)
            if covered != tensor.size:
                raise ValueError(
                    f"the shards of {tensor.name!r} on {processes.size} processes have {covered} "
                    f"different elements, the parameter has {tensor.size}; attach on all ranks of "
                    "its device mesh, in a process group that holds them"
                )
            self.counted.append(first[self.pieces[k]] == processes.rank)

    def slices(self, k: int) -> tuple[slice, ...]:
        """Return where the piece of tensor ``k`` lies in the whole one."""
        return tuple(slice(low, high) for low, high in self.pieces[k])

    def groups_here(self, partition: Partition, offsets: Sequence[int], size: int) -> LocalGroups:
        """Return the groups of a partition of the layout, as columns of rows that hold pieces.

        offsets: of each tensor's piece in a row of ``size`` columns.
        """
        runs: list[tuple[IntArray, IntArray, IntArray, bool]] = []  # group, start, length, counted
        for k, (tensor, offset) in enumerate(zip(self.layout.tensors, offsets, strict=True)):
            if not _numel(self.pieces[k]):
                continue
            owner = _owner(partition, tensor.offset, tensor.size)
            if isinstance(owner, int):
                group, start = np.array([owner]), np.array([0])
                length = np.array([_numel(self.pieces[k])])
            else:
                here = owner.reshape(tensor.shape)[self.slices(k)].reshape(-1)
                start = np.concatenate(([0], np.flatnonzero(np.diff(here)) + 1))
                length = np.diff(np.append(start, here.size))
                group = here[start]
            inside = group >= 0
            runs.append((group[inside], offset + start[inside], length[inside], self.counted[k]))
        held = np.zeros(partition.n_groups)
        for group, _, _, _ in runs:
            held[group] = 1.0
        holders = self.processes.total(held)
        shared = np.flatnonzero(holders > 1)
        own = np.flatnonzero((holders == 1) & (held > 0))
        numbers = np.concatenate((shared, own)).astype(np.int64)
        lone = np.flatnonzero(np.isin(np.arange(partition.n_groups), shared))
        # A group without a column here has one of zeros, behind all others.
        pads = size + np.arange(len(lone))
        width = -(-(size + len(lone)) // _PAD) * _PAD
        part = _columns(width, numbers, runs, lone, pads, partition.name)
        counted = _columns(width, numbers, [r for r in runs if r[3]], lone, pads, partition.name)
        return LocalGroups(part, counted, numbers, len(shared))

    def samples(self, every: int) -> list[Callable[[Tensor], Tensor]]:
        """Return, for each tensor, what takes every k-th element of the whole from the piece here.

        Of pieces that are counted elsewhere nothing is taken.
        """
        return [self._sampler(k, every) for k in range(len(self.pieces))]

    def sampled(self, every: int) -> IntArray:
        """Return which of all samples, tensor by tensor, are those of this process."""
        numbers, before = [np.zeros(0, dtype=np.int64)], 0
        for k, tensor in enumerate(self.layout.tensors):
            if self.counted[k]:
                whole = np.arange(tensor.size).reshape(tensor.shape)[self.slices(k)].reshape(-1)
                numbers.append(before + whole[whole % every == 0] // every)
            before += -(-tensor.size // every)
        return np.concatenate(numbers)

    def _sampler(self, k: int, every: int) -> Callable[[Tensor], Tensor]:
        piece, shape = self.pieces[k], self.layout.tensors[k].shape
        if not self.counted[k] or not _numel(piece):
            return lambda t: t.new_empty(0)
        if all(p == (0, n) for p, n in zip(piece[1:], shape[1:], strict=True)):
            start = piece[0][0] * math.prod(shape[1:]) if piece else 0
            first = -start % every
            count = max(0, -(-(_numel(piece) - first) // every))
            return lambda t: t.reshape(-1)[first:][: (count - 1) * every + 1 : every]
        whole = np.arange(math.prod(shape)).reshape(shape)[self.slices(k)].reshape(-1)
        index = torch.from_numpy(np.flatnonzero(whole % every == 0))
        return lambda t: t.reshape(-1)[index.to(t.device)]

    def whole(self, k: int, rows: Tensor) -> Tensor:
        """Return ``(..., *piece)`` of tensor ``k`` as a DTensor ``(..., *tensor)`` of its mesh."""
        from torch.distributed.tensor import DTensor

        stepped: Any = self.stepped[k]
        lead = rows.shape[: rows.dim() - len(self.layout.tensors[k].shape)]
        shape = (*lead, *self.layout.tensors[k].shape)
        if not hasattr(stepped, "placements"):
            return rows
        placements = [_shifted(p, len(lead)) for p in stepped.placements]
        stride = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
        return DTensor.from_local(
            rows,
            stepped.device_mesh,
            placements,
            run_check=False,
            shape=torch.Size(shape),
            stride=stride,
        )

    def piece_of(self, k: int, whole: Tensor) -> Tensor:
        """Return the piece of tensor ``k`` here, of what :meth:`whole` made or of a plain one."""
        if hasattr(whole, "placements"):
            return getattr(whole, "_local_tensor")  # noqa: B009
        where: tuple[Any, ...] = (..., *self.slices(k))
        return whole[where]


class LocalGroups(NamedTuple):
    """Groups of the whole model, as far as they have columns here.

    part: their columns here; groups that cross shards come first, and have one column of zeros
    where they have none. counted: the same, less the columns that another process counts. numbers:
    of the groups in the whole partition. shared: how many cross shards.
    """

    part: Partition
    counted: Partition
    numbers: IntArray
    shared: int


class SpreadOperators:
    """Operators of groups that cross shards, fitted together, and of the others, fitted here.

    What :class:`koopcore.KoopmanOperators` has that a jump asks for.
    """

    def __init__(
        self,
        rows: Tensor,
        part: Partition,
        groups: LocalGroups,
        processes: Processes,
        rank: int | None,
        **options: Any,
    ) -> None:
        self.partition = part
        self._processes = processes
        crossing = np.arange(groups.shared)
        others = np.arange(groups.shared, part.n_groups)  # and the live buffers'
        self._shared: KoopmanOperators | None = None
        self._own: KoopmanOperators | None = None
        if len(crossing):
            shares = Shares(processes.total, groups.counted.subset(crossing))
            self._shared = fit(rows, part.subset(crossing), rank=rank, shares=shares, **options)
        if len(others):
            own = part.subset(others)
            if rank is not None:
                rank = min(rank, max(1, own.largest))
            self._own = fit(rows, own, rank=rank, **options)
            mask = np.zeros(part.size, dtype=np.bool_)
            for group in others:
                mask[part.indices(int(group))] = True
            self._mask = torch.from_numpy(mask).to(rows.device)
        self._weights = len(groups.numbers) - groups.shared  # groups of weights among the others

    def predict(self, horizon: int | Sequence[int]) -> Any:
        """As there."""
        if self._shared is None:
            assert self._own is not None
            return self._own.predict(horizon)
        ahead = self._shared.predict(horizon)
        if self._own is not None:
            ahead = torch.where(self._mask, self._own.predict(horizon), ahead)
        return ahead

    def hindcast(self) -> float:
        """Return the median hindcast error of the weights' groups on all processes."""
        shared = [] if self._shared is None else list(self._shared.hindcast_error)
        own = [] if self._own is None else list(self._own.hindcast_error[: self._weights])
        errors = [*shared, *np.concatenate(self._processes.gather("hindcast errors", lambda: own))]
        known = sorted(e for e in errors if not math.isnan(e))
        return float(known[len(known) // 2]) if known else math.inf

    def radius(self) -> float:
        """Return the largest modulus of an eigenvalue of the weights' operators."""
        found = [0.0]
        if self._shared is not None:
            found.append(float(np.nanmax(np.abs(self._shared.eigenvalues()), initial=0.0)))
        if self._own is not None:
            own = np.abs(self._own.eigenvalues()[: self._weights])
            found.append(float(np.nanmax(own, initial=0.0)))
        return max(self._processes.gather("eigenvalues", lambda: max(found)))


def sharded_modules(model: nn.Module) -> list[Any]:
    """Return the modules that ``fully_shard`` was called on: those that can unshard and reshard."""
    return [
        m
        for m in model.modules()
        if callable(getattr(m, "reshard", None)) and callable(getattr(m, "unshard", None))
    ]


def reshard(modules: Sequence[Any]) -> None:
    """Let the modules hold their shards: before names are read, and after shards are written.

    After a forward without gradients the root keeps its gathered parameters: other objects, which
    do not see what is written into the shards.
    """
    for module in modules:
        module.reshard()


def _piece(tensor: Any, shape: tuple[int, ...]) -> Piece:
    if not hasattr(tensor, "placements"):
        return tuple((0, n) for n in shape)
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if any(p.is_partial() for p in tensor.placements):
        raise ValueError(
            f"a parameter has the placements {tensor.placements}; sums that are still to be made "
            "cannot be recorded: redistribute it to Shard or Replicate"
        )
    sizes, starts = compute_local_shape_and_global_offset(
        tensor.shape, tensor.device_mesh, tensor.placements
    )
    held = tuple(tensor._local_tensor.shape)
    if tuple(sizes) != held:
        raise ValueError(
            f"a parameter of shape {tuple(tensor.shape)} with placements {tensor.placements} has a "
            f"shard of shape {held} here, where {tuple(sizes)} was expected"
        )
    piece = tuple((a, a + n) for a, n in zip(starts, sizes, strict=True))
    if not math.prod(sizes):
        piece = tuple((0, 0) for _ in sizes)
    return piece + tuple((0, n) for n in shape[len(piece) :])  # of complex parameters


def _numel(piece: Piece) -> int:
    return math.prod(high - low for low, high in piece)


def _shifted(placement: Any, by: int) -> Any:
    """A placement of a tensor with ``by`` more axes in front."""
    if not hasattr(placement, "dim"):
        return placement
    if hasattr(placement, "split_factor"):
        return type(placement)(placement.dim + by, split_factor=placement.split_factor)
    return type(placement)(placement.dim + by)


def _owner(partition: Partition, offset: int, size: int) -> IntArray | int:
    """The group of each of ``size`` columns from ``offset`` on, -1 for none; or that of all."""
    _, starts, lengths, strides = partition.segments
    ends = starts + (lengths - 1) * strides
    segments = np.flatnonzero((starts < offset + size) & (ends >= offset))
    groups = np.searchsorted(partition.group_ptr, segments, side="right") - 1
    if len(segments) == 1 and strides[segments[0]] == 1:
        s = segments[0]
        if starts[s] <= offset and ends[s] >= offset + size - 1:
            return int(groups[0])
    owner = np.full(size, -1, dtype=np.int64)
    for s, group in zip(segments, groups, strict=True):
        start, stride = int(starts[s]), int(strides[s])
        low = max(0, -(-(offset - start) // stride))
        high = min(int(lengths[s]), -(-(offset + size - start) // stride))
        owner[start + low * stride - offset : start + (high - 1) * stride - offset + 1 : stride] = (
            group
        )
    return owner


def _columns(
    width: int,
    numbers: IntArray,
    runs: Sequence[tuple[IntArray, IntArray, IntArray, bool]],
    shared: IntArray,
    pads: IntArray,
    name: str,
) -> Partition:
    """The groups ``numbers`` as a partition of rows of ``width`` columns."""
    position = np.full(int(numbers.max(initial=-1)) + 1, -1, dtype=np.int64)
    position[numbers] = np.arange(len(numbers))
    nothing = np.zeros(0, dtype=np.int64)
    group = np.concatenate([nothing, *(position[r[0]] for r in runs)])
    start = np.concatenate([nothing, *(r[1] for r in runs)])
    length = np.concatenate([nothing, *(r[2] for r in runs)])
    missing = np.setdiff1d(position[shared], group)
    empty = np.flatnonzero(np.isin(position[shared], missing))
    group = np.concatenate([group, position[shared][empty]])
    start = np.concatenate([start, pads[empty]])
    length = np.concatenate([length, np.ones(len(empty), dtype=np.int64)])
    order = np.lexsort((start, group))
    pointer = np.searchsorted(group[order], np.arange(len(numbers) + 1))
    return Partition(
        width, pointer, start[order], length[order], np.ones(len(order), dtype=np.int64), name=name
    )
