"""End to end on MNIST: training runs with averages or jumps beside them, evaluated and timed."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from koopcore.lab.experiments.race import KINDS
from koopcore.lab.problems import mnist
from koopcore.lab.problems.scores import Floats
from koopcore.training import Attached, ExponentialAverage, WindowAverage, attach

LOSSES = ("validation", "training")
"""What is raced to: the mean cross entropy of the validation digits, and of digits trained on."""

Curves: TypeAlias = dict[str, list[list[float]]]
"""Model -> per evaluation the two `LOSSES`."""


class _Average(Protocol):
    def update(self) -> None: ...

    def applied(self) -> Any: ...


class Yardstick:
    """Evaluates a model on digits that no method sees while it decides.

    The jumps' own loss is over the first ``check`` training digits; "training" here is over the
    ``judge`` that follow them, and "validation" over the validation digits.
    """

    def __init__(self, digits: mnist.Digits, check: int, judge: int) -> None:
        own = slice(check, check + judge)
        self._sets = (
            (digits.validation_images, digits.validation_labels),
            (digits.images[own], digits.labels[own]),
        )

    def __call__(self, model: nn.Module) -> list[float]:
        """Both losses, in the order of `LOSSES`."""
        with torch.no_grad():
            return [float(nn.functional.cross_entropy(model(x), y)) for x, y in self._sets]


def begin(
    chosen: Mapping[str, Any], digits: mnist.Digits, optimizer: str, rate: float, seed: int
) -> tuple[nn.Module, torch.optim.Optimizer, mnist.Minibatches]:
    """Network, optimizer and minibatches of one seed: the same for every method."""
    model = mnist.network(seed)
    stepper = KINDS[optimizer](model.parameters(), lr=rate)  # type: ignore[call-arg]
    return model, stepper, mnist.Minibatches(digits, chosen["batch"], seed)


def averages(chosen: Mapping[str, Any], parameters: Sequence[Tensor]) -> dict[str, tuple[Any, int]]:
    """Name -> (average, steps between its updates)."""
    found: dict[str, tuple[_Average, int]] = {
        f"EMA {decay:g}": (ExponentialAverage(parameters, decay), 1) for decay in chosen["ema"]
    }
    for count, every in chosen["lawa"]:
        found[f"LAWA {count} x {every}"] = (WindowAverage(parameters, count), every)
    return found


def plain_run(
    chosen: Mapping[str, Any],
    digits: mnist.Digits,
    optimizer: str,
    rate: float,
    seed: int,
    averaged: bool = True,
) -> Curves:
    """Train without jumps; losses of the weights and of every average at each evaluation."""
    model, stepper, batches = begin(chosen, digits, optimizer, rate, seed)
    judge = Yardstick(digits, chosen["check"], chosen["judge"])
    kept = averages(chosen, list(model.parameters())) if averaged else {}
    curves: Curves = {"plain": [], **{name: [] for name in kept}}
    step = 0

    def after_step() -> None:
        nonlocal step
        step += 1
        for average, every in kept.values():
            if step % every == 0:
                average.update()
        if step % chosen["evaluate_every"] == 0:
            curves["plain"].append(judge(model))
            for name, (average, every) in kept.items():
                with average.applied() if step >= every else nullcontext():
                    curves[name].append(judge(model))

    mnist.train(model, stepper, batches, chosen["steps"], after_step)
    return curves


def attached_to(
    chosen: Mapping[str, Any],
    digits: mnist.Digits,
    model: nn.Module,
    stepper: torch.optim.Optimizer,
    options: Mapping[str, Any],
) -> Attached:
    """Attach with the loss of the first ``check`` training digits, always the same."""
    images, labels = (data[: chosen["check"]] for data in (digits.images, digits.labels))

    def loss() -> Tensor:
        return nn.functional.cross_entropy(model(images), labels)

    return attach(stepper, model, loss=loss, **options)


def jumping_run(
    chosen: Mapping[str, Any],
    digits: mnist.Digits,
    optimizer: str,
    rate: float,
    seed: int,
    options: Mapping[str, Any],
) -> tuple[Curves, dict[str, Any]]:
    """Train with koopcore attached; losses of the weights and of their average, and the totals.

    Seconds are processor time of the steps, recording, fits, loss checks and averages, without
    the evaluations, which no method needs; ``seconds_at`` has them at each evaluation.
    """
    model, stepper, batches = begin(chosen, digits, optimizer, rate, seed)
    judge = Yardstick(digits, chosen["check"], chosen["judge"])
    koop = attached_to(chosen, digits, model, stepper, options)
    curves: Curves = {"weights": [], "averaged": []}
    seconds_at: list[float] = []
    spent = 0.0
    for _ in range(chosen["steps"] // chosen["evaluate_every"]):
        begun = time.process_time()
        mnist.train(model, stepper, batches, chosen["evaluate_every"])
        spent += time.process_time() - begun
        seconds_at.append(spent)
        curves["weights"].append(judge(model))
        with koop.averaged():
            curves["averaged"].append(judge(model))
    stats = koop.stats
    totals = {
        "seconds_at": seconds_at,
        "jumps": stats.jumps,
        "accepted": stats.accepted,
        "evaluations": stats.evaluations,
        "kinds": sorted((j.kind, j.horizon) for j in stats.history if j.accepted),
    }
    koop.detach()
    return curves, totals


def step_seconds(
    chosen: Mapping[str, Any], digits: mnist.Digits, optimizer: str, rate: float, seed: int
) -> float:
    """Processor seconds of one ordinary step of the same loop, evaluations between as there.

    They are not timed, but leave the caches to the steps that follow.
    """
    model, stepper, batches = begin(chosen, digits, optimizer, rate, seed)
    judge = Yardstick(digits, chosen["check"], chosen["judge"])
    every = chosen["evaluate_every"]
    mnist.train(model, stepper, batches, every)  # first calls, not counted
    stretches = math.ceil(chosen["probe"] / every)
    spent = 0.0
    for _ in range(stretches):
        judge(model)
        judge(model)
        begun = time.process_time()
        mnist.train(model, stepper, batches, every)
        spent += time.process_time() - begun
    return spent / (stretches * every)


def first_steps(curves: ArrayLike, targets: Floats, every: int) -> Floats:
    """Steps at which each run first has each target or less; infinite if never.

    curves : ``(runs, evaluations, losses)``. targets : ``(runs, losses)``. Returns the latter.
    """
    values = np.asarray(curves, np.float64)
    below = values <= np.asarray(targets)[:, None]
    steps = (below.argmax(1) + 1.0) * every
    return np.where(below.any(1), steps, np.inf)
