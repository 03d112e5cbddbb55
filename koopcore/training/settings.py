"""The options of an attachment, checked before any work."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from koopcore.training.jumping.line_search import CANDIDATES
from koopcore.training.jumping.moments import MOMENTS
from koopcore.training.policy import AdaptivePolicy, FixedSchedule
from koopcore.training.recording.live_buffers import BUFFERS
from koopcore.training.recording.recording import OBSERVABLES, STORAGES

RECORDS = ("last", "mean")


@dataclass(frozen=True)
class Settings:
    """Options of :func:`koopcore.attach` that do not hold tensors; see there."""

    loss: Callable[[], Any] | None
    window: int
    stride: int
    model: str
    rank: int | None
    ridge: float
    backend: str | None
    max_horizon: float
    warmup: int | str
    schedule: tuple[int, int, int] | None
    candidates: tuple[str, ...]
    margin: float
    ladder: float
    slack: float
    record: str | int
    storage: str
    observables: str
    moments: str
    buffers: str
    average: float | None

    def __post_init__(self) -> None:
        if self.loss is not None and not callable(self.loss):
            raise TypeError(
                f"loss is {type(self.loss).__name__}; give a function without arguments that "
                "returns the loss at the model's present parameters, or None"
            )
        at_least("window", self.window, 3)
        at_least("stride", self.stride, 1)
        if not self.max_horizon > 0 or math.isinf(self.max_horizon):
            raise ValueError(f"max_horizon is {self.max_horizon!r} windows; give a number > 0")
        if not 1 < self.ladder <= 16:
            raise ValueError(
                f"ladder is {self.ladder!r}; give a factor between horizons in (1, 16]"
            )
        if not 0 <= self.margin < 1:
            raise ValueError(f"margin is {self.margin!r}; give a share of the loss in [0, 1)")
        if self.warmup != "auto":
            at_least("warmup", self.warmup, 0, ' or "auto"')
        if not 0 <= self.slack < 1:
            raise ValueError(f"slack is {self.slack!r}; give a share of the gain in [0, 1)")
        self._check_record()
        one_of("storage", self.storage, STORAGES)
        one_of("observables", self.observables, OBSERVABLES)
        one_of("moments", self.moments, MOMENTS)
        one_of("buffers", self.buffers, BUFFERS)
        if self.average is not None and not 0 <= self.average < 1:
            raise ValueError(f"average is {self.average!r}; give a decay in [0, 1), or None")
        for kind in self.candidates:
            one_of("candidates", kind, CANDIDATES)
        if not self.candidates:
            raise ValueError(f"candidates is empty; choose from {', '.join(CANDIDATES)}")
        if self.schedule is not None:
            self._check_schedule(self.schedule)

    def _check_schedule(self, schedule: Sequence[int]) -> None:
        if len(schedule) != 3:
            raise ValueError(f"schedule is {schedule!r}; give (t1, t2, T) in optimizer steps")
        t1, t2, horizon = schedule
        at_least("t1 of schedule", t1, 1)
        at_least("T of schedule", horizon, 1)
        at_least("t2 of schedule", t2, t1 + 3 * self.stride, " (t1 + three strides)")

    def _check_record(self) -> None:
        if isinstance(self.record, str):
            one_of("record", self.record, RECORDS)
            return
        at_least("record", self.record, 1, ' (steps averaged), "last" or "mean"')

    @property
    def averaged(self) -> tuple[int, ...]:
        """Steps of each stride that a snapshot averages, counted back from its last.

        ``"mean"`` takes eight or more, evenly spaced: neighbours under minibatch noise are so alike
        that more would cost and not help. The spacing is odd, since high rates flip the weights
        from step to step.
        """
        if isinstance(self.record, str):
            spacing = max(1, self.stride // 8)
            spacing -= spacing % 2 == 0
            return (0,) if self.record == "last" else tuple(range(0, self.stride, spacing))
        return tuple(range(min(self.record, self.stride)))

    def policy(self) -> AdaptivePolicy | FixedSchedule:
        """Return a fresh policy for these options."""
        if self.schedule is not None:
            return FixedSchedule(*self.schedule, self.stride)
        return AdaptivePolicy(self.window, self.stride, self.max_horizon, self.warmup, self.ladder)

    def identity(self) -> dict[str, Any]:
        """Return the options that a saved state depends on."""
        names = ("window", "stride", "schedule", "record", "storage", "observables", "average")
        return {name: getattr(self, name) for name in names}


def at_least(name: str, value: Any, least: int, also: str = "") -> None:
    """Raise ValueError unless ``value`` is an int of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is {value!r}; give a whole number >= {least}{also}")


def one_of(name: str, value: Any, accepted: Sequence[str]) -> None:
    """Raise ValueError unless ``value`` is one of the accepted words."""
    if value not in accepted:
        raise ValueError(f"{name} is {value!r}; accepted are {', '.join(accepted)}")
