"""One training run on the clock: optimizer steps and seconds until a loss is reached."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from koopcore.lab.problems.oscillator import OscillatorBatch
from koopcore.training import attach

KINDS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "adam": torch.optim.Adam,
}


class OscillatorNetwork(nn.Module):
    """One 1:10:10:2 network of an `OscillatorBatch`, with its hand-written gradient.

    A step costs what the problem costs, not what automatic differentiation adds to it.
    """

    def __init__(self, problem: OscillatorBatch, network: int) -> None:
        super().__init__()
        self.problem = problem
        self.weights = nn.Parameter(problem.initial()[network : network + 1].clone())

    def forward(self) -> Tensor:
        """Loss, a scalar."""
        return self.problem.loss(self.weights).sum()


@dataclass(frozen=True)
class Finish:
    """What a run took.

    reached : whether the loss came down to the target within the allowed steps.
    steps   : optimizer steps taken. seconds: processor time of all of it.
    plain_step_seconds : of ordinary steps, taken directly before and after the run.
    """

    reached: bool
    steps: int
    seconds: float
    plain_step_seconds: float
    loss: float
    evaluations: int
    jumps: int
    accepted: int
    seconds_jumping: float

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for ``json``."""
        return asdict(self)


def race(
    problem: OscillatorBatch,
    network: int,
    optimizer: str,
    rate: float,
    target: float,
    limit: int,
    options: dict[str, Any],
    probe: int = 200,
    decay: float = 0.0,
) -> Finish:
    """Train one network with koopcore attached until its loss is at most ``target``.

    options : of `koopcore.attach`. limit: steps after which it is given up. probe: ordinary steps
    timed before, and again after, so that a slow spell of the machine meets both sides. decay: the
    rate at step ``s`` is ``rate / (1 + decay s)``, as in `Descent`.

    Seconds are processor time of this process, which no other process on the machine adds to; it
    must run with one thread. Recording, fits, loss checks and rejected jumps are in it.
    """
    before = plain_seconds(problem, network, optimizer, rate, probe)
    model = OscillatorNetwork(problem, network)
    stepper = KINDS[optimizer](model.parameters(), lr=rate)  # type: ignore[call-arg]
    begun = time.process_time()
    koop = attach(stepper, model, loss=model, **options)
    reached, steps, loss = descend(model, stepper, target, limit, decay)
    seconds = time.process_time() - begun
    koop.detach()
    after = plain_seconds(problem, network, optimizer, rate, probe)
    stats = koop.stats
    return Finish(
        reached,
        steps,
        seconds,
        (before + after) / 2,
        loss,
        stats.evaluations,
        stats.jumps,
        stats.accepted,
        stats.seconds,
    )


def descend(
    model: Callable[[], Tensor],
    stepper: torch.optim.Optimizer,
    target: float,
    limit: int,
    decay: float = 0.0,
) -> tuple[bool, int, float]:
    """Step until the loss, which every step evaluates anyway, is at most ``target``."""
    loss = math.inf
    rate = stepper.param_groups[0]["lr"]
    for steps in range(limit + 1):
        stepper.zero_grad()
        value = model()
        loss = float(value.detach())
        if loss <= target:
            return True, steps, loss
        if steps == limit:
            break
        value.backward()
        if decay:
            stepper.param_groups[0]["lr"] = rate / (1.0 + decay * steps)
        stepper.step()
    return False, limit, loss


def plain_seconds(
    problem: OscillatorBatch, network: int, optimizer: str, rate: float, steps: int
) -> float:
    """Processor seconds of one ordinary step of the same loop."""
    model = OscillatorNetwork(problem, network)
    stepper = KINDS[optimizer](model.parameters(), lr=rate)  # type: ignore[call-arg]
    descend(model, stepper, -math.inf, 20)  # caches and first calls, not counted
    begun = time.process_time()
    descend(model, stepper, -math.inf, steps)
    return (time.process_time() - begun) / (steps + 1)
