"""Figure 2 of Dogra & Redman 2020: losses and weights of one network, trained and predicted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import RenderableType

import koopcore as kc
from koopcore.lab.experiment import Cell, Context, Results, sheet
from koopcore.lab.problems.descent import Descent, one_thread
from koopcore.lab.problems.oscillator import OscillatorBatch, batched_partition

_SHOWN = 6


def settings(quick: bool) -> dict[str, Any]:
    """One network per optimizer; horizons as long as each optimizer's trajectory can be read."""
    regime: dict[str, Any] = {
        "seed": 0,
        "duration": 4 * math.pi,
        "precision": "float64",
        "t1": 8000,
        "window": 17,
        "stride": 50,
        "horizon": {"adam": 500, "adagrad": 2500, "adadelta": 2500},
    }
    if quick:
        regime |= {"t1": 1000, "stride": 20, "horizon": dict.fromkeys(regime["horizon"], 200)}
    return regime


def cells(settings: dict[str, Any]) -> Sequence[Cell]:
    """One per optimizer."""
    inside = (settings["window"] - 1) * settings["stride"]
    return [
        Cell(name, settings["t1"] + inside + horizon, partial(curves, settings, name))
        for name, horizon in settings["horizon"].items()
    ]


def curves(settings: dict[str, Any], optimizer: str, context: Context) -> dict[str, Any]:
    """Losses and six weights every stride: recorded, trained on and predicted."""
    dtype = getattr(torch, settings["precision"])
    problem = OscillatorBatch(1, settings["seed"], dtype=dtype, duration=settings["duration"])
    descent = Descent(problem, optimizer)
    stride, horizon = settings["stride"], settings["horizon"][optimizer]
    descent.advance(settings["t1"], tick=context.tick)
    inside = (settings["window"] - 1) * stride
    recorded = descent.advance(inside, every=stride, tick=context.tick)
    after = descent.advance(horizon, every=stride, tick=context.tick)
    window = recorded.snapshots[:, 0].contiguous()
    path = kc.fit(window, batched_partition("network", 1)).trajectory(horizon // stride)
    predicted = torch.cat((window[-1:], path))
    with one_thread(predicted.device):
        losses = problem.loss(predicted)
    true = after.snapshots[:, 0]
    moved = (true[-1] - true[0]).abs()
    # Evenly through the movers, largest first: the largest alone are near copies of each other.
    order = moved.argsort(descending=True)[: len(moved) // 3]
    shown = order[torch.linspace(0, len(order) - 1, _SHOWN).long()]
    return {
        "loss_recorded": recorded.losses[::stride, 0].tolist(),
        "loss_trained": after.losses[::stride, 0].tolist(),
        "loss_predicted": losses.tolist(),
        "weights": shown.tolist(),
        "recorded": window[:, shown].tolist(),
        "trained": true[:, shown].tolist(),
        "predicted": predicted[:, shown].tolist(),
    }


def table(results: Results, settings: dict[str, Any]) -> RenderableType:
    """Loss at both ends of the prediction."""
    heads = ("T, steps", "at t2", "trained on", "predicted")
    shown = sheet("Figure 2: losses of one oscillator network", heads, "optimizer")
    for name, horizon in settings["horizon"].items():
        if name in results:
            cell = results[name]
            ends = (cell["loss_trained"][0], cell["loss_trained"][-1], cell["loss_predicted"][-1])
            shown.add_row(name, f"{horizon:,}", *(f"{loss:.4e}" for loss in ends))
    return shown


def picture(results: Results, settings: dict[str, Any]) -> Figure:
    """A row per optimizer: loss (Fig. 2b of the paper) and weights (Fig. 2d)."""
    names = [name for name in settings["horizon"] if name in results]
    figure = Figure(figsize=(11, 3.2 * len(names) + 0.5), dpi=110, layout="constrained")
    grid: Any = figure.subplots(len(names), 2, squeeze=False)
    stride = settings["stride"]
    for name, (left, right) in zip(names, grid, strict=True):
        cell = results[name]
        past = (np.arange(len(cell["recorded"])) - len(cell["recorded"]) + 1) * stride
        steps = np.arange(len(cell["trained"])) * stride
        left.plot(past, cell["loss_recorded"], color="#22262e", label="recorded")
        left.plot(steps, cell["loss_trained"], color="#2f6db3", lw=3.5, alpha=0.4, label="trained")
        left.plot(steps, cell["loss_predicted"], "--", color="#e0662c", label="Koopman")
        left.set(ylabel="loss", yscale="log", title=name.capitalize())
        left.legend(frameon=False)
        start = np.array(cell["recorded"])[-1]
        for column in range(_SHOWN):
            hue = f"C{column}"
            right.plot(past, np.array(cell["recorded"])[:, column] - start[column], color=hue)
            for kind, style in (("trained", {"lw": 4, "alpha": 0.3}), ("predicted", {"ls": "--"})):
                right.plot(
                    steps, np.array(cell[kind])[:, column] - start[column], color=hue, **style
                )
        right.set(ylabel="weight - weight at $t_2$", title="six weights")
        for axes in (left, right):
            axes.axvspan(past[0], 0, color="#f0e9da", zorder=0, lw=0)
            axes.set_xlabel("optimizer steps after $t_2$")
            axes.spines[["top", "right"]].set_visible(False)
    return figure
