"""End to end: steps and seconds to a loss, everything included, against tuned plain training.

On the oscillator: plain training, averages of its weights, L-BFGS, straight lines and koopcore.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from rich.console import RenderableType
from torch import Tensor, nn

from koopcore.lab.experiment import Cell, Context, Results, annotated, sheet, spread
from koopcore.lab.problems.descent import OPTIMIZERS, Descent, Pace, one_thread
from koopcore.lab.problems.oscillator import OscillatorBatch
from koopcore.lab.problems.scores import Floats
from koopcore.training import ExponentialAverage, WindowAverage, attach
from koopcore.training.policy import PER_STEP

METHODS: dict[str, dict[str, Any]] = {
    "koopcore": {},
    "residuals": {},
    "line": {"candidates": ("line",)},
    "koopcore, cosine": {},
}
"""Options of `attach` of each method that jumps: none, none beside residuals, straight lines only,
and none along a cosine."""


def settings(quick: bool) -> dict[str, Any]:
    """Rates, networks, seeds and the how the averages are kept."""
    regime: dict[str, Any] = {
        "networks": 8,
        "seed": 2300,
        "tuning": 3,
        "duration": 2 * math.pi,
        "precision": "float32",
        "steps": 8000,
        "rates": {
            "adagrad": [0.05, 0.1, 0.2, 0.3, 0.5],
            "adadelta": [0.1, 0.3, 1.0, 2.0, 3.0],
            "adam": [0.03, 0.06, 0.1, 0.2, *_decaying((0.06, 0.1), 1e-4, 3e-4)],
        },
        "jump_rates": {
            "adagrad": [0.1, 0.2, 0.3, 0.5],
            "adadelta": [0.3, 1.0, 2.0, 3.0],
            "adam": [0.04, *_decaying((0.04, 0.06), 1e-4), *_decaying((0.06,), 3e-4)],
        },
        "cosine": {
            "adagrad": _annealed((0.2, 0.5), 500, 1000, 8000),
            "adadelta": _annealed((2.0, 3.0), 500, 1000, 8000),
            "adam": _annealed((0.03, 0.06), 2000, 4000, 8000),
        },
        "around": {
            "adagrad": [0.05, 0.1, 0.2, 0.5],
            "adadelta": [0.3, 1.0, 2.0, 3.0],
            "adam": [0.03, 0.06, [0.06, 3e-4], 0.1],
        },
        "around_steps": 1500,
        "ema": [0.9, 0.99],
        "lawa": [10, 25],
        "average_every": 10,
        "lbfgs": ["float32", "float64"],
    }
    if quick:
        regime |= {
            "networks": 2,
            "tuning": 1,
            "steps": 1500,
            "rates": {"adagrad": [0.1, 0.3], "adadelta": [0.3, 1.0], "adam": [0.01, 0.03]},
            "jump_rates": {"adagrad": [0.1, 0.3], "adadelta": [1.0, 2.0], "adam": [0.01, 0.03]},
            "around": {"adagrad": [0.3], "adadelta": [2.0], "adam": [0.03]},
            "around_steps": 300,
            "cosine": {
                "adagrad": _annealed((0.3,), 1500),
                "adadelta": _annealed((2.0,), 1500),
                "adam": _annealed((0.03,), 1500),
            },
        }
    return regime


def _annealed(rates: Sequence[float], *lengths: int) -> list[list[float]]:
    """Triples (rate, 0, steps of half a cosine down to a rate of 0)."""
    return [[rate, 0.0, length] for length in lengths for rate in rates]


def _decaying(rates: Sequence[float], *decays: float) -> list[list[float]]:
    """Pairs (rate, decay): the weakly decaying rates of Dogra & Redman, who do not print them."""
    return [[rate, decay] for decay in decays for rate in rates]


def cells(settings: dict[str, Any]) -> Sequence[Cell]:
    """For each optimizer: plain training at every rate with averages beside it, then the jumps."""
    runs = []
    for optimizer, rates in settings["rates"].items():
        reference = f"{optimizer}/plain"
        ticks = len(rates) * settings["steps"]
        runs.append(Cell(reference, ticks, partial(plain, settings, optimizer)))
        anneals = len(settings["cosine"][optimizer])
        work = partial(annealed, settings, optimizer)
        runs.append(Cell(f"{optimizer}/cosine", anneals, work, needs=(reference,)))
        most = max(anneals, len(settings["jump_rates"][optimizer]))
        ticks = most * settings["tuning"] + settings["networks"]
        for method in METHODS:
            work = partial(jumping, settings, optimizer, optimizer, method, networks)
            runs.append(Cell(f"{optimizer}/{method}", ticks, work, needs=(reference,)))
        ticks = len(settings["around"][optimizer]) * settings["tuning"]
        work = partial(harmless, settings, optimizer, optimizer, networks)
        runs.append(Cell(f"{optimizer}/same time", ticks, work))
        for precision in settings["lbfgs"]:
            name = f"{optimizer}/L-BFGS {precision}"
            work = partial(quasi_newton, settings, optimizer, optimizer, precision, networks)
            runs.append(Cell(name, settings["networks"], work, needs=(reference,)))
    return runs


def paces(given: Sequence[float | Sequence[float]]) -> list[Pace]:
    """A rate alone stays constant; others are (rate, decay) or (rate, 0, steps of a cosine)."""
    return [
        Pace(g[0], g[1], *map(int, g[2:])) if isinstance(g, Sequence) else Pace(g) for g in given
    ]


def plain(settings: dict[str, Any], optimizer: str, context: Context) -> dict[str, Any]:
    """Train at every rate; the reference is the rate with the lowest median best loss.

    Each network's target is the lowest loss of its reference run, its steps are where that run
    first has it. The averages are evaluated every 10 steps of every rate's run, and the rate that
    brings an average to the targets soonest is the one reported.
    """
    problem = make_problem(settings)
    networks = settings["networks"]
    curves: dict[Pace, Floats] = {}
    averages: dict[Pace, dict[str, Floats]] = {}
    for pace in paces(settings["rates"][optimizer]):
        curve, means = _averaged(problem, optimizer, pace, settings, context)
        curves[pace], averages[pace] = curve[:, :networks], means
    medians = {pace: float(np.median(lowest(curve)[-1])) for pace, curve in curves.items()}
    best = min(medians, key=medians.__getitem__)
    target = {
        "tuning": _tuning_targets(settings, optimizer, best),
        "networks": curves[best].min(0).tolist(),
    }
    steps = curves[best].argmin(0)
    every = settings["average_every"]
    rivals: dict[str, Any] = {}
    for name in next(iter(averages.values())):
        for pace, means in averages.items():
            factors = steps / first_below(means[name], curves[best].min(0), every)
            if name not in rivals or np.median(factors) > np.median(rivals[name]["factors"]):
                rivals[name] = {"rate": str(pace), "factors": factors.tolist()}
    return {
        "rate": str(best),
        "medians": {str(pace): loss for pace, loss in medians.items()},
        "target": target,
        "steps": steps.tolist(),
        "averages": rivals,
    }


def _averaged(
    problem: OscillatorBatch, optimizer: str, pace: Pace, settings: dict[str, Any], context: Context
) -> tuple[Floats, dict[str, Floats]]:
    """Loss of every network at each step, and of its averages every ``average_every`` steps."""
    every = settings["average_every"]
    descent = begin(problem, optimizer, pace)
    decays = {f"EMA {decay:g}": decay for decay in settings["ema"]}
    ema = {name: ExponentialAverage([descent.params], decay) for name, decay in decays.items()}
    lawa = WindowAverage([descent.params], settings["lawa"][0])
    curves: dict[str, list[Tensor]] = {name: [] for name in (*ema, "LAWA")}
    step = 0

    def after_step() -> None:
        nonlocal step
        step += 1
        context.tick()
        for average in ema.values():
            average.update()
        if step % settings["lawa"][1] == 0:
            lawa.update()
        if step % every == 0:
            for name, average in ema.items():
                curves[name].append(problem.loss(average.average[0]))
            if lawa.ring.count:
                with lawa.applied():
                    curves["LAWA"].append(problem.loss(descent.params))
            else:
                curves["LAWA"].append(problem.loss(descent.params))

    with torch.no_grad():
        trace = descent.advance(settings["steps"], tick=after_step)
    losses = trace.losses.double().numpy()
    return losses, {name: torch.stack(rows).double().numpy() for name, rows in curves.items()}


def begin(problem: OscillatorBatch, optimizer: str, pace: Pace) -> Descent:
    """Plain training of all networks from their initial parameters."""
    start, (rate, decay, cosine) = problem.initial(), pace
    return Descent(problem, optimizer, rate=rate, decay=decay, cosine=cosine, start=start)


def annealed(settings: dict[str, Any], optimizer: str, context: Context) -> dict[str, Any]:
    """Plain training along half a cosine, at the peak and length that reach the targets soonest."""
    reference = context.results[f"{optimizer}/plain"]
    problem = make_problem(settings)
    targets, steps = np.array(reference["target"]["networks"]), np.array(reference["steps"])
    best: dict[str, Any] = {}
    for pace in paces(settings["cosine"][optimizer]):
        curve = begin(problem, optimizer, pace).advance(pace.cosine).losses.double().numpy()[1:]
        factors = steps / first_below(curve, targets, 1)
        if not best or np.median(factors) > np.median(best["factors"]):
            best = {"rate": str(pace), "factors": factors.tolist()}
        context.tick()
    return best


def _tuning_targets(settings: dict[str, Any], optimizer: str, pace: Pace) -> list[float]:
    """Lowest losses of plain training of the networks on which the jumps' rates are tuned."""
    problem = make_problem(settings, tuning=True)
    trace = begin(problem, optimizer, pace).advance(settings["steps"])
    return trace.losses.min(0).values.tolist()


