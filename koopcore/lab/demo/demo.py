"""The demonstration: train oscillator networks, predict their weights, compare with training on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import koopcore as kc
from koopcore.lab.options import ModelName, OptimizerName, PartitionName, check_names
from koopcore.lab.problems.descent import Descent, Trace, one_thread
from koopcore.lab.problems.oscillator import PARAMETERS, OscillatorBatch, batched_partition
from koopcore.lab.problems.scores import Floats, equivalent_steps, error_ratio
from koopcore.lab.stopwatch import in_turns

HORIZONS: dict[OptimizerName, int] = {"adagrad": 80, "adadelta": 80, "adam": 32}
"""Snapshots ahead: 2.5 windows; Adam's weights alone are no autonomous system, so 1 window."""

_TIMED_STEPS = 20  # in each of the stopwatch's rounds
_OVERRUN = 1.5  # ordinary training goes on to 1.5 T, so that T^eq/T > 1 is measured, not capped


@dataclass(frozen=True)
class DemoSettings:
    """What to train and predict; raises ValueError, before any work, for what cannot be done.

    steps   : optimizer steps before recording starts (``t1``).
    window  : snapshots per fit; stride: optimizer steps between two snapshots.
    horizon : snapshots to predict (``T``); None takes `HORIZONS` for each optimizer.
    model   : as in `koopcore.fit`.
    """

    optimizers: tuple[OptimizerName, ...] = ("adagrad",)
    partitions: tuple[PartitionName, ...] = ("network",)
    model: ModelName = "auto"
    networks: int = 12
    seed: int = 0
    steps: int = 8000
    window: int = 33
    stride: int = 25
    horizon: int | None = None
    duration: float = 4 * np.pi
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        check_names("optimizer", self.optimizers, OptimizerName)
        check_names("partition", self.partitions, PartitionName)
        check_names("model", (self.model,), ModelName)
        for name, least in (("networks", 1), ("steps", 0), ("window", 4), ("stride", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {least} or more")
        if self.horizon is not None and self.horizon < 1:
            raise ValueError(f"horizon is {self.horizon}; it must be 1 or more")

    def horizon_of(self, optimizer: OptimizerName) -> int:
        """Snapshots to predict for this optimizer."""
        return HORIZONS[optimizer] if self.horizon is None else self.horizon

    def steps_of(self, optimizer: OptimizerName) -> tuple[int, int, int]:
        """Optimizer steps before, inside and after the recorded window."""
        after = int(np.ceil(_OVERRUN * self.horizon_of(optimizer)))
        return self.steps, (self.window - 1) * self.stride, after * self.stride

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole demonstration, as many as there are ticks."""
        return sum(sum(self.steps_of(optimizer)) for optimizer in self.optimizers)


@dataclass(frozen=True)
class OrdinaryRun:
    """What ordinary training did before, inside and after the window."""

    optimizer: OptimizerName
    problem: OscillatorBatch
    before: Trace
    recorded: Trace
    after: Trace


@dataclass(frozen=True)
class Outcome:
    """One partition's predictions beside what ordinary training did; per-network arrays.

    T is ``horizon * stride`` optimizer steps, ``equivalent`` is T^eq in optimizer steps.
    ``step_seconds``: one optimizer step, loss and gradient included, of one network trained alone;
    ``fit_seconds``: fit and endpoint prediction of that one network. ``batch_``: the same for all
    networks at once. Medians of calls in turns; compilation of a first call is not counted.
    """

    run: OrdinaryRun
    partition: PartitionName
    horizon: int
    stride: int
    weights: Tensor  # (horizon + 1, networks, 152) from t2 to t2 + T
    losses: Floats  # (horizon + 1, networks)
    equivalent: Floats  # (networks,)
    error_ratio: Floats  # (networks,)
    step_seconds: float
    fit_seconds: float
    batch_step_seconds: float
    batch_fit_seconds: float

    @property
    def relative(self) -> Floats:
        """T^eq/T, ``(networks,)``; not above 1.5, where the recorded curve ends."""
        return self.equivalent / (self.horizon * self.stride)

    @property
    def success(self) -> float:
        """Share of networks with T^eq/T > 0."""
        return float(np.mean(self.equivalent > 0))

    @property
    def speedup(self) -> float:
        """Window speed-up, median network: seconds of T^eq steps / seconds of the prediction."""
        return float(np.median(self.equivalent)) * self.step_seconds / self.fit_seconds

    @property
    def batch_speedup(self) -> float:
        """The same with both sides batched: all networks train at once and are fitted at once."""
        steps = float(np.median(self.equivalent))
        return steps * self.batch_step_seconds / self.batch_fit_seconds

    @property
    def typical(self) -> int:
        """The network whose T^eq/T is the median one."""
        return int(np.argsort(self.equivalent)[(len(self.equivalent) - 1) // 2])


def run_demo(settings: DemoSettings, tick: Callable[[], object] | None = None) -> list[Outcome]:
    """Train, predict and compare: one `Outcome` per optimizer and partition, in that order.

    tick : called after each of the ``settings.total_steps`` optimizer steps.

    Ordinary training is run to the end before the predictions are made, but they see only the
    snapshots of the window. Cost: 1.3 ms a step for 12 networks on one core, and milliseconds for
    the fits. Source: Dogra & Redman, NeurIPS 2020, section 4.
    """
    outcomes = []
    for optimizer in settings.optimizers:
        run = train(settings, optimizer, tick)
        outcomes += [predict(settings, run, partition) for partition in settings.partitions]
    return outcomes


def train(
    settings: DemoSettings, optimizer: OptimizerName, tick: Callable[[], object] | None = None
) -> OrdinaryRun:
    """Ordinary training of all networks: ``steps``, then the window, then 1.5 horizons."""
    problem = OscillatorBatch(
        settings.networks, settings.seed, dtype=settings.dtype, duration=settings.duration
    )
    descent = Descent(problem, optimizer)
    lead, inside, beyond = settings.steps_of(optimizer)
    before = descent.advance(lead, tick=tick)
    recorded = descent.advance(inside, every=settings.stride, tick=tick)
    after = descent.advance(beyond, every=settings.stride, tick=tick)
    return OrdinaryRun(optimizer, problem, before, recorded, after)


def predict(settings: DemoSettings, run: OrdinaryRun, partition: PartitionName) -> Outcome:
    """Fit all networks in one call on the window, predict the horizon, and score the endpoint."""
    horizon = settings.horizon_of(run.optimizer)
    window, networks = run.recorded.snapshots.shape[:2]
    snapshots = run.recorded.snapshots.reshape(window, -1)
    part = batched_partition(partition, networks)
    operators = kc.fit(snapshots, part, model=settings.model)
    path = operators.trajectory(horizon).reshape(horizon, networks, -1)
    weights = torch.cat((run.recorded.snapshots[-1:], path))
    with one_thread(weights.device):
        losses = run.problem.loss(weights.flatten(0, 1)).reshape(horizon + 1, networks)

    first = snapshots[:, :PARAMETERS].contiguous()
    first_part = batched_partition(partition, 1)
    alone = Descent(run.problem, run.optimizer, start=run.recorded.snapshots[-1, :1])
    together = Descent(run.problem, run.optimizer, start=run.recorded.snapshots[-1])
    step, fit, batch_step, batch_fit = in_turns(
        (
            lambda: alone.advance(_TIMED_STEPS),
            lambda: kc.fit(first, first_part, model=settings.model).predict(horizon),
            lambda: together.advance(_TIMED_STEPS),
            lambda: kc.fit(snapshots, part, model=settings.model).predict(horizon),
        )
    )
    # A stretch of s steps evaluates s + 1 losses and gradients, both its ends included.
    per_step = 1 / (_TIMED_STEPS + 1)
    return Outcome(
        run=run,
        partition=partition,
        horizon=horizon,
        stride=settings.stride,
        weights=weights,
        losses=losses.double().numpy(),
        equivalent=equivalent_steps(run.after.losses, losses[-1]),
        error_ratio=error_ratio(weights[-1], run.after.snapshots[horizon], weights[0]),
        step_seconds=step * per_step,
        fit_seconds=fit,
        batch_step_seconds=batch_step * per_step,
        batch_fit_seconds=batch_fit,
    )
