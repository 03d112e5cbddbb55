"""The weights' averages, and which of them the guard loss prefers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from time import perf_counter
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from koopcore.training.averaging import AverageFamily
from koopcore.training.jumping.guarded_loss import GuardedLoss
from koopcore.training.jumping.line_search import regression
from koopcore.training.recording.recording import Recording

#: Share of the run's time that asking the guard loss which average is best may take.
BUDGET = 0.005
#: Weights and ends of lines that were best do not count as such any more when the run is so many
#: times as long.
STALE = 2
#: Without a loss the longest average is taken whose memory is this share of the steps at most.
MEMORY = 0.1

Which: TypeAlias = float | str | None


class AveragedWeights:
    """What stands beside the weights, chosen by the guard loss within a budget of time.

    Candidates are the weights themselves, the averages and lines of :class:`AverageFamily`, and of
    the recorded snapshots their mean ("lawa") and the end of the least-squares line through them
    ("regression"). The loss is asked for the best one so far and its neighbours in length, and for
    the others too, as far as all that costs less than 0.5 % of the run; otherwise the last
    answer stands.

    family: None where no averages are kept. guarded: None where there is no loss.
    """

    def __init__(self, family: AverageFamily | None, guarded: GuardedLoss | None) -> None:
        self.family = family
        self.guarded = guarded
        self.best: str | None = None
        self.losses: dict[str, float] = {}  # of the candidates, when they were last asked for
        self.seconds = 0.0
        self.evaluations = 0
        self._cost = 0.0  # seconds of one candidate
        self._asked_at = 0  # steps of the averages when the loss was asked last
        self._begun = perf_counter()

    def candidates(self, recording: Recording) -> dict[str, Callable[[], list[Tensor]]]:
        """Return name -> values shaped like the recorded parameters, made when they are asked."""
        found: dict[str, Callable[[], list[Tensor]]] = {}
        found["weights"] = lambda: [s.detach().clone() for s in recording.parameters.sources]
        family = self.family
        if family is not None:
            found |= {name: partial(family.values, name) for name in family.names}
        ring = recording.ring
        if ring.count >= 3:
            found["lawa"] = lambda: recording.weights(_mean(recording))
            found["regression"] = lambda: recording.weights(_end(recording))
        return found

    @contextmanager
    def applied(self, which: Which, recording: Recording) -> Iterator[str]:
        """Put the best average, or the one named, in place of the weights for the block.

        Batch-norm statistics are re-estimated at it by one run of the loss, where there is one.
        """
        candidates = self.candidates(recording)
        name = self.choose(recording, candidates) if which is None else _named(which, candidates)
        guarded = self.guarded
        with ExitStack() as stack:
            if name != "weights":
                stack.enter_context(recording.parameters.exchanged(candidates[name]()))
                if guarded is not None and _normalizes(guarded):
                    with guarded:
                        moved = guarded.reestimate_buffers()
                    stack.enter_context(_put(moved))
            yield name

    def choose(
        self, recording: Recording, candidates: dict[str, Callable[[], list[Tensor]]]
    ) -> str:
        """Return the name of the best candidate, by the loss as far as the budget goes."""
        if self.guarded is None:
            return self._by_length(candidates)
        if self.best in candidates and not self._affordable(3):
            return self._as_known(candidates)
        asked = self._neighbours(list(candidates))
        losses = self._evaluate(recording, {name: candidates[name] for name in asked})
        others = {name: values for name, values in candidates.items() if name not in losses}
        if self._affordable(len(others)):
            losses |= self._evaluate(recording, others)
        self.losses = {n: x for n, x in self.losses.items() if n in candidates} | losses
        self.best = min(losses, key=losses.__getitem__)
        self._asked_at = 0 if self.family is None else self.family.taken
        return self.best

    def _affordable(self, evaluations: int) -> bool:
        left = BUDGET * (perf_counter() - self._begun) - self.seconds
        affordable = self._cost * evaluations <= left
        return affordable if self.guarded is None else self.guarded.processes.all(affordable)

    def _as_known(self, candidates: dict[str, Callable[[], list[Tensor]]]) -> str:
        """The last answer; but what follows the weights closely is best early in a run alone."""
        family = self.family
        if family is not None and family.taken > STALE * self._asked_at:
            averages = [f"{decay:g}" for decay in family.decays]
            return self.best if self.best in averages else averages[0]
        return self.best or "weights"

    def _evaluate(
        self, recording: Recording, candidates: dict[str, Callable[[], list[Tensor]]]
    ) -> dict[str, float]:
        guarded, parameters = self.guarded, recording.parameters
        assert guarded is not None
        begun = perf_counter()
        copies = parameters.copy()
        losses = {}
        try:
            with guarded:
                for name, values in candidates.items():
                    parameters.write(values())
                    if name != "weights" and _normalizes(guarded):
                        guarded.reestimate_buffers()
                    loss = guarded()
                    losses[name] = loss if math.isfinite(loss) else math.inf
        finally:
            parameters.restore(copies)
        if losses:
            seconds = perf_counter() - begun
            self.seconds += seconds
            self._cost = seconds / len(losses)
            self.evaluations += len(losses)
        return losses

    def _neighbours(self, names: list[str]) -> list[str]:
        """The best one, and those before and after it in the order of the candidates."""
        at = names.index(self.best) if self.best in names else 1
        return names[max(0, at - 1) : at + 2]

    def _by_length(self, candidates: dict[str, Callable[[], list[Tensor]]]) -> str:
        if self.family is None:
            return "lawa" if "lawa" in candidates else "weights"
        decays = self.family.decays
        enough = [d for d in decays if 1.0 <= MEMORY * self.family.taken * (1.0 - d)]
        return f"{(enough or decays[:1])[-1]:g}"


def _mean(recording: Recording) -> Tensor:
    rows, order = recording.ring.snapshots()
    return rows[order].mean(0)


def _end(recording: Recording) -> Tensor:
    rows, order = recording.ring.snapshots()
    return next(regression(rows, order, [])).vector()


def _named(which: float | str, candidates: dict[str, Callable[[], list[Tensor]]]) -> str:
    name = which if isinstance(which, str) else f"{which:g}"
    if name not in candidates:
        raise ValueError(
            f"which is {which!r}; there are {', '.join(candidates)} now, or None for the one that "
            "the loss prefers (lines and window averages need some steps)"
        )
    return name


def _normalizes(guarded: GuardedLoss) -> bool:
    modules = guarded.model.modules()
    return any(isinstance(m, _NormBase) and m.running_mean is not None for m in modules)


@contextmanager
def _put(moved: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    before = [buffer.clone() for buffer, _ in moved]
    with torch.no_grad():
        for buffer, value in moved:
            buffer.copy_(value)
    try:
        yield
    finally:
        with torch.no_grad():
            for (buffer, _), value in zip(moved, before, strict=True):
                buffer.copy_(value)