Networks: TypeAlias = Callable[..., list[Callable[[], nn.Module]]]
"""Of settings, ``tuning=`` and ``dtype=``: what makes each network, a module that is its loss."""


def networks(
    settings: dict[str, Any], tuning: bool = False, dtype: torch.dtype = torch.float32
) -> list[Callable[[], nn.Module]]:
    """The oscillator's `Networks`."""
    problem = make_problem(settings, tuning, dtype)
    return [partial(OscillatorNetwork, problem, k) for k in range(problem.networks)]


def jumping(
    settings: dict[str, Any],
    case: str,
    optimizer: str,
    method: str,
    networks: Networks,
    context: Context,
) -> dict[str, Any]:
    """Tune the rate on networks of another seed, then run every network at the best one."""
    reference = context.results[f"{case}/plain"]
    options = {**METHODS[method], "residuals": method == "residuals"}
    swept = settings["cosine" if method == "koopcore, cosine" else "jump_rates"][case]
    tuning_steps = {}
    with one_thread(torch.device("cpu")):
        targets = reference["target"]["tuning"]
        for pace in paces(swept):
            counts = []
            for network, target in zip(networks(settings, tuning=True), targets, strict=True):
                limit = pace.cosine or settings["steps"]
                run = race(network, optimizer, pace, target, limit, options, probe=1)
                counts.append(run.steps if run.reached else 2 * settings["steps"])
                context.tick()
            # Middle of three networks; a network that never arrives counts twice the limit.
            tuning_steps[pace] = float(np.median(counts))
        best = min(tuning_steps, key=tuning_steps.__getitem__)
        runs = []
        targets = reference["target"]["networks"]
        for network, target in zip(networks(settings), targets, strict=True):
            limit = best.cosine or settings["steps"]
            runs.append(asdict(race(network, optimizer, best, target, limit, options)))
            context.tick()
    steps = np.asarray(reference["steps"], float)
    factors = [
        s / max(r["steps"], 1) if r["reached"] else 0.0 for s, r in zip(steps, runs, strict=True)
    ]
    clock = [
        s * r["plain_step_seconds"] / r["seconds"] if r["reached"] else 0.0
        for s, r in zip(steps, runs, strict=True)
    ]
    return {
        "rate": str(best),
        "tuning_steps": {str(pace): count for pace, count in tuning_steps.items()},
        "factors": factors,
        "seconds_factors": clock,
        "runs": runs,
    }


