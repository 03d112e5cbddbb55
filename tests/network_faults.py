"""Faults for tests of several workers: late, lossy and stalled networks, processes that die."""

import multiprocessing
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from koopcore.learning import OneLayer
from koopcore.learning.workers.messages import FINAL, Envelope
from koopcore.learning.workers.supervisor import Report


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


def close_sockets() -> None:
    """Shut every TCP connection of this process down, as a failing network does; it lives on."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError), socket.socket(fileno=os.dup(int(name))) as one:
            if one.family in (socket.AF_INET, socket.AF_INET6):
                one.getpeername()  # raises for a listening socket, which is no connection
                one.shutdown(socket.SHUT_RDWR)


@dataclass
class Closes:
    """One worker's connections close when it sends a message of an iteration."""

    worker: int
    iteration: int

    def __call__(self, envelope: Envelope) -> float | None:
        if envelope.sender == self.worker and self.iteration <= envelope.stamp < FINAL:
            close_sockets()
        return 0.0


_linearized = 0  # in this process


@dataclass(frozen=True)
class BreaksLate(OneLayer):
    """A dictionary with which worker 1 comes to a bad end in the middle of learning."""

    end: str = "dies"  # "dies", "closes" its connections, or "raises"

    def linearized(self, parameters: np.ndarray, states: np.ndarray) -> Any:
        global _linearized
        _linearized += 1  # once an iteration
        if _linearized > 60 and multiprocessing.current_process().name == "worker 1":
            if self.end == "dies":
                os._exit(7)
            if self.end == "raises":
                raise ZeroDivisionError("states out of range")
            close_sockets()
        return super().linearized(parameters, states)


def tells(pipe: Connection, told: list[tuple[float, Report]], code: int = 0) -> None:
    """Body of a worker that only reports, each time after some seconds, and then ends or waits."""
    for seconds, report in told:
        time.sleep(seconds)
        pipe.send(report)
    if code:
        os._exit(code)
    pipe.poll(30.0)  # until the supervisor closes it
