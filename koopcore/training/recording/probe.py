"""A few thousand of the parameters, at consecutive steps: whether the steps are random."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from koopcore.operators import fit
from koopcore.partition.partition import Partition
from koopcore.training.parallel.processes import ALONE, Processes
from koopcore.training.parallel.shards import Shards
from koopcore.training.recording.ring import ALIGNMENT, SnapshotRing, place
from koopcore.training.state import check, one_of

#: Snapshots of a window: the hindcast predicts the last from the others. Of nine it predicts two,
#: which under oscillations goes as wrong as noise does (0.05 to 0.06 where seven have 0.03).
SNAPSHOTS = 7
#: Parameters sampled at most, evenly over all; a tensor gives one at least.
SAMPLED = 8192
#: A window whose steps are shorter than so many roundings of its weights says nothing.
ROUNDINGS = 64


class Probe:
    """Snapshots one step apart of some of the parameters, and what their Gram matrix says.

    Args:
        parameters: dense floating-point tensors; every k-th element in memory is sampled, seen in
            place. Look again (:meth:`follow`) when a window begins: tensors may have moved.
        processes: whose signals are averaged, so that all judge alike.
        shards: of which the parameters are the pieces here; the samples are those of the whole.

    Cost: a copy of at most 8,192 elements a snapshot, one small fit a window.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        processes: Processes = ALONE,
        shards: Shards | None = None,
    ) -> None:
        self._processes = processes
        self._shards = shards
        self._parameters = list(parameters)
        sizes = [p.numel() for p in self._parameters]
        if shards is not None:
            sizes = [t.size for t in shards.layout.tensors]
        self._every = -(-sum(sizes) // SAMPLED)
        self._count = sum(-(-size // self._every) for size in sizes)  # samples of all processes
        self._samplers = [] if shards is None else shards.samples(self._every)
        samples = self._samples()
        offsets, size = place(samples, None, None)
        self.ring = SnapshotRing(samples, SNAPSHOTS, offsets=offsets, size=max(size, ALIGNMENT))
        self._partition = Partition.groups(SNAPSHOTS - 1, [slice(0, SNAPSHOTS - 1)])

    def follow(self) -> None:
        """Begin a window, and look where the parameters lie now."""
        self.ring.tensors = self._samples()
        self.ring.clear()

    def capture(self) -> None:
        """Take the present weights as the next snapshot."""
        if not self.ring.count:
            self.follow()
        self.ring.capture(None if self._shards is None else self._samples())

    def signals(self) -> tuple[float, float]:
        """Return :meth:`_signals` as the processes see them together."""
        hindcast, cosine = self._signals()
        mean = self._processes.mean
        return mean(lambda: hindcast), mean(lambda: cosine)

    def _signals(self) -> tuple[float, float]:
        """Return hindcast error over movement, and the median cosine of successive differences.

        NaN for both where the steps are lost in the rounding of the weights; infinite and 0 where
        a snapshot is not finite.
        """
        rows, order = self.ring.snapshots()
        window = rows[order]
        steps = window.diff(dim=0).double()
        gram = (steps @ steps.T).cpu().numpy()
        square = float(window[-1].square().sum())
        if self._shards is not None:
            whole = self._processes.total(np.append(gram, square))
            gram, square = whole[:-1].reshape(gram.shape), float(whole[-1])
        if not np.isfinite(gram).all():
            return math.inf, 0.0
        lengths = np.sqrt(gram.diagonal())
        grain = max(torch.finfo(t.dtype).eps for t in self.ring.tensors) * math.sqrt(square)
        if lengths.min() <= ROUNDINGS * grain:
            return math.nan, math.nan
        cosines = gram.diagonal(1) / (lengths[1:] * lengths[:-1])
        # Operators depend on the steps by their Gram matrix alone: a few numbers a snapshot do.
        squares, vectors = np.linalg.eigh(gram)
        few = vectors * np.sqrt(squares.clip(0.0))
        path = np.concatenate((np.zeros((1, len(few))), few.cumsum(0)))
        operators = fit(path, self._partition, model="affine")
        error = float(operators.hindcast_error[0])
        return (math.inf if math.isnan(error) else error), float(np.median(cosines))

    def state_dict(self) -> dict[str, Any]:
        """Return the window begun; shapes depend on the parameters alone."""
        state = self.ring.state_dict()
        return {**state, "size": self._count, "data": self._whole(state["data"])}

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise ValueError unless :meth:`load_state_dict` can go on from ``state``."""
        schema = {
            **self.ring.schema(),
            "size": one_of(self._count),
            "blended": one_of(0),
            "data": self.ring.data.new_empty(self.ring.slots, self._count),
        }
        check(state, schema, "the saved state['recording']['probe']")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self.ring.tensors = self._samples()
        rows = torch.zeros_like(self.ring.data)
        rows[:, self._columns()] = state["data"][:, self._numbers()].to(rows)
        self.ring.load_state_dict({**state, "size": self.ring.size, "data": rows})

    def _whole(self, rows: Tensor) -> Tensor:
        """The samples of all processes, one behind the other; a word from each of them."""
        rows = rows[:, self._columns()]
        if self._shards is None:
            return rows.contiguous()
        whole = np.zeros((len(rows), self._count))
        whole[:, self._numbers()] = rows.double().cpu().numpy()
        return torch.from_numpy(self._processes.total(whole)).to(rows)

    def _columns(self) -> list[int]:
        """Where the samples here lie in a row, without the padding between tensors."""
        pairs = zip(self.ring.offsets, self.ring.shapes, strict=True)
        return [start + k for start, shape in pairs for k in range(shape.numel())]

    def _numbers(self) -> list[int]:
        """Which of all samples those are."""
        if self._shards is None:
            return list(range(self._count))
        return [int(k) for k in self._shards.sampled(self._every)]

    def _samples(self) -> list[Tensor]:
        parameters = [p.detach() for p in self._parameters]
        if self._samplers:
            return [take(p) for take, p in zip(self._samplers, parameters, strict=True)]
        samples = []
        for p in parameters:
            # Dense in any order of its axes: its numbers lie in one stretch of memory.
            dense = torch.ops.aten.is_non_overlapping_and_dense(p)
            count = -(-p.numel() // self._every) if dense else min(p.numel(), 1)
            samples.append(p.as_strided((count,), (self._every,), p.storage_offset()))
        return samples