def harmless(
    settings: dict[str, Any], case: str, optimizer: str, networks: Networks, context: Context
) -> dict[str, Any]:
    """Loss with koopcore over loss without, at rates around the best, in the same time.

    Plain training goes on for the processor seconds that the jumping run took. What is compared is
    the median loss of the last tenth of the steps, for a loss that swings.
    """
    ratios: dict[str, list[float]] = {}
    with one_thread(torch.device("cpu")):
        for pace in paces(settings["around"][case]):
            ratios[str(pace)] = []
            for network in networks(settings)[: settings["tuning"]]:
                ends = []
                allowed = math.inf
                for jumps in (True, False):
                    model = network()
                    stepper = OPTIMIZERS[optimizer](model.parameters(), lr=pace.rate)  # type: ignore[call-arg]
                    begun = time.process_time()
                    koop = attach(stepper, model, loss=model) if jumps else None
                    losses: list[float] = []
                    while time.process_time() - begun < allowed:
                        losses.append(one_step(model, stepper, pace, len(losses)))
                        if jumps and len(losses) == settings["around_steps"]:
                            allowed = time.process_time() - begun
                    if koop is not None:
                        koop.detach()
                    ends.append(float(np.median(losses[-len(losses) // 10 :])))
                ratios[str(pace)].append(ends[0] / ends[1])
                context.tick()
    return {"ratios": ratios}


def one_step(
    model: Callable[[], Tensor], stepper: torch.optim.Optimizer, pace: Pace, step: int
) -> float:
    """Take one step of the optimizer; return the loss before it."""
    stepper.zero_grad()
    value = model()
    value.backward()
    stepper.param_groups[0]["lr"] = pace.at(step)
    stepper.step()
    return float(value.detach())


def quasi_newton(
    settings: dict[str, Any],
    case: str,
    optimizer: str,
    precision: str,
    networks: Networks,
    context: Context,
) -> dict[str, Any]:
    """L-BFGS with a strong Wolfe line search to the targets of ``optimizer``'s plain training.

    What counts are evaluations of loss and gradient, each as dear as one plain step.
    """
    reference = context.results[f"{case}/plain"]
    factors, clock, evaluations = [], [], []
    with one_thread(torch.device("cpu")):
        targets = zip(reference["steps"], reference["target"]["networks"], strict=True)
        made = zip(
            targets,
            networks(settings),
            networks(settings, dtype=getattr(torch, precision)),
            strict=True,
        )
        for (steps, target), usual, network in made:
            step = plain_seconds(usual, optimizer, Pace(1e-3), 200)
            count, seconds = minimized(network(), target, settings["steps"])
            evaluations.append(count)
            factors.append(steps / count if math.isfinite(count) else 0.0)
            clock.append(steps * step / seconds if math.isfinite(count) else 0.0)
            context.tick()
    return {"factors": factors, "seconds_factors": clock, "evaluations": evaluations}


def minimized(model: nn.Module, target: float, limit: int) -> tuple[float, float]:
    """Evaluations and processor seconds that L-BFGS needs to the target; infinite if it stalls."""
    stepper = torch.optim.LBFGS(
        model.parameters(), max_iter=20, history_size=20, line_search_fn="strong_wolfe"
    )
    seen: list[float] = []

    def closure() -> Tensor:
        stepper.zero_grad()
        value = model()
        value.backward()
        seen.append(float(value.detach()))
        if seen[-1] <= target or len(seen) == limit:
            raise StopIteration
        return value

    begun = time.process_time()
    with suppress(StopIteration):
        before = -2
        while len(seen) - before > 1:  # else no step is found any more
            before = len(seen)
            stepper.step(closure)
    seconds = time.process_time() - begun
    return (len(seen) if seen[-1] <= target else math.inf), seconds


def make_problem(
    settings: dict[str, Any], tuning: bool = False, dtype: torch.dtype = torch.float32
) -> OscillatorBatch:
    """The measured networks, or those of another seed on which rates are tuned."""
    seed = settings["seed"] + (1 if tuning else 0)
    networks = settings["tuning"] if tuning else settings["networks"]
    return OscillatorBatch(networks, seed, duration=settings["duration"], dtype=dtype)


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

    def residuals(self) -> Tensor:
        """Whose squares sum to the loss."""
        return self.problem.residuals(self.weights)


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


def race(
    network: Callable[[], nn.Module],
    optimizer: str,
    pace: Pace,
    target: float,
    limit: int,
    options: dict[str, Any],
    probe: int = 200,
) -> Finish:
    """Train one network with koopcore attached until its loss is at most ``target``.

    network : makes the module that is its loss, and has ``residuals`` where the options name them.
    options : of `koopcore.attach`; ``residuals`` True gives it the module's. limit: steps after
    which it is given up. probe: ordinary steps timed before, and again after, so that a slow spell
    of the machine meets both sides.

    Seconds are processor time of this process, which no other process on the machine adds to; it
    must run with one thread. Recording, fits, loss checks and rejected jumps are in it.
    """
    before = plain_seconds(network, optimizer, pace, probe)
    model = network()
    stepper = OPTIMIZERS[optimizer](model.parameters(), lr=pace.rate)  # type: ignore[call-arg]
    begun = time.process_time()
    options = dict(options)
    residuals: Any = model.residuals if options.pop("residuals", False) else None
    koop = attach(stepper, model, loss=model, residuals=residuals, **options)
    reached, steps, loss = descend(model, stepper, target, limit, pace)
    seconds = time.process_time() - begun
    koop.detach()
    after = plain_seconds(network, optimizer, pace, probe)
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
    pace: Pace | None = None,
) -> tuple[bool, int, float]:
    """Step until the loss, which every step evaluates anyway, is at most ``target``."""
    loss = math.inf
    for steps in range(limit + 1):
        stepper.zero_grad()
        value = model()
        loss = float(value.detach())
        if loss <= target:
            return True, steps, loss
        if steps == limit:
            break
        value.backward()
        if pace is not None:
            stepper.param_groups[0]["lr"] = pace.at(steps)
        stepper.step()
    return False, limit, loss


def plain_seconds(
    network: Callable[[], nn.Module], optimizer: str, pace: Pace, steps: int
) -> float:
    """Processor seconds of one ordinary step of the same loop."""
    model = network()
    stepper = OPTIMIZERS[optimizer](model.parameters(), lr=pace.rate)  # type: ignore[call-arg]
    descend(model, stepper, -math.inf, 20)  # caches and first calls, not counted
    begun = time.process_time()
    descend(model, stepper, -math.inf, steps)
    return (time.process_time() - begun) / (steps + 1)


NOTES = (
    "Factors: what plain training at its best rate takes to its lowest loss, over what the method "
    "takes to the same loss (0: not within the same limit); median over networks, least in "
    "brackets. Cost: a step is one, an evaluation without gradient a third. Seconds are processor "
    "time on one thread; recording, fits, loss checks and rejected jumps included. Plain training "
    "is tuned on the measured networks themselves, the jumping methods on others. "
    "Dogra & Redman's own schedule, 45,000 steps and 2,500 predicted, is 1.055x by this measure."
)


def table(results: Results, settings: dict[str, Any]) -> RenderableType:
    """One line per optimizer and method."""
    title = f"End to end: {settings['networks']} oscillator networks"
    return compared(title, results, settings, list(settings["rates"]), _regime(settings))


def compared(
    title: str, results: Results, settings: dict[str, Any], cases: Sequence[str], regime: str
) -> RenderableType:
    """One line per case and method."""
    shown = sheet(title, ("rate", "steps", "cost", "seconds", "loss checks\nper step"), "method")
    for case in cases:
        reference = results.get(f"{case}/plain")
        if reference is None:
            continue
        shown.add_row(f"{case}: plain", reference["rate"], "1", "1", "1", "0")
        rivals = dict(reference["averages"])
        if (cosine := results.get(f"{case}/cosine")) is not None:
            rivals = {"cosine": cosine, **rivals}
        for name, rival in rivals.items():
            shown.add_row(f"  {name}", rival["rate"], spread(rival["factors"]), "-", "-", "")
        for method in reversed(METHODS):
            jumps = results.get(f"{case}/{method}")
            if jumps is None:
                continue
            checks = sum(run["evaluations"] for run in jumps["runs"])
            steps = sum(run["steps"] for run in jumps["runs"])
            shown.add_row(
                f"  {method}",
                jumps["rate"],
                spread(jumps["factors"]),
                spread(costs(jumps)),
                spread(jumps["seconds_factors"]),
                f"{checks / max(steps, 1):.2f}",
                style="bold" if method == "koopcore" else None,
            )
        for precision in settings["lbfgs"]:
            rival = results.get(f"{case}/L-BFGS {precision}")
            if rival is not None:
                steps, seconds = spread(rival["factors"]), spread(rival["seconds_factors"])
                shown.add_row(f"  L-BFGS {precision}", "-", steps, steps, seconds, "")
        shown.add_section()
    worst = {
        case: max(float(np.median(r)) for r in cell["ratios"].values())
        for case in cases
        if (cell := results.get(f"{case}/same time")) is not None
    }
    if worst:
        named = ", ".join(f"{case} {ratio:.3f}" for case, ratio in worst.items())
        harm = f"Loss with koopcore over loss without in the same time, at the worst rate: {named}."
        return annotated(shown, regime, NOTES, harm)
    return annotated(shown, regime, NOTES)


def costs(jumps: dict[str, Any]) -> list[float]:
    """Factors in units of a step, with each evaluation of the loss or residuals a third of one."""
    pairs = zip(jumps["factors"], jumps["runs"], strict=True)
    return [
        factor * run["steps"] / max(run["steps"] + run["evaluations"] / PER_STEP, 1.0)
        for factor, run in pairs
    ]


def _regime(settings: dict[str, Any]) -> str:
    return (
        f"t in [0, {settings['duration'] / math.pi:g} pi], {settings['precision']}, "
        f"{settings['steps']:,} steps, rate / (1 + decay s) at step s, constant where no decay is "
        f"named, seed {settings['seed']}."
    )
