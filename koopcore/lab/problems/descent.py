"""Ordinary training of a batch of networks by a torch optimizer, with losses and snapshots kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
"""Element-wise optimizers: they never mix two parameters."""

RATES = {"adagrad": 0.05, "adadelta": 0.1, "adam": 1e-3}
"""Base rates on the oscillator here; Dogra & Redman do not publish theirs."""


class BatchedProblem(Protocol):
    """What a descent needs: independent networks, one a row of parameters."""

    def initial(self) -> Tensor:
        """Parameters ``(networks, n_parameters)``."""

    def loss_and_gradient(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """``(rows,)`` losses and ``(rows, n_parameters)`` gradients."""


class Pace(NamedTuple):
    """The rate of a run, step by step: ``rate / (1 + decay s)``, or half a cosine down to 0.

    decay  : the "weakly decaying rate" of Dogra & Redman, who do not print the decay.
    cosine : steps after which ``rate (1 + cos(pi s / cosine)) / 2`` is 0; 0 for no cosine.
    """

    rate: float
    decay: float = 0.0
    cosine: int = 0

    def at(self, step: int) -> float:
        """The rate of step ``step``, from 0 on."""
        if not self.cosine:
            return self.rate / (1.0 + self.decay * step)
        return self.rate * (1.0 + math.cos(math.pi * min(step / self.cosine, 1.0))) / 2.0

    def __str__(self) -> str:
        decay = f", decay {self.decay:g}" if self.decay else ""
        return f"{self.rate:g}{decay}" + (f", cosine {self.cosine:,}" if self.cosine else "")


@dataclass(frozen=True)
class Trace:
    """What one stretch of training left behind, both ends included.

    losses    : ``(steps + 1, networks)``; row ``s`` is the loss after ``s`` optimizer steps.
    snapshots : ``(steps // every + 1, networks, n_parameters)``, rows ``0, every, 2·every, …``;
                no rows where snapshots were not asked for.
    """

    losses: Tensor
    snapshots: Tensor


class Descent:
    """Training of every network of a batch at once, exactly as each would train alone.

    Element-wise optimizers never mix two parameters, so one optimizer on the ``(networks,
    n_parameters)`` tensor is ``networks`` optimizers; only the summation order inside the batched
    products may differ from a single run.

    optimizer : a key of `OPTIMIZERS`.
    rate      : base learning rate; the one of `RATES` if None.
    decay     : the rate at step ``s`` is ``rate / (1 + decay·s)``; 0 keeps it constant.
    cosine    : steps of half a cosine down to a rate of 0, instead; 0 for none.
    start     : parameters to start from, copied; `BatchedProblem.initial` if None.

    Not for optimizers with norms over the whole tensor (LAMB, clipping by global norm, LBFGS):
    there the networks of a batch would influence each other.
    """

    def __init__(
        self,
        problem: BatchedProblem,
        optimizer: str = "adagrad",
        *,
        rate: float | None = None,
        decay: float = 0.0,
        cosine: int = 0,
        start: Tensor | None = None,
    ) -> None:
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer is {optimizer!r}; accepted are {', '.join(OPTIMIZERS)}")
        if rate is None and optimizer not in RATES:
            raise ValueError(f"rate is None; {optimizer} has no usual rate here, give one")
        self.problem = problem
        self.rate = RATES[optimizer] if rate is None else rate
        if not self.rate > 0:
            raise ValueError(f"rate is {self.rate}; it must be positive")
        if not decay >= 0:
            raise ValueError(f"decay is {decay}; it must be 0 or positive")
        self.pace = Pace(self.rate, decay, cosine)
        self.steps = 0
        self.params = (problem.initial() if start is None else start.detach()).clone()
        self._optimizer = OPTIMIZERS[optimizer]([self.params], lr=self.rate)  # type: ignore[call-arg]

    def advance(
        self, steps: int, *, every: int = 0, tick: Callable[[], object] | None = None
    ) -> Trace:
        """Take ``steps`` optimizer steps and return their `Trace`.

        every : keep a snapshot at the start and after every ``every`` steps; 0 keeps none.
        tick  : called after every step (a progress bar).

        `params` changes in place, and a later call continues where this one stopped, the
        optimizer's state included. Raises ValueError if ``steps`` is not a multiple of ``every``.
        """
        if steps < 0 or every < 0 or (every and steps % every):
            raise ValueError(
                f"steps is {steps} with every = {every}; steps must be 0 or more and a multiple "
                "of every"
            )
        params = self.params
        losses = params.new_empty(steps + 1, params.shape[0])
        snapshots = params.new_empty(steps // every + 1 if every else 0, *params.shape)
        with one_thread(params.device):
            for step in range(steps + 1):
                if every and step % every == 0:
                    snapshots[step // every] = params
                losses[step], params.grad = self.problem.loss_and_gradient(params)
                if step < steps:
                    self._step()
                    if tick is not None:
                        tick()
        return Trace(losses, snapshots)

    def _step(self) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = self.pace.at(self.steps)
        self._optimizer.step()
        self.steps += 1


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Give torch one CPU thread inside the block, and what it had afterwards.

    Measured on two cores: a step of 12 networks takes 1.26 ms with one thread, 1.34 ms with two;
    the matrices are too small to share.
    """
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
