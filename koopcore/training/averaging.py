"""Weight averages that a Koopman jump has to beat: EMA and the mean of a window (LAWA)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from koopcore.training.recording.ring import SnapshotRing


class ExponentialAverage:
    """``a_k = a_{k-1} + (1 - decay) (x_k - a_{k-1})``, an average beside the training weights.

    Args:
        parameters: floating-point tensors, averaged in their own dtype, from their present values.
        decay: in [0, 1); the average remembers ``1 / (1 - decay)`` updates.

    Cost: one copy of the parameters, one read and write of it per :meth:`update`.
    Source: Polyak & Juditsky 1992; the exponential form is usual in deep learning. Not for
    normalization statistics: re-estimate those at the average.
    """

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay is {decay!r}; give a number in [0, 1)")
        self.parameters = list(parameters)
        self.decay = decay
        self.average = [p.detach().clone() for p in self.parameters]

    def update(self) -> None:
        """Take the present parameters in; call it after each optimizer step."""
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, 1.0 - self.decay)

    def copy(self) -> list[Tensor]:
        """Return a copy of the average."""
        return [a.clone() for a in self.average]

    def restart(self) -> None:
        """Begin again from the present parameters, which a jump has moved away from the average."""
        with torch.no_grad():
            torch._foreach_copy_(self.average, self.parameters)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average in place of the parameters for the time of the ``with`` block."""
        with exchanged(self.parameters, self.average):
            yield


class WindowAverage:
    """The mean of the last ``window`` snapshots, one per :meth:`update` (LAWA).

    Args:
        parameters: floating-point tensors on one device.
        window: snapshots averaged, at least 2; fewer are averaged until so many are there.

    Cost: ``window`` copies of the parameters (a :class:`SnapshotRing`); :meth:`applied` reads them.
    Source: Kaddour 2022 (latest weight averaging). Not for normalization statistics, as above.
    """

    def __init__(self, parameters: Sequence[Tensor], window: int) -> None:
        self.parameters = list(parameters)
        self.ring = SnapshotRing(self.parameters, window)

    def update(self) -> None:
        """Take the present parameters in; call it every so many optimizer steps."""
        self.ring.capture()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the mean in place of the parameters for the time of the ``with`` block."""
        if not self.ring.count:
            raise ValueError("nothing to average yet; call update() first")
        rows, order = self.ring.snapshots()
        mean = rows.mean(0) if self.ring.full else rows[order].mean(0)
        with exchanged(self.parameters, self.ring.unflatten(mean)):
            yield


@contextmanager
def exchanged(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[None]:
    """Give ``parameters`` other values for the time of the block, then their own, bit by bit."""
    kept = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        torch._foreach_copy_(list(parameters), list(values))
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(list(parameters), kept)
