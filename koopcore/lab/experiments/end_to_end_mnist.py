"""End to end on MNIST: steps and seconds to a loss under minibatch noise, against tuned rivals."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAVY
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from koopcore.lab.experiments import mnist_race as race
from koopcore.lab.experiments.experiment import Cell, Results, Tick
from koopcore.lab.problems import mnist
from koopcore.lab.problems.descent import one_thread
from koopcore.lab.problems.scores import Floats

METHODS = {"koopcore": ("regression", "koopman"), "line": ("line", "regression")}
"""Candidates of each method that jumps; everything else about them is the same."""

_SHOWN = ("plain", "EMA 0.98")
_HUES = {"plain": "#b9bec7", "EMA 0.98": "#2e9164", "koopcore": "#e0662c", "line": "#a2448f"}


def settings(quick: bool) -> dict[str, Any]:
    """Rates, seeds, the averages and the options of ``attach`` for minibatch noise."""
    chosen: dict[str, Any] = {
        "seeds": list(range(500, 508)),
        "tuning": [400, 401],
        "steps": 1000,
        "batch": 64,
        "rates": {
            "sgd": [0.2, 0.3, 0.4, 0.5],
            "adam": [0.002, 0.004, 0.008, 0.016],
            "adadelta": [2.0, 3.0, 4.0, 6.0, 8.0],
        },
        "attach": {
            "window": 9,
            "stride": 40,
            "record": "mean",
            "slack": 0.0,
            "margin": 0.02,
            "rank": 2,
            "max_horizon": 1,
            "ladder": 2,
            "average": 0.98,
        },
        "ema": [0.98, 0.99],
        "lawa": [[10, 20]],
        "check": 500,
        "judge": 1000,
        "evaluate_every": 20,
        "probe": 200,
    }
    if quick:
        chosen |= {"seeds": [300, 301], "tuning": [400], "steps": 400, "probe": 50}
        chosen["rates"] = {"sgd": [0.2, 0.4], "adam": [0.004, 0.008], "adadelta": [2.0, 3.0]}
        chosen["attach"] |= {"stride": 15}
    return chosen


def cells(settings: dict[str, Any]) -> Sequence[Cell]:
    """For each optimizer: plain training and averages at every rate, then the jumps."""
    found = []
    seeds, tuning = len(settings["seeds"]), len(settings["tuning"])
    for optimizer, rates in settings["rates"].items():
        for rate in rates:
            work = partial(trained, settings, optimizer, rate)
            found.append(Cell(f"{optimizer}/rate {rate:g}", seeds, work))
        runs = len(race.LOSSES) * tuning
        found.append(Cell(f"{optimizer}/plain", runs, partial(plain, settings, optimizer)))
        for method in METHODS:
            runs = len(rates) * tuning + len(race.LOSSES) * seeds
            work = partial(jumping, settings, optimizer, method)
            found.append(Cell(f"{optimizer}/{method}", runs, work))
    return found


def trained(
    settings: dict[str, Any], optimizer: str, rate: float, tick: Tick, results: Results
) -> dict[str, Any]:
    """Train every seed at one rate: losses of the weights and of every average."""
    digits = mnist.of_settings(settings)
    runs = []
    with one_thread(torch.device("cpu")):
        for seed in settings["seeds"]:
            runs.append(race.plain_run(settings, digits, optimizer, rate, seed))
            tick()
    return {name: [packed(run[name]) for run in runs] for name in runs[0]}


def packed(curve: Sequence[Sequence[float]] | Floats) -> list[str]:
    """One line per loss of a curve ``(evaluations, losses)``, four decimals each."""
    return [" ".join(f"{value:.4f}" for value in values) for values in np.array(curve).T]


def unpacked(lines: Sequence[str]) -> Floats:
    """The curve ``(evaluations, losses)`` that `packed` wrote."""
    return np.array([[float(value) for value in line.split()] for line in lines]).T


def plain(settings: dict[str, Any], optimizer: str, tick: Tick, results: Results) -> dict[str, Any]:
    """Per loss, the reference is the rate of the lowest median best loss.

    Each seed's target is the lowest loss of its reference run, its steps are where that run first
    has it. Every average is reported at the rate that brings it to the targets soonest.
    """
    every = settings["evaluate_every"]
    curves: dict[float, dict[str, Floats]] = {}
    for rate in settings["rates"][optimizer]:
        own = results[f"{optimizer}/rate {rate:g}"]
        runs = {name: lines for name, lines in own.items() if name != "finished"}
        curves[rate] = {n: np.array([unpacked(run) for run in of]) for n, of in runs.items()}
    lowest = {rate: np.nanmin(own["plain"], 1) for rate, own in curves.items()}
    best = {
        loss: _least({rate: float(np.median(low[:, k])) for rate, low in lowest.items()})
        for k, loss in enumerate(race.LOSSES)
    }
    tuned = _tuning_targets(settings, optimizer, best, tick)
    found: dict[str, Any] = {}
    for k, (loss, rate) in enumerate(best.items()):
        target = lowest[rate][:, k]
        steps = race.first_steps(curves[rate]["plain"][..., k : k + 1], target[:, None], every)
        rivals: dict[str, Any] = {}
        for own_rate, of in curves.items():
            for name, values in of.items():
                taken = race.first_steps(values[..., k : k + 1], target[:, None], every)
                factors = (steps / taken)[:, 0]
                if name not in rivals or np.median(factors) > np.median(rivals[name]["factors"]):
                    rivals[name] = {"rate": own_rate, "factors": factors.tolist()}
        found[loss] = {
            "rate": rate,
            "medians": {str(r): float(np.median(low[:, k])) for r, low in lowest.items()},
            "target": {"seeds": target.tolist(), "tuning": tuned[loss]},
            "steps": steps[:, 0].tolist(),
            "rivals": rivals,
        }
    shown = curves[best["training"]]
    found["curves"] = {name: packed(np.median(shown[name], 0)) for name in _SHOWN if name in shown}
    return found


def _tuning_targets(
    settings: dict[str, Any], optimizer: str, best: dict[str, float], tick: Tick
) -> dict[str, list[float]]:
    """Lowest losses of plain training of the seeds on which the jumps' rates are tuned."""
    digits = mnist.of_settings(settings)
    found: dict[str, list[float]] = {}
    with one_thread(torch.device("cpu")):
        for k, (loss, rate) in enumerate(best.items()):
            found[loss] = []
            for seed in settings["tuning"]:
                run = race.plain_run(settings, digits, optimizer, rate, seed, averaged=False)
                found[loss].append(float(np.min(np.array(run["plain"])[:, k])))
                tick()
    return found


