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
from koopcore.training.recording.ring import SnapshotRing

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

    Cost: a copy of at most 8,192 elements a snapshot, one small fit a window.
    """

    def __init__(self, parameters: Sequence[Tensor], processes: Processes = ALONE) -> None:
        self._processes = processes
        self._parameters = list(parameters)
        total = sum(p.numel() for p in self._parameters)
        self._every = -(-total // SAMPLED)
        self.ring = SnapshotRing(self._samples(), SNAPSHOTS)
        self._partition = Partition.groups(SNAPSHOTS - 1, [slice(0, SNAPSHOTS - 1)])

    def follow(self) -> None:
        """Begin a window, and look where the parameters lie now."""
        self.ring.tensors = self._samples()
        self.ring.clear()

    def capture(self) -> None:
        """Take the present weights as the next snapshot."""
        if not self.ring.count:
            self.follow()
        self.ring.capture()

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
        if not np.isfinite(gram).all():
            return math.inf, 0.0
        lengths = np.sqrt(gram.diagonal())
        grain = max(torch.finfo(t.dtype).eps for t in self.ring.tensors) * float(window[-1].norm())
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
        return self.ring.state_dict()

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise ValueError unless :meth:`load_state_dict` can go on from ``state``."""
        self.ring.check_state(state, "the probe in the saved state")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self.ring.tensors = self._samples()
        self.ring.load_state_dict(state)

    def _samples(self) -> list[Tensor]:
        samples = []
        for p in self._parameters:
            p = p.detach()
            # Dense in any order of its axes: its numbers lie in one stretch of memory.
            dense = torch.ops.aten.is_non_overlapping_and_dense(p)
            count = -(-p.numel() // self._every) if dense else min(p.numel(), 1)
            samples.append(p.as_strided((count,), (self._every,), p.storage_offset()))
        return samples
