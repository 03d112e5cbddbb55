"""Pictures of learned operators: trajectories predicted from one state, and the rates of E."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from koopcore.lab.problems import van_der_pol
from koopcore.lab.problems.glycolysis import NAMES
from koopcore.lab.problems.van_der_pol import Split
from koopcore.learning import LearnedOperator

_TRUE, _KOOPMAN = "#2f6db3", "#e0662c"


def van_der_pol_figure(
    shown: Mapping[float, LearnedOperator], rates: Mapping[str, dict[str, Any]]
) -> Figure:
    """One row per μ: both states predicted 200 steps from x_0 (Fig. 1), the cycle, the rates."""
    figure = Figure(figsize=(14, 4.2 * len(shown)), dpi=110, layout="constrained")
    grid: Any = figure.subplots(len(shown), 3, squeeze=False)
    for (mu, learned), (states, plane, rate) in zip(shown.items(), grid, strict=True):
        parts = van_der_pol.paper_split(mu)
        predicted = learned.predict(parts.test[0], len(parts.test) - 1)
        steps = np.arange(1, len(predicted) + 1)
        for column, name in enumerate(("$x_1$", "$x_2$")):
            states.plot(steps, parts.test[1:, column], color=_TRUE, lw=4, alpha=0.35)
            states.plot(steps, predicted[:, column], color=_KOOPMAN, ls=(0, (4, 2)))
            states.annotate(name, (steps[8], parts.test[9, column]), fontsize=12)
        states.set(xlabel="steps after $x_0$", title=f"$\\mu$ = {mu}: predicted from $x_0$ alone")
        plane.plot(*parts.test.T, color=_TRUE, lw=4, alpha=0.35, label="true")
        plane.plot(*predicted.T, color=_KOOPMAN, ls=(0, (4, 2)), label="Koopman")
        plane.set(xlabel="$x_1$", ylabel="$x_2$", title="limit cycle")
        plane.legend(frameon=False)
        _draw_rates(rate, rates[str(mu)])
    return figure


def _draw_rates(axes: Any, rates: dict[str, Any]) -> None:
    t = np.asarray(rates["iterations"])
    for name, colour in (("constant", _TRUE), ("diminishing", _KOOPMAN)):
        curves = np.asarray(rates[name])
        axes.loglog(t, curves.T, color=colour, lw=0.7, alpha=0.35)
        axes.loglog(t, np.median(curves, axis=0), color=colour, lw=2.2, label=f"{name} step")
    start = float(np.median(np.asarray(rates["constant"])[:, 0]))
    axes.loglog(t, start / t, color="black", lw=1, ls=":", label="$\\propto 1/T$")
    axes.loglog(
        t, start / (1 + np.log(t)), color="black", lw=1, ls="--", label="$\\propto 1/\\log T$"
    )
    slope = np.median(rates["constant_slopes"])
    axes.set(xlabel="$T$", ylabel="$\\min_{t\\leq T} E$", title=f"rates; fitted slope {slope:.2f}")
    axes.legend(frameon=False, fontsize=8)


def glycolysis_figure(
    learned: LearnedOperator, parts: Split, curves: Mapping[int, tuple[Sequence[float], int]]
) -> Figure:
    """Seven species predicted 400 steps from x_0 (Fig. 2), and F against the steps taken.

    curves: by seed, F at evenly spaced steps, and how many steps there were.
    """
    figure = Figure(figsize=(14, 6.5), dpi=110, layout="constrained")
    axes: Any = figure.subplots(2, 4).ravel()
    predicted = learned.predict(parts.test[0], len(parts.test) - 1)
    minutes = 0.01 * np.arange(1, len(predicted) + 1)
    for column, (one, name) in enumerate(zip(axes, NAMES, strict=False)):
        one.plot(minutes, parts.test[1:, column], color=_TRUE, lw=4, alpha=0.35, label="true")
        one.plot(minutes, predicted[:, column], color=_KOOPMAN, ls=(0, (4, 2)), label="Koopman")
        one.set(title=name, xlabel="min after $x_0$", ylabel="mM")
    axes[0].legend(frameon=False, loc="lower left", fontsize=8)
    for seed, (objective, steps) in curves.items():
        axes[-1].loglog(np.linspace(1, steps, len(objective)), objective, label=f"seed {seed}")
    axes[-1].set(title="objective", xlabel="step", ylabel="F")
    axes[-1].legend(frameon=False, fontsize=8)
    return figure