def jumping(
    settings: dict[str, Any], optimizer: str, method: str, tick: Tick, results: Results
) -> dict[str, Any]:
    """Tune the rate on other seeds, per loss, then run every seed at the best ones."""
    digits = mnist.of_settings(settings)
    reference = results[f"{optimizer}/plain"]
    options = {**settings["attach"], "candidates": METHODS[method]}
    every, limit = settings["evaluate_every"], settings["steps"]
    goals = {
        who: np.array([reference[loss]["target"][who] for loss in race.LOSSES]).T
        for who in ("tuning", "seeds")
    }
    tried = {}
    found: dict[str, Any] = {}
    with one_thread(torch.device("cpu")):
        for rate in settings["rates"][optimizer]:
            averaged = []
            for seed in settings["tuning"]:
                run, _ = race.jumping_run(settings, digits, optimizer, rate, seed, options)
                averaged.append(run["averaged"])
                tick()
            steps = race.first_steps(averaged, goals["tuning"], every)
            # A seed that never arrives counts twice the limit.
            tried[rate] = np.mean(np.minimum(steps, 2 * limit), 0)
        best = {
            loss: _least({rate: float(steps[k]) for rate, steps in tried.items()})
            for k, loss in enumerate(race.LOSSES)
        }
        for rate in sorted(set(best.values())):
            wanted = [loss for loss in race.LOSSES if best[loss] == rate]
            runs: list[race.Curves] = []
            totals, step_seconds = [], []
            for seed in settings["seeds"]:
                probe = partial(race.step_seconds, settings, digits, optimizer, rate, seed)
                before = probe()
                run, total = race.jumping_run(settings, digits, optimizer, rate, seed, options)
                runs.append(run)
                totals.append(total)
                step_seconds.append((before + probe()) / 2)
                tick()
            for loss in wanted:
                found[loss] = _scored(settings, reference[loss], loss, runs, totals, step_seconds)
                found[loss]["rate"] = rate
            if "training" in wanted:
                curves = np.array([run["averaged"] for run in runs])
                found["curves"] = packed(np.median(curves, 0))
    found["tuning_steps"] = {str(rate): steps.tolist() for rate, steps in tried.items()}
    return found


def _least(values: dict[float, float]) -> float:
    """The rate with the least value."""
    return min(values, key=values.__getitem__)


