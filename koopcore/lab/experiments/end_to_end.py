"""End to end: steps and seconds to a loss, everything included, against tuned plain training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAVY
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from koopcore.lab.experiments import oscillator_race as oscillator
from koopcore.lab.experiments.experiment import Cell, Results


def settings(quick: bool) -> dict[str, Any]:
    """Rates, networks, seeds and the options of ``attach``, defaults but for Adam's snapshots."""
    chosen: dict[str, Any] = {
        "networks": 8,
        "seed": 300,
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
        "attach": {"adagrad": {}, "adadelta": {}, "adam": {"stride": 10, "record": "mean"}},
        "ema": [0.9, 0.99],
        "lawa": [10, 25],
        "average_every": 10,
    }
    if quick:
        chosen |= {
            "networks": 2,
            "tuning": 1,
            "steps": 1500,
            "rates": {"adagrad": [0.1, 0.3], "adadelta": [0.3, 1.0], "adam": [0.01, 0.03]},
            "jump_rates": {"adagrad": [0.1, 0.3], "adadelta": [1.0, 2.0], "adam": [0.01, 0.03]},
        }
    return {"oscillator": chosen}


def _decaying(rates: Sequence[float], *decays: float) -> list[list[float]]:
    """Pairs (rate, decay): the weakly decaying rates of Dogra & Redman, who do not print them."""
    return [[rate, decay] for decay in decays for rate in rates]


def cells(settings: dict[str, Any]) -> Sequence[Cell]:
    """The oscillator's cells."""
    return oscillator.cells(settings["oscillator"])


NOTES = (
    "Factors: what plain training at its best rate takes to its lowest loss, over what the method "
    "takes to the same loss (0: not within the same limit); median over networks, least in "
    "brackets. Seconds are processor time on one thread; recording, fits, loss checks and rejected "
    "jumps included. Plain training is tuned on the measured networks themselves, the jumping "
    "methods on others.\n"
    "Paper: Dogra & Redman's own schedule, 45,000 ordinary steps and 2,500 predicted, is 1.055x "
    "end to end."
)


def table(results: Results, settings: dict[str, Any]) -> RenderableType:
    """One line per optimizer and method."""
    chosen = settings["oscillator"]
    shown = Table(
        title=f"End to end: {chosen['networks']} oscillator networks",
        box=SIMPLE_HEAVY,
        title_style="bold",
    )
    shown.add_column("method", no_wrap=True)
    for head in ("rate", "steps", "seconds", "loss checks\nper step"):
        shown.add_column(head, justify="right", no_wrap=True)
    for optimizer in chosen["rates"]:
        plain = results.get(f"oscillator/{optimizer}/plain")
        if plain is None:
            continue
        shown.add_row(f"{optimizer}: plain", plain["rate"], "1", "1", "0")
        for name, average in plain["averages"].items():
            shown.add_row(f"  {name}", average["rate"], _spread(average["factors"]), "-", "")
        for method in reversed(oscillator.METHODS):
            own = results.get(f"oscillator/{optimizer}/{method}")
            if own is None:
                continue
            checks = sum(r["evaluations"] for r in own["runs"])
            taken = sum(r["steps"] for r in own["runs"])
            shown.add_row(
                f"  {method}",
                own["rate"],
                _spread(own["factors"]),
                _spread(own["seconds_factors"]),
                f"{checks / max(taken, 1):.2f}",
                style="bold" if method == "koopcore" else None,
                end_section=method == "koopcore",
            )
    regime = (
        f"t in [0, {chosen['duration'] / math.pi:g} pi], {chosen['precision']}, "
        f"{chosen['steps']:,} steps, rate / (1 + decay s) at step s, constant where no decay is "
        f"named, seed {chosen['seed']}."
    )
    return Group(shown, Text(regime + "\n" + NOTES, style="dim"))


def _spread(factors: list[float]) -> str:
    return f"{np.median(factors):.2f}x ({min(factors):.2f})"
