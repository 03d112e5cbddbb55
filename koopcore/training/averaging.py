"""Averages of the weights: one exponential, a family of them, and the mean of a window (LAWA)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from koopcore.training.recording.parameters import real
from koopcore.training.recording.ring import (
    Slices,
    SnapshotRing,
    allocate,
    one_device,
    place,
    wide_dtype,
)
from koopcore.training.state import Several, check, number, whole


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

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average in place of the parameters for the time of the ``with`` block."""
        with exchanged(self.parameters, self.average):
            yield


#: Updates of the shortest average within its memory, and of the longer ones within theirs.
UPDATES, LONGER_UPDATES = 4, 1.5
#: Of so many parameters an update costs a few calls, of more it is a walk through memory; so few
#: are averaged twice as often, which is a percent of the loss (4 updates lose 1.1 % to an update of
#: every step, 8 updates 0.2 %).
SMALL, OFTEN = 1 << 16, 8
#: An average whose memory is longer than a third of the run so far averages that third: started
#: with its full memory it would consist of the first weights.
THIRD = 3
#: Two averages make a line where one lags so many times the other.
APART = 1.2


class AverageFamily:
    """Exponential averages of several lengths, kept at once, and the lines that they span.

    The shortest averages the weights ``x``, each longer one the one before it, ``a_0 = x``:

        a_k <- a_k + s_k (a_{k-1} - a_k),   s_k = max(1 - (1 - 1/m_k)^{e_k}, 3 e_k / t)

    every ``e_k`` steps, and when it is asked for, ``t`` steps after the beginning, which is the
    last jump. The memories
    ``m_k = 1/(1 - decay_k) - 1/(1 - decay_{k-1})`` add up to that of the decay: what is in
    ``a_k`` is as old, on average, as in an exponential average of ``decay_k``, and the noise of
    single steps is gone from all after the first, so that they need few updates.

    That mean age, the lag ``l``, is known; two averages span the line ``a_1 + (a_1 - a_2) l_1 /
    (l_2 - l_1)`` whose end is where the weights are now, without the lag (double exponential
    smoothing, Brown 1963).

    Args:
        parameters: floating-point tensors on one device, complex ones as pairs of real numbers;
            averages are in float32 (float64 if one of them is).
        decays: per step, ascending, each in [0, 1).

    taken: steps since the beginning. every: steps between the updates of each average, multiples
    of the first.

    Cost: a copy of the parameters per decay; per step an eighth of one read and write of them for
    0.98, 0.99, 0.995 and 0.999 together, of up to 65,536 parameters a quarter. Not for
    normalization statistics: re-estimate those.
    Source: Polyak & Juditsky 1992; several lengths at once as in Karras et al. 2024.
    """

    def __init__(self, parameters: Sequence[Tensor], decays: Sequence[float]) -> None:
        self.decays = list(decays)
        ages = [1.0 / (1.0 - decay) for decay in decays]
        self._memories = [a - b for a, b in zip(ages, [0.0, *ages], strict=False)]
        first = ages[0] if ages else 1.0
        small = sum(p.numel() for p in parameters) <= SMALL
        period = max(1, round(first / (OFTEN if small else UPDATES)))
        self.every = [period] + [
            period * max(1, round(memory / (LONGER_UPDATES * period)))
            for memory in self._memories[1:]
        ]
        self.lags = [0.0] * len(self.decays)  # at the last updates
        self.taken = 0
        self._place(parameters)
        self.restart()

    def _place(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)
        tensors = [real(p) for p in self.parameters]
        dtype = wide_dtype(tensors)
        offsets, size = place(tensors, None, None)
        self.rows = allocate((len(self.decays), size), dtype, one_device(tensors))
        self._slices = Slices([t.shape for t in tensors], offsets, size)
        self._views = [self._slices.of(row) for row in self.rows]

    def update(self) -> None:
        """Count a step, and take its parameters in where that is due; call it after each step."""
        self.taken += 1
        if self.due:
            self.blend()

    @property
    def due(self) -> bool:
        """Whether the parameters after the last step counted are to be taken in."""
        return self.taken % self.every[0] == 0

    @property
    def to_come(self) -> int:
        """Steps until that is so again."""
        return self.every[0] - self.taken % self.every[0]

    @torch.no_grad()
    def blend(self) -> None:
        """Take the present parameters into the averages whose turn it is."""
        for k, every in enumerate(self.every):
            if self.taken % every:
                continue
            share = self._share(k, every)
            age = self.lags[k - 1] + self.taken % self.every[k - 1] if k else 0.0
            self.lags[k] = (1.0 - share) * (self.lags[k] + every) + share * age
            if k:
                self.rows[k].lerp_(self.rows[k - 1], share)
            else:
                torch._foreach_lerp_(self._views[0], self._present(), share)

    def _present(self) -> list[Tensor]:
        dtype = self.rows.dtype
        return [p if p.dtype == dtype else p.to(dtype) for p in map(real, self.parameters)]

    def _share(self, k: int, steps: int) -> float:
        """Of its source in the average ``k``, ``steps`` after the update before."""
        kept = (1.0 - 1.0 / max(self._memories[k], 1.0)) ** steps
        return max(1.0 - kept, min(1.0, THIRD * steps / self.taken))

    def _age(self, k: int) -> float:
        """The mean age of what is in the average ``k``, were it updated now, in steps."""
        steps = self.taken % self.every[k]
        if not steps:
            return self.lags[k]
        share = self._share(k, steps)
        return (1.0 - share) * (self.lags[k] + steps) + share * (self._age(k - 1) if k else 0.0)

    @torch.no_grad()
    def _row(self, k: int) -> Tensor:
        """The average ``k``, were it updated now."""
        steps = self.taken % self.every[k]
        if not steps:
            return self.rows[k]
        if k:
            source = self._row(k - 1)
        else:
            source = torch.zeros_like(self.rows[0])
            torch._foreach_copy_(self._slices.of(source), self._present())
        return torch.lerp(self.rows[k], source, self._share(k, steps))

    @property
    def names(self) -> list[str]:
        """Return what can be asked for now: averages by their decay, lines as ``line 0.98``."""
        ages = [self._age(k) for k in range(len(self.decays))]
        lines = [
            f"line {self.decays[k]:g}"
            for k in range(len(self.decays) - 1)
            if ages[k] > 0 and ages[k + 1] > APART * ages[k]
        ]
        return [f"{decay:g}" for decay in self.decays] + lines

    def values(self, name: str) -> list[Tensor]:
        """Return the average or the line of one of :attr:`names`, as if updated now."""
        shown = [f"{decay:g}" for decay in self.decays]
        k = shown.index(name.removeprefix("line "))
        row = self._row(k)
        if name not in shown:
            near, far = self._age(k), self._age(k + 1)
            row = torch.lerp(row, self._row(k + 1), -near / (far - near))
        return self._slices.of(row)

    def follow(self, parameters: Sequence[Tensor]) -> None:
        """Average ``parameters`` from now on: those it had go on, the others begin here."""
        known = {id(p): k for k, p in enumerate(self.parameters)}
        before = self._views
        self._place(parameters)
        self._fill()
        for k, p in enumerate(self.parameters):
            at = known.get(id(p))
            for new, old in zip(self._views, before, strict=True):
                if at is not None and old[at].shape == new[k].shape:
                    new[k].copy_(old[at])

    def restart(self) -> None:
        """Begin again from the present parameters, which a jump has moved away."""
        self.taken = 0
        self.lags = [0.0] * len(self.decays)
        self._fill()

    @torch.no_grad()
    def _fill(self) -> None:
        if self.decays:
            torch._foreach_copy_(self._views[0], [real(p) for p in self.parameters])
            self.rows[1:] = self.rows[0]

    def state_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """Return copies of all averages by decay and by the ``names`` of the parameters."""
        averages = {
            f"{decay:g}": dict(zip(names, [a.clone() for a in views], strict=True))
            for decay, views in zip(self.decays, self._views, strict=True)
        }
        return {"taken": self.taken, "lags": list(self.lags), "averages": averages}

    def check_state(self, state: Mapping[str, Any], names: Sequence[str]) -> None:
        """Raise ValueError unless :meth:`load_state_dict` can go on from ``state``."""
        here, count = self.state_dict(names), len(self.lags)
        schema = {**here, "taken": whole(), "lags": Several(number(0.0), count, count)}
        check(state, schema, "the saved state['averages']")
        # What is averaged is no older than the averages.
        youngest = number(0.0, float(state["taken"]))
        check(state["lags"], Several(youngest), "the saved state['averages']['lags']")

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any], names: Sequence[str]) -> None:
        """Continue from :meth:`state_dict`."""
        self.taken, self.lags = state["taken"], [float(lag) for lag in state["lags"]]
        for decay, views in zip(self.decays, self._views, strict=True):
            saved = state["averages"][f"{decay:g}"]
            for name, average in zip(names, views, strict=True):
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
