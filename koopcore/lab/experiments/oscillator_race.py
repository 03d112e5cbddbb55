"""End to end on the oscillator: cells of plain training, averages, straight lines and koopcore."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from koopcore.lab.experiments.experiment import Cell, Results, Tick
from koopcore.lab.experiments.race import race
from koopcore.lab.problems.descent import Descent, one_thread
from koopcore.lab.problems.oscillator import OscillatorBatch
from koopcore.lab.problems.scores import Floats
from koopcore.training import ExponentialAverage, WindowAverage

METHODS = {"koopcore": ("koopman", "mean", "line"), "line": ("line",)}
"""Candidates of each method that jumps; everything else about them is the same."""


def cells(chosen: dict[str, Any]) -> Sequence[Cell]:
    """For each optimizer: plain training at every rate with averages beside it, then the jumps."""
    found = []
    for optimizer, rates in chosen["rates"].items():
        name = f"oscillator/{optimizer}"
        ticks = len(rates) * chosen["steps"]
        found.append(Cell(f"{name}/plain", ticks, partial(plain, chosen, optimizer)))
        for method in METHODS:
            work = partial(jumping, chosen, optimizer, method)
            runs = len(chosen["jump_rates"][optimizer]) * chosen["tuning"] + chosen["networks"]
            found.append(Cell(f"{name}/{method}", runs, work))
    return found


Pace = tuple[float, float]
"""Rate and decay of a run: the rate at step ``s`` is ``rate / (1 + decay s)``."""


def paces(given: Sequence[float | Sequence[float]]) -> list[Pace]:
    """A rate alone stays constant; a pair is (rate, decay)."""
    return [(g[0], g[1]) if isinstance(g, Sequence) else (g, 0.0) for g in given]


def label(pace: Pace) -> str:
    """How a pace is named in results: ``0.06``, or ``0.06, decay 0.0001``."""
    return f"{pace[0]:g}" + (f", decay {pace[1]:g}" if pace[1] else "")


def plain(chosen: dict[str, Any], optimizer: str, tick: Tick, results: Results) -> dict[str, Any]:
    """Train at every rate; the reference is the rate with the lowest median best loss.

    Each network's target is the lowest loss of its reference run, its steps are where that run
    first has it. The averages are evaluated every 10 steps of every rate's run, and the rate that
    brings an average to the targets soonest is the one reported.
    """
    problem = make_problem(chosen)
    networks = chosen["networks"]
    curves: dict[Pace, Floats] = {}
    averages: dict[Pace, dict[str, Floats]] = {}
    for pace in paces(chosen["rates"][optimizer]):
        curve, means = _averaged(problem, optimizer, pace, chosen, tick)
        curves[pace], averages[pace] = curve[:, :networks], means
    medians = {pace: float(np.median(lowest(curve)[-1])) for pace, curve in curves.items()}
    best = min(medians, key=medians.__getitem__)
    target = {
        "tuning": _tuning_targets(chosen, optimizer, best),
        "networks": curves[best].min(0).tolist(),
    }
    steps = curves[best].argmin(0)
    every = chosen["average_every"]
    found: dict[str, Any] = {}
    for name in next(iter(averages.values())):
        for pace, means in averages.items():
            factors = steps / first_below(means[name], curves[best].min(0), every)
            if name not in found or np.median(factors) > np.median(found[name]["factors"]):
                found[name] = {"rate": label(pace), "factors": factors.tolist()}
    return {
        "rate": label(best),
        "medians": {label(pace): loss for pace, loss in medians.items()},
        "target": target,
        "steps": steps.tolist(),
        "averages": found,
    }


def _averaged(
    problem: OscillatorBatch, optimizer: str, pace: Pace, chosen: dict[str, Any], tick: Tick
) -> tuple[Floats, dict[str, Floats]]:
    """Loss of every network at each step, and of its averages every ``average_every`` steps."""
    every = chosen["average_every"]
    rate, decay = pace
    descent = Descent(problem, optimizer, rate=rate, decay=decay, start=problem.initial())
    decays = {f"EMA {decay:g}": decay for decay in chosen["ema"]}
    kept = {name: ExponentialAverage([descent.params], decay) for name, decay in decays.items()}
    lawa = WindowAverage([descent.params], chosen["lawa"][0])
    curves: dict[str, list[Tensor]] = {name: [] for name in (*kept, "LAWA")}
    step = 0

    def after_step() -> None:
        nonlocal step
        step += 1
        tick()
        for average in kept.values():
            average.update()
        if step % chosen["lawa"][1] == 0:
            lawa.update()
        if step % every == 0:
            for name, average in kept.items():
                curves[name].append(problem.loss(average.average[0]))
            if lawa.ring.count:
                with lawa.applied():
                    curves["LAWA"].append(problem.loss(descent.params))
            else:
                curves["LAWA"].append(problem.loss(descent.params))

    with torch.no_grad():
        trace = descent.advance(chosen["steps"], tick=after_step)
    losses = trace.losses.double().numpy()
    return losses, {name: torch.stack(rows).double().numpy() for name, rows in curves.items()}


def _tuning_targets(chosen: dict[str, Any], optimizer: str, pace: Pace) -> list[float]:
    """Lowest losses of plain training of the networks on which the jumps' rates are tuned."""
    problem = make_problem(chosen, tuning=True)
    rate, decay = pace
    descent = Descent(problem, optimizer, rate=rate, decay=decay, start=problem.initial())
    trace = descent.advance(chosen["steps"])
    return trace.losses.min(0).values.tolist()


