"""End to end in minibatches: steps and seconds to a loss under noise, against tuned rivals.

MNIST, digits at 7 x 7 and characters of a made-up language, each with its network.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from hashlib import sha256
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from rich.console import RenderableType
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from koopcore.lab.experiment import (
    Cell,
    Context,
    Results,
    annotated,
    packed,
    sheet,
    spread,
    unpacked,
)
from koopcore.lab.problems import characters, mnist
from koopcore.lab.problems.descent import OPTIMIZERS, one_thread
from koopcore.lab.problems.scores import Floats
from koopcore.training import Attached, ExponentialAverage, WindowAverage, attach

LOSSES = ("validation", "training")
"""What is raced to: the mean cross entropy of the validation digits, and of digits trained on."""

Curves: TypeAlias = dict[str, list[list[float]]]
"""Model -> per evaluation the two `LOSSES`."""

METHODS = ("line",)
"""Methods that touch the weights: jumps along straight lines, with their average."""

BESIDE = "koopcore"
"""What `averaged` hands out without any option, beside weights that are never touched: an average
among others, in its own run."""

_SHOWN = ("plain", "EMA 0.98", BESIDE)
_HUES = {"plain": "#b9bec7", "EMA 0.98": "#2e9164", "koopcore": "#e0662c", "line": "#a2448f"}


class Problem(NamedTuple):
    """A data set with its network. title: of the table's rows."""

    title: str
    load: Callable[[Mapping[str, Any]], mnist.Samples]
    network: Callable[[int], nn.Module]


PROBLEMS = {
    "mnist": Problem("MNIST 784:20:20:20:10", mnist.of_settings, mnist.network),
    "digits": Problem("digits 49:64:10", mnist.pooled, lambda s: mnist.network(s, mnist.POOLED)),
    "characters": Problem("character transformer", lambda _: characters.load(), characters.network),
}


def settings(quick: bool, data: str | None = None) -> dict[str, Any]:
    """Rates, seeds, the averages and the options of ``attach`` for minibatch noise."""
    regime: dict[str, Any] = {
        "problems": {
            "mnist": {
                "seeds": list(range(2500, 2506)),
                "steps": 1000,
                "batch": 64,
                "rates": {
                    "sgd": [0.2, 0.3, 0.4],
                    "adam": [0.004, 0.008, 0.016],
                    "adadelta": [2.0, 3.0, 4.0],
                },
            },
            "digits": {
                "seeds": list(range(2510, 2514)),
                "steps": 1000,
                "batch": 64,
                "rates": {"sgd": [0.6, 1.2, 2.4], "adamw": [0.01, 0.02, 0.04]},
            },
            "characters": {
                "seeds": list(range(2520, 2523)),
                "steps": 600,
                "batch": 16,
                "check": 64,
                "judge": 256,
                "rates": {"adamw": [0.002, 0.004, 0.008]},
            },
        },
        "tuning": [2400, 2401],
        "cosine": [0.5, 1.0],
        "attach": {
            "line": {
                "regime": "smooth",
                "candidates": ["line", "regression"],
                "stride": 40,
                "record": "mean",
                "slack": 0.0,
                "margin": 0.02,
                "max_horizon": 1,
                "ladder": 2,
                "averages": 0.98,
            },
        },
        "ema": [0.98, 0.99, 0.995, 0.999],
        "lawa": [[10, 20]],
        "check": 500,
        "judge": 1000,
        "evaluate_every": 20,
        "probe": 200,
    }
    if quick:
        regime |= {"tuning": [400], "probe": 50, "cosine": [1.0]}
        for problem in regime["problems"].values():
            problem |= {"seeds": [300, 301], "steps": 400}
            problem["rates"] = {name: rates[:2] for name, rates in problem["rates"].items()}
        regime["attach"]["line"] |= {"stride": 15}
    return regime if data is None else {**regime, "data": data}


