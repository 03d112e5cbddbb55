"""End to end on small problems of full batches: steps, cost and seconds to a loss, against rivals.

Logistic regression and matrix factorization by gradient descent, a regression network by Adam, and
networks that solve a chaotic Hamiltonian system by Adagrad and Adam.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import RenderableType
from torch import nn

from koopcore.lab.experiment import Cell, Context, Results
from koopcore.lab.experiments.end_to_end import (
    METHODS,
    Networks,
    compared,
    first_below,
    harmless,
    jumping,
    lowest,
    one_step,
    paces,
    quasi_newton,
)
from koopcore.lab.problems.descent import OPTIMIZERS, Pace, one_thread
from koopcore.lab.problems.full_batch import (
    Factorization,
    HenonHeiles,
    LogisticRegression,
    Regression,
)
from koopcore.lab.problems.scores import Floats
from koopcore.training import ExponentialAverage, WindowAverage


class Case(NamedTuple):
    """A problem with an optimizer."""

    problem: Callable[..., nn.Module]
    optimizer: str


CASES = {
    "logistic regression": Case(LogisticRegression, "sgd"),
    "matrix factorization": Case(Factorization, "sgd"),
    "regression network": Case(Regression, "adam"),
    "chaotic Hamiltonian": Case(HenonHeiles, "adagrad"),
    "chaotic Hamiltonian, Adam": Case(HenonHeiles, "adam"),
}


def settings(quick: bool) -> dict[str, Any]:
    """Rates, seeds and steps of each case, and how the averages are kept."""
    regime: dict[str, Any] = {
        "networks": 4,
        "seed": 2600,
        "tuning": 3,
        "lengths": {
            "logistic regression": 2500,
            "matrix factorization": 1500,
            "regression network": 2500,
            "chaotic Hamiltonian": 3000,
            "chaotic Hamiltonian, Adam": 3000,
        },
        "rates": {
            "logistic regression": [0.1, 0.2, 0.4, 0.8],
            "matrix factorization": [0.02, 0.04, 0.08, 0.16],
            "regression network": [0.003, 0.01, 0.03, [0.03, 1e-3]],
            "chaotic Hamiltonian": [0.05, 0.1, 0.2, 0.4],
            "chaotic Hamiltonian, Adam": [0.003, 0.01, 0.03, [0.03, 1e-3]],
        },
        "ema": [0.9, 0.99],
        "lawa": [10, 25],
        "average_every": 10,
        "lbfgs": ["float32", "float64"],
        "around_steps": 1000,
    }
    if quick:
        rates = {case: given[1:3] for case, given in regime["rates"].items()}
        regime |= {"networks": 2, "tuning": 1, "rates": rates, "around_steps": 200}
        regime["lengths"] = dict.fromkeys(rates, 600)
    regime["jump_rates"] = regime["around"] = regime["rates"]
    regime["cosine"] = {
        case: [[rate, 0.0, steps // part] for rate in regime["rates"][case][1:3] for part in (4, 1)]
        for case, steps in regime["lengths"].items()
    }
    return regime


def networks_of(problem: Callable[..., nn.Module]) -> Networks:
    """Its networks, of seeds that follow each other; those to tune on are of seeds before."""

    def networks(
        settings: dict[str, Any], tuning: bool = False, dtype: torch.dtype = torch.float32
    ) -> list[Callable[[], nn.Module]]:
        first = settings["seed"] - (settings["tuning"] if tuning else 0)
        count = settings["tuning" if tuning else "networks"]
        return [partial(problem, seed, dtype) for seed in range(first, first + count)]

    return networks


def methods(case: Case) -> Iterator[str]:
    """Those compared: residuals where the loss is a sum of squares."""
    for method in METHODS:
        if method != "residuals" or hasattr(case.problem, "residuals"):
            yield method


def cells(settings: dict[str, Any]) -> Sequence[Cell]:
    """For each case: plain training at every rate with averages beside it, then the others."""
    runs = []
    everything = settings
    for name, case in CASES.items():
        settings = {**everything, "steps": everything["lengths"][name]}
        networks, optimizer = networks_of(case.problem), case.optimizer
        reference, count = f"{name}/plain", settings["networks"]
        ticks = len(settings["rates"][name]) * count + settings["tuning"]
        runs.append(Cell(reference, ticks, partial(plain, settings, name)))
        anneals = len(settings["cosine"][name])
        work = partial(annealed, settings, name)
        runs.append(Cell(f"{name}/cosine", anneals * count, work, needs=(reference,)))
        most = max(anneals, len(settings["jump_rates"][name]))
        for method in methods(case):
            work = partial(jumping, settings, name, optimizer, method, networks)
            ticks = most * settings["tuning"] + count
            runs.append(Cell(f"{name}/{method}", ticks, work, needs=(reference,)))
        ticks = len(settings["around"][name]) * settings["tuning"]
        work = partial(harmless, settings, name, optimizer, networks)
        runs.append(Cell(f"{name}/same time", ticks, work))
        for precision in settings["lbfgs"]:
            work = partial(quasi_newton, settings, name, optimizer, precision, networks)
            runs.append(Cell(f"{name}/L-BFGS {precision}", count, work, needs=(reference,)))
    return runs


def plain(settings: dict[str, Any], name: str, context: Context) -> dict[str, Any]:
    """Train at every rate; the reference is the rate with the lowest median best loss.

    Each network's target is the lowest loss of its reference run. Averages are evaluated every 10
    steps, at each rate; the rate that brings one to the targets soonest is reported.
    """
    problem = CASES[name].problem
    every = settings["average_every"]
    curves: dict[Pace, Floats] = {}
    averages: dict[Pace, dict[str, Floats]] = {}
    with one_thread(torch.device("cpu")):
        for pace in paces(settings["rates"][name]):
            runs = []
            for network in networks_of(problem)(settings):
                runs.append(trained(network(), name, pace, settings, averaged=True))
                context.tick()
            curves[pace] = np.array([run.pop("plain") for run in runs]).T
            averages[pace] = {of: np.array([run[of] for run in runs]).T for of in runs[0]}
        medians = {pace: float(np.median(lowest(curve)[-1])) for pace, curve in curves.items()}
        best = min(medians, key=medians.__getitem__)
        tuning = []
        for network in networks_of(problem)(settings, tuning=True):
            tuning.append(min(trained(network(), name, best, settings)["plain"]))
            context.tick()
    targets = lowest(curves[best])[-1]
    steps = (curves[best] <= targets).argmax(0)
    rivals: dict[str, Any] = {}
    for pace, means in averages.items():
        for of, curve in means.items():
            factors = steps / first_below(curve, targets, every)
            if of not in rivals or np.median(factors) > np.median(rivals[of]["factors"]):
                rivals[of] = {"rate": str(pace), "factors": factors.tolist()}
    return {
        "rate": str(best),
        "medians": {str(pace): loss for pace, loss in medians.items()},
        "target": {"tuning": tuning, "networks": targets.tolist()},
        "steps": steps.tolist(),
        "averages": rivals,
    }


def annealed(settings: dict[str, Any], name: str, context: Context) -> dict[str, Any]:
    """Plain training along half a cosine, at the peak and length that reach the targets soonest."""
    reference = context.results[f"{name}/plain"]
    targets, steps = np.array(reference["target"]["networks"]), np.array(reference["steps"])
    best: dict[str, Any] = {}
    with one_thread(torch.device("cpu")):
        for pace in paces(settings["cosine"][name]):
            runs = []
            for network in networks_of(CASES[name].problem)(settings):
                own = settings | {"steps": pace.cosine}
                runs.append(trained(network(), name, pace, own)["plain"][1:])
                context.tick()
            factors = steps / first_below(np.array(runs).T, targets, 1)
            if not best or np.median(factors) > np.median(best["factors"]):
                best = {"rate": str(pace), "factors": factors.tolist()}
    return best


def trained(
    model: nn.Module, name: str, pace: Pace, settings: dict[str, Any], averaged: bool = False
) -> dict[str, list[float]]:
    """The loss before each step and after the last; of averages every ``average_every`` steps."""
    parameters = list(model.parameters())
    stepper = OPTIMIZERS[CASES[name].optimizer](parameters, lr=pace.rate)  # type: ignore[call-arg]
    rivals: dict[str, tuple[ExponentialAverage | WindowAverage, int]] = {}
    if averaged:
        rivals = {f"EMA {d:g}": (ExponentialAverage(parameters, d), 1) for d in settings["ema"]}
        rivals["LAWA"] = (WindowAverage(parameters, settings["lawa"][0]), settings["lawa"][1])
    curves: dict[str, list[float]] = {"plain": [], **{of: [] for of in rivals}}
    for step in range(settings["steps"]):
        loss = one_step(model, stepper, pace, step)
        curves["plain"].append(loss if math.isfinite(loss) else math.inf)
        for of, (average, every) in rivals.items():
            if (step + 1) % every == 0:
                average.update()
            if (step + 1) % settings["average_every"] == 0 and step + 1 >= every:
                with torch.no_grad(), average.applied():
                    curves[of].append(float(model()))
            elif (step + 1) % settings["average_every"] == 0:
                curves[of].append(math.inf)
    with torch.no_grad():
        curves["plain"].append(float(model()))
    return curves


def table(results: Results, settings: dict[str, Any]) -> RenderableType:
    """One line per case and method."""
    regime = (
        f"float32, {min(settings['lengths'].values()):,} to {max(settings['lengths'].values()):,} "
        f"steps, {settings['networks']} seeds from {settings['seed']} on; a rate alone is constant."
    )
    title = "End to end: small problems of full batches"
    return compared(title, results, settings, list(CASES), regime)