def jumping(
    chosen: dict[str, Any], optimizer: str, method: str, tick: Tick, results: Results
) -> dict[str, Any]:
    """Tune the rate on networks of another seed, then run every network at the best one."""
    reference = results[f"oscillator/{optimizer}/plain"]
    options = {**chosen["attach"][optimizer], "candidates": METHODS[method]}
    tried = {}
    with one_thread(torch.device("cpu")):
        tuning = make_problem(chosen, tuning=True)
        for pace in paces(chosen["jump_rates"][optimizer]):
            taken = []
            for network, target in enumerate(reference["target"]["tuning"]):
                own = (tuning, network, optimizer, pace[0], target, chosen["steps"], options)
                run = race(*own, probe=1, decay=pace[1])
                taken.append(run.steps if run.reached else 2 * chosen["steps"])
                tick()
            # Middle of three networks; a network that never arrives counts twice the limit.
            tried[pace] = float(np.median(taken))
        best = min(tried, key=tried.__getitem__)
        problem = make_problem(chosen)
        runs = []
        for network, target in enumerate(reference["target"]["networks"]):
            own = (problem, network, optimizer, best[0], target, chosen["steps"], options)
            run = race(*own, decay=best[1])
            runs.append(run.as_dict())
            tick()
    steps = np.asarray(reference["steps"], float)
    factors = [
        s / max(r["steps"], 1) if r["reached"] else 0.0 for s, r in zip(steps, runs, strict=True)
    ]
    clock = [
        s * r["plain_step_seconds"] / r["seconds"] if r["reached"] else 0.0
        for s, r in zip(steps, runs, strict=True)
    ]
    return {
        "rate": label(best),
        "tuning_steps": {label(pace): taken for pace, taken in tried.items()},
        "factors": factors,
        "seconds_factors": clock,
        "runs": runs,
    }


def make_problem(chosen: dict[str, Any], tuning: bool = False) -> OscillatorBatch:
    """The measured networks, or those of another seed on which rates are tuned."""
    seed = chosen["seed"] + (1 if tuning else 0)
    networks = chosen["tuning"] if tuning else chosen["networks"]
    return OscillatorBatch(networks, seed, duration=chosen["duration"])


def lowest(curve: Floats) -> Floats:
    """Lowest loss so far; what is not finite counts as infinite."""
    return np.minimum.accumulate(np.where(np.isfinite(curve), curve, np.inf), 0)


def first_below(curve: Floats, target: Floats, every: int) -> Floats:
    """Steps at which each column is first at its target or below, infinite if never.

    Row ``i`` of ``curve`` stands for step ``(i + 1) every``.
    """
    below = curve <= target
    steps = (below.argmax(0) + 1.0) * every
    return np.where(below.any(0), steps, np.inf)
