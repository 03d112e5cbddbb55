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
        parameters: floating-point tensors, averaged from their present values: in float32 (float64
            if they are), for a bfloat16 average of decay 0.999 would never move.
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
        self.average = [_accumulator(p) for p in self.parameters]

    def update(self) -> None:
        """Take the present parameters in; call it after each optimizer step."""
        pairs = zip(self.parameters, self.average, strict=True)
        with torch.no_grad():
            present = [p if p.dtype == a.dtype else p.to(a.dtype) for p, a in pairs]
            torch._foreach_lerp_(self.average, present, 1.0 - self.decay)

    def follow(self, parameters: Sequence[Tensor]) -> None:
        """Average ``parameters`` from now on: those it had go on, the others begin here."""
        known = {id(p): a for p, a in zip(self.parameters, self.average, strict=True)}
        self.parameters = list(parameters)
        self.average = []
        for p in self.parameters:
            old = known.get(id(p))
            if old is None or old.shape != p.shape:
                self.average.append(_accumulator(p))
            else:
                self.average.append(old.to(p.device, _wide(p)))

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
    copies = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        torch._foreach_copy_(list(parameters), list(values))
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(list(parameters), copies)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _accumulator(tensor: Tensor) -> Tensor:
    return tensor.detach().to(_wide(tensor), copy=True)
