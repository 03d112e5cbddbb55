"""Figure 3 of Dogra & Redman 2020: validation loss on MNIST, trained and predicted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import RenderableType

from koopcore.lab.experiment import Cell, Results
from koopcore.lab.experiments import table2

_MARKED = {
    "koopcore, quasi-node": ("o", "#e0662c"),
    "network, affine": ("s", "#2e9164"),
    "straight line": ("^", "#a2448f"),
    "window mean": ("x", "#5d6675"),
}


def settings(quick: bool, data: str | None = None) -> dict[str, Any]:
    """Those of Table 2, three seeds."""
    regime = table2.settings(quick, data)
    return {**regime, "seeds": min(3, regime["seeds"])}


def cells(settings: dict[str, Any]) -> Sequence[Cell]:
    """Table 2's, but for the times."""
    return [cell for cell in table2.cells(settings) if cell.name.startswith("seed ")]


def table(results: Results, settings: dict[str, Any]) -> RenderableType:
    """As Table 2, of these seeds."""
    return table2.table(results, settings)


def picture(results: Results, settings: dict[str, Any]) -> Figure:
    """One panel per seed; predictions are marked at ``t2 + T``, those above the panel left out."""
    seeds = [name for name in results if name.startswith("seed ")]
    figure = Figure(figsize=(4.6 * len(seeds), 3.8), dpi=110, layout="constrained")
    panels: Any = figure.subplots(1, len(seeds), squeeze=False)[0]
    every, horizon = settings["evaluate_every"], settings["horizon"]
    for axes, name in zip(panels, seeds, strict=True):
        cell = results[name]
        past = (np.arange(len(cell["before"])) - len(cell["before"])) * every
        steps = np.arange(len(cell["validation"])) * every
        axes.plot(past, cell["before"], color="#b9bec7", lw=0.8)
        axes.plot(steps, cell["validation"], color="#b9bec7", lw=0.8, label="validation loss")
        axes.plot(steps, cell["smoothed"], color="#2f6db3", label="smoothed")
        for row, (marker, hue) in _MARKED.items():
            loss = cell["rows"][row]["loss"]
            if loss <= max(cell["before"]):
                axes.plot([horizon], [loss], marker, color=hue, ls="", label=row)
        axes.axvspan(past[0], 0, color="#f0e9da", zorder=0, lw=0)
        axes.set(title=name, xlabel="optimizer steps after $t_2$", ylabel="validation loss")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    return figure