def cases(settings: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name, optimizer and own settings of each problem with each of its optimizers."""
    for problem, own in settings["problems"].items():
        for optimizer in own["rates"]:
            yield f"{problem}/{optimizer}", optimizer, {**settings, **own, "problem": problem}


def methods(settings: Mapping[str, Any]) -> Sequence[str]:
    """Those compared: straight lines, which are no method for minibatches, on MNIST alone."""
    return METHODS if settings["problem"] == "mnist" else ()


def cells(settings: dict[str, Any]) -> Sequence[Cell]:
    """For each case: plain training and averages at every rate, cosines, then the jumps."""
    runs = []
    for case, optimizer, own in cases(settings):
        rates, seeds, tuning = own["rates"][optimizer], len(own["seeds"]), len(own["tuning"])
        trained = {f"{case}/rate {rate:g}": rate for rate in rates}
        for name, rate in trained.items():
            runs.append(Cell(name, 2 * seeds, partial(averaged, own, optimizer, rate)))
        reference, work = f"{case}/plain", partial(plain, own, optimizer)
        ticks = len(LOSSES) * tuning * len(methods(own))
        runs.append(Cell(reference, ticks, work, needs=tuple(trained)))
        ticks = (len(rates) * len(own["cosine"]) + 1) * seeds
        work = partial(annealed, own, optimizer)
        runs.append(Cell(f"{case}/cosine", ticks, work, needs=(reference,)))
        ticks = len(rates) * tuning + len(LOSSES) * seeds
        for method in methods(own):
            work = partial(jumping, own, optimizer, method)
            runs.append(Cell(f"{case}/{method}", ticks, work, needs=(reference,)))
    return runs


def annealed(settings: dict[str, Any], optimizer: str, context: Context) -> dict[str, Any]:
    """Plain training along half a cosine, at the peak and length that reach the targets soonest.

    And koopcore's averages beside that one of the validation loss, without further tuning.
    """
    data = PROBLEMS[settings["problem"]].load(settings)
    reference = context.results[f"{settings['problem']}/{optimizer}/plain"]
    every = settings["evaluate_every"]
    targets = np.array([reference[loss]["target"]["seeds"] for loss in LOSSES]).T
    steps = np.array([reference[loss]["steps"] for loss in LOSSES]).T
    best: dict[str, Any] = {}
    shape = (0.0, 0)
    with one_thread(torch.device("cpu")):
        for rate in settings["rates"][optimizer]:
            for share in settings["cosine"]:
                length = round(share * settings["steps"])
                own = {**settings, "steps": length}
                curves = []
                for seed in settings["seeds"]:
                    run, _ = plain_run(
                        own, data, optimizer, rate, seed, averages=False, cosine=True
                    )
                    curves.append(run["plain"])
                    context.tick()
                factors = steps / first_steps(curves, targets, every)
                for k, loss in enumerate(LOSSES):
                    gain = float(np.median(factors[:, k]))
                    if loss not in best or gain > np.median(best[loss]["factors"]):
                        name = f"{rate:g}, cosine {length:,}"
                        best[loss] = {"rate": name, "factors": factors[:, k].tolist()}
                        shape = (rate, length) if k == 0 else shape
        beside = []
        for seed in settings["seeds"]:
            own = {**settings, "steps": shape[1]}
            run, _ = jumping_run(own, data, optimizer, shape[0], seed, {}, cosine=True)
            beside.append(run["averaged"])
            context.tick()
    factors = steps / first_steps(beside, targets, every)
    for k, loss in enumerate(LOSSES):
        best[loss]["averaged"] = factors[:, k].tolist()
    return best


def averaged(
    settings: dict[str, Any], optimizer: str, rate: float, context: Context
) -> dict[str, Any]:
    """Train every seed at one rate, plain with every average, and with koopcore attached.

    Returns the losses of the weights and of each average, four decimals; of the runs with koopcore
    whether their weights end as those of plain training, bit by bit, and their seconds over its.
    """
    digits = PROBLEMS[settings["problem"]].load(settings)
    runs = []
    beside: dict[str, list[Any]] = {"identical": [], "regime": [], "seconds": []}
    with one_thread(torch.device("cpu")):
        for seed in settings["seeds"]:
            run, weights = plain_run(settings, digits, optimizer, rate, seed)
            context.tick()
            step = step_seconds(settings, digits, optimizer, rate, seed)
            own, totals = jumping_run(settings, digits, optimizer, rate, seed, {})
            step = (step + step_seconds(settings, digits, optimizer, rate, seed)) / 2
            context.tick()
            beside["identical"].append(totals["weights"] == weights)
            beside["regime"].append(totals["regime"])
            beside["seconds"].append(totals["seconds_at"][-1] / (step * settings["steps"]))
            runs.append({**run, BESIDE: own["averaged"]})
    curves = {name: [packed(run[name], ".4f") for run in runs] for name in runs[0]}
    return {"curves": curves, "beside": beside}


def plain(settings: dict[str, Any], optimizer: str, context: Context) -> dict[str, Any]:
    """Per loss, the reference is the rate of the lowest median best loss.

    Each seed's target is the lowest loss of its reference run, its steps are where that run first
    has it. Every average is reported at the rate that brings it to the targets soonest.
    """
    every = settings["evaluate_every"]
    curves: dict[float, dict[str, Floats]] = {}
    beside: dict[float, dict[str, Any]] = {}
    for rate in settings["rates"][optimizer]:
        cell = context.results[f"{settings['problem']}/{optimizer}/rate {rate:g}"]
        curves[rate] = {
            name: np.array([unpacked(run) for run in of]) for name, of in cell["curves"].items()
        }
        beside[rate] = cell["beside"]
    lowest = {rate: np.nanmin(of["plain"], 1) for rate, of in curves.items()}
    best = {
        loss: _least({rate: float(np.median(low[:, k])) for rate, low in lowest.items()})
        for k, loss in enumerate(LOSSES)
    }
    tuned = {}
    if methods(settings):
        tuned = _tuning_targets(settings, optimizer, best, context)
    references: dict[str, Any] = {}
    for k, (loss, rate) in enumerate(best.items()):
        target = lowest[rate][:, k]
        steps = first_steps(curves[rate]["plain"][..., k : k + 1], target[:, None], every)
        rivals: dict[str, Any] = {}
        for rival_rate, of in curves.items():
            for name, values in of.items():
                rival_steps = first_steps(values[..., k : k + 1], target[:, None], every)
                factors = (steps / rival_steps)[:, 0]
                if name not in rivals or np.median(factors) > np.median(rivals[name]["factors"]):
                    rivals[name] = {"rate": rival_rate, "factors": factors.tolist()}
        references[loss] = {
            "rate": rate,
            "medians": {str(r): float(np.median(low[:, k])) for r, low in lowest.items()},
            "target": {"seeds": target.tolist(), "tuning": tuned.get(loss, [])},
            "steps": steps[:, 0].tolist(),
            "rivals": rivals,
        }
    references["beside"] = {
        str(rate): {**beside[rate], "ratio": _same_time(of, beside[rate]["seconds"])}
        for rate, of in curves.items()
    }
    shown = curves[best["training"]]
    references["curves"] = {
        name: packed(np.median(shown[name], 0), ".4f") for name in _SHOWN if name in shown
    }
    return references


def _same_time(curves: dict[str, Floats], seconds: Sequence[float]) -> list[list[float]]:
    """Per seed and loss, that of koopcore's average over that of plain training, as dear a run.

    Means over the last tenth of the evaluations; those of koopcore end so much earlier as it took
    longer.
    """
    ratios = []
    for plain_losses, own, factor in zip(curves["plain"], curves[BESIDE], seconds, strict=True):
        count = len(own)
        tenth = max(count // 10, 1)
        end = min(count, math.floor(count / max(factor, 1.0)))
        ratios.append((own[end - tenth : end].mean(0) / plain_losses[-tenth:].mean(0)).tolist())
    return ratios


def _tuning_targets(
    settings: dict[str, Any], optimizer: str, best: dict[str, float], context: Context
) -> dict[str, list[float]]:
    """Lowest losses of plain training of the seeds on which the jumps' rates are tuned."""
    digits = PROBLEMS[settings["problem"]].load(settings)
    targets: dict[str, list[float]] = {}
    with one_thread(torch.device("cpu")):
        for k, (loss, rate) in enumerate(best.items()):
            targets[loss] = []
            for seed in settings["tuning"]:
                run, _ = plain_run(settings, digits, optimizer, rate, seed, averages=False)
                targets[loss].append(float(np.min(np.array(run["plain"])[:, k])))
                context.tick()
    return targets


def jumping(
    settings: dict[str, Any], optimizer: str, method: str, context: Context
) -> dict[str, Any]:
    """Tune the rate on other seeds, per loss, then run every seed at the best ones."""
    digits = PROBLEMS[settings["problem"]].load(settings)
    reference = context.results[f"{settings['problem']}/{optimizer}/plain"]
    options = settings["attach"][method]
    every, limit = settings["evaluate_every"], settings["steps"]
    goals = {
        who: np.array([reference[loss]["target"][who] for loss in LOSSES]).T
        for who in ("tuning", "seeds")
    }
    tuning_steps = {}
    scores: dict[str, Any] = {}
    with one_thread(torch.device("cpu")):
        for rate in settings["rates"][optimizer]:
            curves = []
            for seed in settings["tuning"]:
                run, _ = jumping_run(settings, digits, optimizer, rate, seed, options)
                curves.append(run["averaged"])
                context.tick()
            steps = first_steps(curves, goals["tuning"], every)
            # A seed that never arrives counts twice the limit.
            tuning_steps[rate] = np.mean(np.minimum(steps, 2 * limit), 0)
        best = {
            loss: _least({rate: float(steps[k]) for rate, steps in tuning_steps.items()})
            for k, loss in enumerate(LOSSES)
        }
        for rate in sorted(set(best.values())):
            losses = [loss for loss in LOSSES if best[loss] == rate]
            runs: list[Curves] = []
            totals, plain_seconds = [], []
            for seed in settings["seeds"]:
                probe = partial(step_seconds, settings, digits, optimizer, rate, seed)
                before = probe()
                run, total = jumping_run(settings, digits, optimizer, rate, seed, options)
                runs.append(run)
                totals.append(total)
                plain_seconds.append((before + probe()) / 2)
                context.tick()
            for loss in losses:
                scores[loss] = _scores(settings, reference[loss], loss, runs, totals, plain_seconds)
                scores[loss]["rate"] = rate
            if "training" in losses:
                medians = np.median(np.array([run["averaged"] for run in runs]), 0)
                scores["curves"] = packed(medians, ".4f")
    scores["tuning_steps"] = {str(rate): steps.tolist() for rate, steps in tuning_steps.items()}
    return scores


def _least(values: dict[float, float]) -> float:
    """The rate with the least value."""
    return min(values, key=values.__getitem__)


def _scores(
    settings: dict[str, Any],
    reference: dict[str, Any],
    loss: str,
    runs: list[Curves],
    totals: list[dict[str, Any]],
    step_seconds: list[float],
) -> dict[str, Any]:
    """Factors of one loss: of the averaged model, of the weights themselves, and in seconds."""
    k, every = LOSSES.index(loss), settings["evaluate_every"]
    target = np.array(reference["target"]["seeds"])[:, None]
    plain_steps = np.array(reference["steps"])
    counts = {
        kind: first_steps([np.array(run[kind])[:, k : k + 1] for run in runs], target, every)
        for kind in ("averaged", "weights")
    }
    clock = []
    for steps, count, total, one in zip(
        plain_steps, counts["averaged"][:, 0], totals, step_seconds, strict=True
    ):
        reached = np.isfinite(count)
        spent = total["seconds_at"][int(count) // every - 1] if reached else np.inf
        clock.append(float(steps * one / spent))
    return {
        "factors": (plain_steps / counts["averaged"][:, 0]).tolist(),
        "weights_factors": (plain_steps / counts["weights"][:, 0]).tolist(),
        "seconds_factors": clock,
        "accepted": [total["accepted"] for total in totals],
        "jumps": [total["jumps"] for total in totals],
        "evaluations": [total["evaluations"] for total in totals],
        "kinds": [total["kinds"] for total in totals],
    }


class Yardstick:
    """Evaluates a model on digits that no method sees while it decides.

    The jumps' own loss is over the first ``check`` training digits; "training" here is over the
    ``judge`` that follow them, and "validation" over the validation digits.
    """

    def __init__(self, digits: mnist.Samples, check: int, judge: int) -> None:
        own = slice(check, check + judge)
        self._sets = (
            (digits.validation_inputs, digits.validation_labels),
            (digits.inputs[own], digits.labels[own]),
        )

    def __call__(self, model: nn.Module) -> list[float]:
        """Both losses, in the order of `LOSSES`, to the four decimals that results keep."""
        with torch.no_grad():
            losses = [float(nn.functional.cross_entropy(model(x), y)) for x, y in self._sets]
        return [round(loss, 4) for loss in losses]


def begin(
    settings: Mapping[str, Any], digits: mnist.Samples, optimizer: str, rate: float, seed: int
) -> tuple[nn.Module, torch.optim.Optimizer, mnist.Minibatches]:
    """Network, optimizer and minibatches of one seed: the same for every method."""
    model = PROBLEMS[settings["problem"]].network(seed)
    stepper = OPTIMIZERS[optimizer](model.parameters(), lr=rate)  # type: ignore[call-arg]
    return model, stepper, mnist.Minibatches(digits, settings["batch"], seed)


def averages_of(
    settings: Mapping[str, Any], parameters: Sequence[Tensor]
) -> dict[str, tuple[ExponentialAverage | WindowAverage, int]]:
    """Name -> (average, steps between its updates)."""
    rivals: dict[str, tuple[ExponentialAverage | WindowAverage, int]] = {
        f"EMA {decay:g}": (ExponentialAverage(parameters, decay), 1) for decay in settings["ema"]
    }
    for count, every in settings["lawa"]:
        rivals[f"LAWA {count} x {every}"] = (WindowAverage(parameters, count), every)
    return rivals


def plain_run(
    settings: Mapping[str, Any],
    digits: mnist.Samples,
    optimizer: str,
    rate: float,
    seed: int,
    averages: bool = True,
    cosine: bool = False,
) -> tuple[Curves, str]:
    """Train without jumps; losses of the weights and of every average at each evaluation.

    And a fingerprint of the weights at the end.

    cosine : the rate falls along half a cosine over all steps instead of staying constant.
    """
    model, stepper, batches = begin(settings, digits, optimizer, rate, seed)
    judge = Yardstick(digits, settings["check"], settings["judge"])
    rivals = averages_of(settings, list(model.parameters())) if averages else {}
    curves: Curves = {"plain": [], **{name: [] for name in rivals}}
    schedule = CosineAnnealingLR(stepper, settings["steps"]) if cosine else None
    step = 0

    def after_step() -> None:
        nonlocal step
        step += 1
        if schedule is not None:
            schedule.step()
        for average, every in rivals.values():
            if step % every == 0:
                average.update()
        if step % settings["evaluate_every"] == 0:
            curves["plain"].append(judge(model))
            for name, (average, every) in rivals.items():
                with average.applied() if step >= every else nullcontext():
                    curves[name].append(judge(model))

    mnist.train(model, stepper, batches, settings["steps"], after_step)
    return curves, fingerprint(model)


def fingerprint(model: nn.Module) -> str:
    """A hash of all bits of the parameters."""
    digest = sha256()
    for p in model.parameters():
        digest.update(p.detach().numpy().tobytes())
    return digest.hexdigest()


def attached_to(
    settings: Mapping[str, Any],
    digits: mnist.Samples,
    model: nn.Module,
    stepper: torch.optim.Optimizer,
    options: Mapping[str, Any],
) -> Attached:
    """Attach with the loss of the first ``check`` training digits, always the same."""
    images, labels = (data[: settings["check"]] for data in (digits.inputs, digits.labels))

    def loss() -> Tensor:
        return nn.functional.cross_entropy(model(images), labels)

    return attach(stepper, model, loss=loss, **options)


def jumping_run(
    settings: Mapping[str, Any],
    digits: mnist.Samples,
    optimizer: str,
    rate: float,
    seed: int,
    options: Mapping[str, Any],
    cosine: bool = False,
) -> tuple[Curves, dict[str, Any]]:
    """Train with koopcore attached; losses of the weights and of their average, and the totals.

    Seconds are processor time of the steps, recording, fits, loss checks, averages and the choice
    among them, without the evaluations, which no method needs; ``seconds_at`` has them at each.
    """
    model, stepper, batches = begin(settings, digits, optimizer, rate, seed)
    judge = Yardstick(digits, settings["check"], settings["judge"])
    koop = attached_to(settings, digits, model, stepper, options)
    schedule = CosineAnnealingLR(stepper, settings["steps"]) if cosine else None
    after_step = None if schedule is None else schedule.step
    curves: Curves = {"weights": [], "averaged": []}
    seconds_at: list[float] = []
    spent = 0.0
    for _ in range(settings["steps"] // settings["evaluate_every"]):
        begun = time.process_time()
        mnist.train(model, stepper, batches, settings["evaluate_every"], after_step)
        spent += time.process_time() - begun
        seconds_at.append(spent)
        curves["weights"].append(judge(model))
        begun = time.process_time()
        with ExitStack() as stack:
            stack.enter_context(koop.averaged(options.get("averages")))
            spent += time.process_time() - begun
            curves["averaged"].append(judge(model))
    stats = koop.stats
    totals = {
        "seconds_at": seconds_at,
        "jumps": stats.jumps,
        "accepted": stats.accepted,
        "evaluations": stats.evaluations,
        "kinds": sorted((j.kind, j.horizon) for j in stats.history if j.accepted),
        "regime": stats.regime,
        "weights": fingerprint(model),
    }
    koop.detach()
    return curves, totals


def step_seconds(
    settings: Mapping[str, Any], digits: mnist.Samples, optimizer: str, rate: float, seed: int
) -> float:
    """Processor seconds of one ordinary step of the same loop, evaluations between as there.

    They are not timed, but leave the caches to the steps that follow.
    """
    model, stepper, batches = begin(settings, digits, optimizer, rate, seed)
    judge = Yardstick(digits, settings["check"], settings["judge"])
    every = settings["evaluate_every"]
    mnist.train(model, stepper, batches, every)  # first calls, not counted
    stretches = math.ceil(settings["probe"] / every)
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


NOTES = (
    "Factors: what plain training at its best rate takes to its lowest loss, over what the method "
    "takes to the same loss (0: not within the same limit); median over seeds, least in brackets; "
    "evaluated every 20 steps. Losses are over data that no method decides by: those to validate "
    "on, and some of those trained on. Plain training and the averages are tuned on the "
    "measured seeds themselves, straight lines on others. koopcore, without any option, is "
    "what averaged() hands out, line the average of 0.98 beside its weights. "
    "Seconds are processor time on one thread, all included but these evaluations."
)


def table(results: Results, settings: dict[str, Any]) -> RenderableType:
    """One line per optimizer and method, for both losses."""
    heads = [head for loss in LOSSES for head in ("rate", f"{loss}\nsteps", "\nseconds")]
    shown = sheet("End to end: minibatches", heads, "factors")
    for case, _, own in cases(settings):
        reference = results.get(f"{case}/plain")
        if reference is None:
            continue
        for name in reference["validation"]["rivals"]:
            line = []
            for loss in LOSSES:
                rival = reference[loss]["rivals"][name]
                clock = "-"
                if name == BESIDE:
                    seconds = reference["beside"][str(rival["rate"])]["seconds"]
                    clock = spread((np.array(rival["factors"]) / seconds).tolist())
                line += [f"{rival['rate']:g}", spread(rival["factors"]), clock]
            bold = "bold" if name == BESIDE else None
            shown.add_row(f"{case}: plain" if name == "plain" else f"  {name}", *line, style=bold)
        cosine = results.get(f"{case}/cosine")
        for name, key in (("cosine", "factors"), ("koopcore, cosine", "averaged")):
            if cosine is not None:
                both = [(cosine[loss]["rate"], spread(cosine[loss][key]), "-") for loss in LOSSES]
                shown.add_row(f"  {name}", *both[0], *both[1])
        for method in reversed(methods(own)):
            jumped = results.get(f"{case}/{method}")
            if jumped is None:
                continue
            line = []
            for loss in LOSSES:
                scores = jumped[loss]
                line += [f"{scores['rate']:g}", spread(scores["factors"])]
                line.append(spread(scores["seconds_factors"]))
            shown.add_row(f"  {method}", *line)
        shown.add_section()
    owns = {own["problem"]: own for _, _, own in cases(settings)}
    regimes = [
        f"{PROBLEMS[name].title}: batch {own['batch']}, {own['steps']:,} steps, seeds "
        f"{own['seeds'][0]} to {own['seeds'][-1]}"
        for name, own in owns.items()
    ]
    regime = f"{'; '.join(regimes)}. {mnist.described(settings)}; constant rates but for cosines."
    beside = [
        of
        for case, _, _ in cases(settings)
        if f"{case}/plain" in results
        for of in results[f"{case}/plain"]["beside"].values()
    ]
    if not beside:
        return annotated(shown, regime, NOTES)
    same = [bit for of in beside for bit in of["identical"]]
    worst = np.max([np.median(of["ratio"], 0) for of in beside], 0)
    harm = (
        f"With koopcore {sum(same)} of {len(same)} runs ended with the weights of plain training, "
        "bit by bit. Its average's loss over that of plain training in the same time, median at "
        f"the worst rate: {worst[0]:.3f} ({LOSSES[0]}), {worst[1]:.3f} ({LOSSES[1]})."
    )
    return annotated(shown, regime, NOTES, harm)


def picture(results: Results, settings: dict[str, Any]) -> Figure:
    """Median training loss over steps, one panel per optimizer, each method at its best rate."""
    known = [(case, own) for case, _, own in cases(settings) if f"{case}/plain" in results]
    figure = Figure(figsize=(4.0 * max(len(known), 1), 3.8), dpi=110, layout="constrained")
    panels: Any = figure.subplots(1, max(len(known), 1), squeeze=False)[0]
    for axes, (case, own) in zip(panels, known, strict=False):
        curves = dict(results[f"{case}/plain"]["curves"])
        for method in methods(own):
            jumped = results.get(f"{case}/{method}")
            if jumped is not None and "curves" in jumped:
                curves[method] = jumped["curves"]
        for name, values in curves.items():
            training = unpacked(values)[:, LOSSES.index("training")]
            steps = (np.arange(len(training)) + 1) * settings["evaluate_every"]
            axes.plot(steps, training, color=_HUES[name], lw=1.2, label=name)
        axes.set(title=case, xlabel="optimizer steps", ylabel="training loss", yscale="log")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    return figure