def _scored(
    settings: dict[str, Any],
    reference: dict[str, Any],
    loss: str,
    runs: list[race.Curves],
    totals: list[dict[str, Any]],
    step_seconds: list[float],
) -> dict[str, Any]:
    """Factors of one loss: of the averaged model, of the weights themselves, and in seconds."""
    k, every = race.LOSSES.index(loss), settings["evaluate_every"]
    target = np.array(reference["target"]["seeds"])[:, None]
    plain_steps = np.array(reference["steps"])
    taken = {
        kind: race.first_steps([np.array(run[kind])[:, k : k + 1] for run in runs], target, every)
        for kind in ("averaged", "weights")
    }
    clock = []
    for steps, count, total, one in zip(
        plain_steps, taken["averaged"][:, 0], totals, step_seconds, strict=True
    ):
        reached = np.isfinite(count)
        spent = total["seconds_at"][int(count) // every - 1] if reached else np.inf
        clock.append(float(steps * one / spent))
    return {
        "factors": (plain_steps / taken["averaged"][:, 0]).tolist(),
        "weights_factors": (plain_steps / taken["weights"][:, 0]).tolist(),
        "seconds_factors": clock,
        "accepted": [total["accepted"] for total in totals],
        "jumps": [total["jumps"] for total in totals],
        "evaluations": [total["evaluations"] for total in totals],
        "kinds": [total["kinds"] for total in totals],
    }


NOTES = (
    "Factors: what plain training at its best rate takes to its lowest loss, over what the method "
    "takes to the same loss (0: not within the same limit); median over seeds, least in brackets; "
    "evaluated every 20 steps. Losses are over digits that no method decides by: the validation "
    "digits, and 1,000 of those trained on. Plain training and the averages are tuned on the "
    "measured seeds themselves, the jumping methods on others. koopcore and line are judged by "
    "the average that attach keeps beside the weights (average=0.98), as EMA is by its own. "
    "Seconds are processor time on one thread, all included but these evaluations."
)


def table(results: Results, settings: dict[str, Any]) -> RenderableType:
    """One line per optimizer and method, for both losses."""
    shown = Table(
        title=f"End to end: MNIST, {len(settings['seeds'])} seeds",
        box=SIMPLE_HEAVY,
        title_style="bold",
        padding=(0, 1, 0, 0),
    )
    shown.add_column("factors", no_wrap=True)
    for loss in race.LOSSES:
        for head in ("rate", f"{loss}\nsteps", "\nseconds"):
            shown.add_column(head, justify="right", no_wrap=True)
    for optimizer in settings["rates"]:
        own = results.get(f"{optimizer}/plain")
        if own is None:
            continue
        for name in own["validation"]["rivals"]:
            line = []
            for loss in race.LOSSES:
                rival = own[loss]["rivals"][name]
                line += [f"{rival['rate']:g}", _spread(rival["factors"]), "-"]
            shown.add_row(f"{optimizer}: plain" if name == "plain" else f"  {name}", *line)
        for method in reversed(METHODS):
            jumped = results.get(f"{optimizer}/{method}")
            if jumped is None:
                continue
            line = []
            for loss in race.LOSSES:
                scores = jumped[loss]
                line += [f"{scores['rate']:g}", _spread(scores["factors"])]
                line.append(_spread(scores["seconds_factors"]))
            bold = "bold" if method == "koopcore" else None
            shown.add_row(f"  {method}", *line, style=bold, end_section=method == "koopcore")
    regime = (
        f"784:20:20:20:10, batch {settings['batch']}, {settings['steps']:,} steps, constant rates; "
        f"{mnist.described(settings)}; seeds {settings['seeds'][0]} to {settings['seeds'][-1]}."
    )
    return Group(shown, Text(regime + "\n" + NOTES, style="dim"))


def _spread(factors: list[float]) -> str:
    return f"{np.median(factors):.2f} ({min(factors):.2f})"


def picture(results: Results, settings: dict[str, Any]) -> Figure:
    """Median training loss over steps, one panel per optimizer, each method at its best rate."""
    optimizers = [o for o in settings["rates"] if f"{o}/plain" in results]
    figure = Figure(figsize=(4.6 * max(len(optimizers), 1), 3.8), dpi=110, layout="constrained")
    panels: Any = figure.subplots(1, max(len(optimizers), 1), squeeze=False)[0]
    for axes, optimizer in zip(panels, optimizers, strict=False):
        curves = dict(results[f"{optimizer}/plain"]["curves"])
        for method in METHODS:
            jumped = results.get(f"{optimizer}/{method}")
            if jumped is not None and "curves" in jumped:
                curves[method] = jumped["curves"]
        for name, values in curves.items():
            training = unpacked(values)[:, race.LOSSES.index("training")]
            steps = (np.arange(len(training)) + 1) * settings["evaluate_every"]
            axes.plot(steps, training, color=_HUES[name], lw=1.2, label=name)
        axes.set(title=optimizer, xlabel="optimizer steps", ylabel="training loss", yscale="log")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    return figure
