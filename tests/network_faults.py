"""Faults for tests of several workers: late, lossy and stalled networks, processes that die."""

from __future__ import annotations

import multiprocessing
import os
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from koopcore.learning import OneLayer
from koopcore.learning.mailbox import FINAL
from koopcore.learning.transport import Envelope


@dataclass
class Late:
    """Every message takes a random time up to ``most`` seconds."""

    most: float
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def __call__(self, envelope: Envelope) -> float | None:
        return float(self.rng.uniform(0.0, self.most))


@dataclass
class Lossy:
    """A share of all messages is lost."""

    share: float
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(1))

    def __call__(self, envelope: Envelope) -> float | None:
        return None if self.rng.random() < self.share else 0.0


@dataclass
class Stalled:
    """One worker's messages from an iteration on are held up for a while, or for good."""

    worker: int
    iteration: int
    seconds: float

    def __call__(self, envelope: Envelope) -> float | None:
        if envelope.sender == self.worker and self.iteration <= envelope.stamp < FINAL:
            if np.isinf(self.seconds):
                return None
            time.sleep(self.seconds)
            self.seconds = 0.0
        return 0.0


@dataclass
class Dies:
    """One worker's process ends without a word when it sends a message of an iteration."""

    worker: int
    iteration: int

    def __call__(self, envelope: Envelope) -> float | None:
        if envelope.sender == self.worker and self.iteration <= envelope.stamp < FINAL:
            os._exit(3)
        return 0.0


_linearized = 0  # in this process


class DiesLate(OneLayer):
    """A dictionary whose process ends in the middle of learning, on worker 1."""

    def linearized(self, parameters: np.ndarray, states: np.ndarray) -> Any:
        global _linearized
        _linearized += 1  # once an iteration
        if _linearized > 60 and multiprocessing.current_process().name == "worker 1":
            os._exit(7)
        return super().linearized(parameters, states)
