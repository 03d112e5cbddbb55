"""Averages of the weights: one exponential, a family of them, and the mean of a window (LAWA)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from koopcore.training.recording.ring import SnapshotRing
from koopcore.training.state import check_like, check_range


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

    def update(self, share: float | None = None) -> None:
        """Take the present parameters in; call it after each optimizer step.

        share: of the present parameters in the new average; None: ``1 - decay``.
        """
        pairs = zip(self.parameters, self.average, strict=True)
        with torch.no_grad():
            present = [p if p.dtype == a.dtype else p.to(a.dtype) for p, a in pairs]
            torch._foreach_lerp_(
                self.average, present, 1.0 - self.decay if share is None else share
            )

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


#: Updates of an average within its memory of ``1 / (1 - decay)`` steps: more cost and do not help.
UPDATES = 5
#: An average whose memory is longer than a third of the run so far averages that third: started
#: with its full memory it would consist of the first weights.
THIRD = 3
#: Two averages make a line where one lags so many times the other.
APART = 1.2


class AverageFamily:
    """Exponential averages of several lengths, kept at once, and the lines that they span.

        a_k <- a_k + s_k (x - a_k),   s_k = max(1 - decay_k^e, 3 e / t),   e = 1 / (5 (1 - decay_k))

    every ``e`` steps, ``t`` steps after the beginning, which is the last jump. The mean age of what
    is in an average, its lag ``l``, is known; two averages span the line ``a_1 + (a_1 - a_2) l_1 /
    (l_2 - l_1)`` whose end is where the weights are now, without the lag (double exponential
    smoothing, Brown 1963).

    Args:
        parameters: floating-point tensors; averages are in float32 (float64 if they are).
        decays: per step, ascending, each in [0, 1).

    Cost: a copy of the parameters per decay; per step a fifth of one read and write of them for
    0.98, 0.99, 0.995 and 0.999 together. Not for normalization statistics: re-estimate those.
    Source: Polyak & Juditsky 1992; several lengths at once as in Karras et al. 2024.
    """

    def __init__(self, parameters: Sequence[Tensor], decays: Sequence[float]) -> None:
        self.members = [ExponentialAverage(parameters, decay) for decay in decays]
        self.every = [max(1, round(1.0 / (UPDATES * (1.0 - decay)))) for decay in decays]
        self.lags = [0.0] * len(decays)  # at the last update
        self.taken = 0  # steps since the beginning

    def update(self) -> None:
        """Take the present parameters in where that is due; call it after each optimizer step."""
        self.taken += 1
        for k, every in enumerate(self.every):
            if self.taken % every == 0:
                member = self.members[k]
                share = max(1.0 - member.decay**every, min(1.0, THIRD * every / self.taken))
                self.lags[k] = (1.0 - share) * (self.lags[k] + every)
                member.update(share)

    @property
    def names(self) -> list[str]:
        """Return what can be asked for now: averages by their decay, lines as ``line 0.98``."""
        decays = [member.decay for member in self.members]
        lags = self._lags()
        lines = [
            f"line {decays[k]:g}"
            for k in range(len(decays) - 1)
            if lags[k] > 0 and lags[k + 1] > APART * lags[k]
        ]
        return [f"{decay:g}" for decay in decays] + lines

    def values(self, name: str) -> list[Tensor]:
        """Return the average or the line of one of :attr:`names`."""
        shown = [f"{member.decay:g}" for member in self.members]
        if name in shown:
            return self.members[shown.index(name)].average
        k = shown.index(name.removeprefix("line "))
        lags = self._lags()
        near, far = self.members[k].average, self.members[k + 1].average
        return list(torch._foreach_lerp(near, far, -lags[k] / (lags[k + 1] - lags[k])))

    def _lags(self) -> list[float]:
        since = [self.taken % every for every in self.every]
        return [lag + s for lag, s in zip(self.lags, since, strict=True)]

    def follow(self, parameters: Sequence[Tensor]) -> None:
        """Average ``parameters`` from now on: those it had go on, the others begin here."""
        for member in self.members:
            member.follow(parameters)

    def restart(self) -> None:
        """Begin again from the present parameters."""
        self.taken = 0
        self.lags = [0.0] * len(self.members)
        for member in self.members:
            member.restart()

    def state_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """Return copies of all averages by decay and by the ``names`` of the parameters."""
        averages = {
            f"{m.decay:g}": dict(zip(names, [a.clone() for a in m.average], strict=True))
            for m in self.members
        }
        return {"taken": self.taken, "lags": list(self.lags), "averages": averages}

    def check_state(self, state: Mapping[str, Any], names: Sequence[str]) -> None:
        """Raise ValueError unless :meth:`load_state_dict` can go on from ``state``."""
        where = "the averages in the saved state"
        check_like(state, self.state_dict(names), where)
        check_range(state["taken"], 0, 1 << 62, f"{where}['taken']")
        lags = state["lags"]
        if len(lags) != len(self.lags) or not all(
            isinstance(lag, int | float) and 0 <= lag < math.inf for lag in lags
        ):
            raise ValueError(f"{where}['lags'] is {lags!r}; {len(self.lags)} numbers are needed")

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any], names: Sequence[str]) -> None:
        """Continue from :meth:`state_dict`."""
        self.taken, self.lags = state["taken"], [float(lag) for lag in state["lags"]]
        for member in self.members:
            saved = state["averages"][f"{member.decay:g}"]
            for name, average in zip(names, member.average, strict=True):
                average.copy_(saved[name])


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
